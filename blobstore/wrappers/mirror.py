"""A store that keeps every object in several stores.

What holds, whichever children fail:

- A change is tried in every child. If it failed in some, `MirrorError` names those, and those that
  have it.
- A child that missed a change made through this object is not believed for that key until a later
  change, or a repair, has reached it. So no value that was replaced comes back while a child has
  the new one. This is remembered in memory, for 100,000 keys of each child.
- An object is absent only if no child that is believed has it and all of them could say.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from blobstore.entry import ObjectStat
from blobstore.errors import (
    ClosedError,
    ConfigError,
    InvalidInputError,
    KeyNotFoundError,
)
from blobstore.keys import require_str
from blobstore.protocols import Capabilities, Leftover, ObjectStore, check_range
from blobstore.streams import Buffer, Sink, Source, as_contiguous, copy_stream
from blobstore.wrappers.base import require_raising, require_store
from blobstore.wrappers.fallback import FallbackSource, fallback_reader
from blobstore.wrappers.locks import KeyLocks
from blobstore.wrappers.mirror_children import CHILD_ERRORS, Change, Child, Children
from blobstore.wrappers.mirror_repair import Repair, RepairReport
from blobstore.wrappers.mirror_sink import MirrorSink
from blobstore.wrappers.mirror_trust import Trust

_BATCH = 1000
"""Keys of `delete_many` that are locked together."""


class MirroringStore(ObjectStore):
    """Keeps each object in every one of several stores, and reads from the first that has it.

    Threads may write the same key through one object. Two processes that do may leave different
    values in the children, until `repair`.

    The order of the children counts: the first one is read from as long as it can be, decides
    `put_if_absent`, and is the one that refuses wrong keys before anything is written.

    Parameters
    ----------
    children : sequence of ObjectStore, or mapping of str to ObjectStore
        Taken over: they are closed with this store. Those without a name are called "0", "1", ...

    Attributes
    ----------
    children : dict of str to ObjectStore
        In order, by name.
    names : tuple of str

    Raises
    ------
    ConfigError
        There is no child, one is no store, is there twice or swallows errors, or a name is empty or
        has a colon.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> near, far = DictStore(), DictStore()
    >>> store = MirroringStore({"near": near, "far": far})
    >>> store.put("key", b"1")
    >>> near.get("key"), far.get("key")
    (b'1', b'1')
    >>> near.delete("key")
    >>> store.get("key")
    b'1'
    >>> store.repair().copied
    {'near': ('key',)}
    """

    def __init__(self, children: Iterable[ObjectStore] | Mapping[str, ObjectStore]) -> None:
        named = _named(children)
        self.names = tuple(child.name for child in named)
        self.children = {child.name: child.store for child in named}
        self._children = Children(named, Trust(self.names))
        self._locks = KeyLocks()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """What all children can do; the first decides on conditional writes."""
        each = [child.capabilities for child in self.children.values()]
        values = each[0].values if len({one.values for one in each}) == 1 else "any"
        return Capabilities(
            list=all(one.list for one in each),
            ranges=all(one.ranges for one in each),
            streams=all(one.streams for one in each),
            local_files=all(one.local_files for one in each),
            conditional_writes=each[0].conditional_writes,
            etags=all(one.etags for one in each),
            persistent=all(one.persistent for one in each),
            readable=all(one.readable for one in each),
            writable=all(one.writable for one in each),
            encrypted=all(one.encrypted for one in each),
            values=values,
        )

    # --- reading ---------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        """Read a whole object from the first child that has it."""
        return self._children.ask(self._check(key), lambda child: child.store.get(key))

    def exists(self, key: str) -> bool:
        """Whether a child has such an object; if none has and one cannot say, that is raised."""

        def look(child: Child) -> bool:
            if not child.store.exists(key):
                raise KeyNotFoundError("", location=key)
            return True

        try:
            return self._children.ask(self._check(key), look)
        except KeyNotFoundError:
            return False

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Read part of an object from the first child that has it."""
        self._check(key)
        check_range(start, stop)
        return self._children.ask(key, lambda child: child.store.get_range(key, start, stop))

    def open(self, key: str) -> BinaryIO:
        """Open an object in the first child that can give the beginning of it."""
        self._check(key)
        return fallback_reader(self._children.answers(key, lambda child: child.store.open(key)))

    def source(self, key: str) -> Source:
        """Prepare an object for reading in the first child that can give any of it."""
        self._check(key)
        return FallbackSource(self._children.answers(key, lambda child: child.store.source(key)))

    def stat(self, key: str) -> ObjectStat:
        """Tell size, time and etag in the first child that has it.

        The etag has the child's name before it, because two children may use the same one for
        different bytes.
        """

        def look(child: Child) -> ObjectStat:
            stat = child.store.stat(key)
            return stat if stat.etag is None else replace(stat, etag=f"{child.name}:{stat.etag}")

        stat = self._children.ask(self._check(key), look)
        return stat if self.capabilities.etags else replace(stat, etag=None)

    def local_path(self, key: str) -> Path | None:
        """Where the object lies as a file of the first child that has it."""
        self._check(key)
        if not self.capabilities.local_files:
            return None

        def look(child: Child) -> Path:
            if (path := child.store.local_path(key)) is None:
                raise KeyNotFoundError("", location=key)
            return path

        try:
            return self._children.ask(key, look)
        except KeyNotFoundError:
            return None

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Give each key that a child has, once; the keys given so far are remembered for that.

        A child that cannot list is an error: without it there is no telling what is there.
        """
        self._check_open()
        lists = [(child.name, child.store.keys(prefix)) for child in self._children]
        return self._merged(lists)

    def _merged(self, lists: list[tuple[str, Iterator[str]]]) -> Iterator[str]:
        seen: set[str] = set()
        doubted: set[str] = set()
        for name, keys in lists:
            for key in keys:
                if key in seen:
                    continue
                if self._children.trust.believes(name, key):
                    seen.add(key)
                    yield key
                else:
                    doubted.add(key)
        # A child may have gained trust while another lost it; what was there all the time is given.
        yield from (key for key in doubted - seen if self.exists(key))

    # --- writing ---------------------------------------------------------------------------------

    def put(self, key: str, data: Buffer) -> None:
        """Write a whole object into every child.

        Raises
        ------
        MirrorError
            Some child failed; every one was tried.
        InvalidInputError
            The arguments are wrong; nothing was written.
        """
        self._check(key)
        if self.capabilities.values == "bytes":
            data = as_contiguous(data)
        with self._locks.hold(key):
            self._put(Change(self._children, "put", key), key, data, self._children.all)

    def _put(self, change: Change, key: str, data: Buffer, children: Iterable[Child]) -> None:
        for child in children:
            change.attempt(child, lambda store=child.store: store.put(key, data))  # type: ignore[misc]
        change.finish()

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write an object unless there is one: the first child decides, then the others get it.

        If the first child missed a change of this key, it is brought up to date before it is asked.
        What only another child is known to have, because the first one lost it, is not replaced.
        """
        self._check(key)
        if self.capabilities.values == "bytes":
            data = as_contiguous(data)
        first, *others = self._children
        with self._locks.hold(key):
            if not self._children.trust.believes(first.name, key):
                Repair(self._children).mend(key, first)
            taken = any(self._is_known_to_have(child, key) for child in others)
            if taken or not first.store.put_if_absent(key, data):
                return False
            change = Change(self._children, "put_if_absent", key)
            change.made(first)
            self._put(change, key, data, others)
        return True

    def _is_known_to_have(self, child: Child, key: str) -> bool:
        try:
            return self._children.trust.believes(child.name, key) and child.store.exists(key)
        except CHILD_ERRORS:  # that child then fails to be written to, too, and is named
            return False

    def writer(self, key: str, size_hint: int | None = None) -> Sink:
        """Write an object into every child, piece by piece."""
        return MirrorSink(self._children, self._locks, self._check(key), size_hint)

    def delete(self, key: str) -> None:
        """Remove an object from every child; `KeyNotFoundError` if none had it.

        Raises
        ------
        MirrorError
            Some child failed; every one was tried.
        """
        self._check(key)
        had = []

        def remove(child: Child, first: Child = self._children.all[0]) -> None:
            try:
                child.store.delete(key)
                had.append(child.name)
            except KeyNotFoundError:
                pass
            except InvalidInputError:
                if child is first:
                    raise

        with self._locks.hold(key):
            change = Change(self._children, "delete", key)
            for child in self._children:
                change.attempt(child, lambda child=child: remove(child))  # type: ignore[misc]
            change.finish()
        if not had:
            raise KeyNotFoundError(f"there is no object {key!r} in any child", location=key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects from every child; absent ones are fine.

        Raises
        ------
        MirrorError
            Some child failed; every one was tried, for all keys.
        """
        self._check_open()
        rest = iter(keys)
        total: Change | None = None
        while batch := list(itertools.islice(rest, _BATCH)):
            change = self._delete_batch([self._check(key) for key in batch])
            total = total or change
            total.failures.update(change.failures)
            total.done = [name for name in self.names if name not in total.failures]
        if total is not None:
            total.finish()

    def _delete_batch(self, keys: list[str]) -> Change:
        change = Change(self._children, "delete_many", *keys)
        with self._locks.hold(*keys):
            for child in self._children:
                change.attempt(child, lambda store=child.store: store.delete_many(keys))  # type: ignore[misc]
        return change

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside every child; one that has no good source gets it from another."""
        self._check(source)
        self._check(target)
        with self._locks.hold(source, target):
            # The one to be read from: it tells, too, whether there is such an object at all.
            giver = self._children.ask(source, lambda child: (child.store.stat(source), child)[1])
            change = Change(self._children, "copy", target)
            for child in (giver, *(child for child in self._children if child is not giver)):
                change.attempt(
                    child,
                    lambda child=child: self._copy(giver, child, source, target),  # type: ignore[misc]
                )
            change.finish()

    def _copy(self, giver: Child, child: Child, source: str, target: str) -> None:
        if child is giver or self._children.trust.believes(child.name, source):
            with contextlib.suppress(KeyNotFoundError):
                child.store.copy(source, target)
                return
        if self.capabilities.values != "bytes":
            child.store.put(target, giver.store.get(source))
            return
        with giver.store.open(source) as file, child.store.writer(target) as sink:
            copy_stream(file, sink)

    def sync(self, keys: Iterable[str]) -> None:
        """Return once these objects would survive a power cut in every child."""
        self._check_open()
        wanted = list(keys)
        change = Change(self._children, "sync")
        for child in self._children:
            change.attempt(child, lambda store=child.store: store.sync(wanted))  # type: ignore[misc]
        change.finish()

    # --- upkeep ----------------------------------------------------------------------------------

    def repair(
        self, prefix: str = "", *, authority: str | int | None = None, dry_run: bool = False
    ) -> RepairReport:
        """Bring the children together.

        Without an authority the value that was written last wins, going by the times that the
        children tell; of equal times the value that most have, then the first child's. What this
        object knows goes before times: a child that missed a change is no model for that key. A key
        that any believed child has is kept. With an authority all others become equal to it,
        deletions included.

        Contents are compared and copied as streams. Objects may be read and written meanwhile.

        Parameters
        ----------
        prefix : str
            Only the keys that start with it.
        authority : str or int, optional
            Name or number of a child.
        dry_run : bool
            Only tell what would be done.

        Returns
        -------
        RepairReport
            A child that cannot be reached is named there, and the others are repaired.

        Raises
        ------
        ConfigError
            There is no such child.
        NotSupportedError
            A child cannot list, or the children keep values of different kinds.
        StorageError
            The authority cannot be listed.
        """
        self._check_open()
        chosen = None if authority is None else self._child(authority)
        repair = Repair(self._children, chosen, dry_run=dry_run)
        for key in repair.survey(prefix):
            with self._locks.hold(key):
                repair.settle(key)
        return repair.report(whole=prefix == "")

    def leftovers(self) -> Iterator[Leftover]:
        """What interrupted writers left behind, each with the name of its child before it."""
        self._check_open()
        found = [(child.name, child.store.leftovers()) for child in self._children]
        return (
            replace(leftover, name=f"{name}:{leftover.name}")
            for name, leftovers in found
            for leftover in leftovers
        )

    def remove_leftover(self, name: str) -> None:
        """Remove one of `leftovers` from its child."""
        self._check_open()
        child, _, rest = name.partition(":")
        if child not in self.children:
            raise InvalidInputError(
                f"there is no leftover {name!r}: they begin with the name of a child, "
                f"which are {', '.join(self.names)}"
            )
        self.children[child].remove_leftover(rest)

    def close(self) -> None:
        """Close every child, also if one cannot be closed."""
        self._closed = True
        with contextlib.ExitStack() as stack:
            for child in reversed(self._children.all):
                stack.callback(child.store.close)

    def __repr__(self) -> str:
        named = self.names != tuple(map(str, range(len(self.names))))
        return f"{type(self).__name__}({self.children if named else [*self.children.values()]!r})"

    def _child(self, which: str | int) -> Child:
        if isinstance(which, int) and 0 <= which < len(self.names):
            return self._children.all[which]
        if which in self.names:
            return self._children.all[self.names.index(str(which))]
        raise ConfigError(f"there is no child {which!r}: choose one of {', '.join(self.names)}")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"this {type(self).__name__} was closed: make a new one")

    def _check(self, key: str) -> str:
        self._check_open()
        return require_str(key)


FanoutStore = MirroringStore


def _named(children: object) -> list[Child]:
    if isinstance(children, Mapping):
        pairs = list(children.items())
    elif isinstance(children, Iterable) and not isinstance(children, str | bytes):
        pairs = [(str(number), child) for number, child in enumerate(children)]
    else:
        raise ConfigError(f"the children of a mirror are a sequence of stores, not {children!r}")
    if not pairs:
        raise ConfigError("a mirror needs children: give at least one")
    for name, _ in pairs:
        if not isinstance(name, str) or not name or ":" in name:
            raise ConfigError(f"the name of a child is a str without colons, not {name!r}")
    found = [Child(name, require_store(child, "a child")) for name, child in pairs]
    for child in found:
        require_raising(child.store, f"child {child.name!r}")
    if len({id(child.store) for child in found}) < len(found):
        raise ConfigError("the children have the same store twice: it would mirror nothing")
    return found
