"""The bytes of a zip file of ours: its head, and the header of each record.

All of it is pure: bytes in, bytes out. A file is::

    head             a local header with two slots, each of which may say where a directory is
    record ...       a local header, and what belongs to it
        member       the bytes of an object
        deletion     nothing: the object of this name is gone
        directory    a central directory and its end, as every zip program reads them

Nothing but the slots is ever overwritten, so older directories stay where they were. Each header
ends in a private extra field with the length of what follows and a checksum of the header, so
records can be walked through from the head, or from any directory, without looking at what is
in them. Other programs see only the last directory, and what it names.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from blobstore.backends.blob.zip_fields import (
    DESCRIPTOR,
    NEEDS,
    NEEDS_ZIP64,
    PRIVATE,
    STORED,
    UTF8,
    ZIP64,
    BadRecordError,
    dos_time,
    is_wide,
    other_fields,
    zip64_numbers,
)

LOCAL_SIZE = 30
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\3\4"

_OWN = struct.Struct("<HHBQqQI")  # id, length, kind, tag, modified, follows, checksum

OWN_NAME = b".blobstore"
_SLOT = struct.Struct("<QQQQI")  # sequence, start, length, of which entries, checksum of these
_VERSION = 1


class Kind(IntEnum):
    """What a record is."""

    HEAD = 0
    MEMBER = 1
    DELETION = 2
    DIRECTORY = 3
    FOREIGN = 4
    """A member that another program made, with what that one noted in the directory."""


class Record(NamedTuple):
    """A local header of ours.

    Attributes
    ----------
    kind : Kind
    name : bytes
    method, flags, crc, stored, size : int
        As the zip format has them; `stored` is the compressed size.
    modified : int
        Microseconds since 1970, UTC.
    tag : int
        64 bits: of a member, its etag; of a directory, the checksum of it.
    follows : int
        Bytes between this header and the next one.
    extras : bytes
        Extra fields of others.
    """

    kind: int
    name: bytes
    method: int = STORED
    flags: int = UTF8
    crc: int = 0
    stored: int = 0
    size: int = 0
    modified: int = 0
    tag: int = 0
    follows: int = 0
    extras: bytes = b""


class Member(NamedTuple):
    """One object, as the index keeps it.

    Attributes
    ----------
    offset : int
        Of the local header.
    head : int
        Length of that header; -1 where only the header itself tells.
    stored, size, crc, method, flags, modified, tag : int
    raw : bytes
        The directory entry of another program, to be kept; empty for our own members.
    """

    offset: int
    head: int
    stored: int
    size: int
    crc: int
    method: int
    flags: int
    modified: int
    tag: int
    raw: bytes = b""


class Slot(NamedTuple):
    """Where a directory is.

    Attributes
    ----------
    sequence : int
        Higher in the newer slot.
    start, length : int
        Of the directory record, its header included.
    entries : int
        Bytes of the directory entries.
    """

    sequence: int
    start: int
    length: int
    entries: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.start + self.length


# --- records -------------------------------------------------------------------------------------


def pack_record(record: Record) -> bytes:
    """Make the header of a record.

    Examples
    --------
    >>> header = pack_record(Record(Kind.MEMBER, b"a", stored=3, size=3, follows=3))
    >>> parse_record(header, 0)[1] == len(header) == record_size(b"a")
    True
    """
    stored, size, extras, needs = record.stored, record.size, record.extras, NEEDS
    if is_wide(max(stored, size)):
        extras = struct.pack("<HHQQ", ZIP64, 16, size, stored) + extras
        stored = size = 0xFFFFFFFF
        needs = NEEDS_ZIP64
    day, clock = dos_time(record.modified)
    local = _LOCAL.pack(
        _SIGNATURE, needs, record.flags, record.method, clock, day, record.crc, stored, size,
        len(record.name), len(extras) + _OWN.size,
    )  # fmt: skip
    own = _OWN.pack(
        PRIVATE, _OWN.size - 4, record.kind, record.tag, record.modified, record.follows, 0
    )
    header = b"".join((local, record.name, extras, own[:-4]))
    return header + zlib.crc32(header).to_bytes(4, "little")


def record_size(name: bytes) -> int:
    """The length of a header without zip64 and foreign fields."""
    return LOCAL_SIZE + len(name) + _OWN.size


def parse_record(buffer: bytes, at: int) -> tuple[Record, int] | None:
    """Read a header of ours, and its length; None if the buffer ends within it.

    Raises
    ------
    BadRecordError
        There is something else.
    """
    if buffer[at : at + 4] != _SIGNATURE[: len(buffer) - at]:
        raise BadRecordError("no local header")
    if len(buffer) - at < LOCAL_SIZE:
        return None
    _, _, flags, method, _, _, crc, stored, size, names, extra = _LOCAL.unpack_from(buffer, at)
    if extra < _OWN.size:
        raise BadRecordError("a local header without our field")
    end = at + LOCAL_SIZE + names + extra
    if len(buffer) < end:
        return None
    own = _OWN.unpack_from(buffer, end - _OWN.size)
    if own[:2] != (PRIVATE, _OWN.size - 4) or own[-1] != zlib.crc32(buffer[at : end - 4]):
        raise BadRecordError("a local header that is not as we wrote it")
    name = buffer[at + LOCAL_SIZE : at + LOCAL_SIZE + names]
    extras = buffer[at + LOCAL_SIZE + names : end - _OWN.size]
    if 0xFFFFFFFF in (stored, size):
        size, stored = zip64_numbers(extras, size, stored)
    kind, tag, modified, follows = own[2:6]
    record = Record(
        kind, name, method, flags, crc, stored, size, modified, tag, follows, other_fields(extras)
    )
    return record, end - at


def member_of(record: Record, offset: int, head: int, raw: bytes = b"") -> Member:
    """What the index keeps of a member's record.

    Examples
    --------
    >>> member_of(Record(Kind.MEMBER, b"a", size=3), 100, 63).size
    3
    """
    return Member(
        offset, head, record.stored, record.size, record.crc, record.method, record.flags,
        record.modified, record.tag, raw,
    )  # fmt: skip


def descriptor(member: Member) -> bytes:
    """What follows the data of a member whose flags promise it; only encrypted ones keep it."""
    if not member.flags & DESCRIPTOR:
        return b""
    big = is_wide(max(member.stored, member.size))
    return struct.pack(
        "<4sIQQ" if big else "<4sIII", b"PK\7\10", member.crc, member.stored, member.size
    )


def local_parts(header: bytes) -> tuple[int, int]:
    """Lengths of the name and of the extra fields, from the first 30 bytes of any local header.

    Raises
    ------
    BadRecordError
        It is none.
    """
    if len(header) < LOCAL_SIZE or header[:4] != _SIGNATURE:
        raise BadRecordError("no local header")
    names, extra = struct.unpack_from("<HH", header, 26)
    return names, extra


# --- the head ------------------------------------------------------------------------------------


def _blank_head() -> bytes:
    slots = struct.pack("<HHBB", PRIVATE, 2 + 2 * _SLOT.size, _VERSION, Kind.HEAD)
    local = _LOCAL.pack(
        _SIGNATURE, NEEDS, UTF8, STORED, 0, 33, 0, 0, 0,
        len(OWN_NAME), len(slots) + 2 * _SLOT.size,
    )  # fmt: skip
    return local + OWN_NAME + slots + bytes(2 * _SLOT.size)


HEAD = _blank_head()
"""What a new file begins with."""
_SLOTS_AT = len(HEAD) - 2 * _SLOT.size


def is_head(data: bytes) -> bool:
    """Whether a file that begins so is one of ours, of this or a later version."""
    return data[: _SLOTS_AT - 2] == HEAD[: _SLOTS_AT - 2] and len(data) >= len(HEAD)


def head_version(data: bytes) -> int:
    """The version of the format that it is in."""
    return data[_SLOTS_AT - 2]


def parse_slots(head: bytes) -> list[Slot]:
    """The slots that are whole, the newest first."""
    found = []
    for at in (_SLOTS_AT, _SLOTS_AT + _SLOT.size):
        *fields, check = _SLOT.unpack_from(head, at)
        slot = Slot(*fields)
        if slot.sequence and check == zlib.crc32(head[at : at + _SLOT.size - 4]):
            found.append(slot)
    return sorted(found, reverse=True)


def pack_slot(slot: Slot) -> tuple[int, bytes]:
    """Where in the file a slot goes, and its bytes; two in a row have different places.

    Examples
    --------
    >>> at, data = pack_slot(Slot(1, 128, 500, 400))
    >>> parse_slots(HEAD[:at] + data + HEAD[at + len(data):])
    [Slot(sequence=1, start=128, length=500, entries=400)]
    """
    data = _SLOT.pack(*slot, 0)[:-4]
    at = _SLOTS_AT + slot.sequence % 2 * _SLOT.size
    return at, data + zlib.crc32(data).to_bytes(4, "little")
