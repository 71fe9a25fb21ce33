"""Reading: blobs that vanish, bytes that changed, what is checked when, and what stays open."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random

import numpy as np
import pytest
from counting import CountingSource

from blobstore import codecs, reading
from blobstore.backends import DictStore, FilesystemBlobBackend, JsonBackend
from blobstore.commit import Committer, Request, WritePolicy
from blobstore.errors import (
    BlobStoreError,
    DecodeError,
    IntegrityError,
    KeyNotFoundError,
    NotSupportedError,
    UnavailableError,
    UntrustedTypeError,
)
from blobstore.protocols import Delete, WriteOptions
from blobstore.reading import LoadPolicy, Reader
from blobstore.registry import HandlerSet
from blobstore.streams import CHUNK, Source


def check(reader, entry):
    """Raise the first thing that is wrong with an entry."""
    for error in reader.check(entry):
        raise error


def noise(seed, size=1000):
    return random.Random(seed).randbytes(size)


def array(seed):
    return np.random.default_rng(seed).standard_normal(9000)


class Rig:
    def __init__(self, index, objects, **options):
        self.index = index
        self.objects = objects
        self.handlers = HandlerSet()
        policy = WritePolicy(WriteOptions(**options), None, fsync=False, syncs_itself=False)
        self.committer = Committer(index, objects, self.handlers, policy)
        self.reader = self.make_reader()

    def make_reader(self, *, verify=True, pickle="signed"):
        policy = LoadPolicy(pickle)
        return Reader(self.index, self.objects, self.handlers, verify=verify, policy=policy)

    def put(self, data, key="k"):
        return self.committer.put(Request(data, key, "{}"))

    def delete(self, key="k"):
        self.committer.apply([Delete(key)])

    def damage(self, entry, change, part=-1):
        location = entry.locations[part]
        self.objects.put(location, change(self.objects.get(location)))


@pytest.fixture
def index(tmp_path):
    with JsonBackend(tmp_path / "index") as index:
        yield index


@pytest.fixture(params=["files", "memory"])
def rig(request, index, tmp_path):
    files = request.param == "files"
    with FilesystemBlobBackend(tmp_path / "blobs") if files else DictStore() as objects:
        yield Rig(index, objects)


@pytest.fixture
def files(index, tmp_path):
    with FilesystemBlobBackend(tmp_path / "blobs") as objects:
        yield Rig(index, objects)


def meanwhile(target, name, work, *, at=1):
    """Do something just before the `at`-th call of a method."""
    original = getattr(target, name)
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            work()
        return original(*args, **kwargs)

    setattr(target, name, interrupted)
    return calls


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


WORDS = np.random.default_rng(2).integers(0, 1 << 62, 4000)
WORDS = WORDS[np.random.default_rng(3).integers(0, 4000, 1 << 19)].tobytes()
"""4 MiB that most codecs shrink, but to no less than is read ahead."""

VALUES = {
    "bytes": noise(1),
    "compressed bytes": b"abc" * 10_000,
    "text": "süß" * 1000,
    "array": np.arange(1000.0),
    "object": [1, "two", {"three": 3.0}],
    "mapping": {"a": array(1), "b": [array(2), 5]},
}


def same(one, other):
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and np.array_equal(one, other)
    if isinstance(one, dict | list):
        pairs = zip(one.items(), other.items(), strict=True) if isinstance(one, dict) else ()
        if isinstance(one, list):
            pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, tuple):
        return all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("verify", [True, False])
def test_what_was_stored_is_loaded(rig, name, verify):
    entry = rig.put(VALUES[name])
    assert same(rig.make_reader(verify=verify).load(entry), VALUES[name])


# --- blobs that vanish ---------------------------------------------------------------------------


def test_an_entry_that_is_overwritten_meanwhile_gives_the_new_object(rig):
    entry = rig.put(noise(1))
    rig.put({"a": array(1)})  # of another handler, and of more parts
    loaded = rig.reader.load(entry)
    assert np.array_equal(loaded["a"], array(1))
    with rig.reader.open(rig.put(noise(3), "other")) as stream:
        assert stream.read() == noise(3)
    rig.put(noise(4), "k")
    with rig.reader.open(entry) as stream:
        assert stream.read() == noise(4)
    check(rig.reader, entry)


def test_an_entry_that_moves_into_the_index_meanwhile(index):
    with DictStore() as objects:
        rig = Rig(index, objects, inline_max_bytes=8000)
        entry = rig.put(noise(1, 70_000))
        rig.put("small")
        assert rig.reader.load(entry) == "small"
        check(rig.reader, entry)


def test_an_entry_that_is_overwritten_again_and_again(rig):
    entry = rig.put(noise(0))
    numbers = iter(range(1, 1000))

    def replace():
        rig.put(noise(next(numbers)))

    original = rig.objects.source

    def source(location):
        replace()
        return original(location)

    rig.objects.source = source
    with pytest.raises(UnavailableError, match=r"overwritten \d+ times") as caught:
        rig.reader.load(entry)
    assert caught.value.key == "k"
    assert next(numbers) < 20  # bounded


def test_some_overwrites_in_a_row_are_followed(rig):
    entry = rig.put(noise(0))
    numbers = iter(range(1, 6))
    original = rig.objects.source

    def source(location):
        with contextlib.suppress(StopIteration):
            rig.put(noise(next(numbers)))
        return original(location)

    rig.objects.source = source
    assert rig.reader.load(entry) == noise(5)


def test_parts_are_never_of_two_versions(rig):
    old = {"a": array(1), "b": array(2)}
    new = {"a": array(3), "b": array(4)}
    for at in (1, 2, 3):
        entry = rig.put(old)
        rig.objects.__dict__.pop("source", None)
        meanwhile(rig.objects, "source", lambda: rig.put(new), at=at)
        loaded = rig.reader.load(entry)
        del rig.objects.source
        assert same(loaded, new)


def test_a_key_that_is_deleted_meanwhile(rig):
    entry = rig.put(noise(1))
    rig.delete()
    for read in (rig.reader.load, rig.reader.open, rig.reader.check):
        with pytest.raises(KeyNotFoundError) as caught:
            read(entry)
        assert caught.value.key == "k"


def test_a_key_that_is_deleted_and_made_anew(rig):
    entry = rig.put(noise(1))
    rig.delete()
    rig.put(noise(2))
    assert rig.reader.load(entry) == noise(2)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_blob_that_is_gone_is_damage_and_no_miss(rig, part):
    entry = rig.put({"a": array(1), "b": array(2)})
    location = entry.locations[part]
    rig.objects.delete(location)
    for read in (rig.reader.load, rig.reader.open, rig.reader.check):
        with pytest.raises(IntegrityError) as caught:
            read(entry)
        assert (caught.value.key, caught.value.location) == ("k", location)
        assert not isinstance(caught.value, KeyError)


class Late(DictStore):
    """Hands out sources that ask for an object only when they are read, as remote stores do."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def put(self, key, data):
        super().put(key, data)
        self.sizes[key] = len(data)

    def source(self, key):
        return _LateSource(self, key)


