"""What a pickle of nobody in particular may name of the standard library: containers and values."""

from __future__ import annotations

import array
import builtins
import collections
import datetime
import decimal
import fractions
import functools
import ipaddress
import pathlib
import types
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any

from blobstore.errors import UntrustedTypeError
from blobstore.handlers.unpickling import Rule

_FACTORIES = (bool, bytes, collections.OrderedDict, dict, float, int, list, set, str, tuple)
"""What a defaultdict may make missing items with."""

_MAX_DIGITS = 4300
"""Of a number in a string; what Python itself reads into an integer, unless told otherwise."""


def only(*kinds: type) -> Callable[..., Any]:
    """Make a check that arguments are of exactly these types, all of them."""

    def check(what: str, *args: Any) -> None:
        for arg in args:
            if type(arg) not in kinds:
                raise UntrustedTypeError(
                    f"it makes a {what} of a {type(arg).__name__}: no object that was stored asks "
                    "for that. Nothing of it was run"
                )

    return check


_atoms = only(int, float, str, bool, bytes, type(None))


def _number(cls: type, *args: Any) -> Any:
    """Decimal and Fraction, of text that is not there to keep the processor busy."""
    _atoms(cls.__name__, *args)
    for arg in args:
        if isinstance(arg, str) and len(arg) > _MAX_DIGITS:
            raise ValueError(f"a {cls.__name__} of {len(arg)} characters")
        if isinstance(arg, int) and arg.bit_length() > 4 * _MAX_DIGITS:
            raise ValueError(f"a {cls.__name__} of {arg.bit_length()} bits")
    if cls is fractions.Fraction and any(isinstance(a, str) and _exponent(a) for a in args):
        raise ValueError("a Fraction with an exponent")  # which would be written out
    return cls(*args)


def _exponent(text: str) -> bool:
    return "e" in text or "E" in text


def _value(cls: type, *args: Any) -> Any:
    _atoms(cls.__name__, *args)
    return cls(*args)


def _network(cls: type, *args: Any) -> Any:
    for arg in args:
        _atoms(cls.__name__, *(arg if type(arg) is tuple else (arg,)))
    return cls(*args)


def _defaultdict(factory: Any = None, *args: Any) -> Any:
    if factory is not None and factory not in _FACTORIES:
        raise UntrustedTypeError(
            f"it has a defaultdict that calls {factory!r} for missing items. Nothing of it was run"
        )
    only(dict)("defaultdict", *args)
    return collections.defaultdict(factory, *args)


def _plain_dict(cls: type, *args: Any) -> Any:
    only(dict)(cls.__name__, *args)
    return cls(*args)


def _items(cls: type, *args: Any) -> Any:
    only(list, tuple, set, frozenset, dict, int, type(None))(cls.__name__, *args)
    return cls(*args)


def _range(cls: type, *args: Any) -> Any:
    only(int, type(None))(cls.__name__, *args)
    return cls(*args)


def _slice(*args: Any) -> slice:
    return slice(*args)  # holds whatever it is given, and calls none of it


def _bytearray(*args: Any) -> bytearray:
    """Of bytes, or of text and its encoding, as protocols 0 to 2 have it; never of a mere size."""
    if len(args) == 2:
        only(str)("bytearray", *args)
        return bytearray(_encode(*args))
    only(bytes, bytearray)("bytearray", *args)
    return bytearray(*args)


def _bytes(*args: Any) -> bytes:
    only(bytes, bytearray)("bytes", *args)
    return bytes(*args)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    only(str)("bytes", text, encoding)
    if encoding not in ("latin1", "latin-1"):
        raise UntrustedTypeError(f"it encodes text as {encoding!r}. Nothing of it was run")
    return str.encode(text, "latin1")


def _attribute(owner: Any, name: Any) -> Any:
    """``getattr``, of the one thing that is pickled by it: a time zone's constructor."""
    if owner is zoneinfo.ZoneInfo and name == "_unpickle":
        return _zone
    raise UntrustedTypeError(
        "it asks for builtins.getattr, which attacks use to get from what is harmless to what is "
        "not. Nothing of it was run"
    )


def _zone(key: Any, _from_cache: Any = True) -> zoneinfo.ZoneInfo:
    only(str)("ZoneInfo", key)
    return zoneinfo.ZoneInfo(key)  # refuses keys that lead out of its folders


def _type_of(*args: Any) -> type:
    """``type``, of the singletons whose types have no name."""
    if len(args) == 1 and (args[0] is None or args[0] is ... or args[0] is NotImplemented):
        return args[0].__class__
    raise UntrustedTypeError(
        "it asks for builtins.type, which makes new classes. Nothing of it was run"
    )


def _timezone(*args: Any) -> datetime.timezone:
    only(datetime.timedelta, str)("timezone", *args)
    return datetime.timezone(*args)


def _moment(cls: type, *args: Any) -> Any:
    """A date or time: of numbers or packed bytes, and a time zone."""
    for arg in args:
        if not isinstance(arg, datetime.tzinfo):
            only(int, bytes, str)(cls.__name__, arg)
    return cls(*args)


