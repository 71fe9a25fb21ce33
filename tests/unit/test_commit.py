"""Committing: the order of the steps, and what a failure at each of them leaves behind."""

from __future__ import annotations

import logging
import random
import threading
from fractions import Fraction

import numpy as np
import pytest

from blobstore import BlobStore, HandlerError
from blobstore.backends import DictStore, FilesystemBlobBackend, JsonBackend, SqlBackend
from blobstore.commit import Committer, Request, WritePolicy
from blobstore.errors import (
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
    LostDraftError,
    OutOfSpaceError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedTypeError,
)
from blobstore.handlers.numpy import ArrayPart
from blobstore.handlers.pickle import PickleHandler
from blobstore.handlers.stream import StreamPart
from blobstore.keys import is_location
from blobstore.maintenance import gc, verify
from blobstore.protocols import (
    BlobBackend,
    Capabilities,
    Copy,
    Delete,
    Handler,
    Patch,
    Plan,
    WriteOptions,
)
from blobstore.query import Query
from blobstore.reading import LoadPolicy, Reader
from blobstore.registry import HandlerSet


def noise(seed, size=1000):
    return random.Random(seed).randbytes(size)


def array(seed):
    return np.random.default_rng(seed).standard_normal(9000)  # 72 KB: a part of its own


class Rig:
    """An index, an object store, and who writes to them and reads from them."""

    def __init__(self, index, objects, *, handlers=(), **options):
        self.index = index
        self.objects = objects
        self.handlers = HandlerSet(handlers)
        self.committer = self.another(**options)
        self.reader = Reader(index, objects, self.handlers, verify=True, policy=LoadPolicy())

    def another(self, *, digest=None, fsync=False, syncs_itself=True, **options):
        policy = WritePolicy(WriteOptions(**options), digest, fsync, fsync and syncs_itself)
        return Committer(self.index, self.objects, self.handlers, policy)

    def put(self, data, key=None, metadata="{}", expected="any"):
        return self.committer.put(Request(data, key, metadata, expected))

    def put_many(self, *items):
        return self.committer.put_many([Request(data, key, "{}") for key, data in items])

    def delete(self, key):
        return self.committer.apply([Delete(key)])

    def get(self, key):
        entry = self.index.get(key)
        return None if entry is None else self.reader.load(entry)

    def blobs(self):
        return set(filter(is_location, self.objects.keys()))

    def states(self):
        return {blob.location: blob.state for blob in self.index.blobs()}

    def snapshot(self):
        return [*self.index.scan(Query())], self.blobs(), self.states()

    def sound(self):
        """Whether all is there that should be, and nothing more but what waits to be forgotten."""
        report = verify(self.index, self.objects, self.reader, deep=True)
        live = {location for location, state in self.states().items() if state == "live"}
        used = {x for entry in self.index.scan(Query()) for x in entry.locations}
        return report.problems == () and self.blobs() == live == used