class _LateSource(Source):
    def __init__(self, objects, key):
        self._objects = objects
        self._key = key
        self.size = objects.sizes[key]  # as it was when it was listed

    def open(self):
        return io.BytesIO(self._objects.get(self._key))


@pytest.mark.parametrize("name", ["bytes", "array", "mapping"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_blob_that_is_found_gone_only_when_it_is_read(index, name, in_memory, monkeypatch):
    """A late source is allowed: the same rules hold as if opening had failed."""
    if not in_memory:
        monkeypatch.setattr(reading, "_IN_MEMORY", 0)
    with Late() as objects:
        rig = Rig(index, objects)
        entry = rig.put(VALUES[name])
        rig.put(noise(9))
        assert rig.reader.load(entry) == noise(9)  # overwritten
        entry = rig.put(VALUES[name])
        objects.delete(entry.locations[0])
        with pytest.raises(IntegrityError):
            rig.reader.load(entry)  # gone
        with pytest.raises(IntegrityError):
            check(rig.reader, entry)
        rig.delete()
        with pytest.raises(KeyNotFoundError):
            rig.reader.load(entry)  # deleted


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs names for open files")
def test_an_open_file_is_read_to_the_end_whatever_happens_to_it(files):
    data = noise(1, 3 * CHUNK)
    entry = files.put(data)
    stream = files.reader.open(entry)
    start = stream.read(10)
    files.put(noise(2))
    files.delete()
    with stream:
        assert start + stream.read() == data


# --- bytes that changed --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(
    "change",
    [flip, lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""],
    ids=["flipped", "cut", "grown", "emptied"],
)
def test_damage_is_found_before_decoding(rig, name, change):
    entry = rig.put(VALUES[name])
    rig.damage(entry, change)
    with pytest.raises(IntegrityError) as caught:
        rig.reader.load(entry)
    assert (caught.value.key, caught.value.location) == ("k", entry.locations[-1])
    assert entry.parts[-1].blob.checksum in str(caught.value)
    with pytest.raises(IntegrityError):
        check(rig.reader, entry)


@pytest.mark.parametrize("name", ["bytes", "array", "mapping"])
def test_damage_is_found_in_blobs_that_are_not_held_in_memory(rig, name, monkeypatch):
    monkeypatch.setattr(reading, "_IN_MEMORY", 0)
    entry = rig.put(VALUES[name])
    assert same(rig.reader.load(entry), VALUES[name])
    rig.damage(entry, flip)
    with pytest.raises(IntegrityError):
        rig.reader.load(entry)


def plain_array(seed=1):
    return np.random.default_rng(seed).integers(0, 1 << 62, 300_000)  # over 1 MiB, in three chunks


@pytest.mark.parametrize("value", [plain_array(), {"a": plain_array()}], ids=["array", "mapping"])
def test_what_is_not_compressed_is_read_once_and_checked_meanwhile(rig, value):
    entry = rig.put(value)
    assert entry.parts[-1].blob.codec == "none"
    counted = {}

    def source(location):
        counted[location] = CountingSource(rig.objects.get(location))
        return counted[location]

    rig.objects.source = source
    assert same(rig.reader.load(entry), value)
    assert counted[entry.locations[-1]].count == entry.parts[-1].blob.size
    counted.clear()
    rig.damage(entry, lambda data: data[:-40] + b"?" + data[-39:])
    with pytest.raises(IntegrityError):
        rig.reader.load(entry)


@pytest.mark.parametrize("value", [plain_array(), {"a": plain_array()}], ids=["array", "mapping"])
def test_damage_is_told_from_a_wrong_format_wherever_it_is(rig, value):
    """Also where the header lies, which is looked at before all bytes were compared."""
    entry = rig.put(value)
    part = entry.parts[-1]
    stored = rig.objects.get(part.blob.location)
    header = int.from_bytes(stored[11:15], "big")
    tail = [len(stored) - n for n in (1, 40, 75)]
    for position in (*range(0, header, 7), header, header + 20, header + 500, *tail):
        rig.damage(entry, lambda _, at=position: flip_at(stored, at))
        with pytest.raises(IntegrityError) as caught:
            rig.reader.load(entry)
        assert (caught.value.key, caught.value.location) == ("k", part.blob.location)
    rig.damage(entry, lambda _: stored)
    assert same(rig.reader.load(entry), value)


def flip_at(data, position):
    return data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :]


