"""Orders in SQL: what to sort by, where to go on, and how an index serves it.

An order is that of `blobstore.query.sort_key`. It is read page by page, each page going on behind
the last row of the one before (keyset, never OFFSET).

What an index on the first field holds is sorted by rank and value; under the rank, and where it
descends, no index has just our order. So an answer is put together from segments, one after the
other: what has the value where the last page ended, what is beyond it, and each rank that follows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from blobstore.backends.metadata.addressing import (
    OTHER,
    Bool,
    Column,
    Located,
    number,
)

Place = tuple[int, Any]


class At(NamedTuple):
    """A place in an order: that of a row.

    Attributes
    ----------
    places : tuple of (int, place)
        Rank and place of each field.
    key : str
    """

    places: tuple[Place, ...]
    key: str


class Segment(NamedTuple):
    """A part of an answer that one statement gives, in order."""

    conditions: tuple[Bool, ...]
    order: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """One level of an order."""

    located: Located
    descending: bool

    def rank_columns(self) -> list[Column]:
        """What sorts ranks: those before this one come first in both directions."""
        return [] if self.located.rank is None else [self.located.rank]

    def value_columns(self, rank: int | None = None) -> list[Column]:
        """What sorts values within a rank, or in all."""
        values = self.located.values if rank is None else self.located.values_of(rank)
        return [value.desc() if self.descending else value.asc() for value in values]

    def is_at(self, place: Place) -> Bool:
        """Whether the field has this place."""
        rank, value = place
        if rank == OTHER:
            return self.located.ranked(rank)
        return self.located.ranked(rank, self.located.placed(operator.eq, rank, value))

    def is_beyond(self, place: Place) -> Bool:
        """Whether the field comes later, within the rank."""
        rank, value = place
        if rank == OTHER:
            return sa.false()
        how = operator.lt if self.descending else operator.gt
        return self.located.ranked(rank, self.located.placed(how, rank, value))

    def is_after(self, place: Place) -> Bool:
        """Whether the field comes later."""
        beyond = self.is_beyond(place)
        if self.located.rank is None:
            return beyond
        return sa.or_(self.located.rank > number(place[0]), beyond)

    def read(self, values: Sequence[Any]) -> Place:
        """Find the place in what `selected` gave."""
        rank = values[0]
        return rank, self.located.place(rank, values[1:])

    def selected(self) -> list[Column]:
        """What `read` wants."""
        rank = self.located.rank
        return [number(self.located.only) if rank is None else rank, *self.located.values]


def order_columns(levels: Sequence[Level], key: Column) -> tuple[Column, ...]:
    """What to sort by."""
    found: list[Column] = []
    for level in levels:
        found += level.rank_columns()
        found += level.value_columns()
    return (*found, key)


def behind(levels: Sequence[Level], at: At, above: Bool) -> Bool:
    """Whether a row comes behind a place; `above` is whether its key does, if all else is equal."""
    condition = above
    for level, place in reversed(list(zip(levels, at.places, strict=True))):
        condition = sa.or_(level.is_after(place), sa.and_(level.is_at(place), condition))
    return condition


def segments(
    levels: Sequence[Level],
    ranks: Sequence[int],
    at_rest: Sequence[Bool],
    key: Column,
    at: At | None,
    above: Bool,
) -> Iterator[Segment]:
    """Divide an answer into what an index on the first field serves, in order.

    Parameters
    ----------
    ranks : sequence of int
        Those that the field can have.
    at_rest : sequence of conditions
        What holds besides for entries of the last rank, in which the index leaves only the key.
    """
    first, *others = levels
    rest = order_columns(others, key)
    if at is not None:
        rank, value = at.places[0]
        remaining = behind(others, At(at.places[1:], at.key), above)
        hints = tuple(at_rest) if rank == OTHER else ()
        if rank in ranks:
            yield Segment((first.is_at((rank, value)), *hints, remaining), _still(first, rest))
            if rank != OTHER:
                yield Segment(
                    (first.is_beyond((rank, value)),), (*first.value_columns(rank), *rest)
                )
        ranks = [later for later in ranks if later > rank]
    for rank in ranks:
        if rank == OTHER:
            yield Segment((first.located.ranked(rank), *at_rest), _still(first, rest))
        else:
            yield Segment((first.located.ranked(rank),), (*first.value_columns(rank), *rest))


def _still(level: Level, rest: tuple[Column, ...]) -> tuple[Column, ...]:
    """Sort by columns that are all the same, for a database that knows only so that they are.

    Forwards: an index, read backwards, would have the keys descend.
    """
    return (*(value.asc() for value in level.located.values_of(OTHER)), *rest)
