"""Plain values as JSON that says exactly what they are, with arrays, tables and tensors as leaves.

JSON's own values stand for themselves; everything else is an object whose key ``$`` names its kind.
Large leaves become parts of their own, small ones are inside, base64 of the same bytes. Objects of
dataclasses and pydantic models, and members of enumerations, are the name of their class and their
fields; whoever reads them is asked whether that class may be imported. What none of this fits is
refused, as is a mutable object that is met twice, for it would come back as two.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import pathlib
import uuid
import zoneinfo
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, NamedTuple

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers import classes
from blobstore.handlers.leaves import LeafHandler, NamedPart, plan_by_size
from blobstore.handlers.stream import StreamPart, read_stream
from blobstore.protocols import PlannedPart, StoredPart, WriteOptions
from blobstore.registry import make_handler
from blobstore.streams import BytesSource, Hasher, MemorySink
from blobstore.trust import NOTHING, Trust

TREE = "tree"
"""The name of the part that has all but the large leaves."""

_MAX_INT_BITS = 4096  # Python refuses to print much longer ones
_MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    InvalidOperation,
    ZeroDivisionError,
    binascii.Error,
    zoneinfo.ZoneInfoNotFoundError,
)

LEAVES = {
    "numpy.ndarray": "numpy",
    "torch.Tensor": "torch",
    "torch.nn.parameter.Parameter": "torch",
    "pandas.DataFrame": "pandas",
    "pandas.Series": "pandas",
    "polars.dataframe.frame.DataFrame": "polars",
    "polars.series.series.Series": "polars",
    "pyarrow.lib.Table": "arrow",
}
"""Types that are stored by a handler of their own."""


class _Text(NamedTuple):
    """A type whose values are one text each."""

    kind: str
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]


_FOLD = "|fold"


def _moment(text: str) -> dt.datetime:
    plain = text.removesuffix(_FOLD)
    return dt.datetime.fromisoformat(plain).replace(fold=int(plain != text))


def _clock(text: str) -> dt.time:
    plain = text.removesuffix(_FOLD)
    return dt.time.fromisoformat(plain).replace(fold=int(plain != text))


def _said(value: dt.datetime | dt.time) -> str:
    return value.isoformat() + (_FOLD if value.fold else "")


def _duration(text: str) -> dt.timedelta:
    days, seconds, microseconds = map(int, text.split())
    return dt.timedelta(days, seconds, microseconds)


def _fraction(text: str) -> Fraction:
    numerator, denominator = text.split("/")
    return Fraction(int(numerator, 16), int(denominator, 16))


def _zone(name: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except OSError as exc:  # a folder of zones
        raise ValueError(f"{name!r} is no time zone") from exc


_TEXTS: dict[type, _Text] = {
    bytes: _Text("bytes", lambda x: base64.b64encode(x).decode(), base64.b64decode),
    bytearray: _Text(
        "bytearray",
        lambda x: base64.b64encode(x).decode(),
        lambda text: bytearray(base64.b64decode(text)),
    ),
    complex: _Text("complex", repr, complex),
    dt.date: _Text("date", dt.date.isoformat, dt.date.fromisoformat),
    dt.timedelta: _Text("timedelta", lambda x: f"{x.days} {x.seconds} {x.microseconds}", _duration),
    Decimal: _Text("decimal", str, Decimal),
    Fraction: _Text("fraction", lambda x: f"{x.numerator:x}/{x.denominator:x}", _fraction),
    uuid.UUID: _Text("uuid", str, uuid.UUID),
    pathlib.PosixPath: _Text("path", str, pathlib.Path),
    pathlib.WindowsPath: _Text("path", str, pathlib.Path),
    pathlib.PurePosixPath: _Text("posix path", str, pathlib.PurePosixPath),
    pathlib.PureWindowsPath: _Text("windows path", str, pathlib.PureWindowsPath),
    zoneinfo.ZoneInfo: _Text("zone", lambda x: x.key, _zone),
}
_DECODE = {text.kind: text.decode for text in _TEXTS.values()}


class Tree:
    """An object about to be stored as a tree.

    Parameters
    ----------
    value : object
    options : WriteOptions

    Raises
    ------
    UnsupportedTypeError
        Something in it has no exact form here.

    Attributes
    ----------
    root : object
        JSON.
    parts : list of PlannedPart
        The large leaves.
    names_classes : bool
        Whether reading it imports what it names.
    """

    def __init__(self, value: Any, options: WriteOptions) -> None:
        self.parts: list[PlannedPart] = []
        self.names_classes = False
        self._options = options
        self._met: dict[int, Any] = {}
        self._memories: set[Any] = set()
        self._digests: list[Callable[[Hasher], None]] = []
        try:
            self.root = self.encode(value)
        except RecursionError as exc:
            raise UnsupportedTypeError("the object is nested too deeply") from exc

    def part(self, handler: str, *, executable: bool) -> PlannedPart:
        """The part that has all but the large leaves."""
        text = json.dumps(self.root, separators=(",", ":"), allow_nan=False)
        return StreamPart(
            handler,
            TREE,
            (text.encode(),),
            self._options,
            extension=".json",
            digest=self._digest,
            executable=executable,
        )

    def _digest(self, hasher: Hasher) -> None:
        Canonical(hasher).add(("blobstore.tree", 1, _without_leaves(self.root)))
        for feed in self._digests:
            feed(hasher)

    def encode(self, value: Any) -> Any:
        """JSON for a value."""
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int or kind is float:
            return _number(value)
        text = _TEXTS.get(kind)
        if text is not None:
            return self._text(text, value)
        if kind in (dt.datetime, dt.time):
            return self._moment(value)
        if kind is tuple or kind is frozenset:
            return self._immutable(value)
        self._meet(value)
        return self._mutable(value)

    def _mutable(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            return [self.encode(item) for item in value]
        if kind is dict:
            return self._dict(value)
        if kind is set:
            return {"$": "set", "v": self._sorted(value)}
        return self._object(value)

    def _text(self, text: _Text, value: Any) -> Any:
        said = text.encode(value)
        if said is None:  # a zone out of a file
            raise UnsupportedTypeError(f"{value!r} has no name")
        return {"$": text.kind, "v": said}

    def _moment(self, value: Any) -> Any:
        zone = value.tzinfo
        said: dict[str, Any] = (
            {"$": "datetime", "v": _said(value.replace(tzinfo=None))}
            if type(value) is dt.datetime
            else {"$": "time", "v": _said(value.replace(tzinfo=None))}
        )
        if type(zone) is zoneinfo.ZoneInfo:
            return {**said, "zone": self._text(_TEXTS[zoneinfo.ZoneInfo], zone)["v"]}
        if type(zone) is dt.timezone:
            offset = zone.utcoffset(None)
            if zone != dt.UTC and zone.tzname(None) != dt.timezone(offset).tzname(None):
                raise UnsupportedTypeError("a time zone with a name of its own")
            return {**said, "offset": _TEXTS[dt.timedelta].encode(offset)}
        if zone is not None:
            raise UnsupportedTypeError(f"a time zone of type {type(zone).__name__}")
        return said

    def _immutable(self, value: Any) -> Any:
        if type(value) is tuple:
            return {"$": "tuple", "v": [self.encode(item) for item in value]}
        return {"$": "frozenset", "v": self._sorted(value)}

    def _sorted(self, items: Any) -> list[Any]:
        """Members of a set in an order that does not depend on hashes."""
        return sorted((self.encode(item) for item in items), key=json.dumps)

    def _dict(self, value: dict[Any, Any]) -> Any:
        if "$" not in value and all(type(name) is str for name in value):
            return {name: self.encode(item) for name, item in value.items()}
        pairs = [[self.encode(name), self.encode(item)] for name, item in value.items()]
        return {"$": "dict", "v": pairs}

    def _meet(self, value: Any) -> None:
        if id(value) in self._met:
            raise UnsupportedTypeError(f"the same {type(value).__name__} comes twice")
        self._met[id(value)] = value

    def _object(self, value: Any) -> Any:
        kind = type(value)
        handler = LEAVES.get(f"{kind.__module__}.{kind.__qualname__}")
        if handler is not None:
            return self._leaf(handler, value)
        if kind.__module__.partition(".")[0] == "numpy":
            return self._scalar(value)
        found = classes.take_apart(value)
        self.names_classes = True
        if found.shared:
            del self._met[id(value)]
        return {
            "$": found.kind,
            "class": found.name,
            **{name: self.encode(item) for name, item in found.content.items()},
        }

    def _scalar(self, value: Any) -> Any:
        del self._met[id(value)]  # of no identity
        import numpy as np

        from blobstore.handlers.dtypes import dtype_text

        if isinstance(value, np.dtype):
            return {"$": "dtype", "v": dtype_text(value)}
        if isinstance(value, np.generic) and not isinstance(value, np.void):
            text = dtype_text(value.dtype)
            if text != value.dtype.str or np.dtype(text).type is not type(value):
                raise UnsupportedTypeError(f"a scalar of type {type(value).__name__}")
            return {"$": "scalar", "dtype": text, "v": base64.b64encode(value.tobytes()).decode()}
        raise UnsupportedTypeError(f"a {type(value).__name__} of NumPy has no exact form as JSON")

    def _leaf(self, handler: str, value: Any) -> Any:
        plan, large = plan_by_size(leaf_handler(handler), value, self._options)
        if plan.memory is not None:
            if plan.memory in self._memories:
                raise UnsupportedTypeError("two tensors share their memory")
            self._memories.add(plan.memory)
        number = len(self._digests)
        node = {"$": "leaf", "n": number, "handler": handler, "info": dict(plan.info)}
        facts = ("leaf", number, handler, plan.facts)
        if large:
            self.parts.append(NamedPart(str(number), plan.part))
            self._digests.append(lambda hasher: Canonical(hasher).add(facts))
            return node
        with MemorySink() as sink:
            plan.part.write(sink)

        def feed(hasher: Hasher) -> None:
            Canonical(hasher).add(facts)
            plan.part.digest(hasher)

        self._digests.append(feed)
        codec = plan.part.encoding().codec
        return {**node, "codec": codec, "data": base64.b64encode(sink.content).decode()}


def _number(value: Any) -> Any:
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
    return value if value.bit_length() <= _MAX_INT_BITS else {"$": "int", "v": hex(value)}


def leaf_handler(name: str) -> LeafHandler:
    """The handler of a leaf."""
    if name not in LEAVES.values():
        raise DecodeError(f"a leaf is stored by the handler {name!r}, not known here: upgrade")
    handler = make_handler(name)
    assert isinstance(handler, LeafHandler)
    return handler


def _without_leaves(node: Any) -> Any:
    """What a digest sees: of leaves it sees the content."""
    if isinstance(node, list):
        return [_without_leaves(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("$") == "leaf":
        return {"$": "leaf", "n": node["n"]}
    return {name: _without_leaves(item) for name, item in node.items()}


# --- reading -------------------------------------------------------------------------------------


def read_tree(parts: Mapping[str, StoredPart]) -> Any:
    """Read a tree and its leaves.

    Raises
    ------
    DecodeError
        The parts are no tree, or it needs a class that is not here.
    UntrustedTypeError
        It needs a class that the reader does not trust.
    """
    if TREE not in parts:
        raise DecodeError("an object was stored without its tree")
    part = parts[TREE]
    try:
        node = json.loads(read_stream(part))
        return _Reading(parts, part.trust).decode(node)
    except _MALFORMED as exc:
        raise DecodeError(f"the stored object is no tree that blobstore wrote: {exc!r}") from exc


def decode_plain(node: Any) -> Any:
    """Undo `Tree` where it has no parts and names no classes.

    Raises
    ------
    DecodeError
        It is no such tree.
    """
    try:
        return _Reading({}, NOTHING).decode(node)
    except _MALFORMED as exc:
        raise DecodeError(f"what is stored is no tree that blobstore wrote: {exc!r}") from exc


class _Reading:
    def __init__(self, parts: Mapping[str, StoredPart], trust: Trust) -> None:
        self._parts = parts
        self._trust = trust

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node.get("$")
        if kind is None:
            return {name: self.decode(item) for name, item in node.items()}
        if kind in _DECODE:
            return _DECODE[kind](node["v"])
        decoder = _DECODERS.get(kind)
        if decoder is not None:
            return decoder(self, node)
        content = {name: item for name, item in node.items() if name not in ("$", "class")}
        return classes.put_together(
            kind,
            node["class"],
            lambda: {name: self.decode(item) for name, item in content.items()},
            self._trust,
        )

    def items(self, node: Any) -> list[Any]:
        return [self.decode(item) for item in node["v"]]

    def moment(self, node: Any) -> Any:
        value = _moment(node["v"]) if node["$"] == "datetime" else _clock(node["v"])
        if "zone" in node:
            return value.replace(tzinfo=_zone(node["zone"]))
        if "offset" in node:
            return value.replace(tzinfo=dt.timezone(_duration(node["offset"])))
        return value

    def scalar(self, node: Any) -> Any:
        import numpy as np

        from blobstore.handlers.dtypes import parse_dtype

        dtype = parse_dtype(node["dtype"])
        data = base64.b64decode(node["v"])
        if dtype.kind == "V" or len(data) != dtype.itemsize:
            raise DecodeError("a number of the stored object is damaged")
        return np.frombuffer(data, dtype)[0]

    def dtype(self, node: Any) -> Any:
        from blobstore.handlers.dtypes import parse_dtype

        return parse_dtype(node["v"])

    def leaf(self, node: Any) -> Any:
        handler = leaf_handler(node["handler"])
        if "data" in node:
            data = BytesSource(base64.b64decode(node["data"]))
            part = StoredPart(
                "data", data, node["codec"], handler.name, handler.format_version, self._trust
            )
        else:
            name = str(node["n"])
            if name not in self._parts:
                raise DecodeError(f"an object was stored without its part {name!r}")
            part = self._parts[name]
        return handler.view_leaf(handler.read_leaf(part, node["info"]), node["info"])


_DECODERS: dict[str, Callable[[_Reading, Any], Any]] = {
    "int": lambda _, node: int(node["v"], 16),
    "float": lambda _, node: float(node["v"]),
    "tuple": lambda reading, node: tuple(reading.items(node)),
    "set": lambda reading, node: set(reading.items(node)),
    "frozenset": lambda reading, node: frozenset(reading.items(node)),
    "dict": lambda reading, node: {
        reading.decode(name): reading.decode(item) for name, item in node["v"]
    },
    "datetime": _Reading.moment,
    "time": _Reading.moment,
    "scalar": _Reading.scalar,
    "dtype": _Reading.dtype,
    "leaf": _Reading.leaf,
}
