"""Pydantic models and dataclasses: their fields as JSON; reading gives the object or the fields."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, ClassVar

from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.files.json import is_exact, to_text
from blobstore.files.options import reading, refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source


def class_name(obj: Any) -> str:
    """Module and name of an object's class."""
    cls = type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


class DataclassFormat(FileFormat):
    """A dataclass whose fields JSON says exactly, nested dataclasses too.

    The file holds the fields and nothing else. Reading gives a dict; ``get(key, cls=Config)`` gives
    an object of that class.
    """

    name = "dataclass"
    extensions = (".dataclass.json",)
    priority = 20

    def can_handle(self, obj: Any) -> bool:
        """An object of a dataclass."""
        return dataclasses.is_dataclass(obj) and not isinstance(obj, type)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the fields."""
        fields = dataclasses.asdict(obj)
        if not is_exact(fields):
            raise UnsupportedTypeError(
                f"{context.key!r}: {class_name(obj)} has fields that JSON does not hold exactly"
            )
        sink.write(to_text(fields, indent=2).encode() + b"\n")

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the fields; with `cls` an object of it, nested ones too."""
        refuse_options(context, options, "cls")
        with reading(context, ValueError, RecursionError):
            fields = json.loads(source.read())
        cls = options.get("cls")
        if cls is None:
            return fields
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            raise InvalidInputError(f"cls must be a dataclass, not {cls!r}")
        return _build(cls, fields, context)


def _build(cls: Any, fields: Any, context: FileContext) -> Any:
    """An object of a dataclass from its fields; those that are dataclasses by their annotations."""
    import typing

    if not isinstance(fields, dict):
        raise DecodeError(f"{context.key!r} does not hold the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := fields.keys() - known.keys():
        raise DecodeError(
            f"{context.key!r} has fields that {cls.__name__} has not: {', '.join(sorted(unknown))}",
            key=context.key,
        )
    values = {
        name: _build(hints[name], value, context)
        if dataclasses.is_dataclass(hints.get(name)) and isinstance(value, dict)
        else value
        for name, value in fields.items()
    }
    made = {name: value for name, value in values.items() if known[name].init}
    try:
        obj = cls(**made)
    except TypeError as exc:
        raise DecodeError(
            f"{context.key!r} does not hold the fields of {cls.__name__}: {exc}", key=context.key
        ) from exc
    for name in values.keys() - made.keys():
        object.__setattr__(obj, name, values[name])
    return obj


class PydanticFormat(FileFormat):
    """A pydantic model: its fields as JSON, as pydantic writes them.

    Reading gives a dict; ``get(key, cls=Model)`` gives a validated model.
    """

    name = "pydantic"
    extensions = (".pydantic.json",)
    priority = 25
    type_names: ClassVar[tuple[str, ...]] = ("*",)

    def can_handle(self, obj: Any) -> bool:
        """A model; there is none before pydantic was imported."""
        pydantic = sys.modules.get("pydantic")
        return pydantic is not None and isinstance(obj, pydantic.BaseModel)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the fields."""
        try:
            text = obj.model_dump_json(indent=2, by_alias=False)
            whole = type(obj).model_validate_json(text, by_name=True) == obj
        except ValueError as exc:  # pydantic's own errors are of this type
            raise UnsupportedTypeError(f"{context.key!r}: {exc}") from exc
        if not whole:
            raise UnsupportedTypeError(
                f"{context.key!r}: {class_name(obj)} does not come back equal from JSON"
            )
        sink.write(text.encode() + b"\n")

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the fields; with `cls` a model of it."""
        refuse_options(context, options, "cls")
        data = source.read()
        cls = options.get("cls")
        with reading(context, ValueError, RecursionError):
            return json.loads(data) if cls is None else cls.model_validate_json(data, by_name=True)
