"""Objects of a user's classes taken apart into fields, and put together again if that is allowed.

Dataclasses, pydantic models and enumerations: their state is their fields, so it can be written down
without pickle. Putting an object together imports the module that the bytes name, which runs its
code: whoever reads is asked first (`blobstore.trust`), and nothing is called on the way, neither
``__init__`` nor validators, so that the object is the one that was stored.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.trust import Trust

_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that was made in Python, whose instances have nothing but fields."""

_MODEL = "pydantic.main.BaseModel"


class Apart(NamedTuple):
    """An object as its class and its fields."""

    kind: str
    name: str
    content: dict[str, Any]
    shared: bool = False


def kind_of(cls: type) -> str | None:
    """Whether objects of a class can be taken apart: "enum", "model", "dataclass" or None."""
    if isinstance(cls, enum.EnumMeta):
        return "enum"
    if any(f"{base.__module__}.{base.__qualname__}" == _MODEL for base in cls.__mro__):
        return "model"
    return "dataclass" if "__dataclass_fields__" in cls.__dict__ else None


def take_apart(obj: Any) -> Apart:
    """The fields of an object.

    Raises
    ------
    UnsupportedTypeError
        It is of no such class, or has state besides its fields, or its class cannot be found again
        by its name.
    """
    cls = type(obj)
    kind = kind_of(cls)
    if kind is None:
        raise UnsupportedTypeError(
            f"an object of type {cls.__module__}.{cls.__qualname__} has no exact form as JSON"
        )
    name = f"{cls.__module__}:{cls.__qualname__}"
    if _resolve(name) is not cls:
        raise UnsupportedTypeError(f"{name} is no name under which its class can be found")
    return _TAKE[kind](obj, cls, name)


def put_together(
    kind: str, name: str, content: Callable[[], Mapping[str, Any]], trust: Trust
) -> Any:
    """An object of a class that is named, if the reader trusts that name.

    Parameters
    ----------
    kind, name : str
    content : callable
        Gives the fields; called when the class is known and trusted.
    trust : Trust

    Raises
    ------
    UntrustedTypeError
        The reader does not trust the class.
    DecodeError
        The class is not here, or is no longer what it was.
    """
    if kind not in _PUT or not isinstance(name, str):
        raise DecodeError(f"the stored object has values of a kind {kind!r}, unknown here: upgrade")
    trust.require(name.replace(":", "."))
    cls = _find(name)
    if not isinstance(cls, type) or kind_of(cls) != kind:
        raise DecodeError(f"the stored object needs the {kind} {name}, which is something else now")
    trust.require(f"{cls.__module__}.{cls.__qualname__}")  # what it is an alias of
    return _PUT[kind](cls, name, content())


def _find(name: str) -> Any:
    module, _, _ = name.partition(":")
    try:
        importlib.import_module(module)
    except ImportError as exc:
        raise DecodeError(
            f"the stored object needs {name}, which is not here: {exc}. Install or import the code "
            "that defines it"
        ) from exc
    found = _resolve(name)
    if found is None:
        raise DecodeError(
            f"the stored object needs {name}, which its module does not have any more"
        )
    return found


