"""The expression tree: what a query asks of each entry.

Nodes are immutable and equal if they are written the same; 1, 1.0 and True are written differently.
They are made by `F` (Python), from a mapping or from text, and read by the reference evaluator and
by each index that compiles them. ``str(expression)`` is the string spelling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from blobstore.errors import InvalidQueryError

MAX_DEPTH = 100
"""How deep conditions may stand inside one another; ``a & b & c`` is one level."""

Operator = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Field:
    """A place in an entry: names into its metadata, or a fact of the entry itself.

    Attributes
    ----------
    path : tuple of str
        Names, outermost first; each leads into an object. One name if `system`.
    system : bool
        Whether it is one of the entry's own ("size" for ``@size``).
    """

    path: tuple[str, ...]
    system: bool = False

    def __str__(self) -> str:
        from blobstore.query.fields import print_field

        return print_field(self)


@dataclass(frozen=True, slots=True)
class Order:
    """One level of an ordering.

    Attributes
    ----------
    field : Field
    descending : bool
        Within the kind of value; numbers come before text before booleans before the rest either
        way.
    """

    field: Field
    descending: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A condition on an entry. Combine them with ``&``, ``|`` and ``~``."""

    def __and__(self, other: Expression) -> And:
        if not isinstance(other, Expression):
            return NotImplemented
        return And((*_items(And, self), *_items(And, other)))

    def __or__(self, other: Expression) -> Or:
        if not isinstance(other, Expression):
            return NotImplemented
        return Or((*_items(Or, self), *_items(Or, other)))

    def __invert__(self) -> Not:
        return Not(self)

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, Expression) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))

    def __str__(self) -> str:
        from blobstore.query.printing import to_text

        return to_text(self)

    def __bool__(self) -> NoReturn:
        raise InvalidQueryError(
            "a condition has no truth of its own: combine conditions with &, | and ~, each in "
            "parentheses, and write between(low, high) instead of low < field < high"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Compare(Expression):
    """``field op value``."""

    field: Field
    op: Operator
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Among(Expression):
    """``field in (values)``, or ``not in``."""

    field: Field
    values: tuple[Any, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Like(Expression):
    """The text of a field has the form of a pattern with ``%`` and ``_``."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True, eq=False)
class StartsWith(Expression):
    """The text of a field begins with `text`."""

    field: Field
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Contains(Expression):
    """The text of a field has `value` in it, or the array one element equal to it."""

    field: Field
    value: Any


@dataclass(frozen=True, slots=True, eq=False)
class Exists(Expression):
    """The field is there, if only as null."""

    field: Field


@dataclass(frozen=True, slots=True, eq=False)
class And(Expression):
    """All of `items` hold."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Or(Expression):
    """At least one of `items` holds."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not(Expression):
    """`item` does not hold."""

    item: Expression


def _items(kind: type[And | Or], expression: Expression) -> tuple[Expression, ...]:
    """What stands side by side: ``a & b & c`` is one conjunction of three."""
    return expression.items if isinstance(expression, kind) else (expression,)


def check_depth(expression: Expression) -> None:
    """Refuse what is nested so deep that reading it would exhaust the stack."""
    level: list[Expression] = [expression]
    for _ in range(MAX_DEPTH):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return
    raise InvalidQueryError(f"the condition is nested more than {MAX_DEPTH} levels deep")


def _inside(expression: Expression) -> tuple[Expression, ...]:
    if isinstance(expression, And | Or):
        return expression.items
    return (expression.item,) if isinstance(expression, Not) else ()
