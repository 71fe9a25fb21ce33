"""How PostgreSQL reads a field of an entry: in the JSONB copy of the metadata."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from blobstore.backends.metadata.addressing import (
    BOOLEAN,
    FALSE,
    NUMBER,
    OTHER,
    TEXT,
    Addressing,
    Bool,
    Column,
    Condition,
    Located,
    Operator,
    Reading,
    SystemLocated,
    exact,
    number,
)
from blobstore.backends.metadata.respelling import decimal_place, is_exact, respelled_value
from blobstore.backends.metadata.schema import system_columns
from blobstore.query import MISSING
from blobstore.query.fields import SYSTEM_FIELDS
from blobstore.query.values import Kind

_SHORT = 128
"""Characters of a text that an index holds: its rows, with a key, have room for no more."""

_JSON_KINDS: dict[Kind, str] = {
    "number": "number",
    "text": "string",
    "bool": "boolean",
    "null": "null",
    "array": "array",
    "object": "object",
}
_DOUBLES_FROM = 2**63


class Jsonb(sa.types.UserDefinedType[Any]):
    """JSONB whose values are given as text."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Name the type."""
        return "JSONB"


# Placeholders are doubled where they are filled in for one path: {json} by the way to a field.
_DOCUMENT = "{table}metadata_json"
_TYPE = "jsonb_typeof({json})"
_AS_TEXT = "({json} #>> '{{{{}}}}')"
_RANK = (
    f"CASE {_TYPE} WHEN 'number' THEN {NUMBER} WHEN 'string' THEN {TEXT}"
    f" WHEN 'boolean' THEN {BOOLEAN} ELSE {OTHER} END"
)
_IS_TRUE = f"CASE {_AS_TEXT} WHEN 'true' THEN 1 ELSE 0 END"
_NUMBER = (
    f"CASE {_TYPE} WHEN 'number' THEN CAST({{json}} AS NUMERIC) WHEN 'boolean' THEN {_IS_TRUE} END"
)
# The same in other words, which no index has: PostgreSQL keeps no statistics of indexes on part of
# a table, and would take the index of a field where it is not the best thing to go by.
_RANK_UNINDEXED = (
    f"CASE {_TYPE} WHEN 'string' THEN {TEXT} WHEN 'number' THEN {NUMBER}"
    f" WHEN 'boolean' THEN {BOOLEAN} ELSE {OTHER} END"
)
_NUMBER_UNINDEXED = (
    f"CASE {_TYPE} WHEN 'boolean' THEN {_IS_TRUE} WHEN 'number' THEN CAST({{json}} AS NUMERIC) END"
)
_TEXT = f"(CASE {_TYPE} WHEN 'string' THEN {_AS_TEXT} END COLLATE \"C\")"
_SHORTENED = f"(CASE {_TYPE} WHEN 'string' THEN left({_AS_TEXT}, {_SHORT}) END COLLATE \"C\")"


def _word(text: str) -> Column:
    return sa.literal_column(f"'{text}'")


def _bound(value: Any) -> Column:
    if isinstance(value, str):
        return sa.literal(value, sa.Text())
    return sa.literal(decimal_place(value), sa.Numeric())


def _json(value: Any) -> Column:
    return sa.cast(sa.literal(respelled_value(value), sa.Text()), Jsonb())


class _PostgresTerms(Located):
    """Conditions on a number and a text, compared by code point."""

    _number: Column
    _text: Column

    def _shortened(self, text: str) -> tuple[Column, str] | None:
        """What of a text an index holds, and what it is compared with."""
        return None

    def placed(self, how: Operator, rank: int, place: Any) -> Bool:
        """Compare with a place; with text, also what the index has of it."""
        if rank != TEXT:
            condition: Bool = how(self._number, _bound(place))
            return condition
        whole: Bool = how(self._text, _bound(place))
        short = self._shortened(place)
        if short is None:
            return whole
        loose = {operator.lt: operator.le, operator.gt: operator.ge}.get(how, how)
        return sa.and_(loose(short[0], _bound(short[1])), whole)

    def among_places(self, rank: int, places: Sequence[Any]) -> Bool:
        """Compare with the elements of an array: one parameter, however many there are."""
        if rank != TEXT:
            numbers = [decimal_place(place) for place in places]
            return self._number == sa.any_(sa.literal(numbers, sa.ARRAY(sa.Numeric())))
        texts = sa.ARRAY(sa.Text())
        whole = self._text == sa.any_(sa.literal(list(places), texts))
        shortened = [short for text in places if (short := self._shortened(text))]
        if not shortened:
            return whole
        starts = sorted({start for _, start in shortened})
        return sa.and_(shortened[0][0] == sa.any_(sa.literal(starts, texts)), whole)

    def has_inside(self, text: str) -> Bool:
        """Look for text, literally."""
        return sa.func.strpos(self._text, _bound(text)) > number(0)

    def fits(self, pattern: str) -> Bool | None:
        """Compare by LIKE, whose patterns are ours."""
        return self._text.like(_bound(pattern))


class PostgresSystemField(_PostgresTerms, SystemLocated):
    """A column of the entry."""

    def __init__(self, column: Column, *, text: bool) -> None:
        SystemLocated.__init__(self, column, text=text)
        self._number = self._text = column


