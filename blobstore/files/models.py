"""Pydantic models and dataclasses: their fields as JSON; reading gives the object or the fields."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import inspect
import json
import sys
import types
import typing
from typing import Any, ClassVar

from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.files.json import MAX_DEPTH, is_exact, to_text
from blobstore.files.options import reading, refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_CONTAINERS = (dict, list, tuple, set, frozenset, str, bytes)


def class_name(obj: Any) -> str:
    """Module and name of an object's class."""
    cls = type(obj)
    return f"{cls.__module__}.{cls.__qualname__}"


class DataclassFormat(FileFormat):
    """A dataclass whose fields JSON says exactly, nested dataclasses too.

    One that its fields alone would not give back (it changes them when it is made, needs more than
    they say, or holds dataclasses where its annotations name none) is left to pickle. The file holds the fields and nothing else. Reading gives a dict; ``get(key, cls=Config)`` gives
    an object of that class.
    """

    name = "dataclass"
    extensions = (".dataclass.json",)
    priority = 20

    def can_handle(self, obj: Any) -> bool:
        """An object of a dataclass, that is not a container or text by itself."""
        return dataclasses.is_dataclass(obj) and not isinstance(obj, (type, *_CONTAINERS))

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the fields."""
        fields = _fields(obj)
        if not is_exact(fields):
            raise UnsupportedTypeError(
                f"{context.key!r}: {class_name(obj)} has fields that JSON does not hold exactly"
            )
        try:
            same = _is_same(_build(type(obj), fields, context), obj)
        except Exception as exc:
            # Making an object runs the code of its class, which may raise anything at all.
            raise UnsupportedTypeError(
                f"{context.key!r}: {class_name(obj)} cannot be made from its fields: {exc!r}"
            ) from exc
        if not same:
            raise UnsupportedTypeError(
                f"{context.key!r}: the fields of {class_name(obj)} do not give it back as it is"
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


def _fields(value: Any, depth: int = 0) -> Any:
    """The fields of a dataclass as a dictionary; unlike `asdict` nothing else is copied."""
    if depth > MAX_DEPTH:
        return value  # which is not exact: a dataclass, or nested too deeply
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, *_CONTAINERS)):
        return {
            f.name: _fields(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)
        }
    if type(value) is list:
        return [_fields(item, depth + 1) for item in value]
    if type(value) is dict:
        return {name: _fields(item, depth + 1) for name, item in value.items()}
    return value


def _is_same(back: Any, value: Any) -> bool:
    """Whether what was made from fields that JSON holds exactly is what they were taken from.

    What an object has beside its fields counts too, but for what a cached property can compute again.
    """
    if type(back) is not type(value):
        return False
    if type(value) is list:
        return all(map(_is_same, back, value))
    if type(value) is dict:
        return all(_is_same(back[name], value[name]) for name in value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return _beside(back, names) == _beside(value, names) and all(
            _is_same(getattr(back, name), getattr(value, name)) for name in names
        )
    return bool(back == value)


def _beside(obj: Any, fields: list[str]) -> dict[str, Any]:
    """The attributes that an object has beside its fields."""
    cls = type(obj)
    return {
        name: value
        for name, value in getattr(obj, "__dict__", {}).items()
        if name not in fields
        and not isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
    }


def _value(hint: Any, value: Any, context: FileContext) -> Any:
    """A value of a field as its annotation says: dataclasses, also in lists, dictionaries, unions."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, context)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and isinstance(value, list):
        return [_value(inside[0], item, context) for item in value]
    if origin is dict and isinstance(value, dict):
        return {name: _value(inside[1], item, context) for name, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        # Of several dataclasses none is guessed; such an object was left to pickle.
        others = [one for one in inside if one is not type(None)]
        return _value(others[0], value, context) if len(others) == 1 else value
    return value


def _build(cls: Any, fields: Any, context: FileContext) -> Any:
    """An object of a dataclass from its fields; those that are dataclasses by their annotations."""
    if not isinstance(fields, dict):
        raise DecodeError(f"{context.key!r} does not hold the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := fields.keys() - known.keys():
        raise DecodeError(
            f"{context.key!r} has fields that {cls.__name__} has not: {', '.join(sorted(unknown))}",
            key=context.key,
        )
    values = {name: _value(hints.get(name), value, context) for name, value in fields.items()}
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


def _is_alike(back: Any, value: Any) -> bool:
    """Whether things that are equal are of equal types, too, all the way down.

    ``1 == True``, an enumeration equals its number, and a time in Berlin one of the same offset.
    """
    if isinstance(value, datetime.datetime):
        fixed = (type(None), datetime.timezone, type(back.tzinfo))
        return type(back) is type(value) and type(value.tzinfo) in fixed
    if type(back) is not type(value):
        return False
    if isinstance(value, dict):
        return list(back) == list(value) and all(
            map(_is_alike, [*back, *back.values()], [*value, *value.values()])
        )
    if isinstance(value, (list, tuple)):
        return all(map(_is_alike, back, value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, back)) == sorted(map(repr, value))
    if hasattr(type(value), "model_fields"):
        return _is_alike(vars(back), vars(value)) and _is_alike(back.model_extra, value.model_extra)
    return True


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
            back = type(obj).model_validate_json(text, by_name=True)
            whole = back == obj and _is_alike(back, obj)
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
        if cls is not None and not callable(getattr(cls, "model_validate_json", None)):
            raise InvalidInputError(f"cls must be a pydantic model, not {cls!r}")
        with reading(context, ValueError, RecursionError):
            return json.loads(data) if cls is None else cls.model_validate_json(data, by_name=True)
