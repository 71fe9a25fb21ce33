"""A store that sends each key to one of several stores, by regular expressions."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    NotSupportedError,
    RejectedKeyError,
)
from blobstore.keys import require_str
from blobstore.protocols import Capabilities, Leftover, ObjectStore
from blobstore.streams import Buffer, Sink, Source, copy_stream
from blobstore.wrappers.base import WrapperSink, require_store
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore
from blobstore.wrappers.validate import compiled

Target = ObjectStore | KeyTransformer


@dataclass(frozen=True, slots=True)
class _Route:
    pattern: re.Pattern[str]
    store: ObjectStore


class RegexRoutingStore(ObjectStore):
    """Keeps each key where the first pattern that is found in it says.

    A key in which no pattern is found is `RejectedKeyError`, except that `exists` says no and
    removals pass it over. Only keys that lead to where they lie are listed. Two transformers must
    not turn two keys into one: `PrefixTransformer` with prefixes of their own, for instance.

    Parameters
    ----------
    store : ObjectStore, optional
        For the routes to a `KeyTransformer`. Taken over, like the targets: all are closed with
        this one.
    routes : sequence of pairs, or mapping
        Pattern (searched anywhere in the key, the first one decides) and target: an
        `ObjectStore`, or a `KeyTransformer` under whose keys `store` keeps the objects. In YAML,
        where patterns cannot be built, a mapping of pattern to store.

    Raises
    ------
    ConfigError
        A pattern or target is none, or there is no `store` for a transformer.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> from blobstore.wrappers.prefix import PrefixTransformer
    >>> images = DictStore()
    >>> store = RegexRoutingStore(DictStore(), [(r"[.]png$", images), ("", PrefixTransformer("x/"))])
    >>> store.put("a.png", b"1")
    >>> store.put("notes", b"2")
    >>> list(images.keys()), list(store.store.keys()), sorted(store.keys())
    (['a.png'], ['x/notes'], ['a.png', 'notes'])
    """

    not_io: ClassVar[frozenset[str]] = frozenset({"add_route"})
    """Methods that its async face does not await."""

    def __init__(
        self,
        store: ObjectStore | None = None,
        routes: Iterable[tuple[str | re.Pattern[str], Target]]
        | Mapping[str | re.Pattern[str], Target] = (),
    ) -> None:
        self.store = None if store is None else require_store(store)
        self._routes: list[_Route] = []
        self._stores = [] if store is None else [store]
        self._closed = False
        given: Any = routes
        if not isinstance(given, Iterable):
            raise ConfigError(f"routes are pairs (pattern, target), not {given!r}")
        pairs = routes.items() if isinstance(routes, Mapping) else routes
        for route in pairs:
            try:
                pattern, target = route
            except (TypeError, ValueError) as exc:
                raise ConfigError(f"routes are pairs (pattern, target), not {route!r}") from exc
            self.add_route(pattern, target)

    def add_route(self, pattern: str | re.Pattern[str], target: Target) -> None:
        """Add a route, to be tried after those that there are.

        Parameters
        ----------
        pattern : str or compiled pattern
        target : ObjectStore or KeyTransformer

        Raises
        ------
        ConfigError
            One of them is none, or there is no `store` for a transformer.
        """
        regex = compiled(pattern)
        if isinstance(target, KeyTransformer):
            if self.store is None:
                raise ConfigError(
                    f"the route {regex.pattern!r} leads to a key transformer, which needs a store "
                    "to keep the objects in: give store="
                )
            target = KeyTransformingStore(self.store, target)
        else:
            require_store(target, f"routes: the target of {regex.pattern!r}")
            if all(target is not known for known in self._stores):
                self._stores.append(target)
        self._routes.append(_Route(regex, target))

    @property
    def capabilities(self) -> Capabilities:
        """What all targets have in common."""
        found = [route.store.capabilities for route in self._routes] or [Capabilities()]
        values = {each.values for each in found}
        common: dict[str, Any] = {
            field.name: all(getattr(each, field.name) for each in found)
            for field in fields(Capabilities)
            if field.name != "values"
        }
        return Capabilities(**common, values=values.pop() if len(values) == 1 else "any")

    def get(self, key: str) -> bytes:
        """Read a whole object."""
        return self._target(key).get(key)

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object."""
        self._target(key).put(key, data)

    def exists(self, key: str) -> bool:
        """Whether there is such an object; False for a key that no pattern is found in."""
        target = self._route(key)
        return target is not None and target.exists(key)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self._target(key).delete(key)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give the keys of all targets that start with `prefix`, each once."""
        self._check_open()
        targets: list[ObjectStore] = []
        for route in self._routes:
            if all(route.store is not target for target in targets):
                targets.append(route.store)
        # All are asked now: errors come from the call.
        return self._at_home([(target, target.keys(prefix)) for target in targets])

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object."""
        return self._target(key).get_range(key, start, stop)

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading."""
        return self._target(key).open(key)

    def source(self, key: str) -> Source:
        """Prepare an object for reading in several ways."""
        return self._target(key).source(key)

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object piece by piece."""
        target = self._target(key)
        return _RoutedSink(target.writer(key, size_hint), self, target)

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag of an object."""
        return self._target(key).stat(key)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of its own; None unless all targets keep files."""
        target = self._route(key)
        if target is None or not self.capabilities.local_files:
            return None
        return target.local_path(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects, those of one target together; absent ones are fine."""
        self._check_open()
        groups = self._grouped(keys)
        with contextlib.ExitStack() as stack:  # one target that fails does not keep the others
            for target, group in groups:
                stack.callback(target.delete_many, group)

    def copy(self, source: str, target: str) -> None:
        """Copy an object, piece by piece if it goes to another store."""
        here, there = self._target(source), self._target(target)
        if here is there:
            here.copy(source, target)
        elif {here.capabilities.values, there.capabilities.values} != {"bytes"}:
            there.put(target, here.get(source))
        else:
            with here.open(source) as reader, self.writer(target) as sink:
                copy_stream(reader, sink)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one."""
        return self._target(key).put_if_absent(key, data)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut."""
        self._check_open()
        for target, group in self._grouped(keys):
            target.sync(group)

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind, the number of its store in front of each name."""
        self._check_open()
        found = [(number, store.leftovers()) for number, store in enumerate(self._stores)]
        return (
            Leftover(f"{number}:{left.name}", left.size, left.modified)
            for number, lefts in found
            for left in lefts
        )

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers`; an absent one is fine."""
        self._check_open()
        number, _, inner = name.partition(":")
        if not (number.isdecimal() and int(number) < len(self._stores)):
            raise InvalidInputError(f"{name!r} is none of ours: take names of leftovers()")
        self._stores[int(number)].remove_leftover(inner)

    def close(self) -> None:
        """Close all stores, also if one of them fails to."""
        self._closed = True
        with contextlib.ExitStack() as stack:
            for store in self._stores:
                stack.callback(store.close)

    def __repr__(self) -> str:
        routes = ", ".join(f"{r.pattern.pattern!r}: {r.store!r}" for r in self._routes)
        return f"{type(self).__name__}({{{routes}}})"

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this RegexRoutingStore was closed: make a new one")

    def _route(self, key: str) -> ObjectStore | None:
        self._check_open()
        name = require_str(key)
        return next((r.store for r in self._routes if r.pattern.search(name)), None)

    def _target(self, key: str) -> ObjectStore:
        target = self._route(key)
        if target is None:
            raise RejectedKeyError(
                f"no route leads anywhere for the key {key!r}: add one with add_route",
                location=key,
            )
        return target

    def _grouped(self, keys: Iterable[str]) -> list[tuple[ObjectStore, list[str]]]:
        groups: dict[int, tuple[ObjectStore, list[str]]] = {}
        for key in keys:
            target = self._route(key)
            if target is not None:  # no route, no object
                groups.setdefault(id(target), (target, []))[1].append(key)
        return list(groups.values())

    def _at_home(self, found: list[tuple[ObjectStore, Iterator[str]]]) -> Iterator[str]:
        for target, keys in found:
            for key in keys:
                if self._route(key) is target:
                    yield key


class _RoutedSink(WrapperSink):
    """Makes sure that where the object is leads back to it."""

    def __init__(self, inner: Sink, router: RegexRoutingStore, target: ObjectStore) -> None:
        super().__init__(inner)
        self._router = router
        self._target = target

    def commit(self) -> None:
        super().commit()
        if self._router._route(self.location) is not self._target:  # noqa: SLF001
            raise NotSupportedError(
                f"{self._target!r} keeps objects at places of its own ({self.location}), to which "
                "no route leads: add one",
                location=self.location,
            )