def _array(cls: Any, typecode: Any, code: Any, data: Any) -> Any:
    from array import _array_reconstructor  # type: ignore[attr-defined]

    if cls is not array.array:
        raise UntrustedTypeError(f"it makes a {cls!r} as an array. Nothing of it was run")
    only(str)("array", typecode)
    only(int)("array", code)
    only(bytes)("array", data)
    return _array_reconstructor(array.array, typecode, code, data)


def _array_of(*args: Any) -> Any:
    """As protocols 0 to 2 have it: the type code and a list."""
    only(str, list, bytes)("array", *args)
    return array.array(*args)


def _fresh(cls: Any, *args: Any) -> Any:
    """An instance without arguments, whose state follows."""
    if args:
        raise UntrustedTypeError(f"it makes a {cls.__name__} of {len(args)} arguments")
    return cls.__new__(cls)


def _uuid_state(instance: uuid.UUID, state: Any) -> None:
    only(dict)("UUID", state)
    only(int)("UUID", *(state[name] for name in state if name != "is_safe"))
    uuid.UUID.__setstate__(instance, {"int": state["int"]})  # type: ignore[attr-defined]
    if not 0 <= instance.int < 1 << 128:
        raise ValueError("a UUID of more than 128 bits")


def _chain_state(instance: Any, state: Any) -> None:
    only(dict)("ChainMap", state)
    if set(state) != {"maps"} or type(state["maps"]) is not list:
        raise UntrustedTypeError("it sets more than the maps of a ChainMap. Nothing of it was run")
    only(dict, collections.OrderedDict)("ChainMap", *state["maps"])
    instance.maps = state["maps"]


def _namespace_state(instance: types.SimpleNamespace, state: Any) -> None:
    only(dict)("SimpleNamespace", state)
    only(str)("SimpleNamespace", *state)
    vars(instance).update(state)


def _constant(value: Any) -> Rule:
    return Rule(value)


def _rules() -> dict[tuple[str, str], Rule]:
    table: dict[tuple[str, str], Rule] = {
        ("builtins", "Ellipsis"): _constant(...),
        ("builtins", "NotImplemented"): _constant(NotImplemented),
        ("builtins", "getattr"): Rule(_attribute, call=_attribute, also=(Rule(_zone, call=_zone),)),
        ("builtins", "type"): Rule(_type_of, call=_type_of),
        ("builtins", "bytearray"): Rule(bytearray, call=_bytearray),
        ("builtins", "bytes"): Rule(bytes, call=_bytes),
        ("builtins", "slice"): Rule(slice, call=_slice),
        ("builtins", "object"): _constant(object),
        ("_codecs", "encode"): Rule(_encode, call=_encode),
        ("array", "_array_reconstructor"): Rule(_array, call=_array),
        ("array", "array"): Rule(array.array, call=_array_of),
        ("collections", "defaultdict"): Rule(collections.defaultdict, call=_defaultdict),
        ("collections", "ChainMap"): Rule(
            collections.ChainMap,
            new=functools.partial(_fresh, collections.ChainMap),
            build=_chain_state,
        ),
        ("datetime", "timezone"): Rule(datetime.timezone, call=_timezone),
        ("types", "SimpleNamespace"): Rule(
            types.SimpleNamespace,
            call=functools.partial(_fresh, types.SimpleNamespace),
            new=functools.partial(_fresh, types.SimpleNamespace),
            build=_namespace_state,
        ),
        ("uuid", "UUID"): Rule(
            uuid.UUID, new=functools.partial(_fresh, uuid.UUID), build=_uuid_state
        ),
        ("zoneinfo", "ZoneInfo"): _constant(zoneinfo.ZoneInfo),
    }
    makers: Mapping[Callable[..., Any], tuple[type, ...]] = {
        _items: (set, frozenset, list, tuple, collections.deque),
        _plain_dict: (collections.Counter, collections.OrderedDict),
        _value: (bool, complex, float, str, datetime.timedelta),
        _range: (range,),
        _moment: (datetime.date, datetime.datetime, datetime.time),
        _number: (decimal.Decimal, fractions.Fraction),
        _network: (
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            ipaddress.IPv4Interface,
            ipaddress.IPv6Interface,
            ipaddress.IPv4Network,
            ipaddress.IPv6Network,
        ),
        _path: (
            pathlib.PurePosixPath,
            pathlib.PureWindowsPath,
            pathlib.PosixPath,
            pathlib.WindowsPath,
        ),
    }
    for make, classes in makers.items():
        for cls in classes:
            table[cls.__module__, cls.__name__] = Rule(cls, call=functools.partial(make, cls))
    for cls in vars(builtins).values():
        if isinstance(cls, type) and issubclass(cls, BaseException):
            table["builtins", cls.__name__] = Rule(cls, call=functools.partial(_value, cls))
    for cls in (int, dict):  # as values, and as what a defaultdict calls
        table["builtins", cls.__name__] = _constant(cls)
    for name, cls in vars(pathlib).items():
        if isinstance(cls, type) and ("pathlib", name) in table:  # pathlib._local since 3.13
            table[cls.__module__, name] = table["pathlib", name]
    return table


def _path(cls: type, *args: Any) -> Any:
    only(str)(cls.__name__, *args)
    return cls(*args)


RULES = _rules()
