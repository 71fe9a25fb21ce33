"""What a query means, said a second time and as plainly as possible: the oracle for queries.

It walks the tree anew for each entry, compares numbers as fractions and text as lists of code
points, and shares nothing with `blobstore.query` but the classes of the tree: so that a mistake
there shows as a difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

from blobstore.entry import Entry
from blobstore.query.selection import Cursor, Query
from blobstore.query.tree import (
    Among,
    And,
    Compare,
    Contains,
    Exists,
    Expression,
    Field,
    Like,
    Not,
    Or,
    Order,
    StartsWith,
)

_ABSENT = object()

_OWN = {
    "key": "key",
    "id": "id",
    "version": "version",
    "size": "size",
    "data_type": "data_type",
    "handler": "handler",
    "created_at": "created_us",
    "updated_at": "updated_us",
}


def select(entries: Sequence[Entry], query: Query) -> list[Entry]:
    """Choose and sort entries as a query asks."""
    found = [
        entry
        for entry in entries
        if entry.key[: len(query.prefix)] == query.prefix
        and (query.where is None or holds(query.where, entry))
    ]

    def compare(one: Entry, two: Entry) -> int:
        return _order(query.order, _place(query.order, one), _place(query.order, two))

    found.sort(key=cmp_to_key(compare))
    if query.after is not None:
        after = query.after
        place = after if isinstance(after, Cursor) else Cursor((), after)
        found = [
            entry
            for entry in found
            if _order(query.order, _place(query.order, entry), (place.values, place.key)) > 0
        ]
    return found if query.limit is None else found[: query.limit]


def holds(expression: Expression, entry: Entry) -> bool:
    """Whether an expression is true of an entry."""
    if isinstance(expression, And):
        return all(holds(item, entry) for item in expression.items)
    if isinstance(expression, Or):
        return any(holds(item, entry) for item in expression.items)
    if isinstance(expression, Not):
        return not holds(expression.item, entry)
    assert isinstance(expression, Compare | Among | Like | StartsWith | Contains | Exists)
    value = value_of(expression.field, entry)
    if value is _ABSENT:
        return False
    return isinstance(expression, Exists) or _leaf(expression, value)


def _leaf(leaf: Expression, value: Any) -> bool:
    if isinstance(leaf, Compare):
        return _compare(leaf.op, value, leaf.value)
    if isinstance(leaf, Among):
        equal = [canonical(value) == canonical(one) for one in leaf.values]
        if not leaf.negated:
            return any(equal)
        alike = [one is None or kind(one) == kind(value) for one in leaf.values]
        return any(alike) and not any(equal)
    if isinstance(leaf, Contains) and kind(value) == "array":
        return canonical(leaf.value) in [canonical(item) for item in value]
    if kind(value) != "text":
        return False
    if isinstance(leaf, Like):
        return _fits(value, _pattern(leaf.pattern))
    if isinstance(leaf, StartsWith):
        return bool(value[: len(leaf.text)] == leaf.text)
    assert isinstance(leaf, Contains)
    return kind(leaf.value) == "text" and bool(value.find(leaf.value) >= 0)


def _compare(op: str, value: Any, wanted: Any) -> bool:
    if op == "=":
        return bool(canonical(value) == canonical(wanted))
    if op == "!=":
        comparable = wanted is None or kind(value) == kind(wanted)
        return comparable and bool(canonical(value) != canonical(wanted))
    if kind(value) != kind(wanted):
        return False
    one, two = _comparable(value), _comparable(wanted)
    holds_for: dict[str, bool] = {
        "<": one < two,
        "<=": one <= two,
        ">": one > two,
        ">=": one >= two,
    }
    return holds_for[op]


def _comparable(value: Any) -> Any:
    return [ord(one) for one in value] if isinstance(value, str) else Fraction(value)


def value_of(field: Field, entry: Entry) -> Any:
    """Walk to the value of a field."""
    if field.system:
        return getattr(entry, _OWN[field.path[0]])
    value = json.loads(entry.metadata_text)
    for name in field.path:
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def kind(value: Any) -> str:
    """Name the kind of a JSON value; integers and floats are one, booleans are another."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return {str: "text", list: "array", dict: "object", type(None): "null"}.get(type(value), "none")


def canonical(value: Any) -> Any:
    """Name the kind of each node, so that ``==`` of the result is the equality of JSON values."""
    if isinstance(value, dict):
        return ("object", {name: canonical(item) for name, item in value.items()})
    if isinstance(value, list | tuple):
        return ("array", [canonical(item) for item in value])
    return (kind(value), value)


def _pattern(pattern: str) -> list[tuple[str, bool]]:
    """Characters, and whether each is a wildcard."""
    characters: list[tuple[str, bool]] = []
    place = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            place += 1
            characters.append((pattern[place], False))
        else:
            characters.append((pattern[place], pattern[place] in "%_"))
        place += 1
    return characters


def _fits(text: str, pattern: list[tuple[str, bool]]) -> bool:
    """Follow all places of the text that the pattern so far can have led to."""
    places = {0}
    for character, wild in pattern:
        if wild and character == "%":
            places = set(range(min(places, default=len(text) + 1), len(text) + 1))
        else:
            places = {
                place + 1
                for place in places
                if place < len(text) and (wild or text[place] == character)
            }
    return len(text) in places


# --- order


def _place(order: Sequence[Order], entry: Entry) -> tuple[tuple[Any, ...], str]:
    return tuple(value_of(one.field, entry) for one in order), entry.key


def _order(
    order: Sequence[Order], one: tuple[tuple[Any, ...], str], two: tuple[tuple[Any, ...], str]
) -> int:
    """Tell whether one place is behind (1) or before (-1) another."""
    for level, left, right in zip(order, one[0], two[0], strict=True):
        ranks = _rank(left) - _rank(right)
        if ranks:
            return 1 if ranks > 0 else -1
        if _rank(left) == 3:
            continue
        first, second = _ordered(left), _ordered(right)
        if first != second:
            return 1 if (first > second) is not level.descending else -1
    return (one[1] > two[1]) - (one[1] < two[1])


def _rank(value: Any) -> int:
    return {"number": 0, "text": 1, "bool": 2}.get(kind(value), 3)


def _ordered(value: Any) -> Any:
    if isinstance(value, str):
        return [max(ord(one), 1) for one in value]
    if isinstance(value, int) and value.bit_length() > 63 and value != -(2**63):
        try:
            return Fraction(float(value))
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return Fraction(value)
