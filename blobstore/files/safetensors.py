"""Tensors by name in the format of safetensors, where the key says so."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from blobstore.errors import InvalidInputError, UnsupportedTypeError
from blobstore.files.options import lent, reading, refuse_options, wanted_names
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_RESERVED = "__metadata__"
"""A name that the format has for itself."""


class SafetensorsFormat(FileFormat):
    """A dictionary of contiguous tensors that share no memory; reading it runs nothing.

    They come back as mere tensors, without gradients, in a dictionary sorted by name.

    ``map_location=`` says where they are to be, ``names=[...]`` reads only those.
    """

    name = "safetensors"
    extensions = (".safetensors",)
    priority = 55
    type_names: ClassVar[tuple[str, ...]] = ("builtins.dict", "collections.OrderedDict")
    by_name_only: ClassVar[bool] = True

    def can_handle(self, obj: Any) -> bool:
        """At least one tensor, and nothing else."""
        return (
            isinstance(obj, dict)
            and len(obj) > 0
            and all(
                type(name) is str and name != _RESERVED and isinstance(tensor, torch.Tensor)
                for name, tensor in obj.items()
            )
        )

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the tensors.

        Raises
        ------
        UnsupportedTypeError
            Some share memory or are not contiguous, which the format does not know.
        """
        try:
            with lent(sink, context) as path:
                save_file(dict(obj), path)
        except (RuntimeError, ValueError, KeyError, SafetensorError) as exc:
            raise UnsupportedTypeError(
                f"{context.key!r}: safetensors does not take these: {exc}"
            ) from exc

    def read(self, source: Source, context: FileContext, **options: Any) -> dict[str, Any]:
        """Read the tensors."""
        refuse_options(context, options, "map_location", "names")
        where = str(options.get("map_location", "cpu"))
        with (
            reading(context, SafetensorError, OSError, ValueError, RuntimeError),
            source.path() as path,
            safe_open(path, framework="pt", device=where) as file,
        ):
            there = list(file.keys())
            names = wanted_names(options, context)
            if unknown := set(names or ()) - set(there):
                raise InvalidInputError(
                    f"there is no tensor {min(unknown)!r}: there are {', '.join(there)}",
                    key=context.key,
                )
            return {name: file.get_tensor(name) for name in (there if names is None else names)}
