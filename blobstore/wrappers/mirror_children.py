"""The stores of a mirror: asked in turn, changed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from blobstore.errors import (
    BlobStoreError,
    InvalidInputError,
    KeyNotFoundError,
    MirrorError,
    NotSupportedError,
    StorageError,
)
from blobstore.protocols import ObjectStore
from blobstore.wrappers.mirror_trust import Trust

T = TypeVar("T")

CHILD_ERRORS = (BlobStoreError, OSError)
"""What counts as the failure of one child; a store of others may let the system's errors through."""


class Child(NamedTuple):
    """A store of a mirror, under its name."""

    name: str
    store: ObjectStore


class Children:
    """The stores of a mirror, and what is known of them.

    Parameters
    ----------
    children : sequence of Child
    trust : Trust
    """

    def __init__(self, children: Sequence[Child], trust: Trust) -> None:
        self.all = tuple(children)
        self.trust = trust

    def __iter__(self) -> Iterator[Child]:
        return iter(self.all)

    def ask(self, key: str, read: Callable[[Child], T]) -> T:
        """Give what the first child answers that has the object."""
        return next(self.answers(key, read))

    def answers(self, key: str, read: Callable[[Child], T]) -> Iterator[T]:
        """Give what each child answers that has the object; in the end, say why there are no more.

        Raises
        ------
        KeyNotFoundError
            No child that is to be believed has it.
        BlobStoreError, OSError
            Some child could not say.
        """
        asked = 0
        failures: list[tuple[str, Exception]] = []
        for child in self.all:
            if not self.trust.believes(child.name, key):
                continue
            asked += 1
            try:
                answer = read(child)
            except KeyNotFoundError:
                continue
            except InvalidInputError:
                if asked == 1:
                    raise
                continue  # a child that takes no such key has no such object
            except CHILD_ERRORS as exc:
                failures.append((child.name, exc))
            else:
                yield answer
        if failures:
            raise _worst(failures)
        if not asked:
            raise StorageError(
                f"no child of the mirror is known to have the last value of {key!r}: each of them "
                "missed too many changes to remember. Call repair()",
                location=key,
            )
        raise KeyNotFoundError(f"there is no object {key!r} in any child", location=key)


def _worst(failures: Sequence[tuple[str, Exception]]) -> Exception:
    """The failure to be raised for all: one that may pass, if there is any."""
    passing = [exc for _, exc in failures if getattr(exc, "retryable", False)]
    chosen = passing[0] if passing else failures[0][1]
    for name, exc in failures:
        if exc is not chosen:
            chosen.add_note(f"child {name!r} failed as well: {exc}")
    return chosen


class Change:
    """One change of some keys that is to be made in every child.

    As soon as the first child has it, the others are not believed for these keys until they have
    it, too: a reader that has seen the new value never sees the old one again, also if the change
    ends halfway.

    Parameters
    ----------
    children : Children
    what : str
        For messages: "put".
    keys : str
    """

    def __init__(self, children: Children, what: str, *keys: str) -> None:
        self._children = children
        self._what = what
        self._keys = keys
        self.done: list[str] = []
        self.failures: dict[str, Exception] = {}

    def attempt(self, child: Child, make: Callable[[], object]) -> None:
        """Make the change in one child; a failure is kept for `finish`.

        Raises
        ------
        InvalidInputError
            The child refuses the arguments, and none has taken them.
        """
        try:
            make()
        except InvalidInputError as exc:
            if not self.done:
                raise
            self.failures[child.name] = exc
        except CHILD_ERRORS as exc:
            self.failures[child.name] = exc
        else:
            self.made(child)

    def made(self, child: Child) -> None:
        """Take down that a child has the change."""
        trust = self._children.trust
        for key in self._keys:
            if not self.done:
                trust.missing([c.name for c in self._children if c is not child], key)
            trust.reached(child.name, key)
        self.done.append(child.name)

    def finish(self) -> None:
        """Raise what went wrong.

        Raises
        ------
        MirrorError
            Some child does not have the change.
        NotSupportedError
            No child can make such a change.
        """
        if not self.failures:
            return
        first = next(iter(self.failures.values()))
        if not self.done and all(isinstance(e, NotSupportedError) for e in self.failures.values()):
            raise first
        told = "; ".join(f"{name}: {exc}" for name, exc in self.failures.items())
        shown = ", ".join(map(repr, self._keys[:3])) + (", ..." if len(self._keys) > 3 else "")
        error = MirrorError(
            f"{self._what}{shown and ' of ' + shown} failed in {', '.join(self.failures)} and was done in "
            f"{', '.join(self.done) or 'no child'} ({told}). Try again, or call repair()",
            location=self._keys[0] if len(self._keys) == 1 else None,
            failures=self.failures,
            succeeded=self.done,
        )
        raise error from first
