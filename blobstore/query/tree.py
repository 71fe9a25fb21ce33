"""The expression tree: what a query asks of each entry.

Nodes are immutable values and compare by value. They are made by `F` (Python), from a mapping or
from text, and read by the reference evaluator and by each index that compiles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from blobstore.errors import InvalidQueryError

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


@dataclass(frozen=True, slots=True)
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

    def __bool__(self) -> NoReturn:
        raise InvalidQueryError(
            "a condition has no truth of its own: combine conditions with &, | and ~, each in "
            "parentheses, and write between(low, high) instead of low < field < high"
        )


@dataclass(frozen=True, slots=True)
class Compare(Expression):
    """``field op value``."""

    field: Field
    op: Operator
    value: Any


@dataclass(frozen=True, slots=True)
class Among(Expression):
    """``field in (values)``, or ``not in``."""

    field: Field
    values: tuple[Any, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Like(Expression):
    """The text of a field has the form of a pattern with ``%`` and ``_``."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True)
class StartsWith(Expression):
    """The text of a field begins with `text`."""

    field: Field
    text: str


@dataclass(frozen=True, slots=True)
class Contains(Expression):
    """The text of a field has `value` in it, or the array one element equal to it."""

    field: Field
    value: Any


@dataclass(frozen=True, slots=True)
class Exists(Expression):
    """The field is there, if only as null."""

    field: Field


@dataclass(frozen=True, slots=True)
class And(Expression):
    """All of `items` hold."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or(Expression):
    """At least one of `items` holds."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not(Expression):
    """`item` does not hold."""

    item: Expression


def _items(kind: type[And | Or], expression: Expression) -> tuple[Expression, ...]:
    """What stands side by side: ``a & b & c`` is one conjunction of three."""
    return expression.items if isinstance(expression, kind) else (expression,)
