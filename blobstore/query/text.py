"""The string spelling of conditions: ``loss < 0.1 and not author = 'bob'``.

The language is in ``grammar.lark``. What comes out is checked by `conditions`, as in every spelling;
an error of either shows its place in the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from importlib.resources import files
from typing import Any, TypeVar, cast

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from blobstore.errors import InvalidQueryError
from blobstore.query import conditions
from blobstore.query.fields import is_keyword, system_field, unquote_name, user_field
from blobstore.query.tree import Expression, Field, Operator

_WIDTH = 100
"""How much of a line an error shows."""

_SYNONYMS: dict[str, Operator] = {"==": "=", "<>": "!="}

_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\(.)",
    re.DOTALL,
)
_ESCAPED = {
    "\\": "\\",
    "'": "'",
    '"': '"',
    "/": "/",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
}

_FIELD = "the name of a field"
_VALUE = "a value (a number, 'text', true, false, null, a date, [...] or {...})"
_OPERATOR = (
    "an operator (= != < <= > >=, in, not in, between, like, startswith, contains, exists, is null)"
)
_WORDS = {
    "NAME": _FIELD,
    "QUOTED": _FIELD,
    "SYSTEM": _FIELD,
    "NUMBER": _VALUE,
    "DATE": _VALUE,
    "TRUE": _VALUE,
    "FALSE": _VALUE,
    "LSQB": _VALUE,
    "LBRACE": _VALUE,
    "COMPARISON": _OPERATOR,
    "BETWEEN": _OPERATOR,
    "LIKE": _OPERATOR,
    "STARTSWITH": _OPERATOR,
    "CONTAINS": _OPERATOR,
    "EXISTS": _OPERATOR,
    "IS": _OPERATOR,
    "TEXT": "text in quotes",
    "LPAR": "an opening parenthesis",
    "RPAR": "a closing parenthesis",
    "RSQB": "a closing bracket",
    "RBRACE": "a closing brace",
    "COMMA": "a comma",
    "COLON": "a colon",
    "DOT": "a dot",
    "$END": "the end",
}
"""What the tokens of the grammar are called in messages; others are keywords."""

_T = TypeVar("_T")


def parse_text(text: str) -> Expression:
    """Read a condition that is written as text.

    Raises
    ------
    InvalidQueryError
        The message shows the text, the place, and what was expected there.

    Examples
    --------
    >>> str(parse_text("f1 >= .9 AND (`my tag` in ('a', 'b') or author is null)"))
    "f1 >= 0.9 and (`my tag` in ('a', 'b') or author = null)"
    >>> parse_text("f1 => 0.9")
    Traceback (most recent call last):
    ...
    blobstore.errors.InvalidQueryError: the condition cannot be read at character 5: expected a value (a number, 'text', true, false, null, a date, [...] or {...}), not '>'
        f1 => 0.9
            ^
    """
    try:
        return cast("Expression", _parser().parse(text))
    except UnexpectedInput as exc:
        place = len(text) if _at_end(exc) else cast("int", exc.pos_in_stream)
        raise InvalidQueryError(_message(text, place, _explain(exc))) from exc
    except _MisplacedError as exc:
        raise InvalidQueryError(_message(text, exc.place, exc.message)) from exc


class _MisplacedError(InvalidQueryError):
    """Something in the text means nothing; where is known, but not yet shown."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


@contextmanager
def _at(token: Token) -> Iterator[None]:
    """Note for an error where it is."""
    try:
        yield
    except InvalidQueryError as exc:
        raise _MisplacedError(exc.message, token.start_pos or 0) from exc