class PostgresField(_PostgresTerms):
    """A field of the metadata."""

    def __init__(self, path: Sequence[str], names: Sequence[Column], *, indexed: bool) -> None:
        self._path = path
        self._names = names
        self._indexed = indexed

    def _reading(self, template: str, kind: Any = sa.types.NullType) -> Column:
        way = "".join(f" -> {{{i}}}" for i in range(len(self._names)))
        return Reading(template.format(json=f"({_DOCUMENT}{way})"), self._names, kind)

    @cached_property
    def _json(self) -> Column:
        return self._reading("{json}", Jsonb)

    @cached_property
    def _type(self) -> Column:
        return self._reading(_TYPE)

    @cached_property
    def rank(self) -> Column:  # type: ignore[override]
        """By its JSON type."""
        return self._reading(_RANK if self._indexed else _RANK_UNINDEXED)

    @cached_property
    def _number(self) -> Column:  # type: ignore[override]
        return self._reading(_NUMBER if self._indexed else _NUMBER_UNINDEXED)

    @cached_property
    def _text(self) -> Column:  # type: ignore[override]
        return self._reading(_TEXT, sa.Text)

    @cached_property
    def _short(self) -> Column:
        return self._reading(_SHORTENED, sa.Text)

    def _shortened(self, text: str) -> tuple[Column, str] | None:
        return (self._short, text[:_SHORT]) if self._indexed else None

    def present(self) -> Bool:
        """Whether there is something."""
        return self._json.is_not(None)

    def other_kind(self, kind: Kind) -> Sequence[Bool]:
        """Compare the JSON type."""
        return (
            (self._type == _word(_JSON_KINDS[kind]),) if kind in ("null", "array", "object") else ()
        )

    def equal(self, value: Any) -> Condition:
        """Ask the index on all metadata, where none on the field is to be asked."""
        if self._indexed:
            return super().equal(value)
        return self._contained(value, value)

    def equal_container(self, value: Any) -> Condition:
        """Compare as PostgreSQL does."""
        return self._contained(value, value)

    def has_element(self, value: Any) -> Condition:
        """Ask for an array that contains this."""
        if not isinstance(value, list | dict):
            return self._contained([value], value)
        return Condition(self._within([value]), FALSE)

    def _contained(self, wanted: Any, value: Any) -> Condition:
        may = self._within(wanted)
        if isinstance(wanted, list | dict) and wanted is value:  # else more may be in there
            may = sa.and_(may, self._json == _json(value))
        return exact(may) if is_exact(value) else Condition(may, FALSE)

    def _within(self, wanted: Any) -> Bool:
        for name in reversed(self._path):
            wanted = {name: wanted}
        return Reading(_DOCUMENT, ()).op("@>", is_comparison=True)(_json(wanted))

    @property
    def values(self) -> Sequence[Column]:
        """Numbers and booleans, the beginnings of texts, and texts."""
        return (self._number, self._short, self._text)

    def values_of(self, rank: int) -> Sequence[Column]:
        """Only texts are sorted by more than the index has."""
        return self.values if rank == TEXT else self.values[:2]

    def place(self, rank: int, values: Sequence[Any]) -> Any:
        """The one that there is."""
        return values[2] if rank == TEXT else values[0]

    @property
    def facts(self) -> Sequence[Column]:
        """The JSON text."""
        return (sa.cast(self._json, sa.Text()),)

    def value(self, facts: Sequence[Any]) -> Any:
        """Make the JSON value."""
        return MISSING if facts[0] is None else json.loads(facts[0], parse_int=_integer)


class PostgresAddressing(Addressing):
    """Fields in PostgreSQL."""

    def can(self, path: Sequence[str]) -> bool:
        """Whether the names are in the copy as they are."""
        return all(map(is_exact, path))

    def system(self, name: str, key: Column) -> Located:
        """A column."""
        column = system_columns.get(name, key)
        text = SYSTEM_FIELDS[name].kind == "text"
        return PostgresSystemField(sa.collate(column, "C") if text else column, text=text)

    def metadata(self, path: tuple[str, ...], *, indexed: bool) -> PostgresField:
        """What is under names."""
        return PostgresField(
            path, [*map(self.spelled if indexed else _bound, path)], indexed=indexed
        )

    def spelled(self, text: str) -> Column:
        """Write each character as its number."""
        return sa.literal_column("U&'" + "".join(f"\\+{ord(c):06X}" for c in text) + "'")

    def index_columns(self, path: tuple[str, ...]) -> Sequence[Column]:
        """Rank, number and the beginning of a text."""
        field = self.metadata(path, indexed=True)
        return (field.rank, *field.values_of(OTHER))

    def at_rest(self, path: tuple[str, ...]) -> Sequence[Bool]:
        """Nothing: the index serves as it is."""
        return ()

    def serves(self, plan: str) -> bool:
        """Whether the index on all metadata does."""
        return "entries_by_metadata" in plan


def _integer(text: str) -> int | float:
    """Read a number without a fraction: PostgreSQL writes doubles like that, too."""
    value = int(text)
    return value if -_DOUBLES_FROM <= value < _DOUBLES_FROM else float(value)
