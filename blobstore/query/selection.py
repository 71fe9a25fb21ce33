"""What is asked of an index: which entries, in what order, from where on, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blobstore.query.tree import Expression, Field


@dataclass(frozen=True, slots=True)
class Order:
    """One level of an ordering.

    Attributes
    ----------
    field : Field
    descending : bool
        Within the kind of value; numbers come before text before booleans before the rest either way.
    """

    field: Field
    descending: bool = False


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