@pytest.fixture(params=["json", "sqlite"])
def index(request, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    opened = JsonBackend(folder) if request.param == "json" else SqlBackend(folder / "index.db")
    with opened as index:
        yield index


@pytest.fixture
def objects(tmp_path):
    with FilesystemBlobBackend(tmp_path / "blobs") as objects:
        yield objects


@pytest.fixture
def rig(index, objects):
    return Rig(index, objects)


@pytest.fixture
def shared(index, objects):
    return Rig(index, objects, digest="blake3")


def watch(target, events, *names):
    """Note each call of these methods in `events`, as (name, positional arguments)."""
    for name in names:
        original = getattr(target, name)

        def noted(*args, _name=name, _original=original, **kwargs):
            args = tuple([*arg] if hasattr(arg, "__next__") else arg for arg in args)
            events.append((_name, *args))
            return _original(*args, **kwargs)

        setattr(target, name, noted)


def fail(target, name, error, *, at=1, after=False, forever=False):
    """Let the `at`-th call of a method raise (or all from then on), before or after its work."""
    original = getattr(target, name)
    calls = []

    def failing(*args, **kwargs):
        calls.append(name)
        if len(calls) < at or (len(calls) > at and not forever):
            return original(*args, **kwargs)
        if after:
            original(*args, **kwargs)
        raise error

    setattr(target, name, failing)
    return calls


def meanwhile(target, name, work, *, at=1):
    """Let others do their work just before the `at`-th call of a method."""
    original = getattr(target, name)
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            work()
        return original(*args, **kwargs)

    setattr(target, name, interrupted)
    return calls


# --- what a put does -----------------------------------------------------------------------------


def test_an_entry_says_what_was_stored(rig):
    entry = rig.put(noise(1), "k", '{"a":1}')
    (part,) = entry.parts
    stat = rig.objects.stat(part.blob.location)
    assert (entry.key, entry.version, entry.metadata) == ("k", 1, {"a": 1})
    assert (entry.size, part.blob.size) == (stat.size, stat.size)
    assert part.blob.digest is None
    assert rig.get("k") == noise(1)
    assert rig.sound()


def test_no_two_puts_share_a_location(rig):
    first = rig.put(noise(1), "k").locations
    second = rig.put(noise(1), "k").locations
    third = rig.put(noise(1), "other").locations
    assert len({*first, *second, *third}) == 3


def test_nothing_at_all_is_no_commit(rig):
    events = []
    watch(rig.index, events, "commit")
    assert rig.committer.put_many([]) == []
    assert events == []


def test_bytes_are_written_before_the_index_and_dropped_after_both_are_synced(rig):
    old = rig.put(noise(1), "k").locations
    events = []
    watch(rig.objects, events, "writer", "sync", "delete_many")
    watch(rig.index, events, "commit", "sync")
    new = rig.put(noise(2), "k").locations
    assert [event[0] for event in events] == ["writer", "commit", "sync", "sync", "delete_many"]
    assert events[0][1:] == new
    assert {*events[2][1]} == {*new}  # the object store's
    assert events[3][1:] == ()  # the index's
    assert tuple(events[4][1]) == old


def recorded(rig):
    events = []
    watch(rig.objects, events, "writer", "sync", "delete_many")
    watch(rig.index, events, "commit")
    original = rig.index.sync

    def sync():
        events.append(("index.sync",))
        original()

    rig.index.sync = sync
    return events


def test_stores_that_sync_themselves_are_not_asked_to(index, objects):
    rig = Rig(index, objects, fsync=True)
    rig.put(noise(1), "k")
    events = recorded(rig)
    rig.put(noise(2), "k")
    assert [event for event in events if event[0] == "sync" and [*event[1]]] == []
    assert [event[0] for event in events if event[0] != "sync"] == [
        "writer",
        "commit",
        "delete_many",
    ]


def test_with_fsync_other_stores_are_synced_around_the_commit(index, objects):
    rig = Rig(index, objects, fsync=True, syncs_itself=False)
    rig.put(noise(1), "k")
    events = recorded(rig)
    new = rig.put(noise(2), "k").locations
    assert [event[0] for event in events] == [
        "writer",
        "sync",
        "commit",
        "index.sync",
        "delete_many",
    ]
    assert {*events[1][1]} == {*new}
    first = Rig(index, objects, fsync=True, syncs_itself=False)
    events.clear()
    first.put(noise(3), "first")
    assert [event[0] for event in events] == ["writer", "sync", "commit", "index.sync"]


def test_with_fsync_a_shared_blob_is_synced_for_its_new_name(index, objects):
    """Its first writer may have gone without."""
    shared = Rig(index, objects, digest="blake3").put(noise(1), "theirs").locations
    rig = Rig(index, objects, digest="blake3", fsync=True)
    events = recorded(rig)
    assert rig.put(noise(1), "ours").locations == shared
    assert [event[0] for event in events] == ["sync", "commit"]
    assert {*events[0][1]} == {*shared}


@pytest.mark.parametrize("step", ["objects.sync", "index.sync"])
def test_with_fsync_what_is_not_on_disk_is_not_acknowledged(index, objects, step):
    rig = Rig(index, objects, fsync=True, syncs_itself=False)
    owner, _, name = step.partition(".")
    fail(getattr(rig, owner), name, OutOfSpaceError("full"))
    with pytest.raises(OutOfSpaceError):
        rig.put(noise(1), "k")
    assert rig.get("k") in (None, noise(1))
    assert rig.sound()


def test_with_fsync_an_overwrite_that_is_not_on_disk_is_not_acknowledged(index, objects):
    rig = Rig(index, objects, fsync=True, syncs_itself=False)
    rig.put(noise(1), "k")
    fail(index, "sync", OutOfSpaceError("full"))
    with pytest.raises(OutOfSpaceError):
        rig.put(noise(2), "k")
    assert rig.get("k") in (noise(1), noise(2))


def test_a_first_put_drops_nothing_and_syncs_nothing(rig):
    events = []
    watch(rig.objects, events, "sync", "delete_many")
    watch(rig.index, events, "sync")
    rig.put(noise(1), "k")
    assert events == []


@pytest.mark.parametrize(
    "change", [Delete("k"), Copy("other", "k", 5), Copy("other", "k", 5, move=True)]
)
def test_other_changes_drop_bytes_in_the_same_order(rig, change):
    old = rig.put(noise(1), "k").locations
    kept = rig.put(noise(2), "other").locations
    events = []
    watch(rig.objects, events, "sync", "delete_many")
    watch(rig.index, events, "commit", "sync")
    rig.committer.apply([change])
    assert [event[0] for event in events] == ["commit", "sync", "sync", "delete_many"]
    assert tuple(events[-1][1]) == old
    assert rig.blobs() == {*kept}
    assert rig.sound()


def test_changed_metadata_touch_no_bytes(rig):
    rig.put(noise(1), "k")
    events = []
    watch(rig.objects, events, "writer", "sync", "delete_many")
    rig.committer.apply([Patch("k", '{"a":2}', 5)])
    assert events == []
    assert rig.index.get("k").metadata == {"a": 2}


def test_two_blobs_of_one_key_in_one_commit(rig):
    entries = rig.put_many(("k", noise(1)), ("k", noise(2)))
    assert [entry.key for entry in entries] == ["k", "k"]
    assert rig.get("k") == noise(2)
    assert rig.sound()


def test_several_puts_are_one_commit_and_write_in_threads(rig):
    events, threads = [], set()
    watch(rig.index, events, "commit")
    meeting = threading.Barrier(2, timeout=20)
    original = rig.objects.writer

    def writer(*args, **kwargs):
        threads.add(threading.current_thread().name)
        meeting.wait()  # passes only if two are here at once
        return original(*args, **kwargs)

    rig.objects.writer = writer
    entries = rig.put_many(*((f"k{i}", noise(i)) for i in range(4)))
    assert [entry.key for entry in entries] == ["k0", "k1", "k2", "k3"]
    assert len(events) == 1
    assert all(name.startswith("blobstore") for name in threads)
    assert [rig.get(f"k{i}") for i in range(4)] == [noise(i) for i in range(4)]


# --- failures before the switch ------------------------------------------------------------------

ERRORS = [
    OutOfSpaceError("full"),
    UnavailableError("gone"),
    OSError(5, "broken"),
    RuntimeError("a bug"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_part_that_cannot_be_written(rig, at, error):
    rig.put({"a": array(1), "b": array(2)}, "k")
    before = rig.snapshot()
    fail(rig.objects, "writer", error, at=at, forever=isinstance(error, UnavailableError))
    with pytest.raises(type(error)) as caught:
        rig.put({"a": array(3), "b": array(4), "c": array(5)}, "k")
    assert caught.value is error
    assert rig.snapshot() == before
    assert rig.sound()


@pytest.mark.parametrize("at", [1, 2])
def test_a_temporary_file_that_is_removed_meanwhile(rig, at):
    fail(rig.objects, "writer", LostDraftError("gone"), at=at)
    rig.put({"a": array(1)}, "k")
    assert np.array_equal(rig.get("k")["a"], array(1))
    assert rig.sound()


@pytest.mark.parametrize("step", ["write", "commit"])
@pytest.mark.parametrize("error", [OutOfSpaceError("full"), KeyboardInterrupt()], ids=repr)
def test_a_sink_that_fails(rig, step, error):
    rig.put(noise(1), "k")
    before = rig.snapshot()
    original = rig.objects.writer

    def writer(*args, **kwargs):
        sink = original(*args, **kwargs)
        fail(sink, step, error)
        return sink

    rig.objects.writer = writer
    with pytest.raises(type(error)):
        rig.put(noise(2), "k")
    assert rig.snapshot() == before
    assert [*rig.objects.leftovers()] == []


class Odd:
    """Something that only `OddHandler` stores."""

    def __init__(self, parts):
        self.parts = parts


class Breaking(ArrayPart):
    """Fails when a good deal of it was written."""

    def write(self, sink):
        sink.write(b"x" * 100_000)
        raise ValueError("encoding broke")


class OddHandler(Handler):
    name = "odd"
    type_names = (f"{Odd.__module__}.{Odd.__qualname__}",)

    def can_handle(self, obj):
        return type(obj) is Odd

    def plan(self, obj, options):
        parts = []
        for i, cls in enumerate(obj.parts):
            part = cls(np.arange(9000.0), options)
            part.name = f"p{i}"
            parts.append(part)
        return Plan("odd", {}, tuple(parts))

    def read(self, parts, info, **options):
        raise AssertionError("not wanted here")


@pytest.mark.parametrize("parts", [[Breaking], [ArrayPart, Breaking], [ArrayPart] * 3 + [Breaking]])
def test_an_encoder_that_breaks(index, objects, parts):
    rig = Rig(index, objects, handlers=[OddHandler()])
    rig.put(noise(1), "k")
    before = rig.snapshot()
    with pytest.raises(ValueError, match="encoding broke"):
        rig.put(Odd(parts), "k")
    assert rig.snapshot() == before
    assert [*objects.leftovers()] == []


def test_put_many_is_all_or_nothing(rig):
    rig.put(noise(1), "taken")
    before = rig.snapshot()
    with pytest.raises(UnsupportedTypeError):
        rig.put_many(("a", noise(2)), ("b", lambda: 0), ("c", noise(3)))
    assert rig.snapshot() == before
    fail(rig.objects, "writer", OutOfSpaceError("full"), at=3)
    with pytest.raises(OutOfSpaceError):
        rig.put_many(*((f"k{i}", noise(i)) for i in range(20)))
    assert rig.snapshot() == before
    requests = [Request(noise(i), key, "{}", "absent") for i, key in enumerate(["x", "taken"])]
    with pytest.raises(KeyExistsError):
        rig.committer.put_many(requests)
    assert rig.snapshot() == before


def test_what_is_known_to_fail_writes_nothing(rig):
    entry = rig.put(noise(1), "k")
    rig.delete("k")
    now = rig.put(noise(2), "k")
    events = []
    watch(rig.objects, events, "writer", "delete_many")
    wrong = [
        ("absent", "k", KeyExistsError),
        (2, "k", ConflictError),
        (entry, "k", ConflictError),
        (1, "other", ConflictError),
        ("present", "other", KeyNotFoundError),
    ]
    for expected, key, error in wrong:
        with pytest.raises(error) as caught:
            rig.put(noise(3), key, expected=expected)
        assert caught.value.key == key
    assert events == []
    assert rig.put(noise(4), "k", expected=now).version == 2
    assert rig.put(noise(5), "k", expected=2).version == 3
    assert rig.sound()


def test_what_fails_only_at_the_commit_leaves_nothing(rig):
    first = rig.put(noise(1), "k")
    other = rig.another()
    meanwhile(rig.index, "commit", lambda: other.put(Request(noise(2), "k", "{}")))
    with pytest.raises(ConflictError):
        rig.put(noise(3), "k", expected=first)
    assert rig.get("k") == noise(2)
    assert rig.sound()


# --- failures at the switch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [OutOfSpaceError("full"), PermissionDeniedError("no"), UnavailableError("locked")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("data", [noise(2), {"a": array(1), "b": array(2)}], ids=["one", "parts"])
def test_an_index_that_refuses(rig, error, data):
    rig.put(noise(1), "k")
    before = rig.snapshot()
    fail(rig.index, "commit", error)
    with pytest.raises(type(error)) as caught:
        rig.put(data, "k")
    assert caught.value is error
    assert rig.snapshot() == before
    assert rig.sound()


def test_an_unknown_outcome_that_did_not_land_is_left_to_gc(rig):
    rig.put(noise(1), "k")
    before = rig.blobs()
    fail(rig.index, "commit", UnavailableError("gone", outcome="unknown"))
    with pytest.raises(UnavailableError) as caught:
        rig.put(noise(2), "k")
    assert caught.value.outcome == "unknown"
    (left,) = rig.blobs() - before
    report = gc(rig.index, rig.objects, dry_run=False, grace=0)
    assert [(item.kind, item.name) for item in report.items] == [("orphan", left)]
    assert (rig.get("k"), rig.blobs()) == (noise(1), before)


def test_an_unknown_outcome_that_landed_keeps_its_bytes(rig):
    rig.put(noise(1), "k")
    fail(rig.index, "commit", UnavailableError("gone", outcome="unknown"), after=True)
    with pytest.raises(UnavailableError):
        rig.put(noise(2), "k")
    assert rig.get("k") == noise(2)
    gc(rig.index, rig.objects, dry_run=False, grace=0)
    assert rig.get("k") == noise(2)
    assert rig.sound()


def test_an_interrupted_commit_may_have_landed(rig):
    rig.put(noise(1), "k")
    fail(rig.index, "commit", KeyboardInterrupt(), after=True)
    with pytest.raises(KeyboardInterrupt):
        rig.put(noise(2), "k")
    assert rig.get("k") == noise(2)
    gc(rig.index, rig.objects, dry_run=False, grace=0)
    assert rig.sound()


def test_blobs_of_a_failed_put_that_cannot_be_removed_are_left_to_gc(rig, caplog):
    rig.put(noise(1), "k")
    before = rig.blobs()
    error = OutOfSpaceError("full")
    fail(rig.index, "commit", error)
    fail(rig.objects, "delete_many", UnavailableError("gone too"))
    with caplog.at_level(logging.WARNING), pytest.raises(OutOfSpaceError) as caught:
        rig.put(noise(2), "k")
    assert caught.value is error
    assert "left 1 blobs" in caplog.text
    assert len(rig.blobs() - before) == 1
    gc(rig.index, rig.objects, dry_run=False, grace=0)
    assert rig.blobs() == before


# --- failures after the switch -------------------------------------------------------------------


@pytest.mark.parametrize("step", ["objects.sync", "index.sync", "objects.delete_many"])
@pytest.mark.parametrize("error", [OutOfSpaceError("full"), UnavailableError("gone")], ids=repr)
def test_a_commit_stands_though_cleaning_up_fails(rig, step, error, caplog):
    old = rig.put(noise(1), "k").locations
    owner, _, name = step.partition(".")
    fail(getattr(rig, owner), name, error)
    with caplog.at_level(logging.WARNING):
        assert rig.put(noise(2), "k").version == 2
    assert "left 1 superseded" in caplog.text
    assert rig.get("k") == noise(2)
    assert {*old} <= rig.blobs()  # not before its successor is on disk
    report = gc(rig.index, rig.objects, dry_run=False, grace=0)
    assert [(item.kind, item.name) for item in report.items] == [("condemned", *old)]
    assert rig.sound()


def test_a_blob_that_is_superseded_before_it_is_synced(rig):
    """Another writer may replace, and delete, what this one just committed."""
    rig.put(noise(1), "k")
    other = rig.another()
    meanwhile(rig.objects, "sync", lambda: other.put(Request(noise(3), "k", "{}")))
    rig.put(noise(2), "k")
    assert rig.get("k") == noise(3)
    assert rig.sound()


def test_rows_of_deleted_blobs_are_forgotten_at_close(rig):
    old = rig.put(noise(1), "k").locations
    rig.put(noise(2), "k")
    assert [blob.location for blob in rig.index.condemned()] == [*old]
    rig.committer.close()
    assert rig.index.condemned() == []
    assert rig.sound()


def test_rows_of_deleted_blobs_are_forgotten_in_batches(rig):
    keys = [f"k{i}" for i in range(300)]
    rig.put_many(*((key, b"x") for key in keys))
    events = []
    watch(rig.index, events, "forget")
    for start in range(0, 300, 50):
        rig.committer.apply([Delete(key) for key in keys[start : start + 50]])
    assert len(events) == 1
    assert len(rig.index.condemned()) < 50
    rig.committer.close()
    assert rig.index.condemned() == []


@pytest.mark.parametrize("error", [UnavailableError("locked"), OutOfSpaceError("full")], ids=repr)
def test_rows_that_cannot_be_forgotten_harm_no_put(rig, error):
    """They are only a matter of tidiness, and gc forgets them later."""
    keys = [f"k{i}" for i in range(256)]
    rig.put_many(*((key, b"x") for key in keys))
    fail(rig.index, "forget", error)
    result = rig.committer.apply([Delete(key) for key in keys])
    assert sum(entry is not None for entry in result.entries) == 256


@pytest.mark.parametrize("error", [UnavailableError("locked"), OutOfSpaceError("full")], ids=repr)
def test_rows_that_cannot_be_forgotten_harm_no_close(rig, error):
    rig.put(noise(1), "k")
    rig.put(noise(2), "k")
    fail(rig.index, "forget", error)
    rig.committer.close()
    assert rig.get("k") == noise(2)


# --- races ---------------------------------------------------------------------------------------


def collect(rig):
    gc(rig.index, rig.objects, dry_run=False, grace=0)


def test_a_new_blob_that_gc_took_for_garbage_is_written_again(rig):
    before = []

    def work():
        before.extend(rig.blobs())
        collect(rig)

    calls = meanwhile(rig.index, "commit", work)
    data = {"a": array(1), "b": array(2), "c": "x" * 10}
    entry = rig.put(data, "k")
    assert len(calls) == 2
    assert not {*entry.locations} & {*before}
    loaded = rig.get("k")
    assert [*loaded] == ["a", "b", "c"]
    assert np.array_equal(loaded["b"], data["b"])
    assert rig.sound()


def test_a_shared_blob_that_is_deleted_meanwhile_is_written_again(shared):
    gone = shared.put(noise(1), "a").locations
    calls = meanwhile(shared.index, "commit", lambda: shared.delete("a"))
    entry = shared.put(noise(1), "b")
    assert calls == ["commit"] * 3  # the put, the deletion inside it, the put again
    assert not {*entry.locations} & {*gone}
    assert shared.get("b") == noise(1)
    assert shared.sound()


def test_only_the_part_that_is_missing_is_written_again(shared):
    shared.put(array(1), "a")
    events = []
    watch(shared.objects, events, "writer")
    meanwhile(shared.index, "commit", lambda: shared.delete("a"))
    shared.put({"frozen": array(1), "new": array(2)}, "k")
    assert len(events) == 3  # skeleton and new one first, then the frozen one
    assert np.array_equal(shared.get("k")["frozen"], array(1))
    assert shared.sound()


def test_a_put_whose_blobs_are_collected_for_ever_gives_up(rig):
    rig.put(noise(1), "k")
    before = rig.blobs()
    original = rig.index.commit

    def commit(*args):
        collect(rig)
        return original(*args)

    rig.index.commit = commit
    with pytest.raises(UnavailableError) as caught:
        rig.put(noise(2), "k")
    assert caught.value.outcome == "failed"
    assert (rig.get("k"), rig.blobs()) == (noise(1), before)


def test_a_part_that_cannot_be_written_again(shared):
    shared.put(array(1), "a")
    meanwhile(shared.index, "commit", lambda: shared.delete("a"))
    fail(shared.objects, "writer", OutOfSpaceError("full"), at=3)
    with pytest.raises(OutOfSpaceError):
        shared.put({"frozen": array(1), "new": array(2)}, "k")
    assert shared.index.get("k") is None
    assert shared.blobs() == set()


def test_two_writers_of_one_content_share_one_blob(shared):
    other = shared.another(digest="blake3")
    meanwhile(shared.index, "commit", lambda: other.put(Request(array(1), "theirs", "{}")))
    ours = shared.put(array(1), "ours")
    assert ours.locations == shared.index.get("theirs").locations
    assert len(shared.blobs()) == 1
    assert shared.sound()


def test_two_writers_of_one_content_without_a_key(shared):
    other = shared.another(digest="blake3")
    theirs = []
    meanwhile(
        shared.index, "commit", lambda: theirs.append(other.put(Request(array(1), None, "{}")))
    )
    assert shared.put(array(1)) == theirs[0]
    assert len(shared.blobs()) == 1
    assert shared.sound()


def test_losing_a_race_for_a_generated_key_loses_nothing_else(shared):
    """The other objects of the same call were written, then thrown away with it."""
    other = shared.another(digest="blake3")
    meanwhile(shared.index, "commit", lambda: other.put(Request(noise(1), None, "{}")))
    entries = shared.put_many((None, noise(1)), ("x", noise(2)), ("y", {"a": array(3)}))
    assert [entry.key for entry in entries][1:] == ["x", "y"]
    assert shared.get(entries[0].key) == noise(1)
    assert shared.get("x") == noise(2)
    assert np.array_equal(shared.get("y")["a"], array(3))
    assert shared.sound()


def test_somebody_elses_key_is_no_reason_to_try_again(shared):
    shared.put(noise(1), "taken")
    requests = [Request(noise(2), None, "{}"), Request(noise(3), "taken", "{}", "absent")]
    other = shared.another(digest="blake3")
    other_put = Request(noise(1), "taken", "{}")
    shared.delete("taken")
    meanwhile(shared.index, "commit", lambda: other.put(other_put))
    with pytest.raises(KeyExistsError) as caught:
        shared.committer.put_many(requests)
    assert caught.value.key == "taken"
    assert [*shared.index.keys(Query())] == ["taken"]
    assert shared.sound()


# --- content addressing --------------------------------------------------------------------------


@pytest.mark.parametrize("data", [noise(1), array(1), {"a": array(1), "b": 2}, [1, 2, 3]], ids=type)
def test_known_content_costs_a_hash(shared, data, monkeypatch):
    first = shared.put(data, "a")
    events = []
    watch(shared.objects, events, "writer", "put", "delete_many")

    def only_executable(real):
        def checked(part, *args):
            assert part.executable  # nothing else is compressed, not even a sample
            return real(part, *args)

        return checked

    for part in (StreamPart, ArrayPart):
        for name in ("encoding", "write"):
            monkeypatch.setattr(part, name, only_executable(getattr(part, name)))
    again = shared.put(data, "b")
    assert events == []
    assert again.locations == first.locations
    assert len({*first.locations}) == len(shared.blobs())
    assert shared.sound()


def test_a_generated_key_is_the_same_for_the_same_content(shared):
    first = shared.put(noise(1))
    assert len(first.key) == 64
    assert int(first.key, 16)
    assert shared.put(noise(1)).key == first.key
    assert shared.put(noise(2)).key != first.key
    assert shared.put(bytearray(noise(1))).key != first.key  # comes back as another type


def test_a_generated_key_keeps_the_metadata_it_has(shared):
    first = shared.put(noise(1), metadata='{"a":1}')
    assert shared.put(noise(1)) == first
    changed = shared.put(noise(1), metadata='{"b":2}')
    assert (changed.key, changed.metadata, changed.version) == (first.key, {"b": 2}, 2)
    assert shared.put(noise(1)).metadata == {"b": 2}
    with pytest.raises(KeyExistsError):
        shared.put(noise(1), expected="absent")
    assert shared.sound()


def test_a_generated_key_can_be_deleted_and_made_anew(shared):
    first = shared.put(noise(1), metadata='{"a":1}')
    shared.delete(first.key)
    again = shared.put(noise(1))
    assert (again.key, again.version, again.metadata) == (first.key, 1, {})
    assert again.id != first.id
    assert shared.get(first.key) == noise(1)


def test_the_same_content_twice_in_one_call(shared):
    first, second, third = shared.put_many((None, noise(1)), (None, noise(2)), (None, noise(1)))
    assert first.key == third.key != second.key
    assert shared.get(first.key) == noise(1)
    assert shared.sound()


def test_the_same_content_under_two_keys_in_one_call(shared):
    shared.put_many(("a", noise(1)), ("b", noise(1)))
    assert len(shared.blobs()) == 1
    assert [shared.get("a"), shared.get("b")] == [noise(1)] * 2
    assert shared.sound()
    shared.delete("a")
    assert shared.get("b") == noise(1)
    shared.delete("b")
    assert shared.blobs() == set()


def test_equal_parts_of_one_object(shared):
    data = {"a": array(1), "b": array(1).copy()}
    entry = shared.put(data, "k")
    assert len({*entry.locations}) == len(shared.blobs()) == 2  # the skeleton and one array
    loaded = shared.get("k")
    assert np.array_equal(loaded["a"], array(1))
    assert np.array_equal(loaded["b"], array(1))
    assert loaded["a"] is not loaded["b"]
    assert shared.sound()
    assert shared.put(data, "k2").locations == entry.locations


def test_equal_parts_are_not_shared_without_content_addressing(rig):
    entry = rig.put({"a": array(1), "b": array(1).copy()}, "k")
    assert len({*entry.locations}) == 3


def test_frozen_arrays_are_shared_between_checkpoints(shared):
    shared.put({"frozen": array(1), "head": array(2)}, "epoch 1")
    before = shared.blobs()
    shared.put({"frozen": array(1), "head": array(3)}, "epoch 2")
    assert len(shared.blobs() - before) == 1  # the skeletons are equal, too
    shared.delete("epoch 1")
    loaded = shared.get("epoch 2")
    assert np.array_equal(loaded["frozen"], array(1))
    assert np.array_equal(loaded["head"], array(3))
    assert shared.sound()


def test_overwriting_with_the_same_content_keeps_the_blob(shared):
    first = shared.put(noise(1), "k")
    second = shared.put(noise(1), "k", '{"a":1}')
    assert (second.locations, second.version) == (first.locations, 2)
    assert shared.sound()


def test_sha256(index, objects):
    rig = Rig(index, objects, digest="sha256")
    key = rig.put(noise(1)).key
    assert key != Rig(index, objects, digest="blake3").put(noise(1)).key
    assert rig.put(noise(1)).key == key


# --- values in the index -------------------------------------------------------------------------


def test_small_values_go_into_the_index(index, objects):
    rig = Rig(index, objects, inline_max_bytes=4096)
    entry = rig.put([1, 2, 3], "k")
    assert (entry.inline, entry.locations, rig.blobs()) == (True, (), set())
    assert rig.get("k") == [1, 2, 3]
    squeezed = rig.put(b"a" * 20_000, "k")  # small once it is compressed
    assert squeezed.inline
    assert squeezed.size < 4096
    assert rig.get("k") == b"a" * 20_000
    assert not rig.put(noise(1, 5000), "k").inline
    assert rig.get("k") == noise(1, 5000)
    assert rig.put("small again", "k").inline
    assert rig.blobs() == set()
    assert rig.sound()


def test_objects_of_several_parts_are_never_in_the_index(index, objects):
    rig = Rig(index, objects, inline_max_bytes=1 << 30)
    entry = rig.put({"a": np.zeros(100_000)}, "k")
    assert len(entry.locations) == 2
    assert not entry.inline


@pytest.mark.parametrize("size", [100, 3000, 5000, 20_000, 32_000, 40_000])
def test_content_is_shared_whatever_its_size(index, objects, size):
    """But for what lies in the index."""
    rig = Rig(index, objects, digest="blake3", inline_max_bytes=4096)
    entries = [rig.put(noise(1, size), key) for key in ("a", "b", None)]
    assert [rig.get(entry.key) for entry in entries] == [noise(1, size)] * 3
    assert len(rig.blobs()) == (0 if size < 4096 else 1)
    assert rig.sound()


# --- object stores of other kinds ----------------------------------------------------------------


class Unlisted(DictStore):
    """Cannot say what it holds."""

    @property
    def capabilities(self):
        return Capabilities(list=False, persistent=False)


def test_a_store_that_cannot_list_announces_blobs(index):
    with Unlisted() as objects:
        rig = Rig(index, objects)
        events = []
        watch(index, events, "announce", "commit")
        watch(objects, events, "writer")
        entry = rig.put(noise(1), "k")
        assert [event[0] for event in events] == ["announce", "writer", "commit"]
        ((pending,),) = [event[1] for event in events if event[0] == "announce"]
        assert (pending.location, pending.state) == (*entry.locations, "pending")
        assert rig.sound()


def test_what_was_announced_and_failed_is_found_by_gc(index):
    with Unlisted() as objects:
        rig = Rig(index, objects)
        rig.put(noise(1), "k")
        fail(index, "commit", UnavailableError("gone", outcome="unknown"))
        with pytest.raises(UnavailableError):
            rig.put(noise(2), "k")
        report = gc(index, objects, dry_run=False, grace=0)
        assert [item.kind for item in report.items] == ["pending"]
        assert len(rig.blobs()) == 1
        assert rig.get("k") == noise(1)


class OwnNames(BlobBackend):
    """Says itself where a blob is."""

    def __init__(self):
        self.held = {}

    def write_blob(self, blob_id, data):
        self.held[f"mine/{blob_id}"] = data
        return f"mine/{blob_id}"

    def read_blob(self, blob_path):
        return self.held[blob_path]

    def delete_blob(self, blob_path):
        return self.held.pop(blob_path, None) is not None

    def exists(self, blob_path):
        return blob_path in self.held


def test_a_store_that_answers_another_location(index):
    with OwnNames() as objects:
        rig = Rig(index, objects)
        old = rig.put(noise(1), "k").locations
        assert old[0].startswith("mine/")
        assert rig.states() == dict.fromkeys(old, "live")  # what was announced is forgotten
        new = rig.put(noise(2), "k").locations
        assert {*objects.held} == {*new}
        fail(index, "commit", OutOfSpaceError("full"))
        with pytest.raises(OutOfSpaceError):
            rig.put(noise(3), "k")
        assert {*objects.held} == {*new}
        assert rig.get("k") == noise(2)


class BadPlans(Handler):
    """Plans what cannot be stored."""

    name = "bad"
    type_names = ("fractions.Fraction",)

    def __init__(self, info, names):
        self.info, self.names = info, names

    def can_handle(self, obj):
        return True

    def plan(self, obj, options):
        parts = PickleHandler().plan(obj, options).parts * len(self.names)
        for part, name in zip(parts, self.names, strict=True):
            part.name = name
        return Plan("bad", self.info, parts)

    def read(self, parts, info, **options):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("info", "names", "message"),
    [({"a": {1}}, ["x"], "no JSON"), ({"a": float("nan")}, ["x"], "no JSON"),
     ({}, ["x", "x"], "same name")],
)  # fmt: skip
def test_a_handler_that_plans_badly_stores_nothing(tmp_path, info, names, message):
    with BlobStore(tmp_path, handlers=[BadPlans(info, names)]) as store:
        with pytest.raises(HandlerError, match=message):
            store.put(Fraction(1, 3), key="k")
        assert not store.exists("k")
        assert [*(tmp_path / "blobs").rglob("*.pkl*")] == []


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_large_parts_are_hashed_side_by_side_to_the_same_digests(tmp_path, monkeypatch, algorithm):
    threads = set()
    original = ArrayPart.digest

    def digest(self, hasher):
        threads.add(threading.get_ident())
        original(self, hasher)

    monkeypatch.setattr(ArrayPart, "digest", digest)
    data = {str(i): np.full(200_000, float(i)) for i in range(4)}
    with BlobStore(tmp_path, content_addressable=algorithm) as store:
        key = store.put(data)
        assert threading.get_ident() not in threads
        monkeypatch.setattr("blobstore.commit._HASHED_APART", 1 << 60)
        assert store.put(data) == key
        assert threading.get_ident() in threads


def test_an_error_while_one_of_several_parts_is_hashed_is_raised(tmp_path, monkeypatch):
    original = ArrayPart.digest

    def digest(self, hasher):
        if self._array[0] == 2:
            raise UnsupportedTypeError("no digest")
        original(self, hasher)

    monkeypatch.setattr(ArrayPart, "digest", digest)
    data = {str(i): np.full(200_000, float(i)) for i in range(4)}
    with BlobStore(tmp_path, content_addressable=True) as store:
        with pytest.raises(UnsupportedTypeError, match="no digest"):
            store.put(data)
        assert len(store) == 0
