"""The dict spelling of conditions: ``{"f1": {"$gte": 0.9}, "deployed": True}``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from blobstore.errors import InvalidQueryError
from blobstore.query import conditions
from blobstore.query.fields import parse_field, print_field, user_field
from blobstore.query.tree import (
    MAX_DEPTH,
    Among,
    And,
    Compare,
    Contains,
    Exists,
    Expression,
    Field,
    Like,
    Not,
    Operator,
    Or,
    StartsWith,
)
from blobstore.query.values import shown


def _pair(field: Field, ends: Any) -> Sequence[Any]:
    if isinstance(ends, str) or not isinstance(ends, Sequence) or len(ends) != 2:
        raise InvalidQueryError(
            f"{print_field(field)}: $between takes a list of two values, not {shown(ends)}"
        )
    return ends


def _existence(field: Field, there: Any) -> Expression:
    if not isinstance(there, bool):
        raise InvalidQueryError(
            f"{print_field(field)}: $exists takes True or False, not {shown(there)}"
        )
    return conditions.exists(field) if there else ~conditions.exists(field)


_COMPARISONS: Final[dict[str, Operator]] = {
    "$eq": "=",
    "$ne": "!=",
    "$lt": "<",
    "$lte": "<=",
    "$gt": ">",
    "$gte": ">=",
}
_NAMES: Final = {op: name for name, op in _COMPARISONS.items()}
_OTHERS: Final[dict[str, Callable[[Field, Any], Expression]]] = {
    "$in": conditions.among,
    "$nin": lambda field, values: conditions.among(field, values, negated=True),
    "$between": lambda field, ends: conditions.between(field, *_pair(field, ends)),
    "$like": conditions.like,
    "$startswith": conditions.starts_with,
    "$contains": conditions.contains,
    "$exists": _existence,
}
_JOINS: Final = ("$and", "$or", "$not")


def parse_mapping(mapping: Mapping[str, Any], *, literal: bool = False) -> Expression | None:
    """Read a condition that is written as a mapping.

    Parameters
    ----------
    mapping : mapping
        From names of fields to values that they equal, or to mappings of operators (``$eq $ne $lt
        $lte $gt $gte $in $nin $between $like $startswith $contains $exists $not``); ``$and`` and
        ``$or`` with a list of such mappings, ``$not`` with one. All must hold. Not changed.
    literal : bool
        Take each name as it is, and each value as one to be equal to: no dot, backquote, ``@`` or
        ``$`` means anything.

    Returns
    -------
    Expression or None
        None if `mapping` is empty, and everything fits.

    Raises
    ------
    InvalidQueryError

    Examples
    --------
    >>> str(parse_mapping({"deployed": True, "f1": {"$gte": 0.9}}))
    'deployed = true and f1 >= 0.9'
    >>> str(parse_mapping({"a.b": {"$gt": 1}}, literal=True))
    "`a.b` = {'$gt': 1}"
    """
    if not isinstance(mapping, Mapping):
        raise InvalidQueryError(
            f"conditions are given as a dict of names, not as {type(mapping).__name__}"
        )
    if literal:
        items = [
            conditions.compare(user_field((name,)), "=", value) for name, value in mapping.items()
        ]
        return conditions.all_of(items) if items else None
    return _mapping(mapping, 0) if mapping else None


def _mapping(mapping: Any, depth: int) -> Expression:
    if not isinstance(mapping, Mapping) or not mapping:
        raise InvalidQueryError(
            f"a condition in a dict is a dict with at least one name, not {shown(mapping)}"
        )
    if depth > MAX_DEPTH:
        raise InvalidQueryError(f"the condition is nested more than {MAX_DEPTH} levels deep")
    return conditions.all_of([_item(name, value, depth) for name, value in mapping.items()])


def _item(name: Any, value: Any, depth: int) -> Expression:
    if name == "$not":
        return ~_mapping(value, depth + 1)
    if name in ("$and", "$or"):
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
            raise InvalidQueryError(
                f"{name} takes a list of at least one condition, not {shown(value)}"
            )
        items = [_mapping(item, depth + 1) for item in value]
        return conditions.all_of(items) if name == "$and" else conditions.any_of(items)
    if isinstance(name, str) and name.startswith("$"):
        hint = (
            f"write {{field: {{{name!r}: ...}}}}"
            if name in _COMPARISONS or name in _OTHERS
            else f"there are {', '.join(_JOINS)}"
        )
        raise InvalidQueryError(
            f"{name} does not stand where a field is named: {hint}; a field of that name is "
            f"written in backquotes: {'`' + name + '`'!r}"
        )
    return _on_field(parse_field(name), value, depth)


def _on_field(field: Field, value: Any, depth: int) -> Expression:
    if not _has_operators(field, value):
        return conditions.compare(field, "=", value)
    if depth > MAX_DEPTH:
        raise InvalidQueryError(f"the condition is nested more than {MAX_DEPTH} levels deep")
    return conditions.all_of(
        [_operation(field, name, operand, depth) for name, operand in value.items()]
    )


def _has_operators(field: Field, value: Any) -> bool:
    """Whether a value is made of operators; a mix of those with plain names is refused."""
    if not isinstance(value, Mapping):
        return False
    dollars = [name for name in value if isinstance(name, str) and name.startswith("$")]
    if dollars and len(dollars) < len(value):
        raise InvalidQueryError(
            f"{print_field(field)}: {shown(value)} has operators and plain names side by side: to "
            "compare with a whole object, use {'$eq': {...}}"
        )
    return bool(dollars)


def _operation(field: Field, name: str, operand: Any, depth: int) -> Expression:
    if name == "$not":
        if not isinstance(operand, Mapping) or not _has_operators(field, operand):
            raise InvalidQueryError(
                f"{print_field(field)}: $not takes a dict of operators, not {shown(operand)}; for "
                "a value, use $ne"
            )
        return ~_on_field(field, operand, depth + 1)
    if name in _COMPARISONS:
        return conditions.compare(field, _COMPARISONS[name], operand)
    if name not in _OTHERS:
        raise InvalidQueryError(
            f"{print_field(field)}: there is no operator {name}: there are "
            f"{', '.join((*_COMPARISONS, *_OTHERS, '$not'))}; to compare with an object that has "
            "such a name, use {'$eq': {...}}"
        )
    return _OTHERS[name](field, operand)


# --- printing


def to_mapping(expression: Expression | None) -> dict[str, Any]:
    """Write a condition as a mapping of JSON values, which `parse_mapping` reads as an equal one.

    Examples
    --------
    >>> from blobstore.query import F
    >>> to_mapping((F("f1") >= 0.9) & (F("deployed") == True))
    {'f1': {'$gte': 0.9}, 'deployed': True}
    """
    match expression:
        case None:
            return {}
        case And(items):
            parts = [to_mapping(item) for item in items]
            merged = {name: value for part in parts for name, value in part.items()}
            return merged if len(merged) == len(parts) else {"$and": parts}
        case Or(items):
            return {"$or": [to_mapping(item) for item in items]}
        case Not(item):
            return {"$not": to_mapping(item)}
    field, operation = _leaf(expression)
    return {print_field(field): operation}


def _leaf(expression: Expression) -> tuple[Field, Any]:
    match expression:
        case Compare(field, op, value):
            written = conditions.written(field, value)
            plain = op == "=" and not isinstance(written, dict)
            return field, written if plain else {_NAMES[op]: written}
        case Among(field, values, negated):
            written = [conditions.written(field, value) for value in values]
            return field, {"$nin" if negated else "$in": written}
        case Like(field, pattern):
            return field, {"$like": pattern}
        case StartsWith(field, text):
            return field, {"$startswith": text}
        case Contains(field, value):
            return field, {"$contains": value}
        case Exists(field):
            return field, {"$exists": True}
    raise TypeError(f"{expression!r} is no expression")
