"""What can be asked of an index, and the reference answer that every index must agree with.

A condition is an `Expression`, written in Python (`F`), as a mapping or as text; `parse` takes all
three. `Query` is a whole selection, `matcher` and `sort_key` say what it means. Nothing here reads
or writes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blobstore.errors import InvalidQueryError
from blobstore.query.building import F
from blobstore.query.evaluate import (
    fields_of,
    lookup,
    matcher,
    matches,
    place_key,
    sort_key,
    values_reader,
)
from blobstore.query.fields import is_time, parse_field, print_field
from blobstore.query.mapping import parse_mapping, to_mapping
from blobstore.query.selection import Cursor, Query, parse_order
from blobstore.query.tree import Expression, Field, Order, check_depth
from blobstore.query.values import MISSING, order_place, rank, same, shown

__all__ = [
    "MISSING",
    "Cursor",
    "Expression",
    "F",
    "Field",
    "Order",
    "Query",
    "fields_of",
    "is_time",
    "lookup",
    "matcher",
    "matches",
    "order_place",
    "parse",
    "parse_field",
    "parse_mapping",
    "parse_order",
    "place_key",
    "print_field",
    "rank",
    "same",
    "sort_key",
    "to_mapping",
    "values_reader",
]

Where = Expression | Mapping[str, Any] | str | None
"""The spellings of a condition; None, and an empty mapping, hold for every entry."""


def parse(where: Where) -> Expression | None:
    """Read a condition in any of its spellings.

    Raises
    ------
    InvalidQueryError
        It cannot be understood; the message says where, and what was expected.

    Examples
    --------
    >>> parse("loss < 0.1 and not author = 'bob'") == parse(
    ...     {"loss": {"$lt": 0.1}, "$not": {"author": "bob"}}
    ... )
    True
    """
    expression: Expression | None
    if where is None or isinstance(where, Expression):
        expression = where
    elif isinstance(where, str):
        from blobstore.query.text import parse_text

        expression = parse_text(where)
    elif isinstance(where, Mapping):
        expression = parse_mapping(where)
    elif isinstance(where, F):  # type: ignore[unreachable]
        raise InvalidQueryError(
            f"{where!r} alone is no condition: compare it, as in {where!r} == True"
        )
    else:
        raise InvalidQueryError(
            "a condition is made by F, or written as a dict or a str, not as "
            f"{type(where).__name__}: {shown(where)}"
        )
    if expression is not None:
        check_depth(expression)
    return expression