def test_whole_bytes_that_are_another_array_are_no_damage(rig):
    entry = rig.put(plain_array())
    other = entry._replace(info_text=entry.info_text.replace("300000", "300001"))
    with pytest.raises(DecodeError, match="300001"):
        rig.reader.load(other)


def test_without_verifying_plain_formats_are_decoded_as_they_are(rig):
    reader = rig.make_reader(verify=False)
    entry = rig.put(noise(1))
    rig.damage(entry, flip)
    assert reader.load(entry) == flip(noise(1))
    with pytest.raises(IntegrityError):
        rig.reader.load(entry)
    with pytest.raises(IntegrityError):
        check(reader, entry)


class Ran(Exception):
    """Some code was run that should not have been."""


class Trap:
    def __reduce__(self):
        return _spring, ()


def _spring():
    raise Ran


@pytest.mark.parametrize("name", ["object", "mapping"])
@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_pickles_are_always_verified(rig, name, in_memory, verify, monkeypatch):
    if not in_memory:
        monkeypatch.setattr(reading, "_IN_MEMORY", 0)
    trap = pickle.dumps(Trap())
    with pytest.raises(Ran):
        pickle.loads(trap)
    entry = rig.put(VALUES[name])
    assert entry.parts[0].blob.checksum.startswith("blake3:")
    for bomb in (trap, codecs.get("lz4").compress(trap, 3)):
        rig.damage(entry, lambda _, bomb=bomb: bomb, part=0)
        with pytest.raises(IntegrityError):
            rig.make_reader(verify=verify).load(entry)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_all_parts_of_what_is_unpickled_are_verified(rig, part):
    entry = rig.put(VALUES["mapping"])
    rig.damage(entry, flip, part=part)
    with pytest.raises(IntegrityError) as caught:
        rig.make_reader(verify=False).load(entry)
    assert caught.value.location == entry.locations[part]


