"""Objects inside of other objects that are stored in their own format: leaves of a tree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from blobstore.digest import Canonical
from blobstore.errors import UnsupportedTypeError
from blobstore.protocols import Encoding, Handler, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import Hasher, Sink


@dataclass(frozen=True, slots=True)
class LeafPlan:
    """How a leaf will be stored.

    Attributes
    ----------
    part : PlannedPart
        Its content.
    info : mapping
        What is needed to make the object of it again.
    facts : object
        What distinguishes it from other leaves of this content, for a digest: plain values.
    memory : hashable, optional
        Leaves of equal `memory` are views of the same memory, and are to be that again.
    """

    part: PlannedPart
    info: Mapping[str, Any]
    facts: Any = ()
    memory: Hashable = None


class LeafHandler(Handler):
    """A handler whose objects may be leaves, each of one part."""

    def plan_leaf(self, obj: Any, options: WriteOptions) -> LeafPlan:
        """Decide how to store `obj` inside of another object.

        Raises
        ------
        UnsupportedTypeError
            It cannot be stored that way.
        """
        plan = self.plan(obj, options)
        if len(plan.parts) != 1:
            raise UnsupportedTypeError(f"a {type(obj).__name__} is stored in several parts")
        return LeafPlan(plan.parts[0], plan.info)

    def read_leaf(self, part: StoredPart, info: Mapping[str, Any], **options: Any) -> Any:
        """Read the content of a leaf; `options` are those that all leaves are asked with."""
        return self.read({"data": part}, info)

    def view_leaf(self, content: Any, info: Mapping[str, Any]) -> Any:
        """Make the object of content that was read, and that other leaves may share."""
        return content


LARGE = 1 << 16
"""From so many bytes on, a leaf is a part of its own; smaller ones are inside of what holds them."""

_INSIDE = WriteOptions("none", inline_max_bytes=LARGE + 4096)
"""How small leaves are encoded: quickly; what holds them is compressed as a whole."""


def plan_by_size(handler: LeafHandler, obj: Any, options: WriteOptions) -> tuple[LeafPlan, bool]:
    """Plan a leaf for where it will be.

    Returns
    -------
    plan : LeafPlan
    large : bool
        Whether it is to be a part of its own.

    Raises
    ------
    UnsupportedTypeError
        It cannot be stored as a leaf.
    """
    plan = handler.plan_leaf(obj, _INSIDE)
    if plan.part.size_hint < LARGE:
        return plan, False
    return handler.plan_leaf(obj, options), True


class NamedPart(PlannedPart):
    """A part of another handler's plan, under a name of our own.

    Parameters
    ----------
    name : str
    inner : PlannedPart
    said : object, optional
        What the digest tells besides what `inner` does: plain values.
    """

    def __init__(self, name: str, inner: PlannedPart, said: Any = None) -> None:
        self.name = name
        self.handler = inner.handler
        self.format_version = inner.format_version
        self.size_hint = inner.size_hint
        self.executable = inner.executable
        self._inner = inner
        self._said = said

    def digest(self, hasher: Hasher) -> None:
        """Feed what is said besides, and the content."""
        if self._said is not None:
            Canonical(hasher).add(self._said)
        self._inner.digest(hasher)

    def encoding(self) -> Encoding:
        """As the part itself decides."""
        return self._inner.encoding()

    @property
    def is_packed(self) -> bool:
        """As the part itself says."""
        return self._inner.is_packed

    def write(self, sink: Sink) -> None:
        """Write the part itself."""
        self._inner.write(sink)