def _resolve(name: str) -> Any:
    """What a name stands for; inside of classes too."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for word in path.split("."):
        if not isinstance(found, type) and found is not sys.modules.get(module):
            return None
        found = found.__dict__.get(word)
    return found


# --- enumerations --------------------------------------------------------------------------------


def _take_enum(obj: Any, cls: Any, name: str) -> Apart:
    if obj.name is None or cls.__members__.get(obj.name) is not obj:
        raise UnsupportedTypeError(f"{obj!r} is no single member of {name}")
    return Apart("enum", name, {"member": obj.name}, shared=True)


def _put_enum(cls: Any, name: str, content: Mapping[str, Any]) -> Any:
    try:
        return cls.__members__[content["member"]]
    except KeyError as exc:
        raise DecodeError(f"{name} has no member {exc} any more") from exc


# --- dataclasses ---------------------------------------------------------------------------------


def _take_dataclass(obj: Any, cls: Any, name: str) -> Apart:
    if any(base.__flags__ & _HEAP_TYPE == 0 for base in cls.__mro__ if base is not object):
        raise UnsupportedTypeError(f"{name} is more than its fields: it derives from another type")
    if _pickles_itself(cls):
        raise UnsupportedTypeError(f"{name} says itself how it is to be pickled")
    names = [field.name for field in dataclasses.fields(cls)]
    try:
        fields = {field: object.__getattribute__(obj, field) for field in names}
    except AttributeError as exc:
        raise UnsupportedTypeError(f"a {name} has not all of its fields: {exc}") from exc
    others = set(getattr(obj, "__dict__", ())) - set(names)
    others |= {slot for slot in _slots(cls) - set(names) if hasattr(obj, slot)}
    if others:
        raise UnsupportedTypeError(f"a {name} has more than its fields: {sorted(others)}")
    return Apart("dataclass", name, {"fields": fields})


def _slots(cls: type) -> set[str]:
    found: set[str] = set()
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found.update((slots,) if isinstance(slots, str) else slots)
    return found - {"__dict__", "__weakref__"}


def _pickles_itself(cls: Any) -> bool:
    """Whether a class has a say in how it is pickled, other than what `dataclass` itself gives it."""
    if cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__:
        return True
    for method in ("__getstate__", "__setstate__"):
        found = getattr(cls, method, None)
        ours = getattr(object, method, None)
        if found is not ours and getattr(found, "__module__", "") != "dataclasses":
            return True
    return False


def _put_dataclass(cls: Any, name: str, content: Mapping[str, Any]) -> Any:
    stored = content["fields"]
    known = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(stored) - set(known)):
        raise DecodeError(f"{name} has no field {unknown[0]!r} any more")
    obj = object.__new__(cls)
    for field in known.values():
        if field.name in stored:
            value = stored[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            raise DecodeError(f"{name} has a new field {field.name!r}, which was not stored")
        object.__setattr__(obj, field.name, value)
    return obj


# --- pydantic ------------------------------------------------------------------------------------


def _take_model(obj: Any, cls: Any, name: str) -> Apart:
    from pydantic import BaseModel

    for method in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"):
        if getattr(cls, method) is not getattr(BaseModel, method):
            raise UnsupportedTypeError(f"{name} says itself how it is to be pickled")
    fields = dict(obj.__dict__)
    if set(fields) != set(cls.model_fields):
        raise UnsupportedTypeError(f"a {name} has other attributes than its fields")
    content: dict[str, Any] = {"fields": fields, "set": sorted(obj.__pydantic_fields_set__)}
    if obj.__pydantic_extra__ is not None:
        content["extra"] = dict(obj.__pydantic_extra__)
    if obj.__pydantic_private__ is not None:
        content["private"] = dict(obj.__pydantic_private__)
    return Apart("model", name, content)


def _put_model(cls: Any, name: str, content: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    fields = content["fields"]
    if set(fields) != set(cls.model_fields):  # the class has changed: is it still one of it?
        extra = content.get("extra") or {}
        try:
            return cls.model_validate({**fields, **extra}, by_name=True)
        except ValidationError as exc:
            raise DecodeError(f"{name} has changed, and what is stored is none: {exc}") from exc
    obj = cls.__new__(cls)
    object.__setattr__(obj, "__dict__", dict(fields))
    object.__setattr__(obj, "__pydantic_fields_set__", set(content["set"]))
    object.__setattr__(obj, "__pydantic_extra__", content.get("extra"))
    object.__setattr__(obj, "__pydantic_private__", content.get("private"))
    return obj


_TAKE = {"enum": _take_enum, "dataclass": _take_dataclass, "model": _take_model}
_PUT = {"enum": _put_enum, "dataclass": _put_dataclass, "model": _put_model}
