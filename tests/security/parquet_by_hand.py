"""Parquet files made field by field, as no writer would make them."""

from __future__ import annotations

import struct

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
"""Types of fields in Thrift's compact protocol."""
DATA, DICTIONARY = 0, 2
PLAIN, BY_DICTIONARY = 0, 8
INT32, INT64, BYTE_ARRAY, FIXED = 1, 2, 6, 7
UTF8, DECIMAL, LISTS = 0, 5, 3
"""Physical and converted types."""


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def thrift(*fields) -> bytes:
    """A struct of fields ``(number, type, value)``."""
    found, last = b"", 0
    for number, kind, value in fields:
        short = 0 < number - last < 16
        found += bytes([(number - last) << 4 | kind]) if short else bytes([kind])
        found += (b"" if short else varint(2 * number)) + _value(kind, value)
        last = number
    return found + b"\0"


def _value(kind, value) -> bytes:
    if kind in (I32, I64):
        return varint(2 * value)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == STRUCT:
        return thrift(*value)
    kind, items = value
    return bytes([0xF0 | kind]) + varint(len(items)) + b"".join(_value(kind, x) for x in items)


def run(value: int, count: int, bits: int = 1) -> bytes:
    """A value that is repeated."""
    return varint(2 * count) + value.to_bytes((bits + 7) // 8, "little")


def levels(value: int, count: int, bits: int = 1) -> bytes:
    """A level that is repeated."""
    return sized(run(value, count, bits))


def sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def data_page(data: bytes, values: int, encoding: int = PLAIN, *, head=(), body=()) -> bytes:
    """A page with more fields in its header, or in the part of it that describes values."""
    facts = ((1, I32, values), (2, I32, encoding), (3, I32, 3), (4, I32, 3), *body)
    size = len(data)
    return thrift((1, I32, DATA), (2, I32, size), (3, I32, size), (5, STRUCT, facts), *head) + data


def dictionary_page(data: bytes, values: int = 1) -> bytes:
    facts, size = ((1, I32, values), (2, I32, PLAIN)), len(data)
    return thrift((1, I32, DICTIONARY), (2, I32, size), (3, I32, size), (7, STRUCT, facts)) + data


def element(name: str, kind=None, *, repetition=1, children=None, length=None, converted=None):
    """A node of a schema."""
    facts = (1, kind), (2, length), (3, repetition)
    after = (5, children), (6, converted)
    decimal = ((7, I32, 0), (8, I32, 2)) if converted == DECIMAL else ()
    found = [(number, I32, value) for number, value in facts if value is not None]
    found.append((4, BINARY, name.encode()))
    return [*found, *((n, I32, value) for n, value in after if value is not None), *decimal]


def parquet(
    nodes, kind: int, path, pages, rows: int, *, values=None, columns=1, groups=1, after=b""
) -> bytes:
    """A file of one column, which the footer may tell of several times, and bytes after it.

    The first of two pages is a dictionary.
    """
    start, content = 4, b"".join(pages)
    first = start + (len(pages[0]) if len(pages) > 1 else 0)
    chunk = [
        (1, I32, kind),
        (2, LIST, (I32, [0])),
        (3, LIST, (BINARY, [name.encode() for name in path])),
        (4, I32, 0),
        (5, I64, rows if values is None else values),
        (6, I64, len(content)),
        (7, I64, len(content)),
        (9, I64, first),
        *([(11, I64, start)] if first > start else []),
    ]
    column = [(2, I64, 0), (3, STRUCT, chunk)]
    group = [(1, LIST, (STRUCT, [column] * columns)), (2, I64, 100), (3, I64, rows)]
    footer = thrift(
        (1, I32, 1),
        (2, LIST, (STRUCT, [element("root", repetition=None, children=columns), *nodes * columns])),
        (3, I64, rows * groups),
        (4, LIST, (STRUCT, [group] * groups)),
    )
    return b"PAR1" + content + after + footer + struct.pack("<I", len(footer)) + b"PAR1"
