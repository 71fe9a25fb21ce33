"""From an expression to conditions in SQL: what may match, and what must.

Where a database cannot decide, for a name that it cannot address or a value that it keeps only
nearly, the two differ, and the entries between them are confirmed by the reference evaluator. So
every answer is exact, and nearly always the database alone gives it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa

from blobstore.backends.metadata.addressing import (
    FALSE,
    NUMBER,
    OTHER,
    RANKS,
    TEXT,
    TRUE,
    UNDECIDED,
    Bool,
    Condition,
    Located,
    Operator,
    exact,
)
from blobstore.backends.metadata.respelling import is_exact
from blobstore.query import Expression, Field, order_place, rank
from blobstore.query.tree import Among, And, Compare, Contains, Exists, Like, Not, Or, StartsWith
from blobstore.query.values import kind_of

Locate = Callable[[Field], Located | None]
Leaf = Compare | Among | Like | StartsWith | Contains | Exists

_MOST_LEAVES = 200
"""More than databases take in one statement (SQLite nests them 1,000 deep, several for each) are
left to the evaluator."""

_OPERATORS: dict[str, Operator] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compile_where(expression: Expression | None, locate: Locate) -> Condition:
    """Turn an expression into conditions on a row of ``entries``; None holds for all."""
    return exact(TRUE) if expression is None else _Compiler(locate).compile(expression)


def conjuncts(expression: Expression | None) -> tuple[Expression, ...]:
    """What must all hold."""
    if expression is None:
        return ()
    return expression.items if isinstance(expression, And) else (expression,)


def narrows(expression: Expression) -> bool:
    """Whether it is a condition that an index on its field finds entries by."""
    match expression:
        case Compare(_, op, value):
            return op != "=" or rank(value) != OTHER if op != "!=" else False
        case Among(_, values, negated):
            # An index has numbers and texts in different places, and goes to one.
            ranks = set(map(rank, values))
            return not negated and ranks in ({NUMBER}, {TEXT})
        case StartsWith():
            return True
    return False


def possible_ranks(parts: Iterable[Expression], field: Field) -> list[int]:
    """The ranks of values that a field can have where all of these hold, in order."""
    ranks = set(RANKS)
    for part in parts:
        match part:
            case Compare(where, _, value) if where == field and value is not None:
                ranks &= {rank(value)}
            case Among(where, values, False) if where == field:
                ranks &= set(map(rank, values))
            case Like(where) | StartsWith(where) if where == field:
                ranks &= {TEXT}
    return sorted(ranks)


def negation(condition: Bool) -> Bool:
    """NOT, which takes NULL for false."""
    if condition is TRUE:
        return FALSE
    return TRUE if condition is FALSE else condition.is_not(TRUE)


class _Compiler:
    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._leaves = 0

    def compile(self, expression: Expression) -> Condition:
        match expression:
            case And(items):
                return _joined(sa.and_, TRUE, map(self.compile, items))
            case Or(items):
                return _joined(sa.or_, FALSE, map(self.compile, items))
            case Not(item):
                return _negated(self.compile(item))
        assert isinstance(expression, Leaf)
        self._leaves += 1
        located = self._locate(expression.field)
        if located is None or self._leaves > _MOST_LEAVES:
            return UNDECIDED
        return _leaf(located, expression)


def _leaf(located: Located, leaf: Leaf) -> Condition:
    match leaf:
        case Compare(_, "=", value):
            return located.equal(value)
        case Compare(_, "!=", value):
            return _differs(located, [value], _negated(located.equal(value)))
        case Compare(_, op, value):
            return located.compare(_OPERATORS[op], value)
        case Among(_, values, negated):
            inside = _among(located, values)
            return _differs(located, values, _negated(inside)) if negated else inside
        case Like(_, pattern):
            return located.like(pattern)
        case StartsWith(_, text):
            return located.starts_with(text)
        case Contains(_, value):
            return located.contains(value)
    return exact(located.present())


def _differs(located: Located, values: Iterable[Any], others: Condition) -> Condition:
    """What is of the kind of one of the values, but none of them; null is of every kind."""
    kinds = {kind: None for value in values if (kind := kind_of(value)) is not None}
    alike = located.present() if "null" in kinds else _any(map(located.has_kind, kinds))
    return _joined(sa.and_, TRUE, [exact(alike), others])


def _among(located: Located, values: Iterable[Any]) -> Condition:
    """Equal to one of the values: numbers and texts by one condition each."""
    found: list[Condition] = []
    several: dict[int, list[tuple[Any, bool]]] = {}
    for value in values:
        level, place = order_place(value)
        if level in (NUMBER, TEXT):
            several.setdefault(level, []).append((place, is_exact(value)))
        else:
            found.append(located.equal(value))
    for level, places in several.items():
        may = located.among(level, [place for place, _ in places])
        certain = [place for place, sure in places if sure]
        if len(certain) == len(places):
            found.append(exact(may))
        else:
            found.append(Condition(may, located.among(level, certain) if certain else FALSE))
    return _joined(sa.or_, FALSE, found)


def _joined(join: Callable[..., Any], neutral: Bool, conditions: Iterable[Condition]) -> Condition:
    found = list(conditions)
    may = join(neutral, *(one.may for one in found))
    if all(one.exact for one in found):
        return exact(may)
    return Condition(may, join(neutral, *(one.must for one in found)))


def _negated(condition: Condition) -> Condition:
    may = negation(condition.must)
    return exact(may) if condition.exact else Condition(may, negation(condition.may))


def _any(conditions: Iterable[Bool]) -> Bool:
    return sa.or_(FALSE, *conditions)
