"""What is asked of an index: which entries, in what order, from where on, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from blobstore.entry import Entry
from blobstore.errors import InvalidQueryError
from blobstore.query.evaluate import matcher, place_key, sort_key, values_reader
from blobstore.query.fields import parse_field
from blobstore.query.tree import Expression, Field, Order
from blobstore.query.values import shown


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in an ordered answer: just after the entry it was made from.

    Attributes
    ----------
    values : tuple
        The JSON value of each field of the order, or MISSING.
    key : str
    """

    values: tuple[Any, ...]
    key: str

    @classmethod
    def of(cls, order: Sequence[Order], entry: Entry) -> Cursor:
        """Make the place just after an entry.

        Examples
        --------
        >>> entry = Entry(1, "k", 1, "c", "pickle", "object", "{}", '{"a": 2}', (), 0, 0, 0)
        >>> Cursor.of(parse_order(["a", "b"]), entry)
        Cursor(values=(2, MISSING), key='k')
        """
        return cls(values_reader([one.field for one in order])(entry), entry.key)


@dataclass(frozen=True, slots=True)
class Query:
    """A selection of entries.

    Attributes
    ----------
    prefix : str
        Of the key; literal and case-sensitive. "" selects all.
    where : Expression or None
        What must hold; None selects all.
    order : tuple of Order
        Empty: by key. The key, ascending by code point, breaks ties.
    after : Cursor, str or None
        Only entries behind this place; a key where the order is that of keys.
    limit : int or None
        At most so many entries.
    """

    prefix: str = ""
    where: Expression | None = None
    order: tuple[Order, ...] = ()
    after: Cursor | str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.after, Cursor):
            if len(self.after.values) != len(self.order):
                raise InvalidQueryError(
                    f"after has {len(self.after.values)} values, for an order by "
                    f"{len(self.order)} fields: make it by Cursor.of(order, entry)"
                )
        elif self.after is not None and self.order:
            raise InvalidQueryError(
                f"after={shown(self.after)} is a key, but the order is not that of keys: make a "
                "place in it by Cursor.of(order, entry)"
            )

    @property
    def after_key(self) -> str | None:
        """The key to go on behind, where the order is that of keys."""
        assert not self.order
        return self.after.key if isinstance(self.after, Cursor) else self.after

    def matcher(self) -> Callable[[Entry], bool]:
        """Compile to a function that tells whether an entry belongs to the answer, `limit` apart."""
        prefix, holds, behind = self.prefix, matcher(self.where), self._behind()
        return lambda entry: entry.key.startswith(prefix) and behind(entry) and holds(entry)

    def _behind(self) -> Callable[[Entry], bool]:
        if self.after is None:
            return lambda _entry: True
        if not isinstance(self.after, Cursor):
            key = self.after
            return lambda entry: entry.key > key
        place = place_key(self.order, self.after.values, self.after.key)
        place_of = sort_key(self.order)
        return lambda entry: place_of(entry) > place


def parse_order(order_by: object) -> tuple[Order, ...]:
    """Read what ``order_by`` may be: a name, ``-name``, ``F(name).desc()``, or several of those.

    Examples
    --------
    >>> for one in parse_order(["-loss", "@size"]):
    ...     print(one.field, one.descending)
    loss True
    @size False
    """
    if order_by is None:
        return ()
    if not isinstance(order_by, str) and isinstance(order_by, Iterable):
        return tuple(map(_parse_one, order_by))
    return (_parse_one(order_by),)


def _parse_one(one: object) -> Order:
    if isinstance(one, Order):
        return one
    if isinstance(one, str):
        descending = one.startswith("-")
        return Order(parse_field(one[descending:]), descending)
    field = getattr(one, "field", None)
    if isinstance(field, Field) and not isinstance(one, Expression):
        return Order(field)
    raise InvalidQueryError(
        f"order_by takes names like 'loss' and '-loss', or F('loss').desc(), not {shown(one)}"
    )
