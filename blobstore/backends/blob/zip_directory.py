"""Central directories: what other programs read, and what we start from."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

from blobstore.backends.blob.zip_fields import (
    NEEDS,
    NEEDS_ZIP64,
    PRIVATE,
    ZIP64,
    ZIP64_COUNT,
    BadRecordError,
    clipped,
    dos_time,
    foreign_fields,
    is_wide,
    zip64_numbers,
)
from blobstore.backends.blob.zip_format import OWN_NAME, Kind, Member, Record, record_size

_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")
_OWN = struct.Struct("<HHBQqI")  # id, length, kind, tag, modified, length of the local header
_SIGNATURE = b"PK\1\2"
_END_SIGNATURE, _END64_SIGNATURE, _LOCATOR_SIGNATURE = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_MADE_BY_UNIX = 3 << 8
_PLAIN_FILE = 0o100644 << 16

END_SIZE = _END.size
END64_SIZE = _END64.size + _LOCATOR.size


def pack_directory(
    entries: Iterable[tuple[bytes, Member]], at: int, comment: bytes = b""
) -> tuple[Record, bytes, int]:
    """Make a directory.

    Parameters
    ----------
    entries : iterable of (bytes, Member)
        Names and members.
    at : int
        Where in the file its record will begin.
    comment : bytes
        Of the whole archive.

    Returns
    -------
    tuple of (Record, bytes, int)
        The header, what follows it, and how much of that is entries.
    """
    packed = [pack_entry(name, member) for name, member in entries]
    data = b"".join(packed)
    size = len(data)
    data += pack_end(len(packed), size, at + record_size(OWN_NAME), comment)
    record = Record(Kind.DIRECTORY, OWN_NAME, tag=zlib.crc32(data), follows=len(data))
    return record, data, size


def pack_end(count: int, size: int, start: int, comment: bytes = b"") -> bytes:
    """Make the end of a directory, with the records of zip64 if they are needed."""
    end = b""
    if count >= ZIP64_COUNT or is_wide(max(size, start)):
        made = NEEDS_ZIP64 | _MADE_BY_UNIX
        end = _END64.pack(
            _END64_SIGNATURE, _END64.size - 12, made, NEEDS_ZIP64, 0, 0, count, count, size, start
        ) + _LOCATOR.pack(_LOCATOR_SIGNATURE, 0, start + size, 1)
        count, size, start = min(count, 0xFFFF), clipped(size), clipped(start)
    return end + _END.pack(_END_SIGNATURE, 0, 0, count, count, size, start, len(comment)) + comment


def pack_entry(name: bytes, member: Member) -> bytes:
    """Make the directory entry of a member."""
    made, needs, internal, external, comment, others = (
        NEEDS | _MADE_BY_UNIX, NEEDS, 0, _PLAIN_FILE, b"", b""
    )  # fmt: skip
    day, clock = dos_time(member.modified)
    kind = Kind.MEMBER
    if member.raw:
        kind = Kind.FOREIGN
        fields = _CENTRAL.unpack_from(member.raw)
        made, needs, clock, day, internal, external = (*fields[1:3], *fields[5:7], *fields[14:16])
        at = _CENTRAL.size + fields[10]
        others = foreign_fields(member.raw[at : at + fields[11]])
        comment = member.raw[at + fields[11] :]
    # A size that is the limit itself is as good as a larger one: it means "see zip64".
    wide = [n for n in (member.size, member.stored, member.offset) if is_wide(n)]
    if wide:
        others = (
            struct.pack("<HH", ZIP64, 8 * len(wide)) + struct.pack(f"<{len(wide)}Q", *wide) + others
        )
        needs = max(needs, NEEDS_ZIP64)
    extra = others + _OWN.pack(
        PRIVATE, _OWN.size - 4, kind, member.tag, member.modified, member.head
    )
    fixed = _CENTRAL.pack(
        _SIGNATURE, made, needs, member.flags, member.method, clock, day, member.crc,
        clipped(member.stored), clipped(member.size), len(name), len(extra), len(comment),
        0, internal, external, clipped(member.offset),
    )  # fmt: skip
    return b"".join((fixed, name, extra, comment))


def parse_directory(data: bytes, size: int) -> Iterator[tuple[bytes, Member]]:
    """Read the entries of a directory that we wrote.

    Raises
    ------
    BadRecordError
        They are not ours.
    """
    at = 0
    while at < size:
        if data[at : at + 4] != _SIGNATURE or size - at < _CENTRAL.size + _OWN.size:
            raise BadRecordError("no entry of a directory")
        fields = _CENTRAL.unpack_from(data, at)
        flags, method, crc, stored, plain, names, extra, comment = (*fields[3:5], *fields[7:13])
        start = at + _CENTRAL.size
        end = start + names + extra
        extras = data[start + names : end]
        if extra < _OWN.size:
            raise BadRecordError("an entry without our field")
        own = _OWN.unpack(extras[-_OWN.size :])
        if own[:2] != (PRIVATE, _OWN.size - 4):
            raise BadRecordError("an entry without our field")
        offset = fields[16]
        if 0xFFFFFFFF in (plain, stored, offset):
            plain, stored, offset = zip64_numbers(extras, plain, stored, offset)
        kind, tag, modified, head = own[2:]
        raw = data[at : end + comment] if kind == Kind.FOREIGN else b""
        name = data[start : start + names]
        yield name, Member(offset, head, stored, plain, crc, method, flags, modified, tag, raw)
        at = end + comment


def parse_comment(data: bytes, entries: int) -> bytes:
    """The comment of the whole archive, from a directory that we wrote."""
    at = entries
    if data[at : at + 4] == _END64_SIGNATURE:
        at += _END64.size + _LOCATOR.size
    return data[at + _END.size :]


def directory_start(end: bytes, before: bytes) -> int | None:
    """Where the end of a directory says that it starts; None if these are not the bytes of one.

    Parameters
    ----------
    end : bytes
        The last record of the file, without its comment.
    before : bytes
        The 76 bytes before it, where the records of zip64 would be.
    """
    if len(end) != _END.size or end[:4] != _END_SIGNATURE:
        return None
    start: int = _END.unpack(end)[6]
    if start == 0xFFFFFFFF and before[:4] == _END64_SIGNATURE:
        start = _END64.unpack_from(before)[9]
    return start
