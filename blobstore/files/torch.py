"""PyTorch's own files: tensors, dictionaries that hold them, and whole modules."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from typing import IO, Any, BinaryIO, ClassVar

import torch

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.files.options import reading, refuse_options, writing
from blobstore.files.trust import FileTrust, ZipSigner
from blobstore.limits import check_archive
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import CHUNK, BytesSource, Sink, Source

_MALFORMED = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, AssertionError),
    *(TypeError, AttributeError, IndexError, OverflowError, MemoryError, struct.error),
    *(zipfile.BadZipFile, zlib.error),
)
"""What PyTorch raises for damaged files."""
_REFUSALS = (
    pickle.PicklingError,
    TypeError,
    AttributeError,
    RecursionError,
    RuntimeError,  # NotImplementedError, too; scripted modules
    ValueError,
)
_BYTEARRAY = b"\nbytearray\n"
_WHOLE = "a PyTorch file that holds more than tensors"


class TorchFormat(FileFormat):
    """What `torch.save` writes: tensors and containers of them, modules.

    Tensors are loaded with ``weights_only=True``, which runs nothing. A module is a pickle: it is
    loaded where the file bears the reader's own signature, or the store says ``pickle="allow"``.
    """

    name = "torch"
    extensions = (".pt", ".pth")
    priority = 60
    type_names: ClassVar[tuple[str, ...]] = ("*",)

    def can_handle(self, obj: Any) -> bool:
        """A tensor, a module, or a container that holds a tensor somewhere."""
        return isinstance(obj, torch.Tensor | torch.nn.Module) or _holds_tensor(obj)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the file, and what the reader will know it by.

        Raises
        ------
        UnsupportedTypeError
            It holds what pickle does not take.
        UntrustedTypeError
            It holds more than tensors, and the store was opened with ``pickle="deny"``.
        """
        trust = FileTrust.of(context)
        signer = ZipSigner(sink, trust, context.key)
        if trust.mode == "deny":
            self._write_tensors(obj, signer, trust, context)
        else:
            _save(obj, signer, context)
        signer.finish()

    def _write_tensors(
        self, obj: Any, signer: ZipSigner, trust: FileTrust, context: FileContext
    ) -> None:
        """Write what holds nothing but tensors, which only the finished file tells."""
        with writing(context), tempfile.TemporaryFile() as file:
            _save(obj, file, context)
            file.seek(0)
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
            if unsafe or _has_bytearray(file, zipped=True):
                trust.check_allowed(context.key, _WHOLE)
            file.seek(0)
            while chunk := file.read(CHUNK):
                signer.write(chunk)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the file, to the CPU or where `map_location` says."""
        refuse_options(context, options, "map_location")
        where = options.get("map_location", "cpu")
        trust = FileTrust.of(context)
        with reading(context, *_MALFORMED), source.open() as file:
            zipped = zipfile.is_zipfile(file)
            if zipped:  # PyTorch unpacks members that it would not compress
                check_archive(file, trust.growth_limit(source.size), repr(context.key))
            try:
                return _load_tensors(file, where, zipped=zipped)
            except pickle.UnpicklingError as exc:
                # In memory: what is unpickled is what was checked, whoever writes meanwhile.
                held = BytesSource(source.read())
                if trust.doubt(held, context.key, zipped=True) is not None:
                    _check_whole(held, context)
                trust.require(held, context.key, _WHOLE, exc)
        try:
            return torch.load(held.open(), map_location=where, weights_only=False)
        except Exception as exc:
            # Unpickling runs the code of the object's class, which may raise anything at all.
            raise DecodeError(
                f"{context.key!r} cannot be loaded by PyTorch: {exc!r}. If a class is missing, import "
                "the code that defines it",
                key=context.key,
            ) from exc


def _check_whole(source: Source, context: FileContext) -> None:
    """Tell a file that is damaged from one that is not trusted; nothing of it is loaded.

    Raises
    ------
    DecodeError
    """
    try:
        with source.open() as file:
            if zipfile.is_zipfile(file) or source.read_range(0, 2) == b"PK":
                _check_members(file, source.size)
            else:  # as PyTorch wrote them before 1.6: pickles, of which the first is a mere number
                file.seek(0)
                for _ in pickletools.genops(file):
                    pass
    except _MALFORMED as exc:
        raise DecodeError(
            f"{context.key!r} cannot be read as a {context.extension} file: it is damaged ({exc}). "
            "Replace it by a copy",
            key=context.key,
        ) from exc


def _check_members(file: BinaryIO, size: int) -> None:
    """Read all that is in a zip file, of which PyTorch compresses nothing, and compare checksums."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if compressed or sum(member.file_size for member in members) > size:
            return  # none of PyTorch's; it could be read without end
        damaged = archive.testzip()
        comment = len(archive.comment)
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged!r} is wrong")
    file.seek(-comment - 2, io.SEEK_END)
    if int.from_bytes(file.read(2), "little") != comment:
        raise zipfile.BadZipFile("its end is missing")


def _save(obj: Any, file: Any, context: FileContext) -> None:
    try:
        torch.save(obj, file)
    except _REFUSALS as exc:
        failure = getattr(file, "failure", None)
        if failure is not None:  # a full disk, whatever PyTorch makes of it
            raise failure from exc
        raise UnsupportedTypeError(
            f"{context.key!r}: PyTorch cannot save this: {exc}. Store its tensors, for instance "
            "the state_dict of a module",
            key=context.key,
        ) from exc


def _load_tensors(file: BinaryIO, where: Any, *, zipped: bool) -> Any:
    """Load a file that holds only tensors, and what may lie beside them.

    Raises
    ------
    pickle.UnpicklingError
        It holds something else.
    """
    if _has_bytearray(file, zipped=zipped):
        raise pickle.UnpicklingError("it has a bytearray, which may be of any length")
    file.seek(0)
    return torch.load(file, map_location=where, weights_only=True)


def _has_bytearray(file: IO[bytes], *, zipped: bool) -> bool:
    """Whether a file asks for a `bytearray`, which PyTorch allows, and which may be of any length."""
    file.seek(0)
    if not zipped:
        return _has_name(file)
    with zipfile.ZipFile(file) as archive:
        pickles = [x for x in archive.infolist() if x.filename.lower().endswith(".pkl")]
        return any(_has_name(archive.open(member)) for member in pickles)


def _has_name(file: IO[bytes]) -> bool:
    """Whether a pickle names the type: it does so in one way only in those that PyTorch takes."""
    tail = b""
    while chunk := file.read(CHUNK):
        if _BYTEARRAY in tail + chunk:
            return True
        tail = (tail + chunk)[-len(_BYTEARRAY) :]
    return False


def _holds_tensor(obj: Any, depth: int = 0) -> bool:
    kind = type(obj)
    if kind in (dict, OrderedDict):
        items = list(obj.values())
    elif kind in (list, tuple):
        items = list(obj)
    else:
        return False
    return depth < 20 and any(
        isinstance(item, torch.Tensor) or _holds_tensor(item, depth + 1) for item in items
    )
