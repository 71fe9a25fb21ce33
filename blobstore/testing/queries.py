"""Hypothesis strategies for queries: metadata of every kind, and conditions that hit it.

What is drawn comes from small pools of values that are alike (1, 1.0, true and "1"; text that one
collation sorts otherwise than another), so that equal ones, and nearly equal ones, meet often.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from blobstore.query import MISSING, Cursor, Expression, Field, Order, Query, conditions
from blobstore.query.tree import Operator

NAMES = (
    *("a", "b", "A", "a.b", "and", "it's", 'a"b', "a`b", "\\", "\\u0061", "", " ", "é", "e\u0301"),
    *(
        "日本",
        "a\0b",
        "\0",
        "\x01",
        "@size",
        "$gt",
        "0",
        "%",
        "_",
        "*",
        "[0]",
        "\U0001f389",
        "null",
    ),
)
"""Names that mean something somewhere."""

NUMBERS = (
    *(0, 1, -1, 2, 3, 10, 0.0, -0.0, 1.0, 0.5, -0.5, 1.5, 0.1, 0.1 + 0.2, 1e-5, 5e-324, 1e300),
    *(2**53, 2**53 + 1, float(2**53), -(2**53) - 1, 2**63 - 1, 2**63, float(2**63), -(2**63)),
    *(-(2**63) - 1, 2**64 + 1, 2**70, 2**70 + 1, float(2**70), 10**30, 10**400, -(10**400)),
    *(1e16, 10**16 + 1, 1.7976931348623157e308, 123456789012345678),
)
TEXTS = (
    *("", "a", "A", "b", "ab", "aB", "abc", "a b", "a%", "a_b", "a*b", "a?b", "a[b]", "a\\b", "%"),
    *(
        "_",
        "1",
        "1.0",
        "true",
        "null",
        "é",
        "e\u0301",
        "ß",
        "ss",
        "日本",
        "\ud7ff",
        "\ue000",
        "\uffff",
    ),
    *(
        "\U00010000",
        "\U0001f389",
        "a\0",
        "a\0b",
        "\0",
        "\x01",
        "a\x01b",
        "\\u0000",
        "a\nb",
        "'",
        '"',
    ),
    *("2026-01-31", "x" * 300, "x" * 299 + "y"),
)
_SCALARS = (None, True, False)
_OPERATORS: SearchStrategy[Operator] = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
_JOINTS = st.sampled_from(["leaf", "leaf", "and", "or", "not"])
_ONE_IN_FIVE = st.integers(0, 4).map(lambda number: number == 0)
_EQUALITIES: SearchStrategy[Operator] = st.sampled_from(["=", "!="])
_INEQUALITIES: SearchStrategy[Operator] = st.sampled_from(["<", "<=", ">", ">="])
_FEW = st.integers(0, 3)
_EITHER = st.booleans()
_STEPS = st.sampled_from(["itself", "itself", "one", "any"])
_UNKNOWN = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(tuple)


@functools.cache
def scalars() -> SearchStrategy[Any]:
    """Draw a JSON value that holds no other."""
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(TEXTS),
        st.sampled_from(_SCALARS),
        st.integers(-3, 3),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=4),
    )


@functools.cache
def values() -> SearchStrategy[Any]:
    """Draw a JSON value."""
    return st.recursive(
        scalars(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)
        ),
        max_leaves=5,
    )


@functools.cache
def metadata() -> SearchStrategy[dict[str, Any]]:
    """Draw metadata: few names, so that entries share them, and values of all kinds under each."""
    names = st.one_of(st.sampled_from(["a", "b"]), st.sampled_from(NAMES), st.text(max_size=2))
    inner = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), scalars(), max_size=3)
    return st.dictionaries(names, st.one_of(scalars(), values(), inner), max_size=5)


def places(documents: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, ...], Any]]:
    """List the paths into nested metadata that lead somewhere, with what is there.

    Examples
    --------
    >>> places([{"a": {"b": 1}}])
    [(('a',), {'b': 1}), (('a', 'b'), 1)]
    """

    def walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        if path:
            yield path, value
        if isinstance(value, Mapping):
            for name, item in value.items():
                yield from walk(item, (*path, name))

    return [place for document in documents for place in walk(document, ())]


@st.composite
def leaves(draw: DrawFn, documents: Sequence[Mapping[str, Any]]) -> Expression:
    """Draw a condition on one field, with a value that is there or one like it."""
    if draw(_ONE_IN_FIVE):
        return draw(system_leaves())
    known = places(documents)
    path, value = draw(st.sampled_from(known)) if known else (draw(_UNKNOWN), draw(values()))
    if draw(_ONE_IN_FIVE):
        value = draw(values())
    elif draw(_ONE_IN_FIVE):
        path = draw(_UNKNOWN)
    return draw(_on(Field(path), value))


@st.composite
def _on(draw: DrawFn, field: Field, value: Any) -> Expression:
    kinds = ["compare", "compare", "among", "contains", "exists"]
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        kinds += ["order", "order", "between"]
    if isinstance(value, str):
        kinds += ["like", "like", "startswith", "contains"]
    kind = draw(st.sampled_from(kinds))
    if kind == "compare":
        return conditions.compare(field, draw(_EQUALITIES), value)
    if kind == "order":
        return conditions.compare(field, draw(_INEQUALITIES), value)
    if kind == "between":
        other = draw(st.sampled_from(TEXTS if isinstance(value, str) else NUMBERS))
        return conditions.between(field, *draw(st.permutations([value, other])))
    if kind == "among":
        others = draw(st.lists(values(), max_size=3))
        listed = draw(st.permutations([*others, value])) if draw(_EITHER) else others
        return conditions.among(field, listed, negated=draw(_EITHER))
    if kind == "contains":
        return conditions.contains(field, draw(_inside(value)))
    if kind == "like":
        return conditions.like(field, draw(patterns(value)))
    if kind == "startswith":
        return conditions.starts_with(field, value[: draw(_FEW)])
    return conditions.exists(field)


@st.composite
def _inside(draw: DrawFn, value: Any) -> Any:
    """Something that `value` contains, more often than not."""
    if isinstance(value, str) and value:
        start = draw(st.integers(0, len(value) - 1))
        return value[start : start + draw(_FEW)]
    if isinstance(value, list) and value:
        return draw(st.sampled_from(value))
    return draw(scalars())


@st.composite
def patterns(draw: DrawFn, text: str) -> str:
    """Draw a pattern that the text nearly always has the form of."""
    pieces = []
    place = 0
    while place < min(len(text), 6):
        how = draw(_STEPS)
        if how == "any":
            pieces.append("%")
            place += draw(_FEW)
            continue
        pieces.append("_" if how == "one" else _escaped(text[place]))
        place += 1
    end = draw(st.sampled_from(["%", "%", _escaped(text[place:]), ""]))
    return "".join(pieces) + end


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in "%_\\" else one for one in text)


@st.composite
def system_leaves(draw: DrawFn) -> Expression:
    """Draw a condition on one of an entry's own fields; not its id, which each index chooses."""
    op = draw(_OPERATORS)
    kind = draw(st.sampled_from(["number", "text", "time"]))
    if kind == "number":
        field = Field((draw(st.sampled_from(["version", "size"])),), system=True)
        value: Any = draw(st.one_of(st.integers(0, 5), st.sampled_from(NUMBERS)))
    elif kind == "text":
        field = Field((draw(st.sampled_from(["key", "data_type", "handler"])),), system=True)
        value = draw(st.sampled_from(["", "a", "b", "k1", "k2", "object", "pickle", *TEXTS]))
    else:
        field = Field((draw(st.sampled_from(["created_at", "updated_at"])),), system=True)
        value = draw(
            st.sampled_from(["1970-01-01T00:00:00.000002Z", "1970-01-01", "2026-01-31T12:00:00"])
        )
    if kind == "text" and draw(_EITHER):
        return draw(
            st.sampled_from(
                [
                    conditions.like(field, draw(patterns(value))),
                    conditions.starts_with(field, value[:1]),
                    conditions.contains(field, value[:2]),
                ]
            )
        )
    if draw(_ONE_IN_FIVE):
        return conditions.among(field, [value], negated=draw(_EITHER))
    return conditions.compare(field, op, value)