@pytest.mark.parametrize("verify", [True, False])
def test_values_in_the_index(index, verify):
    with DictStore() as objects:
        rig = Rig(index, objects, inline_max_bytes=8000)
        entry = rig.put([1, 2])
        assert entry.inline
        assert rig.make_reader(verify=verify).load(entry) == [1, 2]
        (part,) = entry.parts
        altered = entry._replace(parts=(part._replace(payload=pickle.dumps(Trap())),))
        with pytest.raises(IntegrityError, match="in the index"):
            rig.make_reader(verify=verify).load(altered)
        with pytest.raises(IntegrityError):
            check(rig.reader, altered)
        lost = entry._replace(parts=(part._replace(payload=b""),))
        with pytest.raises(IntegrityError):
            rig.reader.load(lost)


# --- trust ---------------------------------------------------------------------------------------


def test_deny_never_unpickles(rig):
    reader = rig.make_reader(pickle="deny")
    trap = Trap()
    for value in (trap, {"a": array(1), "trap": trap}, [1]):
        entry = rig.put(value)
        for read in (reader.load, reader.open):
            with pytest.raises(UntrustedTypeError) as caught:
                read(entry)
            assert caught.value.key == "k"
            assert "deny" in str(caught.value)
        check(reader, entry)  # looks at bytes only
    for name in ("bytes", "text", "array"):
        assert same(reader.load(rig.put(VALUES[name])), VALUES[name])


def test_deny_holds_for_what_took_the_place_of_an_entry(rig):
    reader = rig.make_reader(pickle="deny")
    entry = rig.put(noise(1))
    rig.put(Trap())
    with pytest.raises(UntrustedTypeError):
        reader.load(entry)


