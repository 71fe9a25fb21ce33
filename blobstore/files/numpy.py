"""NumPy's own files: one array in ``.npy``, several by name in ``.npz``."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, BinaryIO, ClassVar

import numpy as np

from blobstore.ast_race import parsing_again
from blobstore.errors import DecodeError, InvalidInputError
from blobstore.files.options import lent, reading, refuse_options, wanted_names
from blobstore.files.trust import growth_limit
from blobstore.limits import check_archive
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import CHUNK, Sink, Source

_SUFFIX = ".npy"
MALFORMED = (
    *(ValueError, EOFError, OSError, KeyError, IndexError, TypeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, tokenize.TokenError),
    *(OverflowError, MemoryError, AttributeError),
)
"""What NumPy and `zipfile` raise for damaged files; encrypted ones are a RuntimeError, and shapes
beyond all memory the last two."""


def is_plain(obj: Any) -> bool:
    """Whether NPY holds an array exactly, without Python objects."""
    return type(obj) is np.ndarray and not obj.dtype.hasobject and _is_told(obj.dtype)


def _is_told(dtype: np.dtype[Any]) -> bool:
    """Whether the header of NPY says a type exactly."""
    if _says_more(dtype):
        return False
    try:
        return bool(np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype)) == dtype)
    except ValueError:  # fields that overlap, or lie in another order than they are named in
        return False


def _says_more(dtype: np.dtype[Any]) -> bool:
    """Whether a type, or one inside it, has notes or gives records, which equality leaves out."""
    if dtype.metadata is not None or issubclass(dtype.type, np.record):
        return True
    if dtype.subdtype is not None:
        return _says_more(dtype.subdtype[0])
    return any(_says_more(field[0]) for field in (dtype.fields or {}).values())


def write_npy(file: Any, array: Any) -> None:
    """Write an array; where field names are beyond Latin-1, in version 3 of the format."""
    header = repr(np.lib.format.dtype_to_descr(array.dtype))
    version = None if header.isascii() else (3, 0)
    np.lib.format.write_array(file, array, version=version, allow_pickle=False)


class NpyFormat(FileFormat):
    """One array, in NPY format; never with Python objects."""

    name = "npy"
    extensions = (".npy",)
    priority = 50
    type_names: ClassVar[tuple[str, ...]] = ("numpy.ndarray",)

    def can_handle(self, obj: Any) -> bool:
        """What NPY holds exactly."""
        return is_plain(obj)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write header and elements."""
        write_npy(_Writer(sink), obj)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the array; with `rows`, a slice, only those."""
        refuse_options(context, options, "rows")
        rows = options.get("rows")
        if not isinstance(rows, slice | None):
            raise InvalidInputError(f"rows must be a slice, not {rows!r}", key=context.key)
        with reading(context, *MALFORMED):
            if rows is None:
                return parsing_again(lambda: _read_npy(source))
            with source.path() as path:  # mapped, so that only these rows are read
                mapped = parsing_again(lambda: np.load(path, mmap_mode="r", allow_pickle=False))
                return np.array(mapped[rows])


def _read_npy(source: Source) -> Any:
    with source.open() as file:
        return np.lib.format.read_array(file, allow_pickle=False)


class NpzFormat(FileFormat):
    """A dictionary of arrays, as `np.savez` writes it."""

    name = "npz"
    extensions = (".npz",)
    priority = 45
    type_names: ClassVar[tuple[str, ...]] = ("builtins.dict",)

    def can_handle(self, obj: Any) -> bool:
        """At least one array, each with a name that a zip file keeps."""
        return (
            isinstance(obj, dict)
            and len(obj) > 0
            and all(
                type(name) is str and _is_member(name) and is_plain(array)
                for name, array in obj.items()
            )
        )

    def write(self, obj: Mapping[str, Any], sink: Sink, context: FileContext) -> None:
        """Write a zip of NPY files, uncompressed."""
        with lent(sink, context) as path, zipfile.ZipFile(path, "w") as archive:  # uncompressed
            for name, array in obj.items():
                info = zipfile.ZipInfo(name + _SUFFIX)  # of no time: equal arrays, equal bytes
                with archive.open(info, "w", force_zip64=True) as member:
                    write_npy(member, array)

    def read(self, source: Source, context: FileContext, **options: Any) -> dict[str, Any]:
        """Read all arrays, or those that `names` lists."""
        refuse_options(context, options, "names")
        with reading(context, *MALFORMED), source.open() as file:
            check_growth(file, source.size, context)
            with np.load(file, allow_pickle=False) as archive:
                names = wanted_names(options, context)
                if unknown := set(names or ()) - set(archive.files):
                    raise InvalidInputError(
                        f"there is no array {min(unknown)!r}: there are {', '.join(archive.files)}",
                        key=context.key,
                    )
                wanted = archive.files if names is None else names
                return {name: parsing_again(partial(archive.get, name)) for name in wanted}


def check_growth(file: BinaryIO, size: int, context: FileContext) -> None:
    """Refuse what is no zip file, or a small one whose arrays would fill the memory.

    Raises
    ------
    DecodeError
    """
    if not zipfile.is_zipfile(file):
        raise DecodeError(f"{context.key!r} is no zip of arrays", key=context.key)
    check_archive(file, growth_limit(context, size), repr(context.key))


def _is_member(name: str) -> bool:
    """Whether the name of an array comes back from a zip file as it is."""
    return (
        name != ""
        and name.isprintable()
        and "\\" not in name
        and not name.endswith(_SUFFIX)
        and len(name.encode("utf-8", "surrogatepass")) < 60_000
    )


class _Writer:
    """A file as far as NumPy writes to one, in pieces of a bounded size."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            self._sink.write(view[start : start + CHUNK])
        return len(view)
