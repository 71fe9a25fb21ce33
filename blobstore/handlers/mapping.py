"""Containers of arrays and tensors: one part for each large leaf, one for all the rest.

Each large array and tensor (64 KiB and more, anywhere inside nested dictionaries, lists and tuples,
or deeper) becomes a part in the format of its own handler, so that equal ones of different
checkpoints can share a blob. What remains, the skeleton, is a pickle in which a persistent id stands
for each leaf. Tensors and tables that are smaller are inside of their ids, in the same formats:
nothing of them is ever unpickled. So are modules of PyTorch stored, whatever they are made of.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, BinaryIO, NamedTuple

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers import pickle as pickles
from blobstore.handlers.leaves import LARGE, LeafHandler, LeafPlan, NamedPart, plan_by_size
from blobstore.handlers.options import refuse_options
from blobstore.handlers.stream import StreamPart
from blobstore.protocols import (
    Handler,
    Plan,
    PlannedPart,
    StoredPart,
    WriteOptions,
)
from blobstore.registry import base_names, make_handler
from blobstore.streams import BytesSource, Hasher, MemorySink

SKELETON = "skeleton"


class _Leaf(NamedTuple):
    """Objects that are not left to pickle: by which handler, and from how many bytes on."""

    handler: str
    smallest: int = 0


_LEAVES = {
    "numpy.ndarray": _Leaf("numpy", LARGE),  # smaller ones are pickled with little more than that
    "torch.Tensor": _Leaf("torch"),
    "torch.nn.parameter.Parameter": _Leaf("torch"),
    "polars.dataframe.frame.DataFrame": _Leaf("polars"),
    "polars.series.series.Series": _Leaf("polars"),
    "pyarrow.lib.Table": _Leaf("arrow"),
}
_HANDLERS = {leaf.handler for leaf in _LEAVES.values()}
_MODELS = frozenset({"torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer"})
_INSIDE = "leaf"
"""The first item of an id that has all in it that is needed, but for the bytes of a large leaf."""

_DEPTH = 8
_PLAIN = frozenset({int, float, str, bool, bytes, complex, type(None)})
_MAPPINGS = frozenset({dict, OrderedDict, defaultdict})
_CONTAINERS = frozenset({*_MAPPINGS, list, tuple})
_BUILT_IN = _PLAIN | _CONTAINERS


class MappingHandler(Handler):
    """Plain containers with at least one leaf in them, and modules and optimizers of PyTorch.

    `read` takes ``map_location=`` for the device that tensors are to be on: the CPU, if nothing is
    said.

    Examples
    --------
    >>> import numpy as np
    >>> state = {"weights": np.zeros((256, 256)), "epoch": 3}
    >>> [part.name for part in MappingHandler().plan(state, WriteOptions()).parts]
    ['skeleton', '0']
    """

    name = "mapping"
    type_names = (
        "builtins.dict",
        "builtins.list",
        "builtins.tuple",
        "collections.OrderedDict",
        "collections.defaultdict",
    )
    base_names = tuple(sorted(_MODELS))
    runs_code = True

    def can_handle(self, obj: Any) -> bool:
        """A plain container that holds something to be split off; or a model."""
        if type(obj) in _CONTAINERS:
            return _holds_leaf(obj, _DEPTH, set())
        return not _MODELS.isdisjoint(base_names(type(obj)))

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Pickle the skeleton; the leaves are not touched."""
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
        return Plan(
            _data_type(obj), {**_info(obj), "parts": parts.info}, (skeleton, *parts.planned)
        )

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read the leaves as the skeleton asks for them."""
        refuse_options(self, options, "map_location")
        try:
            skeleton, notes = parts[SKELETON], info["parts"]
        except KeyError as exc:
            raise DecodeError(f"a container was stored without its {exc}") from exc
        return pickles.load(skeleton, _Resolver(parts, notes, options).resolve)


def _data_type(obj: Any) -> str:
    if type(obj) in _CONTAINERS:
        return "mapping" if type(obj) in _MAPPINGS else "sequence"
    return "module" if "torch.nn.modules.module.Module" in base_names(type(obj)) else "object"


def _info(obj: Any) -> dict[str, Any]:
    cls = type(obj)
    if cls in _CONTAINERS:
        return {"type": cls.__name__, "length": len(obj)}
    return {"type": f"{cls.__module__}.{cls.__qualname__}"}


class _Resolver:
    """Makes the objects that ids stand for; one that is met twice stays one object."""

    def __init__(
        self,
        parts: Mapping[str, StoredPart],
        notes: Mapping[str, Mapping[str, Any]],
        options: Mapping[str, Any],
    ) -> None:
        self._parts = parts
        self._notes = notes
        self._options = options
        self._objects: dict[Any, Any] = {}
        self._contents: dict[Any, Any] = {}

    def resolve(self, pid: Any) -> Any:
        """The object of an id."""
        if isinstance(pid, str):
            if pid not in self._notes:
                raise DecodeError(f"a container was stored without its part {pid!r}")
            return self._once(pid, pid, self._notes[pid], None)
        try:
            kind, number, source, handler, info, data = pid
            known = kind == _INSIDE and type(number) is int and type(source) is str
        except (TypeError, ValueError):
            known = False
        if not known:
            raise DecodeError("the skeleton of a container has ids of an unknown kind")
        part = None if data is None else StoredPart("data", BytesSource(data), "none", handler, 1)
        return self._once(number, source, info, part)

    def _once(
        self, number: Any, source: str, info: Mapping[str, Any], part: StoredPart | None
    ) -> Any:
        if number not in self._objects:
            if part is None:
                part = self._parts.get(source)
            if part is None:
                raise DecodeError(f"a container was stored without its part {source!r}")
            reader = _reader_of(part.handler)
            if source not in self._contents:
                self._contents[source] = reader.read_leaf(part, info, **self._options)
            self._objects[number] = reader.view_leaf(self._contents[source], info)
        return self._objects[number]


def _reader_of(name: str) -> LeafHandler:
    if name not in _HANDLERS:
        raise DecodeError(
            f"a part of a container was stored by the handler {name!r}, which is not known here: "
            "upgrade blobstore"
        )
    handler = make_handler(name)
    assert isinstance(handler, LeafHandler)
    return handler


class _SkeletonPickler(pickle.Pickler):
    """Asks for every object whether an id is to stand for it."""

    def __init__(self, file: BinaryIO, split: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=5)
        self.persistent_id = split  # type: ignore[method-assign]


class _Parts:
    """Splits leaves off an object while it is being pickled."""

    def __init__(self, options: WriteOptions) -> None:
        self._options = options
        self._ids: dict[int, Any] = {}
        self._facts: dict[int, Callable[[Hasher], object]] = {}
        self._alive: list[Any] = []  # an id means something only while its object lives
        self._sources: dict[Hashable, tuple[str, bytes | None]] = {}
        self.planned: list[PlannedPart] = []
        self.info: dict[str, Mapping[str, Any]] = {}

    def skeleton(self, obj: Any) -> bytes:
        out = io.BytesIO()
        try:
            _SkeletonPickler(out, self._split).dump(obj)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as exc:
            raise UnsupportedTypeError(
                f"a {type(obj).__qualname__} cannot be stored: {exc}"
            ) from exc
        return out.getvalue()

    def _split(self, obj: Any) -> Any:
        leaf = _leaf_of(obj)
        if leaf is None:
            return None
        if id(obj) not in self._ids:
            self._alive.append(obj)
            self._ids[id(obj)] = self._add(leaf.handler, obj)
        return self._ids[id(obj)]

    def _add(self, handler: str, obj: Any) -> Any:
        """The id that is to stand for a leaf; None if it stays in the skeleton."""
        try:
            plan, large = plan_by_size(_reader_of(handler), obj, self._options)
        except UnsupportedTypeError:
            return None
        if handler == "numpy":
            name, _ = self._store(plan, large=True)
            self._facts[id(obj)] = lambda hasher: hasher.update(b"part\0" + name.encode())
            self.info[name] = plan.info
            return name
        number = len(self._ids)
        known = None if plan.memory is None else self._sources.get(plan.memory)
        name, data = known or self._store(plan, large=large)
        if plan.memory is not None:
            self._sources[plan.memory] = name, data

        def say(hasher: Hasher) -> None:
            Canonical(hasher).add((_INSIDE, number, name, handler, plan.facts))
            if data is not None:
                plan.part.digest(hasher)

        self._facts[id(obj)] = say
        return _INSIDE, number, name, handler, dict(plan.info), data

    def _store(self, plan: LeafPlan, *, large: bool) -> tuple[str, bytes | None]:
        """The name of its part, or a name and the bytes themselves."""
        if not large:
            with MemorySink() as sink:
                plan.part.write(sink)
            return f"small {len(self._ids)}", sink.content
        name = str(len(self.planned))
        self.planned.append(NamedPart(name, plan.part))
        return name, None

    def digest_skeleton(self, hasher: Hasher, obj: Any, pickled: bytes) -> None:
        def known(inner: Any, sub: Hasher) -> bool:
            say = self._facts.get(id(inner)) if _leaf_of(inner) else None
            if say is None:
                return pickles.known_types(inner, sub)
            say(sub)
            return True

        walk = pickles.hasher_like(hasher)
        try:
            Canonical(walk, known).add(obj)
        except (UnsupportedTypeError, RecursionError):
            hasher.update(b"blobstore:skeleton-pickle:1\0" + pickled)
        else:
            hasher.update(b"blobstore:skeleton:1\0" + bytes.fromhex(walk.hexdigest()))


def _leaf_of(obj: Any) -> _Leaf | None:
    cls = type(obj)
    # The plain module test first: this runs for every object in the container.
    if cls.__module__ == "builtins":
        return None
    leaf = _LEAVES.get(f"{cls.__module__}.{cls.__qualname__}")
    return leaf if leaf is not None and (not leaf.smallest or obj.nbytes >= leaf.smallest) else None


def _holds_leaf(container: Any, depth: int, seen: set[int]) -> bool:
    """Whether there is a leaf inside plain containers, down to a certain depth.

    Each container is looked into once, however often it occurs.
    """
    if id(container) in seen:
        return False
    seen.add(id(container))
    items = container.values() if type(container) in _MAPPINGS else container
    kinds = set(map(type, items))  # most containers are told by this alone, without a loop
    if kinds <= _PLAIN:
        return False
    if not kinds <= _BUILT_IN and any(_leaf_of(item) is not None for item in items):
        return True
    if not depth or kinds.isdisjoint(_CONTAINERS):
        return False
    return any(_holds_leaf(item, depth - 1, seen) for item in items if type(item) in _CONTAINERS)