def test_a_handler_that_is_not_here(rig):
    entry = rig.put(noise(1))._replace(handler="elsewhere")
    with pytest.raises(DecodeError, match="'elsewhere'"):
        rig.reader.load(entry)


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", codecs.NAMES)
def test_open_gives_the_content(index, codec):
    data = random.Random(2).choices([b"ab" * 32, b"cd" * 32, b"efgh" * 16], k=3 * CHUNK // 64)
    data = b"".join(data)
    with DictStore() as objects:
        rig = Rig(index, objects, codec=codec)
        entry = rig.put(data)
        assert entry.parts[0].blob.codec == codec
        with rig.reader.open(entry) as stream:
            assert stream.read() == data
            assert stream.seek(-5, io.SEEK_END) == len(data) - 5
            assert stream.read() == data[-5:]
            assert stream.seek(CHUNK) == CHUNK
            assert stream.read(7) == data[CHUNK : CHUNK + 7]


@pytest.mark.parametrize("codec", codecs.NAMES)
@pytest.mark.parametrize("damage", [bytes(40), b"\xff" * 40], ids=["zeros", "ones"])
def test_a_damaged_stream_never_ends_well(index, codec, damage):
    """Whatever the codec says of it first: the error is ours, and says that the bytes are bad."""
    with DictStore() as objects:
        rig = Rig(index, objects, codec=codec)
        entry = rig.put(WORDS)
        assert entry.parts[0].blob.codec == codec or codec == "blosclz"  # which saves too little
        (location,) = entry.locations
        stored = objects.get(location)
        assert len(stored) > CHUNK
        for at in range(1000, len(stored), len(stored) // 12):
            objects.put(location, stored[:at] + damage + stored[at + len(damage) :])
            with rig.reader.open(entry) as stream, pytest.raises((IntegrityError, DecodeError)):
                while stream.read(CHUNK):
                    pass


def test_a_stream_of_another_size_is_refused_at_once(rig):
    for change in (lambda data: data[:-1], lambda data: data + b"x"):
        entry = rig.put(noise(1))
        rig.damage(entry, change)
        with pytest.raises(IntegrityError):
            rig.reader.open(entry)


def test_a_stream_that_is_read_in_part_is_not_checked(rig):
    data = noise(1, 3 * CHUNK)
    entry = rig.put(data)
    rig.damage(entry, flip)
    with rig.reader.open(entry) as stream:
        assert stream.read(10) == data[:10]
        stream.seek(-10, io.SEEK_END)
        assert stream.read() == data[-10:]


def test_reading_twice_over_is_checked_as_well(rig):
    data = noise(1, 3 * CHUNK)
    entry = rig.put(data)
    rig.damage(entry, flip)
    with rig.reader.open(entry) as stream:
        stream.read(CHUNK)
        stream.seek(0)
        with pytest.raises(IntegrityError):
            stream.read()


def test_objects_of_several_parts_are_no_stream(rig):
    with pytest.raises(NotSupportedError, match="parts"):
        rig.reader.open(rig.put(VALUES["mapping"]))


# --- what stays open -----------------------------------------------------------------------------


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files there")
def test_nothing_stays_open(files, monkeypatch):
    entries = {name: files.put(value, name) for name, value in VALUES.items()}
    damaged = files.put({"a": array(5)}, "damaged")
    files.damage(damaged, flip)
    gone = files.put({"a": array(5), "b": array(6)}, "gone")
    files.objects.delete(gone.locations[1])
    trap = files.put(Trap(), "trap")
    before = open_files()
    for limit in (32 << 20, 0):
        monkeypatch.setattr(reading, "_IN_MEMORY", limit)
        kept = [files.reader.load(entry) for entry in entries.values()]
        for entry in entries.values():
            check(files.reader, entry)
            with contextlib.suppress(NotSupportedError), files.reader.open(entry) as stream:
                stream.read(5)
        for entry in (damaged, gone):
            with pytest.raises(IntegrityError):
                check(files.reader, entry)
        for entry in (damaged, gone, trap):
            for read in (files.reader.load, files.reader.open):
                with contextlib.suppress(BlobStoreError, Ran), contextlib.closing(read(entry)):
                    pass
        assert open_files() == before
        assert len(kept) == len(VALUES)


class Counting(DictStore):
    """Knows how many of its sources are open."""

    def __init__(self):
        super().__init__()
        self.opened = 0
        self.closed = 0

    def source(self, key):
        source = super().source(key)
        self.opened += 1

        def close():
            self.closed += 1

        source.close = close
        return source


def test_every_source_is_closed(index):
    with Counting() as objects:
        rig = Rig(index, objects)
        entry = rig.put(VALUES["mapping"])
        rig.reader.load(entry)
        assert (objects.opened, objects.closed) == (3, 3)
        check(rig.reader, entry)
        assert (objects.opened, objects.closed) == (6, 6)
        objects.delete(entry.locations[2])
        with pytest.raises(IntegrityError):
            rig.reader.load(entry)
        assert (objects.opened, objects.closed) == (8, 8)
        with rig.reader.open(rig.put(noise(1))) as stream:
            assert stream.read() == noise(1)
        assert (objects.opened, objects.closed) == (9, 9)
