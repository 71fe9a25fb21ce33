"""Bringing the children of a mirror together, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from blobstore.digest import new_digest
from blobstore.entry import ObjectStat
from blobstore.errors import (
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    StorageError,
)
from blobstore.streams import CHUNK, copy_stream
from blobstore.wrappers.mirror_children import CHILD_ERRORS, Child, Children

_CORRUPT = ObjectStat(-1)
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class RepairReport:
    """What a repair of a mirror did, or would do.

    Attributes
    ----------
    copied : dict of str to tuple of str
        Name of a child -> keys whose objects were copied into it.
    deleted : dict of str to tuple of str
        Name of a child -> keys that were deleted from it.
    failures : dict of str to Exception
        Name of a child -> the first error that kept it from being repaired.
    unresolved : tuple of str
        Keys that are not, or may not be, the same in all children.
    checked : int
        How many keys were compared.
    dry_run : bool
        Nothing was changed.
    """

    copied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deleted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failures: Mapping[str, Exception] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()
    checked: int = 0
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Whether all children are the same now, or would be."""
        return not self.failures and not self.unresolved


class _Found(NamedTuple):
    """What one child has under a key: nothing (no stat), or bytes (no digest if they are corrupt)."""

    child: Child
    stat: ObjectStat | None
    digest: str | None


