"""Counting and summing up: groups of entries, and what the numbers of a field in each come to.

The index counts how often each combination of values occurs; here these are put together. Sums are
exact and rounded once, at the end, so that an answer depends neither on the order in which entries
come nor on who added them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from blobstore.entry import to_datetime
from blobstore.query import MISSING, Field, order_place, print_field
from blobstore.query.fields import SYSTEM_FIELDS

Number = int | float

_ALIKE = (str, int, bool, type(None), type(MISSING))
"""Types whose equal values cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Group:
    """Entries that have the same values, and what the numbers of a field in them come to.

    Attributes
    ----------
    by : dict
        Each field of `by`, as it is written in queries, with its value; without those that these
        entries do not have. Empty if nothing was grouped.
    count : int
        How many entries.
    numbers : int
        How many of them have a number (or, for ``@created_at`` and ``@updated_at``, a time) in the
        field. Text, booleans, null and missing values do not count. 0 without a field.
    min, max : int, float, datetime or None
        None if there are no numbers.
    sum : int, float or None
        Exact, rounded once; an int if all numbers are. None for times.
    mean : float, datetime or None
        Exact, rounded once.
    """

    by: dict[str, Any]
    count: int
    numbers: int = 0
    min: Number | datetime | None = None
    max: Number | datetime | None = None
    sum: Number | None = None
    mean: float | datetime | None = None


def group(
    tallied: Iterable[tuple[tuple[Any, ...], int]], by: Sequence[Field], of: Field | None
) -> list[Group]:
    """Put together what the index counted.

    Parameters
    ----------
    tallied : iterable of (values, count)
        Values of the fields `by` and, as the last one, of the field `of` if there is one. The same
        ones may come more than once.
    by : sequence of Field
        If it is empty there is one group, even of no entries.
    of : Field or None
        Whose numbers are summed up.

    Returns
    -------
    list of Group
        In the order of their values, as in `query`; groups without a value come last.
    """
    width = len(by)
    groups: dict[Hashable, _Sums] = {} if by else {(): _Sums(())}
    for values, count in tallied:
        key = tuple(map(identity, values[:width]))
        sums = groups.get(key)
        if sums is None:
            sums = groups[key] = _Sums(values[:width])
        elif width:
            sums.by = tuple(map(plainer, sums.by, values[:width]))
        sums.add(values[width] if of is not None else MISSING, count)
    names = [print_field(one) for one in by]
    times = of is not None and is_time(of)
    ordered = sorted(groups.values(), key=lambda sums: tuple(map(position, sums.by)))
    return [
        sums.group(
            {
                name: shown(one, value)
                for name, one, value in zip(names, by, sums.by, strict=True)
                if value is not MISSING
            },
            times=times,
        )
        for sums in ordered
    ]


def distinct(tallied: Iterable[tuple[tuple[Any, ...], int]], of: Field) -> list[Any]:
    """The values that occur, each once and in order; null is last, missing ones are left out."""
    found: dict[Hashable, Any] = {}
    for (value,), _ in tallied:
        if value is not MISSING:
            same = identity(value)
            found[same] = plainer(found[same], value) if same in found else value
    return [shown(of, value) for value in sorted(found.values(), key=position)]


def identity(value: Any) -> Hashable:
    """Something that is equal for two values exactly if queries hold them to be equal.

    Examples
    --------
    >>> identity(1) == identity(1.0), identity(1) == identity(True), identity([1]) == identity([1.0])
    (True, False, True)
    """
    if isinstance(value, list):
        return ("array", tuple(map(identity, value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, identity(item)) for name, item in value.items()))
    if isinstance(value, bool):
        return ("bool", value)
    return value  # type: ignore[no-any-return]  # numbers, text, null and MISSING differ as they are


def plainer(one: Any, other: Any) -> Any:
    """Of two equal values (1 and 1.0, say) the one that stands for both, whichever came first."""
    if type(one) is type(other) and (type(one) in _ALIKE or (type(one) is float and one)):
        return one
    return min(one, other, key=_plainness)


def _plainness(value: Any) -> tuple[bool, int, str]:
    text = "" if value is MISSING else json.dumps(value, sort_keys=True)
    return isinstance(value, float), len(text), text


def position(value: Any) -> tuple[Any, ...]:
    """Where a value stands among others: numbers, text, booleans, arrays and objects, null, missing."""
    if value is MISSING:
        return (6,)
    if value is None:
        return (5,)
    rank, place = order_place(value)
    if rank < 3:
        return rank, place, value
    return 3 + isinstance(value, dict), json.dumps(value, sort_keys=True)


def shown(field: Field, value: Any) -> Any:
    """The value as the caller sees it: times as datetimes."""
    return to_datetime(value) if is_time(field) and isinstance(value, int) else value


def is_time(field: Field) -> bool:
    """Whether the values of a field are times."""
    return field.system and SYSTEM_FIELDS[field.path[0]].kind == "time"


@dataclass(slots=True)
class _Sums:
    """One group while it is counted."""

    by: tuple[Any, ...]
    count: int = 0
    numbers: int = 0
    low: Number | None = None
    high: Number | None = None
    whole: int = 0
    fractions: dict[int, int] = field(default_factory=dict)  # denominator -> numerators

    def add(self, value: Any, count: int) -> None:
        self.count += count
        kind = type(value)
        if kind is int:
            self.whole += value * count
        elif kind is float:
            numerator, denominator = value.as_integer_ratio()
            so_far = self.fractions.get(denominator, 0)
            self.fractions[denominator] = so_far + numerator * count
        else:
            return
        self.numbers += count
        if self.low is None or self.high is None:
            self.low = self.high = value
            return
        if value <= self.low:
            self.low = plainer(self.low, value) if value == self.low else value
        if value >= self.high:
            self.high = plainer(self.high, value) if value == self.high else value

    def group(self, by: dict[str, Any], *, times: bool) -> Group:
        if self.low is None or self.high is None:
            return Group(by, self.count)
        if times:
            return Group(
                by,
                self.count,
                self.numbers,
                to_datetime(int(self.low)),
                to_datetime(int(self.high)),
                None,
                to_datetime(round(_quotient(self.whole, self.numbers))),
            )
        shared = max(self.fractions, default=1)  # all of them are powers of two
        exact = self.whole * shared + sum(
            numerator * (shared // denominator) for denominator, numerator in self.fractions.items()
        )
        total = _quotient(exact, shared) if self.fractions else self.whole
        mean = _quotient(exact, self.numbers * shared)
        return Group(by, self.count, self.numbers, self.low, self.high, total, mean)


def _quotient(numerator: int, denominator: int) -> float:
    """Divide exactly, and round once; what is too large for a float is infinite."""
    try:
        return numerator / denominator
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf
