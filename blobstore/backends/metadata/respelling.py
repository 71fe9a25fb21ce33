"""Metadata and literals in a spelling that databases read exactly.

What is stored is the caller's JSON. Two things in it mean something else to the JSON functions of a
database: U+0000, at which texts end or are refused, and large numbers, which lose digits or are
compared as they are written. Where there is such a thing, the metadata is kept once more in another
spelling: U+0001 for U+0000, an integer beyond 64 bits as its nearest double, and a large double
that is an integer of 64 bits as that integer; escapes that another writer made are undone. So the order of values that a database sees is that
of `blobstore.query.order_place`, and all that are different but take the same place in it are
those that `is_exact` names.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

from blobstore.query import order_place

_BEYOND = 2**63
_SPELLED_WITH_EXPONENT = 10**16  # doubles from here on
_SUSPECT = re.compile(r"\\[u/]|[0-9]{19}|e\+1[678]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')
_INFINITE = "1e999"
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def respelled(text: str) -> str | None:
    r"""Give JSON text in the spelling for databases, or None if that is its own.

    Examples
    --------
    >>> respelled('{"a":1.5}') is None
    True
    >>> respelled(r'{"a":"b\u0000","n":[4.611686018427388e+18]}')
    '{"a":"b\\u0001","n":[4611686018427387904]}'
    """
    if _SUSPECT.search(text) is None:
        return None
    other = _TOKEN.sub(_respell, text)
    return None if other == text else other


def respelled_value(value: Any) -> str:
    """Write a literal as it stands in respelled metadata."""
    text = _encode(value)
    return respelled(text) or text


def respelled_number(place: float) -> str:
    """Write the place of a number in an order.

    Examples
    --------
    >>> respelled_number(2.0**62), respelled_number(0.1), respelled_number(float("-inf"))
    ('4611686018427387904', '0.1', '-1e999')
    """
    if isinstance(place, int):
        return str(int(place))
    if place in (float("inf"), float("-inf")):
        return _INFINITE if place > 0 else "-" + _INFINITE
    if _SPELLED_WITH_EXPONENT <= abs(place) < _BEYOND or place == -_BEYOND:
        return str(int(place))
    return repr(place)


def decimal_place(place: float | Decimal) -> Decimal:
    """Give the place of a number for a database that compares decimal numbers."""
    return place if isinstance(place, Decimal) else Decimal(respelled_number(place))


def is_exact(value: Any) -> bool:
    """Whether no other value takes the same place as this one, and looks the same respelled."""
    if isinstance(value, str):
        return "\0" not in value and "\1" not in value
    if isinstance(value, int | float):
        return -_BEYOND < value < _BEYOND
    if isinstance(value, list):
        return all(map(is_exact, value))
    if isinstance(value, dict):
        return all(map(is_exact, value)) and all(map(is_exact, value.values()))
    return True


def _respell(token: re.Match[str]) -> str:
    text = token[0]
    if text[0] == '"':
        return _encode(json.loads(text).replace("\0", "\1")) if "\\" in text else text
    if text.lstrip("-").isdigit():
        return respelled_number(order_place(int(text))[1])
    return respelled_number(float(text)) if "e+" in text else text
