"""The string spelling, written: what `parse_text` reads as an equal expression."""

from __future__ import annotations

from typing import Any

from blobstore.query.conditions import written
from blobstore.query.fields import print_field
from blobstore.query.tree import (
    Among,
    And,
    Compare,
    Contains,
    Exists,
    Expression,
    Like,
    Not,
    Or,
    StartsWith,
)

_ESCAPES = {
    "\\": "\\\\",
    "'": "\\'",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\b": "\\b",
    "\f": "\\f",
}


def to_text(expression: Expression) -> str:
    r"""Write an expression.

    Examples
    --------
    >>> from blobstore.query import F
    >>> to_text(~((F("a") > 1) | (F("b c") == "it's")))
    "not (a > 1 or `b c` = 'it\\'s')"
    """
    match expression:
        case And(items):
            return " and ".join(_within(item, Or) for item in items)
        case Or(items):
            return " or ".join(_within(item, Or) for item in items)
        case Not(item):
            return "not " + _within(item, And | Or)
        case Compare(field, op, value):
            return f"{print_field(field)} {op} {print_value(written(field, value))}"
        case Among(field, values, negated):
            listed = ", ".join(print_value(written(field, value)) for value in values)
            return f"{print_field(field)} {'not in' if negated else 'in'} ({listed})"
        case Like(field, pattern):
            return f"{print_field(field)} like {print_value(pattern)}"
        case StartsWith(field, text):
            return f"{print_field(field)} startswith {print_value(text)}"
        case Contains(field, value):
            return f"{print_field(field)} contains {print_value(value)}"
        case Exists(field):
            return f"{print_field(field)} exists"
    raise TypeError(f"{expression!r} is no expression")


def print_value(value: Any) -> str:
    """Write a JSON value.

    Examples
    --------
    >>> print_value({"a": [1.5, True, None, "x"]})
    "{'a': [1.5, true, null, 'x']}"
    """
    if isinstance(value, str):
        return "'" + "".join(map(_character, value)) + "'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(print_value, value))}]"
    if isinstance(value, dict):
        items = (f"{print_value(name)}: {print_value(item)}" for name, item in value.items())
        return f"{{{', '.join(items)}}}"
    return repr(value)


def _within(expression: Expression, weaker: Any) -> str:
    """Write an expression as part of another, in parentheses if it would fall apart."""
    text = to_text(expression)
    return f"({text})" if isinstance(expression, weaker) else text


def _character(character: str) -> str:
    """One character of quoted text; what cannot be seen is written by its number."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
