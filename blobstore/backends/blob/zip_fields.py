"""Small parts of the zip format: its constants, times, and extra fields."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

ZIP64_LIMIT = 0xFFFFFFFF
"""Sizes and offsets from here on need the fields of zip64."""
ZIP64_COUNT = 0xFFFF
"""Numbers of members from here on do."""

STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14
ENCRYPTED, DESCRIPTOR, UTF8 = 0x1, 0x8, 0x800
NEEDS, NEEDS_ZIP64 = 20, 45
"""The version of the format that a reader has to know."""

ZIP64 = 0x0001
PRIVATE = 0x5362
"""Extra fields: of the zip format, and our own."""

_FIELD = struct.Struct("<HH")


class BadRecordError(ValueError):
    """These bytes are not what we write here."""


def dos_time(microseconds: int) -> tuple[int, int]:
    """Date and time of day in the zip format: local time, even seconds, 1980 to 2107.

    Examples
    --------
    >>> dos_time(0)[0] == (1 << 5 | 1)
    True
    """
    moment = time.localtime(microseconds // 1_000_000)
    if moment.tm_year < 1980:
        return 33, 0
    if moment.tm_year > 2107:
        return 127 << 9 | 12 << 5 | 31, 23 << 11 | 59 << 5 | 29
    day = (moment.tm_year - 1980) << 9 | moment.tm_mon << 5 | moment.tm_mday
    return day, moment.tm_hour << 11 | moment.tm_min << 5 | min(moment.tm_sec, 59) // 2


def is_wide(number: int) -> bool:
    """Whether a number has its place in a field of zip64."""
    return number >= ZIP64_LIMIT


def clipped(number: int) -> int:
    """What is in the place where it would be otherwise."""
    return number if number < ZIP64_LIMIT else 0xFFFFFFFF


def fields_of(extras: bytes) -> Iterator[tuple[int, bytes]]:
    """Take extra fields apart; gives their ids, and each as a whole."""
    at = 0
    while at < len(extras):
        if len(extras) - at < _FIELD.size:
            raise BadRecordError("a torn extra field")
        identity, length = _FIELD.unpack_from(extras, at)
        whole = extras[at : at + _FIELD.size + length]
        if len(whole) != _FIELD.size + length:
            raise BadRecordError("a torn extra field")
        yield identity, whole
        at += len(whole)


def other_fields(extras: bytes) -> bytes:
    """Extra fields less those that are made anew."""
    if not extras:
        return b""
    return b"".join(whole for id_, whole in fields_of(extras) if id_ not in (ZIP64, PRIVATE))


def zip64_numbers(extras: bytes, *numbers: int) -> list[int]:
    """Replace those numbers that stand for "see zip64", in the order of the format."""
    wide = next((whole[4:] for id_, whole in fields_of(extras) if id_ == ZIP64), b"")
    if len(wide) % 8:
        raise BadRecordError("a field of zip64 that is none")
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    try:
        return [next(values) if number == 0xFFFFFFFF else number for number in numbers]
    except StopIteration as exc:
        raise BadRecordError("a field of zip64 that is too short") from exc


def foreign_fields(extras: bytes) -> bytes:
    """The same of another program's fields, which may be none."""
    try:
        return other_fields(extras)
    except BadRecordError:  # padding, as some programs write it to align data
        return b""
