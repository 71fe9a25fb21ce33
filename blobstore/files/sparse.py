"""SciPy's sparse matrices and arrays, in the layout of `scipy.sparse.save_npz` and beyond it."""

from __future__ import annotations

import zipfile
from typing import Any, BinaryIO, ClassVar

import numpy as np
import scipy.sparse as sp

from blobstore.ast_race import parsing_again
from blobstore.errors import DecodeError
from blobstore.files.numpy import MALFORMED, check_growth, write_npy
from blobstore.files.options import lent, reading, refuse_options
from blobstore.files.trust import growth_limit
from blobstore.handlers.sparse import BYTES_OF_LISTS
from blobstore.limits import bomb
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_ITS_OWN = {"csr", "csc", "coo", "bsr", "dia"}
_FORMAT = "blobstore_format"
_BYTES_OF_ENTRY = {"dok": 300, "lil": 80}
"""What an entry takes in the layouts that keep Python objects."""


class SparseFormat(FileFormat):
    """A sparse matrix or array of any layout: ``.sparse.npz``, which `scipy.sparse.load_npz` reads.

    The layouts that SciPy does not write (dok, lil) are kept as coordinates, and the file notes
    which of the two it was.
    """

    name = "sparse"
    extensions = (".sparse.npz", ".sparse")
    priority = 60
    type_names: ClassVar[tuple[str, ...]] = tuple(
        f"scipy.sparse._{layout}.{layout}_{kind}"
        for layout in ("csr", "csc", "coo", "bsr", "dia", "dok", "lil")
        for kind in ("matrix", "array")
    )

    def can_handle(self, obj: Any) -> bool:
        """All but those of Python objects."""
        return sp.issparse(obj) and not obj.dtype.hasobject

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the arrays it is made of."""
        stored = obj if obj.format in _ITS_OWN else obj.tocoo()
        with lent(sink, context) as path:
            with path.open("wb") as file:
                sp.save_npz(file, stored, compressed=False)
            if stored is not obj:
                info = zipfile.ZipInfo(f"{_FORMAT}.npy")
                with zipfile.ZipFile(path, "a") as archive, archive.open(info, "w") as member:
                    write_npy(member, np.array(obj.format.encode()))

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the matrix."""
        refuse_options(context, options)
        with reading(context, *MALFORMED), source.open() as file:
            check_growth(file, source.size, context)
            loaded, wanted = parsing_again(lambda: _load(file))
            if wanted is None:
                return loaded
            if wanted not in _BYTES_OF_ENTRY:
                raise DecodeError(f"{context.key!r} is of an unknown layout {wanted!r}")
            limit = growth_limit(context, source.size)
            lists = loaded.shape[0] * BYTES_OF_LISTS if wanted == "lil" else 0
            if lists + loaded.nnz * _BYTES_OF_ENTRY[wanted] > limit:
                raise bomb(repr(context.key), limit)
            return loaded.asformat(wanted)


def _load(file: BinaryIO) -> tuple[Any, str | None]:
    """What SciPy reads, and the layout that the file notes besides."""
    file.seek(0)
    loaded = sp.load_npz(file)
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        noted = bytes(archive[_FORMAT]).decode() if _FORMAT in archive.files else None
    return loaded, noted
