"""How a database reads one field of an entry: what its condition and its order are made of.

Each field has a rank, by the kind of its value (see `blobstore.query.order_place`), and a place
within that rank. A database gives expressions for both; conditions on them are what an index on
the field serves.

A condition may be NULL where the field is missing: that is as good as false, but under NOT.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import NullType

from blobstore.backends.metadata.respelling import is_exact
from blobstore.keys import successor
from blobstore.query import Field, order_place
from blobstore.query.values import Kind, kind_of

Bool = sa.ColumnElement[bool]
Column = sa.ColumnElement[Any]

TRUE: Bool = sa.true()
FALSE: Bool = sa.false()

NUMBER, TEXT, BOOLEAN, OTHER = RANKS = range(4)
_KIND_RANKS: dict[Kind, int] = {"number": NUMBER, "text": TEXT, "bool": BOOLEAN}

Operator = Callable[[Any, Any], Any]
STRICT: dict[Operator, Operator] = {operator.le: operator.lt, operator.ge: operator.gt}
LOOSE: dict[Operator, Operator] = {operator.lt: operator.le, operator.gt: operator.ge}


class Reading(sa.ColumnElement[Any]):
    """An expression written as text around names, which are bound or spelled.

    A tree of SQLAlchemy's for each would cost more to make than most queries to run.

    Attributes
    ----------
    template : str
        ``{table}`` is what columns are qualified with, ``{0}`` the first name ...
    names : tuple of expressions
    """

    _traverse_internals = [  # noqa: RUF012 - named and typed by SQLAlchemy
        ("template", InternalTraversal.dp_string),
        ("names", InternalTraversal.dp_clauseelement_tuple),
    ]

    def __init__(self, template: str, names: Sequence[Column], type_: Any = NullType) -> None:
        self.template = template
        self.names = tuple(names)
        self.type = type_()


@compiles(Reading)
def _write_reading(element: Reading, compiler: SQLCompiler, **options: Any) -> str:
    table = "entries." if options.get("include_table", True) else ""
    names = [compiler.process(name, **options) for name in element.names]
    return element.template.format(*names, table=table)


class Condition(NamedTuple):
    """What a database can say of an expression.

    Attributes
    ----------
    may : condition
        Holds for every entry that matches, and maybe for others.
    must : condition
        Holds only for entries that match; the same object as `may` where the database decides.
    """

    may: Bool
    must: Bool

    @property
    def exact(self) -> bool:
        """Whether the database decides."""
        return self.may is self.must


UNDECIDED = Condition(TRUE, FALSE)


def exact(condition: Bool) -> Condition:
    """Make the condition that the database decides."""
    return Condition(condition, condition)


class Located(ABC):
    """A field of the entry, as one database reads it.

    Attributes
    ----------
    rank : expression or None
        None where all values are of one rank, `only`.
    only : int
    """

    rank: Column | None = None
    only: int = OTHER

    # leaves

    def compare(self, how: Operator, value: Any) -> Condition:
        """Whether the field is before or after a number or text."""
        rank, place = order_place(value)
        if is_exact(value):
            return exact(self.ranked(rank, self.placed(how, rank, place)))
        if rank == TEXT:  # with U+0001 for U+0000, a text may come after one that it comes before
            return Condition(self.has_kind("text"), FALSE)
        # Others take the same place: what is beyond it is beyond the value, and the other way
        # round only what is not before it.
        may = self.placed(LOOSE.get(how, how), rank, place)
        must = self.placed(STRICT.get(how, how), rank, place)
        return Condition(self.ranked(rank, may), self.ranked(rank, must))

    def equal(self, value: Any) -> Condition:
        """Whether the field is there and equal to a value."""
        kind = kind_of(value)
        if kind == "null":
            return exact(self.has_kind(kind))
        if kind in ("array", "object"):
            return self.equal_container(value)
        rank, place = order_place(value)
        may = self.equal_place(rank, place)
        return exact(may) if is_exact(value) else Condition(may, FALSE)

    def equal_place(self, rank: int, place: Any) -> Bool:
        """Whether the field has this rank, of 0 to 2, and this place in it."""
        return self.ranked(rank, self.placed(operator.eq, rank, place))

    def among(self, rank: int, places: Sequence[Any]) -> Bool:
        """Whether the field is one of several numbers, or texts."""
        return self.ranked(rank, self.among_places(rank, places))

    def starts_with(self, text: str) -> Condition:
        """Whether the field is text that begins with `text`."""
        place = order_place(text)[1]
        conditions = [self.placed(operator.ge, TEXT, place)]
        end = successor(place)
        if end is not None:
            conditions.append(self.placed(operator.lt, TEXT, end))
        return self._approximate(text, self.ranked(TEXT, *conditions))

    def like(self, pattern: str) -> Condition:
        """Whether the field is text of the form of a pattern."""
        fits = self.fits(order_place(pattern)[1])
        if fits is None:
            return Condition(self.has_kind("text"), FALSE)
        return self._approximate(pattern, self.ranked(TEXT, fits))

    def contains(self, value: Any) -> Condition:
        """Whether the field is text that has `value` in it, or an array with such an element."""
        found = self.has_element(value)
        if not isinstance(value, str):
            return found
        inside = self.ranked(TEXT, self.has_inside(order_place(value)[1]))
        inside_too = self._approximate(value, inside)
        may = sa.or_(inside_too.may, found.may)
        if inside_too.exact and found.exact:
            return exact(may)
        return Condition(may, sa.or_(inside_too.must, found.must))

    def ranked(self, rank: int, *conditions: Bool) -> Bool:
        """Whether the field is of this rank, and besides meets conditions."""
        if self.rank is None:
            return sa.and_(*conditions, TRUE) if rank == self.only else FALSE
        return sa.and_(self.rank == number(rank), *conditions)

    def has_kind(self, kind: Kind) -> Bool:
        """Whether the field is there and of a kind."""
        return self.ranked(_KIND_RANKS.get(kind, OTHER), *self.other_kind(kind))

    def other_kind(self, kind: Kind) -> Sequence[Bool]:
        """Tell the kinds of rank 3 apart."""
        return ()

    @staticmethod
    def _approximate(value: str, may: Bool) -> Condition:
        return exact(may) if is_exact(value) else Condition(may, FALSE)

    # what databases do differently

    @abstractmethod
    def present(self) -> Bool:
        """Whether the field is there."""

    @abstractmethod
    def placed(self, how: Operator, rank: int, place: Any) -> Bool:
        """Compare with a place; holds for no other rank if `rank` does."""

    @abstractmethod
    def among_places(self, rank: int, places: Sequence[Any]) -> Bool:
        """Compare with several places."""

    @abstractmethod
    def equal_container(self, value: Any) -> Condition:
        """Whether the field equals an array or object."""

    @abstractmethod
    def has_element(self, value: Any) -> Condition:
        """Whether the field is an array with an element that equals `value`."""

    @abstractmethod
    def has_inside(self, text: str) -> Bool:
        """Whether text has `text` in it."""

    @abstractmethod
    def fits(self, pattern: str) -> Bool | None:
        """Whether text has the form of a pattern; None where it is too long to be tested."""

    # order

    @property
    @abstractmethod
    def values(self) -> Sequence[Column]:
        """What orders within each rank, NULL in those that it does not order."""

    def values_of(self, rank: int) -> Sequence[Column]:
        """Those of them to sort by within a rank; in the last, where all are NULL, as an index does."""
        return self.values

    @abstractmethod
    def place(self, rank: int, values: Sequence[Any]) -> Any:
        """Read the place, as `placed` wants it, from what `values` gave."""

    # tallies

    @property
    @abstractmethod
    def facts(self) -> Sequence[Column]:
        """What `value` wants; equal for equal values."""

    @abstractmethod
    def value(self, facts: Sequence[Any]) -> Any:
        """Make the JSON value, or `MISSING`."""


class Addressing(ABC):
    """How a database reads fields."""

    def locate(self, field: Field, *, indexed: bool = False, key: Column) -> Located | None:
        """Make the expressions for a field; None if the database cannot address it.

        With `indexed`, so that an index on it may serve them. `key` stands for the key.
        """
        if field.system:
            return self.system(field.path[0], key)
        return self.metadata(field.path, indexed=indexed) if self.can(field.path) else None

    @abstractmethod
    def can(self, path: Sequence[str]) -> bool:
        """Whether the database finds what is under these names."""

    @abstractmethod
    def system(self, name: str, key: Column) -> Located:
        """A fact of the entry itself."""

    @abstractmethod
    def metadata(self, path: tuple[str, ...], *, indexed: bool) -> Located:
        """A field of metadata."""

    @abstractmethod
    def spelled(self, text: str) -> Column:
        """Write text into a statement, so that an index can have it; none of it can be read."""

    @abstractmethod
    def index_columns(self, path: tuple[str, ...]) -> Sequence[Column]:
        """What an index on a field is made of."""

    @abstractmethod
    def at_rest(self, path: tuple[str, ...]) -> Sequence[Bool]:
        """What shows the planner that entries of rank 3 have no other order than that of keys."""

    @abstractmethod
    def serves(self, plan: str) -> bool:
        """Whether a plan narrows entries down by something other than indexes on fields."""


class SystemLocated(Located):
    """A fact of the entry itself: a column that is never NULL."""

    def __init__(self, column: Column, *, text: bool) -> None:
        self._column = column
        self.only = TEXT if text else NUMBER

    def present(self) -> Bool:
        """It always is."""
        return TRUE

    def equal_container(self, value: Any) -> Condition:
        """It never is one."""
        return exact(FALSE)

    def has_element(self, value: Any) -> Condition:
        """It never has any."""
        return exact(FALSE)

    @property
    def values(self) -> Sequence[Column]:
        """The column."""
        return (self._column,)

    def place(self, rank: int, values: Sequence[Any]) -> Any:
        """The value itself."""
        return values[0]

    @property
    def facts(self) -> Sequence[Column]:
        """The column."""
        return (self._column,)

    def value(self, facts: Sequence[Any]) -> Any:
        """The value itself."""
        return facts[0]


def number(value: int) -> Column:
    """Write a small number into a statement."""
    return sa.literal_column(str(value))
