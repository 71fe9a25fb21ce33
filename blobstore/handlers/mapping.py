"""Dictionaries that hold large arrays: one part for each array, one for all the rest.

Each large array (64 KiB and more, anywhere inside nested dictionaries, lists and tuples, or deeper)
becomes a part in the format of its own handler, so that equal arrays of different checkpoints can
share a blob. What remains, the skeleton, is a pickle in which a persistent id stands for each
array.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers import pickle as pickles
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import StreamPart
from blobstore.protocols import (
    Encoding,
    Handler,
    Plan,
    PlannedPart,
    StoredPart,
    WriteOptions,
)
from blobstore.registry import handler_classes
from blobstore.streams import Hasher, Sink

LARGE = 1 << 16
SKELETON = "skeleton"

_LEAVES = {"numpy.ndarray": "numpy"}
"""Types that become parts of their own -> the handler that writes them."""

_DEPTH = 8
_PLAIN = frozenset({int, float, str, bool, bytes, complex, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})


class MappingHandler(Handler):
    """`dict` with at least one large array in it.

    Examples
    --------
    >>> import numpy as np
    >>> state = {"weights": np.zeros((256, 256)), "epoch": 3}
    >>> [part.name for part in MappingHandler().plan(state, WriteOptions()).parts]
    ['skeleton', '0']
    """

    name = "mapping"
    type_names = ("builtins.dict",)
    runs_code = True

    def can_handle(self, obj: Any) -> bool:
        """A plain dictionary that holds something to be split off."""
        return type(obj) is dict and _holds_leaf(obj, _DEPTH, set())

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Pickle the skeleton; the arrays are not touched."""
        parts = _Parts(options)
        pickled = parts.skeleton(obj)
        skeleton = StreamPart(
            self.name,
            SKELETON,
            (pickled,),
            options,
            extension=".pkl",
            digest=lambda hasher: parts.digest_skeleton(hasher, obj, pickled),
            executable=True,
        )
        info = {"type": "dict", "length": len(obj), "parts": parts.info}
        return Plan("mapping", info, (skeleton, *parts.planned))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read the arrays as the skeleton asks for them."""
        refuse_options(self, options)
        try:
            skeleton, notes = parts[SKELETON], info["parts"]
        except KeyError as exc:
            raise DecodeError(f"a dictionary was stored without its {exc}") from exc

        loaded: dict[str, Any] = {}  # an array that is met twice stays one array

        def resolve(pid: str) -> Any:
            if pid not in notes or pid not in parts:
                raise DecodeError(f"a dictionary was stored without its part {pid!r}")
            if pid not in loaded:
                reader = _reader_of(parts[pid].handler)
                loaded[pid] = reader.read({"data": parts[pid]}, notes[pid])
            return loaded[pid]

        return pickles.load(skeleton, functools.partial(_SkeletonUnpickler, resolve=resolve))


def _reader_of(name: str) -> Handler:
    if name not in _LEAVES.values():
        raise DecodeError(
            f"a part of a dictionary was stored by the handler {name!r}, which is not known here: "
            "upgrade blobstore"
        )
    return handler_classes.get(name)()


class _SkeletonPickler(pickle.Pickler):
    """Asks for every object whether an id is to stand for it."""

    def __init__(self, file: BinaryIO, split: Callable[[Any], str | None]) -> None:
        super().__init__(file, protocol=5)
        self.persistent_id = split  # type: ignore[method-assign]


class _SkeletonUnpickler(pickle.Unpickler):
    """Gets the objects that ids stand for from `resolve`."""

    def __init__(
        self, file: BinaryIO, *, resolve: Callable[[str], Any], buffers: Iterable[Any] | None = None
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._resolve = resolve

    def persistent_load(self, pid: Any) -> Any:
        return self._resolve(pid)


class _Parts:
    """Splits large leaves off an object while it is being pickled."""

    def __init__(self, options: WriteOptions) -> None:
        self._options = options
        self._numbers: dict[int, str | None] = {}
        self.planned: list[PlannedPart] = []
        self.info: dict[str, Mapping[str, Any]] = {}

    def skeleton(self, obj: Any) -> bytes:
        out = io.BytesIO()
        try:
            _SkeletonPickler(out, self._split).dump(obj)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as exc:
            raise UnsupportedTypeError(f"a dictionary cannot be stored: {exc}") from exc
        return out.getvalue()

    def _split(self, obj: Any) -> str | None:
        handler = _leaf_handler(obj)
        if handler is None:
            return None
        if id(obj) not in self._numbers:
            self._numbers[id(obj)] = self._add(handler, obj)
        return self._numbers[id(obj)]

    def _add(self, handler: str, obj: Any) -> str | None:
        name = str(len(self.planned))
        try:
            plan = handler_classes.get(handler)().plan(obj, self._options)
        except UnsupportedTypeError:
            return None  # stays in the skeleton
        self.planned.append(_Renamed(name, plan.parts[0]))
        self.info[name] = plan.info
        return name

    def digest_skeleton(self, hasher: Hasher, obj: Any, pickled: bytes) -> None:
        def known(inner: Any, sub: Hasher) -> bool:
            number = self._numbers.get(id(inner)) if _leaf_handler(inner) else None
            if number is None:
                return pickles.known_types(inner, sub)
            sub.update(b"part\0" + number.encode())
            return True

        walk = pickles.hasher_like(hasher)
        try:
            Canonical(walk, known).add(obj)
        except (UnsupportedTypeError, RecursionError):
            hasher.update(b"blobstore:skeleton-pickle:1\0" + pickled)
        else:
            hasher.update(b"blobstore:skeleton:1\0" + bytes.fromhex(walk.hexdigest()))


class _Renamed(PlannedPart):
    """A part of another handler's plan under a name of our own."""

    def __init__(self, name: str, inner: PlannedPart) -> None:
        self.name = name
        self.handler = inner.handler
        self.format_version = inner.format_version
        self.size_hint = inner.size_hint
        self.executable = inner.executable
        self._inner = inner

    def digest(self, hasher: Hasher) -> None:
        self._inner.digest(hasher)

    def encoding(self) -> Encoding:
        return self._inner.encoding()

    def write(self, sink: Sink) -> None:
        self._inner.write(sink)


def _leaf_handler(obj: Any) -> str | None:
    cls = type(obj)
    # The plain module test first: this runs for every object in the dictionary.
    if cls.__module__ == "builtins":
        return None
    handler = _LEAVES.get(f"{cls.__module__}.{cls.__qualname__}")
    return handler if handler is not None and obj.nbytes >= LARGE else None


def _holds_leaf(container: Any, depth: int, seen: set[int]) -> bool:
    """Whether there is a large leaf inside plain containers, down to a certain depth.

    Each container is looked into once, however often it occurs.
    """
    if id(container) in seen:
        return False
    seen.add(id(container))
    items = container.values() if type(container) is dict else container
    kinds = set(map(type, items))  # most containers are told by this alone, without a loop
    if kinds <= _PLAIN:
        return False
    if any(_leaf_handler(item) is not None for item in items):
        return True
    if not depth or kinds.isdisjoint(_CONTAINERS):
        return False
    return any(_holds_leaf(item, depth - 1, seen) for item in items if type(item) in _CONTAINERS)
