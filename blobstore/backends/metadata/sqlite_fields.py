"""How SQLite reads a field of an entry: by its JSON functions and a path."""

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
from blobstore.backends.metadata.respelling import is_exact, respelled_number
from blobstore.backends.metadata.schema import system_columns
from blobstore.query import MISSING, order_place
from blobstore.query.fields import SYSTEM_FIELDS
from blobstore.query.patterns import Wild, split_pattern
from blobstore.query.values import Kind

_DOCUMENT = "ifnull({table}searchable, {table}metadata)"
_TYPE = f"json_type({_DOCUMENT}, {{0}})"
_EXTRACTED = f"json_extract({_DOCUMENT}, {{0}})"
_RANK = (
    f"CASE {_TYPE} WHEN 'integer' THEN {NUMBER} WHEN 'real' THEN {NUMBER} WHEN 'text' THEN {TEXT}"
    f" WHEN 'true' THEN {BOOLEAN} WHEN 'false' THEN {BOOLEAN} ELSE {OTHER} END"
)
_VALUE = f"CASE {_TYPE} WHEN 'object' THEN NULL WHEN 'array' THEN NULL ELSE {_EXTRACTED} END"
_LENGTH = f"json_array_length({_DOCUMENT}, {{0}})"
_LONGEST_PATTERN = 50_000
_MOST_INSIDE = 50
"""Values in an array or object that SQLite is to compare with one, at most."""

_GLOB = {Wild.ANY: "*", Wild.ONE: "?"}
_GLOB_SPECIAL = str.maketrans({"*": "[*]", "?": "[?]", "[": "[[]"})


def _word(text: str) -> Column:
    return sa.literal_column(f"'{text}'")


def _bound(value: Any) -> Column:
    if isinstance(value, str):
        return sa.literal(value, sa.Text())
    # Of no type, so that statements for integers, floats and booleans are the same.
    return sa.literal(int(value) if isinstance(value, bool) else value, sa.types.NullType())


class _SqliteTerms(Located):
    """Conditions on one expression, whose values SQLite compares by itself."""

    _value: Column

    def placed(self, how: Operator, rank: int, place: Any) -> Bool:
        """Compare with a place."""
        condition: Bool = how(self._value, _bound(place))
        return condition

    def among_places(self, rank: int, places: Sequence[Any]) -> Bool:
        """Compare with the elements of a JSON array: one parameter, however many there are."""
        if rank == TEXT:
            text = json.dumps(places, ensure_ascii=False)
        else:
            text = f"[{','.join(map(respelled_number, places))}]"
        each = sa.func.json_each(sa.literal(text, sa.Text())).table_valued("value")
        return self._value.in_(sa.select(each.c.value))

    def has_inside(self, text: str) -> Bool:
        """Look for text, literally."""
        return sa.func.instr(self._value, _bound(text)) > number(0)

    def fits(self, pattern: str) -> Bool | None:
        """Compare with a pattern of GLOB, which minds the case."""
        glob = "".join(
            _GLOB[piece] if isinstance(piece, Wild) else piece.translate(_GLOB_SPECIAL)
            for piece in split_pattern(pattern)
        )
        if len(glob.encode()) > _LONGEST_PATTERN:
            return None
        return self._value.op("GLOB", is_comparison=True)(_bound(glob))


class SqliteSystemField(_SqliteTerms, SystemLocated):
    """A column of the entry."""

    def __init__(self, column: Column, *, text: bool) -> None:
        SystemLocated.__init__(self, column, text=text)
        self._value = column


