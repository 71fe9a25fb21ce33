"""Objects inside of other objects that are stored in their own format: leaves of a tree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from blobstore.errors import UnsupportedTypeError
from blobstore.protocols import Handler, PlannedPart, StoredPart, WriteOptions


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
