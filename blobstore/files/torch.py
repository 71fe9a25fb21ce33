"""PyTorch's own files: tensors, dictionaries that hold them, and whole modules."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from typing import Any, ClassVar

import torch

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.files.options import reading, refuse_options
from blobstore.files.trust import FileTrust
from blobstore.limits import check_archive
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import BytesSource, Sink, Source

_MALFORMED = (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile)
_REFUSALS = (
    pickle.PicklingError,
    TypeError,
    AttributeError,
    RecursionError,
    NotImplementedError,
    ValueError,
)
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
        path = sink.path()
        try:
            torch.save(obj, path)
        except _REFUSALS as exc:
            raise UnsupportedTypeError(
                f"{context.key!r}: PyTorch cannot save this: {exc}. Store its tensors, for instance "
                "the state_dict of a module",
                key=context.key,
            ) from exc
        if trust.mode == "deny" and torch.serialization.get_unsafe_globals_in_checkpoint(path):
            trust.check_allowed(context.key, _WHOLE)
        trust.sign_zip(path, context.key)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the file, to the CPU or where `map_location` says."""
        refuse_options(context, options, "map_location")
        where = options.get("map_location", "cpu")
        trust = FileTrust.of(context)
        with reading(context, *_MALFORMED), source.open() as file:
            if zipfile.is_zipfile(file):  # PyTorch unpacks members that it would not compress
                check_archive(file, trust.growth_limit(source.size), repr(context.key))
            file.seek(0)
            try:
                return torch.load(file, map_location=where, weights_only=True)
            except pickle.UnpicklingError as exc:
                # In memory: what is unpickled is what was checked, whoever writes meanwhile.
                held = BytesSource(source.read())
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
