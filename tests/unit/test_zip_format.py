"""The bytes of a zip file of ours: headers, slots and directories, also those that are huge."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.backends.blob import zip_directory, zip_fields, zip_format
from blobstore.backends.blob.zip_directory import (
    pack_directory,
    pack_end,
    pack_entry,
    parse_directory,
)
from blobstore.backends.blob.zip_fields import BadRecordError, dos_time
from blobstore.backends.blob.zip_format import (
    HEAD,
    Kind,
    Member,
    Record,
    Slot,
    is_head,
    pack_record,
    pack_slot,
    parse_record,
    parse_slots,
)
from blobstore.backends.blob.zip_names import check_key, encode_key, is_safe
from blobstore.errors import InvalidKeyError

GIB = 1 << 30
u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
sizes = st.integers(0, 1 << 50) | st.sampled_from([0xFFFFFFFE, 0xFFFFFFFF, 0x100000000])


@st.composite
def records(draw):
    return Record(
        draw(st.sampled_from([Kind.MEMBER, Kind.DELETION, Kind.FOREIGN])),
        draw(st.binary(max_size=300)),
        crc=draw(u32),
        stored=draw(sizes),
        size=draw(sizes),
        modified=draw(st.integers(0, 4 * 10**15)),
        tag=draw(u64),
        follows=draw(u64),
        extras=draw(st.sampled_from([b"", struct.pack("<HHI", 0x5455, 4, 7)])),
    )


@given(records(), st.binary(max_size=50), st.binary(max_size=50))
def test_records_come_back(record, before, after):
    header = pack_record(record)
    assert parse_record(before + header + after, len(before)) == (record, len(header))


@given(records(), st.data())
def test_a_beginning_is_no_record_and_no_damage(record, data):
    header = pack_record(record)
    cut = data.draw(st.integers(0, len(header) - 1))
    assert parse_record(header[:cut], 0) is None


@given(records(), st.data())
def test_any_changed_byte_is_noticed(record, data):
    header = bytearray(pack_record(record))
    at = data.draw(st.integers(0, len(header) - 1))
    header[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = parse_record(bytes(header), 0)
    except BadRecordError:
        return
    assert found is None, "the change made the header seem longer, and nothing else"


def members(count=3, **changes):
    plain = Member(1000, 66, 10, 10, 7, 0, zip_fields.UTF8, 10**15, 99)
    return [(b"m%d" % n, plain._replace(**changes)) for n in range(count)]


@given(st.lists(st.tuples(st.binary(max_size=60), sizes, sizes, sizes), max_size=5))
def test_directories_come_back(rows):
    entries = [
        (name, Member(offset, 66, stored, size, 7, 8, zip_fields.UTF8, 10**15, 99))
        for name, offset, stored, size in rows
    ]
    record, data, size = pack_directory(entries, 5000, b"of the archive")
    assert list(parse_directory(data, size)) == entries
    assert zip_directory.parse_comment(data, size) == b"of the archive"
    assert record.follows == len(data)


@pytest.mark.parametrize(
    ("offset", "stored", "size"),
    [(5 * GIB, 3, 3), (3, 5 * GIB, 6 * GIB), (3, 3, 6 * GIB), (7 * GIB, 5 * GIB, 6 * GIB),
     (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFE, 0xFFFFFFFE, 0xFFFFFFFE)],
)  # fmt: skip
def test_the_standard_library_reads_directories_of_huge_files(offset, stored, size):
    entry = (b"huge", Member(offset, 86, stored, size, 7, 8, zip_fields.UTF8, 10**15, 99))
    _, data, _ = pack_directory([entry], 0)
    # It counts positions from where the directory says it is: at the length of its own header.
    prefix = bytes(zip_format.record_size(b".blobstore"))
    with zipfile.ZipFile(io.BytesIO(prefix + data)) as archive:
        (info,) = archive.infolist()
    assert (info.header_offset, info.compress_size, info.file_size) == (offset, stored, size)


def test_huge_sizes_are_in_the_local_header_too():
    header = pack_record(Record(Kind.MEMBER, b"n", stored=5 * GIB, size=6 * GIB, follows=5 * GIB))
    needs, stored, size = struct.unpack_from("<4xH12xII", header)
    assert (needs, stored, size) == (45, 0xFFFFFFFF, 0xFFFFFFFF)
    assert struct.unpack_from("<HHQQ", header, 31) == (1, 16, 6 * GIB, 5 * GIB)


@pytest.mark.parametrize(("count", "start"), [(65534, 0), (65535, 0), (70000, 0), (3, 5 * GIB)])
def test_ends_of_directories(count, start):
    end = pack_end(count, 100, start, b"note")
    wide = count >= 65535 or start > 0xFFFFFFFF
    assert end.startswith(b"PK\6\6" if wide else b"PK\5\6")
    fields = struct.unpack("<4s4HIIH", end[-26:-4])
    assert fields[3:] == (min(count, 65535), min(count, 65535), 100, min(start, 0xFFFFFFFF), 4)
    if wide:
        assert struct.unpack_from("<QQQQ", end, 24) == (count, count, 100, start)
        assert struct.unpack_from("<4sIQI", end, 56) == (b"PK\6\7", 0, start + 100, 1)


def test_directories_that_are_not_ours():
    with pytest.raises(BadRecordError):
        list(parse_directory(bytes(100), 100))
    entry = bytearray(pack_entry(*members(1)[0]))
    entry[-25:-23] = b"xx"
    with pytest.raises(BadRecordError):
        list(parse_directory(bytes(entry), len(entry)))


def test_slots_take_turns_and_torn_ones_are_passed_over():
    head = bytearray(HEAD)
    assert parse_slots(HEAD) == []
    for sequence in range(1, 6):
        before = parse_slots(bytes(head))
        slot = Slot(sequence, 128 * sequence, 500, 400)
        at, data = pack_slot(slot)
        for cut in range(1, len(data)):  # while it is being written
            head[at : at + cut] = data[:cut]
            assert before[:1] == [s for s in parse_slots(bytes(head)) if s != slot][:1]
        head[at : at + len(data)] = data
        assert parse_slots(bytes(head)) == [slot, *before[:1]]
    assert is_head(bytes(head))
    assert not is_head(b"PK\3\4" + bytes(200))


def test_times():
    assert dos_time(-(10**15)) == dos_time(0) == (33, 0)
    assert dos_time(10**16)[0] >> 9 == 127
    assert 0 < dos_time(10**15)[0] >> 9 < 30


EVIL = [
    "", ".", "..", "../x", "a/../x", "a/..", "/abs", "a//b", "a/", "./a", "..\\x", "a\\..\\x", "a/b\\..",
    "\\abs", "\\\\server\\share", "C:", "C:x", "c:/x", "C:\\x", "a\0b", "\ud800", ".. /x", " ../x",
    "a/.. ", "a\\.\\b",
]  # fmt: skip
GOOD = [
    "a",
    "a/b",
    "...",
    "a..b",
    "..a",
    "back\\slash",
    "xy:z",
    "10:30",
    "a/C:x",
    "~",
    "-rf",
    "ü/é",
    " a ",
]


@pytest.mark.parametrize("key", EVIL, ids=ascii)
def test_evil_names(key):
    assert not is_safe(key)
    with pytest.raises(InvalidKeyError):
        check_key(key)


@pytest.mark.parametrize("key", GOOD)
def test_good_names(key):
    assert check_key(key) == key


def test_names_that_the_format_has_no_room_for():
    assert len(encode_key("ü" * 32767)) == 65534
    with pytest.raises(InvalidKeyError, match="65535"):
        encode_key("ü" * 32768)
