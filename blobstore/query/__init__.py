"""What can be asked of an index, and the reference answer that every index must agree with.

So far: a literal prefix of the key, and metadata that must be equal. Names and values are data:
no character in either has a special meaning. Comparison is by value and strict in type, as in
Python but for one thing: a boolean is not a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blobstore import metadata as _metadata
from blobstore.entry import Entry


@dataclass(frozen=True, slots=True)
class Query:
    """A selection of entries, in the order of their keys (by code point).

    Attributes
    ----------
    prefix : str
        Literal and case-sensitive; "" selects all.
    equal : mapping
        Metadata names to the values they must have; all must match. JSON values only (see
        `with_filter`); a name that an entry does not have matches nothing, not even None.
    after : str or None
        Only keys above this one: for reading page by page.
    limit : int or None
        At most so many entries.
    """

    prefix: str = ""
    equal: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    limit: int | None = None

    def matches(self, entry: Entry) -> bool:
        """Whether the entry belongs to the answer, `limit` apart."""
        if not entry.key.startswith(self.prefix):
            return False
        if self.after is not None and entry.key <= self.after:
            return False
        return not self.equal or matches_metadata(self.equal, entry.metadata_text)


def parse_filter(metadata_filter: Mapping[str, Any] | None) -> dict[str, Any]:
    """Bring a filter into the same JSON form as stored metadata.

    Raises
    ------
    InvalidMetadataError
        A value in it is no JSON, so nothing stored could ever equal it.

    Examples
    --------
    >>> parse_filter({"shape": (2, 3)})
    {'shape': [2, 3]}
    """
    parsed: dict[str, Any] = json.loads(_metadata.to_text(metadata_filter))
    return parsed


def matches_metadata(equal: Mapping[str, Any], metadata_text: str) -> bool:
    """Whether stored metadata has every name of `equal` with an equal value."""
    stored = json.loads(metadata_text)
    return all(name in stored and same(stored[name], value) for name, value in equal.items())


def same(left: Any, right: Any) -> bool:
    """Equality of two JSON values: numbers by value, booleans only with booleans.

    Examples
    --------
    >>> same(1, 1.0), same(1, True), same("1", 1), same({"a": [1]}, {"a": [1.0]})
    (True, False, False, True)
    """
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)