class Repair:
    """One repair; the caller holds the lock of each key that it has settled.

    Parameters
    ----------
    children : Children
    authority : Child, optional
        Whose state all others get.
    dry_run : bool
    """

    def __init__(
        self, children: Children, authority: Child | None = None, *, dry_run: bool = False
    ) -> None:
        self._children = children
        self._trust = children.trust
        self._authority = authority
        self._dry_run = dry_run
        self._up = list(children)
        self._overflows = self._trust.overflows()
        self._copied: dict[str, list[str]] = {}
        self._deleted: dict[str, list[str]] = {}
        self._failures: dict[str, Exception] = {}
        self._unresolved: dict[str, None] = {}
        self._checked = 0

    # --- all keys --------------------------------------------------------------------------------

    def survey(self, prefix: str) -> list[str]:
        """Give the keys that any child has, or missed a change of, in order.

        Raises
        ------
        NotSupportedError
            A child cannot list, or the children keep values of different kinds.
        StorageError
            The authority cannot be listed.
        """
        self._require_comparable()
        found = self._trust.missed(prefix)
        for child in self._children:
            try:
                found.update(child.store.keys(prefix))
            except NotSupportedError:
                raise
            except CHILD_ERRORS as exc:
                if child is self._authority:
                    raise
                self._failures[child.name] = exc
                self._up.remove(child)
        return sorted(found)

    def report(self, *, whole: bool) -> RepairReport:
        """Sum up.

        Parameters
        ----------
        whole : bool
            All keys were settled, so that children without a failure are believed again.
        """
        if whole and not self._dry_run and not self._unresolved:
            for child in self._up:
                if child.name not in self._failures:
                    self._trust.found(child.name, self._overflows[child.name])
        return RepairReport(
            copied={name: tuple(keys) for name, keys in self._copied.items()},
            deleted={name: tuple(keys) for name, keys in self._deleted.items()},
            failures=dict(self._failures),
            unresolved=tuple(self._unresolved),
            checked=self._checked,
            dry_run=self._dry_run,
        )

    # --- one key ---------------------------------------------------------------------------------

    def mend(self, key: str, child: Child) -> None:
        """Bring one child to what the others have, or say why that cannot be."""
        self.settle(key)
        if self._trust.believes(child.name, key):
            return
        if child.name in self._failures:
            raise self._failures[child.name]
        raise StorageError(
            f"child {child.name!r} of the mirror missed a change of {key!r}, and no other can tell "
            "it now: try again, or call repair()",
            location=key,
        )

    def settle(self, key: str) -> None:
        """Compare a key in all children, and bring those to the right state that differ."""
        self._checked += 1
        found = self._look(key)
        model = self._model(key, found)
        if model is None:
            self._unresolved[key] = None
        else:
            self._spread(key, model, found)

    def _look(self, key: str) -> list[_Found]:
        """What each child has that can be asked; compared only where there is something to compare."""
        stats: list[tuple[Child, ObjectStat | None]] = []
        for child in self._up:
            try:
                stats.append((child, child.store.stat(key)))
            except (KeyNotFoundError, InvalidInputError):
                stats.append((child, None))
            except IntegrityError:
                stats.append((child, _CORRUPT))
            except CHILD_ERRORS as exc:
                self._fail(child, key, exc)
        compare = sum(stat is not None for _, stat in stats) > 1
        found = []
        for child, stat in stats:
            if stat is None or stat is _CORRUPT or not compare:
                found.append(_Found(child, stat, None if stat is _CORRUPT else ""))
                continue
            try:
                found.append(_Found(child, stat, self._digest(child, key)))
            except KeyNotFoundError:  # somebody else deleted it just now
                found.append(_Found(child, None, ""))
            except IntegrityError:
                found.append(_Found(child, stat, None))
            except CHILD_ERRORS as exc:
                self._fail(child, key, exc)
        return found

    def _model(self, key: str, found: list[_Found]) -> _Found | None:
        """Whose state the others are to have; None if no child can be a model for this key."""
        if self._authority is not None:
            chosen = [one for one in found if one.child is self._authority]
            return chosen[0] if chosen and chosen[0].digest is not None else None
        believed = [one for one in found if self._trust.believes(one.child.name, key)]
        if not any(self._trust.believes(child.name, key) for child in self._children):
            believed = found  # so much was missed that nothing is known: times have to tell
        whole = [one for one in believed if one.stat is not None and one.digest is not None]
        if not whole:
            # Absent where it is known to be up to date: deleted. Only corrupt there: who knows.
            absent = [one for one in believed if one.stat is None]
            return absent[0] if absent and len(absent) == len(believed) else None
        votes: dict[str | None, tuple[datetime, int]] = {}
        for one in whole:
            assert one.stat is not None
            newest, count = votes.get(one.digest, (_NEVER, 0))
            votes[one.digest] = (max(newest, one.stat.modified or _NEVER), count + 1)
        # max() takes the first of equals: that is the order of the children.
        return max(whole, key=lambda one: votes[one.digest])

    def _spread(self, key: str, model: _Found, found: list[_Found]) -> None:
        """Give the model's state to those that have another."""
        for one in found:
            same = (one.stat is None) == (model.stat is None)
            if same and (model.stat is None or one.digest == model.digest):
                self._reached(one.child, key)
                continue
            try:
                self._bring(key, model, one)
            except CHILD_ERRORS as exc:
                self._fail(one.child, key, exc)
                if not self._dry_run:
                    self._trust.missing([one.child.name], key)
            else:
                self._reached(one.child, key)

    def _bring(self, key: str, model: _Found, one: _Found) -> None:
        done = self._deleted if model.stat is None else self._copied
        if not self._dry_run:
            if model.stat is None:
                _delete(one.child, key)
            else:
                _copy(model.child, one.child, key)
        done.setdefault(one.child.name, []).append(key)

    def _reached(self, child: Child, key: str) -> None:
        if not self._dry_run:
            self._trust.reached(child.name, key)

    def _fail(self, child: Child, key: str, exc: Exception) -> None:
        self._failures.setdefault(child.name, exc)
        self._unresolved[key] = None

    # --- contents --------------------------------------------------------------------------------

    def _require_comparable(self) -> None:
        kinds = {child.store.capabilities.values for child in self._children}
        if len(kinds) > 1 or "any" in kinds:
            raise NotSupportedError(
                "a mirror can be repaired if all children keep bytes, or all keep text, not "
                f"{', '.join(sorted(kinds))}"
            )

    @staticmethod
    def _digest(child: Child, key: str) -> str:
        hasher = new_digest()
        if child.store.capabilities.values != "bytes":
            text: Any = child.store.get(key)
            hasher.update(text.encode("utf-8", "surrogatepass"))
            return hasher.hexdigest()
        with child.store.open(key) as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()


def _delete(child: Child, key: str) -> None:
    try:
        child.store.delete(key)
    except KeyNotFoundError:
        return


def _copy(giver: Child, taker: Child, key: str) -> None:
    if taker.store.capabilities.values != "bytes":
        taker.store.put(key, giver.store.get(key))
        return
    with giver.store.open(key) as file, taker.store.writer(key) as sink:
        copy_stream(file, sink)