class SqliteField(_SqliteTerms):
    """A field of the metadata at a path."""

    def __init__(self, names: Sequence[str | int], path: Column) -> None:
        self._names = names
        self._path = path

    @cached_property
    def _type(self) -> Column:
        return Reading(_TYPE, (self._path,))

    @cached_property
    def _extracted(self) -> Column:
        return Reading(_EXTRACTED, (self._path,))

    @cached_property
    def rank(self) -> Column:  # type: ignore[override]
        """By its JSON type."""
        return Reading(_RANK, (self._path,))

    @cached_property
    def _value(self) -> Column:  # type: ignore[override]
        return Reading(_VALUE, (self._path,))

    def present(self) -> Bool:
        """Whether there is something at the path."""
        return self._type.is_not(None)

    def other_kind(self, kind: Kind) -> Sequence[Bool]:
        """Compare the JSON type."""
        return (self._type == _word(kind),) if kind in ("null", "array", "object") else ()

    def equal_container(self, value: Any) -> Condition:
        """Compare what is inside, one by one, if it is not much."""
        kind: Kind = "array" if isinstance(value, list) else "object"
        if _size(value) > _MOST_INSIDE:
            return Condition(self.has_kind(kind), FALSE)
        return _all(self.parts_equal(value))

    def parts_equal(self, value: Any) -> list[Condition]:
        """What must all hold where an array or object, or what is in one, equals a value."""
        if isinstance(value, list):
            length = Reading(_LENGTH, (self._path,)) == _bound(len(value))
            found = [exact(sa.and_(self.has_kind("array"), length))]
            children: list[tuple[str | int, Any]] = list(enumerate(value))
        elif isinstance(value, dict):
            each = sa.func.json_each(Reading(_DOCUMENT, ()), self._path).table_valued("key")
            count = sa.select(sa.func.count(each.c.key)).scalar_subquery()
            found = [exact(sa.and_(self.has_kind("object"), count == _bound(len(value))))]
            children = list(value.items())
        else:
            return [self.equal(value)]
        for name, inner in children:
            if isinstance(name, str) and not _is_addressable(name):
                found.append(Condition(sa.true(), FALSE))
            else:
                names = (*self._names, name)
                found += SqliteField(names, _bound(_path_of(names))).parts_equal(inner)
        return found

    def has_element(self, value: Any) -> Condition:
        """Look through the elements of an array."""
        each = sa.func.json_each(Reading(_DOCUMENT, ()), self._path).table_valued("value", "type")
        is_array = self.has_kind("array")
        kinds, condition = _element_of(value, each.c.value)
        alike = sa.or_(*(each.c.type == _word(kind) for kind in kinds))
        found = sa.exists().select_from(each).where(alike, condition)
        may = sa.and_(is_array, found)
        certain = is_exact(value) and not isinstance(value, list | dict)
        return exact(may) if certain else Condition(may, FALSE)

    @property
    def values(self) -> Sequence[Column]:
        """Numbers, text and booleans (as 0 and 1), each under its rank."""
        return (self._value,)

    def values_of(self, rank: int) -> Sequence[Column]:
        """None where all are NULL: SQLite sorts by what it could see is the same."""
        return () if rank == OTHER else self.values

    def place(self, rank: int, values: Sequence[Any]) -> Any:
        """The value itself."""
        return values[0]

    @property
    def facts(self) -> Sequence[Column]:
        """JSON type and value; arrays and objects as their text."""
        return (self._type, self._extracted)

    def value(self, facts: Sequence[Any]) -> Any:
        """Make the JSON value."""
        kind, value = facts
        if kind is None:
            return MISSING
        if kind in ("array", "object"):
            return json.loads(value)
        return value == 1 if kind in ("true", "false") else value


class SqliteAddressing(Addressing):
    """Fields in SQLite."""

    def can(self, path: Sequence[str]) -> bool:
        """Whether a path can lead there: SQLite compares names with what JSON has between quotes."""
        return all(map(_is_addressable, path))

    def system(self, name: str, key: Column) -> Located:
        """A column."""
        column = system_columns.get(name, key)
        return SqliteSystemField(column, text=SYSTEM_FIELDS[name].kind == "text")

    def metadata(self, path: tuple[str, ...], *, indexed: bool) -> SqliteField:
        """What is at a path."""
        text = _path_of(path)
        return SqliteField(path, self.spelled(text) if indexed else _bound(text))

    def spelled(self, text: str) -> Column:
        """Write text in hexadecimal digits."""
        return sa.literal_column(f"CAST(X'{text.encode().hex()}' AS TEXT)")

    def index_columns(self, path: tuple[str, ...]) -> Sequence[Column]:
        """Rank and value."""
        field = self.metadata(path, indexed=True)
        return (field.rank, *field.values)

    def at_rest(self, path: tuple[str, ...]) -> Sequence[Bool]:
        """All have the value NULL."""
        return tuple(value.is_(None) for value in self.metadata(path, indexed=True).values)

    def serves(self, plan: str) -> bool:
        """Nothing does."""
        return False


def _is_addressable(name: str) -> bool:
    return bool(name) and not any(c < " " or c in '"\\' for c in name)


def _path_of(names: Sequence[str | int]) -> str:
    return "$" + "".join(f"[{n}]" if isinstance(n, int) else f'."{n}"' for n in names)


def _size(value: Any) -> int:
    """How many values there are in a value, itself included."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_size, inside))


def _all(conditions: Sequence[Condition]) -> Condition:
    may = sa.and_(*(one.may for one in conditions))
    if all(one.exact for one in conditions):
        return exact(may)
    return Condition(may, sa.and_(*(one.must for one in conditions)))


def _element_of(value: Any, element: Column) -> tuple[tuple[str, ...], Bool]:
    """The JSON types that an equal element has, and a condition on it besides."""
    if value is None:
        return ("null",), sa.true()
    if isinstance(value, bool):
        return ("true" if value else "false",), sa.true()
    if isinstance(value, list | dict):
        return ("array" if isinstance(value, list) else "object",), sa.true()
    kinds = ("text",) if isinstance(value, str) else ("integer", "real")
    return kinds, operator.eq(element, _bound(order_place(value)[1]))