@st.composite
def expressions(
    draw: DrawFn, documents: Sequence[Mapping[str, Any]], *, depth: int = 3
) -> Expression:
    """Draw a condition that is about the metadata in `documents`.

    Examples
    --------
    >>> condition = expressions([{"a": 1}])
    """
    how = draw(_JOINTS) if depth else "leaf"
    if how == "leaf":
        return draw(leaves(documents))
    one = draw(expressions(documents, depth=depth - 1))
    if how == "not":
        return ~one
    two = draw(expressions(documents, depth=depth - 1))
    return one & two if how == "and" else one | two


@st.composite
def orders(draw: DrawFn, documents: Sequence[Mapping[str, Any]]) -> tuple[Order, ...]:
    """Draw an order by up to three fields, most of which some entry has."""
    paths = [path for path, _ in places(documents)] or [("a",)]
    fields = st.one_of(
        st.sampled_from(paths).map(Field),
        st.sampled_from(["key", "size", "version", "data_type", "updated_at"]).map(
            lambda name: Field((name,), system=True)
        ),
    )
    return tuple(draw(st.lists(st.builds(Order, fields, st.booleans()), max_size=3)))


def _place(field: Field) -> SearchStrategy[Any]:
    """Draw a value that the field could have: an entry's own are of one kind."""
    if not field.system:
        return scalars() | st.just(MISSING)
    return st.sampled_from(TEXTS) if field.path[0] in ("key", "data_type") else _FEW


_KEY = Field(("key",), system=True)


@st.composite
def queries(draw: DrawFn, keyed: Mapping[str, Mapping[str, Any]]) -> Query:
    """Draw a whole selection, over entries of these keys and metadata.

    The place to go on behind is one that an entry could have, but need not.
    """
    documents = list(keyed.values())
    order = draw(orders(documents))
    after: Cursor | str | None = None
    if draw(_ONE_IN_FIVE):
        key = draw(st.sampled_from([*keyed, "", "a", "zzz"]))
        places = (key if one.field == _KEY else draw(_place(one.field)) for one in order)
        after = Cursor(tuple(places), key) if order else key
    return Query(
        prefix=draw(st.sampled_from(["", "", "", *(key[:1] for key in keyed)])),
        where=draw(st.none() | expressions(documents)),
        order=order,
        after=after,
        limit=draw(st.none() | st.integers(0, 5)),
    )