class _Builder(Transformer[Token, Expression]):
    """Make expressions of what the grammar finds; it is called as the text is read."""

    def disjunction(self, items: list[Any]) -> Expression:
        return conditions.any_of(items[::2])

    def conjunction(self, items: list[Any]) -> Expression:
        return conditions.all_of(items[::2])

    def negated(self, items: list[Any]) -> Expression:
        inner: Expression = items[1]
        return ~inner

    def comparison(self, items: list[Any]) -> Expression:
        field, op, value = items
        with _at(op):
            return conditions.compare(field, _SYNONYMS.get(op, op.value), value)

    def among(self, items: list[Any]) -> Expression:
        field, word, values = items
        with _at(word):
            return conditions.among(field, values)

    def not_among(self, items: list[Any]) -> Expression:
        field, word, _, values = items
        with _at(word):
            return conditions.among(field, values, negated=True)

    def between(self, items: list[Any]) -> Expression:
        field, word, low, _, high = items
        with _at(word):
            return conditions.between(field, low, high)

    def like(self, items: list[Any]) -> Expression:
        return _worded(conditions.like, items)

    def starts_with(self, items: list[Any]) -> Expression:
        return _worded(conditions.starts_with, items)

    def contains(self, items: list[Any]) -> Expression:
        return _worded(conditions.contains, items)

    def exists(self, items: list[Any]) -> Expression:
        return conditions.exists(items[0])

    def is_null(self, items: list[Any]) -> Expression:
        with _at(items[1]):
            return conditions.compare(items[0], "=", None)

    def is_not_null(self, items: list[Any]) -> Expression:
        with _at(items[1]):
            return conditions.compare(items[0], "!=", None)

    def system_field(self, items: list[Token]) -> Field:
        with _at(items[0]):
            return system_field(items[0][1:])

    def user_field(self, items: list[Token]) -> Field:
        with _at(items[0]):
            return user_field(
                unquote_name(name) if name.type == "QUOTED" else name.value for name in items
            )

    def values(self, items: list[Any]) -> list[Any]:
        return items

    def array(self, items: list[Any]) -> list[Any]:
        return items

    def object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(items)

    def member(self, items: list[Any]) -> tuple[str, Any]:
        return items[0], items[1]

    def text(self, items: list[Token]) -> str:
        return _unquoted(items[0])

    def number(self, items: list[Token]) -> int | float:
        (token,) = items
        if not token.strip("+-0123456789"):
            try:
                return int(token)
            except ValueError as exc:  # Python reads none of over 4,300 digits
                raise _MisplacedError(
                    f"the number is too long: {exc}", token.start_pos or 0
                ) from exc
        return float(token)

    def date(self, items: list[Token]) -> date:
        (token,) = items
        try:
            moment = datetime.fromisoformat(token)
        except ValueError as exc:
            raise _MisplacedError(
                f"{token.value!r} is no date: {exc}", token.start_pos or 0
            ) from exc
        return moment if len(token) > len("2026-01-31") else moment.date()

    def true(self, items: list[Token]) -> bool:
        return True

    def false(self, items: list[Token]) -> bool:
        return False

    def null(self, items: list[Token]) -> None:
        return None


def _worded(make: Callable[[Field, Any], _T], items: Sequence[Any]) -> _T:
    field, word, value = items
    with _at(word):
        return make(field, value)


def _unquoted(token: Token) -> str:
    """Take the quotes off a text, and put what backslashes stand for in their place."""

    def character(found: re.Match[str]) -> str:
        high, low, single, letter = found.groups()
        if high:
            return bytes.fromhex(high + low).decode("utf-16-be")
        if single:
            return chr(int(single, 16))
        if letter in _ESCAPED:
            return _ESCAPED[letter]
        raise _MisplacedError(
            f"there is no \\{letter} in text: a backslash is written as two (there are "
            r"\\ \' \" \/ \b \f \n \r \t and \u followed by four hexadecimal digits)",
            (token.start_pos or 0) + 1 + found.start(),
        )

    return _ESCAPE.sub(character, token[1:-1])


@functools.cache
def _parser() -> Lark:
    grammar = files("blobstore.query").joinpath("grammar.lark").read_text(encoding="utf-8")
    return Lark(
        grammar,
        parser="lalr",
        lexer="basic",
        maybe_placeholders=False,
        lexer_callbacks={"NAME": _tell_keywords},
        transformer=_Builder(),
    )


def _tell_keywords(token: Token) -> Token:
    return token.update(type=token.upper()) if is_keyword(token) else token


# --- errors


def _at_end(exc: UnexpectedInput) -> bool:
    return isinstance(exc, UnexpectedToken) and exc.token.type == "$END"


def _explain(exc: UnexpectedInput) -> str:
    if isinstance(exc, UnexpectedCharacters):
        character = exc.char
        if character in "'\"`":
            return f"the {character} that opens here is never closed"
        return f"{character!r} means nothing here; names with such characters stand in backquotes"
    assert isinstance(exc, UnexpectedToken)
    found = "the end" if _at_end(exc) else repr(exc.token.value)
    hint = ""
    if is_keyword(exc.token) and "NAME" in exc.accepts:
        hint = f"; a field of that name is written `{exc.token}`"
    return f"expected {_in_words(exc.accepts)}, not {found}{hint}"


def _in_words(accepted: set[str]) -> str:
    """Say in words what could have stood there, as few as will do."""
    tokens = set(accepted)
    if {"NAME", "NOT"} <= tokens:
        return "a condition (a field and what must hold of it, not, or an opening parenthesis)"
    if "NUMBER" in tokens:
        tokens -= {"TEXT", "NULL"}  # which are values, too
    if "COMPARISON" in tokens:
        tokens -= {"IN", "NOT"}
    words = list(dict.fromkeys(_WORDS.get(one, repr(one.lower())) for one in sorted(tokens)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _message(text: str, place: int, explanation: str) -> str:
    """The explanation, the line of the text that it is about, and a caret below the place."""
    start = text.rfind("\n", 0, place) + 1
    stop = text.find("\n", place)
    line, column = text[start : len(text) if stop < 0 else stop], place - start
    cut = max(0, column - _WIDTH // 2)
    shown = line[cut : cut + _WIDTH].replace("\t", " ")
    return (
        f"the condition cannot be read at character {place + 1}: {explanation}\n"
        f"    {'...' if cut else ''}{shown}{'...' if len(line) > cut + _WIDTH else ''}\n"
        f"    {' ' * (column - cut + (3 if cut else 0))}^"
    )
