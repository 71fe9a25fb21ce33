"""JSON values as queries see them: their kinds, when they are equal, and how they are ordered.

Types are strict: a value equals, or is compared with, only values of its own kind. Integers and
floats are one kind and compared exactly, as Python does; booleans are no numbers; text is ordered
by code point.
"""

from __future__ import annotations

import enum
import json
import math
from typing import Any, Final, Literal

from blobstore import metadata as _metadata
from blobstore.errors import InvalidMetadataError, InvalidQueryError

Kind = Literal["number", "bool", "text", "null", "array", "object"]


class Missing(enum.Enum):
    """The type of `MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""What a field is that an entry does not have; null is a value, this is none."""

KINDS: Final[dict[type, Kind]] = {
    int: "number",
    float: "number",
    bool: "bool",
    str: "text",
    type(None): "null",
    list: "array",
    dict: "object",
}
"""The kind of each type that `json.loads` gives."""

_RANKS: Final = {int: 0, float: 0, str: 1, bool: 2}

ORDERED_KINDS: Final = ("number", "text")
"""Of which one value can be less than another in a condition."""

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


def literal(value: Any) -> Any:
    """Bring a value into the form in which stored metadata would give it back.

    Parameters
    ----------
    value : any JSON value, or what metadata accepts for one
        Tuples, NumPy scalars, datetimes, UUIDs, enums ... become what storing makes of them.

    Raises
    ------
    InvalidQueryError
        It could not be stored, so nothing that is stored can be compared with it.

    Examples
    --------
    >>> literal((1, 2.5))
    [1, 2.5]
    """
    kind = type(value)
    if kind is bool or value is None or (kind is str and value.isascii()):
        return value
    if kind is int and INT64_MIN <= value <= INT64_MAX:
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidQueryError(
            f"{float(value)} cannot be asked for: metadata holds neither NaN nor infinities"
        )
    try:
        text = _metadata.to_text({"value": value})
    except InvalidMetadataError as exc:
        place = exc.message.replace('metadata["value"]', "the value", 1)
        raise InvalidQueryError(f"nothing that is stored compares with this: {place}") from exc
    return json.loads(text)["value"]


def shown(value: Any) -> str:
    """Write any object for a message, shortened.

    Examples
    --------
    >>> shown("a"), shown(10**5000)
    ("'a'", 'a very long int')
    """
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of over 4,300 digits
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def kind_of(value: Any) -> Kind | None:
    """Tell the kind of a JSON value; None for `MISSING`.

    Examples
    --------
    >>> kind_of(1), kind_of(1.5), kind_of(True), kind_of(MISSING)
    ('number', 'number', 'bool', None)
    """
    return KINDS.get(type(value))


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


def rank(value: Any) -> int:
    """Give the rank of a value in an ordering: 0 numbers, 1 text, 2 booleans, 3 all others."""
    return _RANKS.get(type(value), 3)


def order_place(value: Any) -> tuple[int, Any]:
    """Give the rank of a value in an ordering, and its place within that rank.

    Numbers order exactly, but that an
    integer beyond 64 bits counts as its nearest double; and U+0000 in text orders as U+0001: so
    that databases order by themselves as this does.

    Examples
    --------
    >>> sorted(["b", None, 2, True, 1.5, "a"], key=order_place)
    [1.5, 2, 'a', 'b', True, None]
    """
    kind = type(value)
    if kind is int:
        return 0, value if INT64_MIN <= value <= INT64_MAX else _nearest_double(value)
    if kind is float:
        return 0, value
    if kind is str:
        return 1, value.replace("\0", "\1")
    if kind is bool:
        return 2, value
    return 3, 0


def _nearest_double(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
