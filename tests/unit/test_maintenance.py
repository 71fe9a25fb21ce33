"""Maintenance: gc takes garbage and nothing else; verify finds whatever is wrong."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from datetime import timedelta, timezone

import numpy as np
import pytest

from blobstore import maintenance
from blobstore.backends import (
    DictStore,
    FilesystemBlobBackend,
    FilesystemStore,
    JsonBackend,
    SqlBackend,
)
from blobstore.commit import Committer, Request, WritePolicy
from blobstore.entry import Blob, ObjectStat, now_us
from blobstore.errors import InvalidInputError, OutOfSpaceError
from blobstore.folder import MARKER, claim
from blobstore.keys import is_location, new_location
from blobstore.maintenance import Garbage, GcReport, Problem, VerifyReport, gc, verify
from blobstore.protocols import Capabilities, Copy, Delete, WriteOptions
from blobstore.query import Query
from blobstore.reading import LoadPolicy, Reader
from blobstore.registry import HandlerSet

HOUR = 3600.0


def noise(seed, size=1000):
    return random.Random(seed).randbytes(size)


def array(seed):
    return np.random.default_rng(seed).standard_normal(9000)


class Rig:
    def __init__(self, index, objects, *, digest=None, **options):
        self.index = index
        self.objects = objects
        handlers = HandlerSet()
        policy = WritePolicy(WriteOptions(**options), digest, fsync=False, syncs_itself=False)
        self.committer = Committer(index, objects, handlers, policy)
        self.reader = Reader(index, objects, handlers, verify=True, policy=LoadPolicy())

    def put(self, data, key="k"):
        return self.committer.put(Request(data, key, "{}"))

    def delete(self, key="k"):
        self.committer.apply([Delete(key)])

    def gc(self, *, dry_run=False, grace=0.0):
        report = gc(self.index, self.objects, dry_run=dry_run, grace=grace)
        assert report.dry_run is dry_run
        return report

    def verify(self, *, deep=False):
        return verify(self.index, self.objects, self.reader, deep=deep)

    def orphan(self, seed=7):
        location = new_location(".bin")
        self.objects.put(location, noise(seed))
        return location

    def blobs(self):
        return set(filter(is_location, self.objects.keys()))

    def states(self):
        return {blob.location: blob.state for blob in self.index.blobs()}

    def damage(self, location):
        data = self.objects.get(location)
        self.objects.put(location, data[:-1] + bytes([data[-1] ^ 1]))


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


def kinds(report):
    return sorted((item.kind, item.name) for item in report.items)


# --- gc: what it takes ---------------------------------------------------------------------------


def test_a_tidy_store_has_no_garbage(rig):
    rig.put(noise(1), "a")
    rig.put({"a": array(1)}, "b")
    rig.put(noise(2), "a")
    rig.delete("b")
    before = rig.blobs()
    assert rig.gc() == GcReport(dry_run=False, items=())
    assert rig.blobs() == before
    assert rig.verify(deep=True).ok


def test_an_orphan_is_named_then_freed(rig):
    rig.put(noise(1))
    kept = rig.blobs()
    location = rig.orphan()
    plan = rig.gc(dry_run=True)
    assert plan == GcReport(dry_run=True, items=(Garbage("orphan", location, 1000),))
    assert plan.bytes == 1000
    assert rig.blobs() == kept | {location}
    assert location not in rig.states()
    done = rig.gc()
    assert done.items == plan.items
    assert rig.blobs() == kept
    assert rig.states()[location] == "condemned"  # so that its writer cannot commit it any more
    assert rig.gc().items == ()


def test_the_row_comes_before_the_bytes_go(rig):
    location = rig.orphan()
    events = []
    for target, name in ((rig.index, "condemn"), (rig.objects, "delete_many")):
        original = getattr(target, name)

        def noted(items, *rest, _name=name, _original=original):
            items = [*items]
            if items:
                events.append((_name, items))
            return _original(items, *rest)

        setattr(target, name, noted)
    rig.gc()
    assert events[:2] == [("condemn", [location]), ("delete_many", [location])]


def test_young_things_are_left_to_their_writers(rig, objects):
    location = rig.orphan()
    assert rig.gc(grace=HOUR).items == ()
    assert location in rig.blobs()
    (path,) = objects.base_dir.rglob(location)
    old = time.time() - 2 * HOUR
    os.utime(path, (old, old))
    assert kinds(rig.gc(dry_run=True, grace=3 * HOUR)) == []
    assert kinds(rig.gc(grace=HOUR)) == [("orphan", location)]
    assert rig.blobs() == set()


def test_the_future_is_young(rig, objects):
    """A clock that was put back must not make gc eager."""
    location = rig.orphan()
    (path,) = objects.base_dir.rglob(location)
    ahead = time.time() + 24 * HOUR
    os.utime(path, (ahead, ahead))
    assert rig.gc(grace=0).items == ()
    assert location in rig.blobs()


def test_what_does_not_look_like_ours_stays(rig, objects):
    rig.put(noise(1))
    foreign = [
        "README.md",
        "0" * 31 + ".bin",
        "0" * 33,
        "G" * 32 + ".bin",
        "A" * 32 + ".bin",
        "f" * 32 + ".bin~",
        "f" * 32 + "..bin",
        ".hidden",
    ]
    for name in foreign:
        folder = objects.base_dir / name[:2]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"theirs")
        (objects.base_dir / name).write_bytes(b"theirs")
    location = new_location(".bin")
    (objects.base_dir / location).write_bytes(b"our form, but not at its place")
    (objects.base_dir / "sub").mkdir()
    (objects.base_dir / "sub" / location).write_bytes(b"neither")
    report = rig.gc()
    assert report.items == ()
    for name in foreign:
        assert (objects.base_dir / name[:2] / name).read_bytes() == b"theirs"
        assert (objects.base_dir / name).read_bytes() == b"theirs"
    assert (objects.base_dir / location).exists()
    assert (objects.base_dir / "sub" / location).exists()
    assert rig.verify(deep=True).ok


def test_foreign_objects_in_a_shared_store_stay(index, tmp_path):
    with FilesystemStore(tmp_path / "bucket") as objects:
        rig = Rig(index, objects)
        claim(objects, index.store_id)
        rig.put(noise(1))
        for name in ("report.parquet", f"backup/{new_location('.bin')}", "x" * 32):
            objects.put(name, b"theirs")
        orphan = rig.orphan()
        assert kinds(rig.gc()) == [("orphan", orphan)]
        assert {*objects.keys()} - rig.blobs() == {
            MARKER,
            "report.parquet",
            "x" * 32,
            *objects.keys("backup/"),
        }
        assert len([*objects.keys("backup/")]) == 1


def test_more_garbage_than_fits_into_one_batch(index):
    with DictStore() as objects:
        rig = Rig(index, objects)
        kept = rig.put(noise(1)).locations
        orphans = [rig.orphan() for _ in range(1234)]
        assert kinds(rig.gc(dry_run=True)) == sorted(("orphan", name) for name in orphans)
        assert kinds(rig.gc()) == sorted(("orphan", name) for name in orphans)
        assert rig.blobs() == {*kept}
        assert rig.gc().items == ()


def test_an_orphan_that_is_committed_meanwhile_stays(rig):
    """Its writer was slow, and won: it is no garbage, and the report does not say that it went."""
    rig.put(noise(1))
    (old,) = rig.blobs()
    late = []
    original = rig.index.condemn

    def condemn(locations, now):
        locations = [*locations]
        if not late:
            late.append(new)
            rig.index.commit([operation], "c" * 32)
        return original(locations, now)

    writer = rig.committer
    staged = []
    commit = rig.index.commit

    def keep(operations, commit_id):
        staged.extend(operations)
        raise KeyboardInterrupt

    rig.index.commit = keep
    with pytest.raises(KeyboardInterrupt):
        writer.put(Request(noise(2), "slow", "{}"))
    rig.index.commit = commit
    (operation,) = staged
    (new,) = rig.blobs() - {old}
    rig.index.condemn = condemn
    report = rig.gc()
    assert late == [new]
    assert rig.blobs() == {old, new}
    assert rig.reader.load(rig.index.get("slow")) == noise(2)
    assert report.items == ()


def test_an_orphan_that_vanishes_meanwhile(rig):
    location = rig.orphan()
    original = rig.objects.stat

    def stat(name):
        rig.objects.delete_many([name])
        return original(name)

    rig.objects.stat = stat
    assert rig.gc().items == ()
    assert location not in rig.blobs()


def test_condemned_bytes_that_stayed_are_freed(rig):
    old = rig.put(noise(1)).locations
    original = rig.objects.delete_many

    def full(names):
        raise OutOfSpaceError("cannot unlink")

    rig.objects.delete_many = full
    rig.put(noise(2))
    rig.objects.delete_many = original
    assert kinds(rig.gc(grace=HOUR)) == []
    assert kinds(rig.gc(dry_run=True)) == [("condemned", *old)]
    assert {*old} < rig.blobs()
    synced = []
    sync = rig.index.sync

    def note():
        synced.append(rig.blobs())
        sync()

    rig.index.sync = note
    assert kinds(rig.gc()) == [("condemned", *old)]
    assert rig.blobs() == {*rig.index.get("k").locations}
    assert synced
    assert {*old} < synced[0]  # the index that dropped them was on disk before


def test_rows_of_what_was_freed_are_forgotten_after_a_week(rig, monkeypatch):
    location = rig.orphan()
    rig.gc()
    assert rig.states() == {location: "condemned"}
    rig.gc()
    assert rig.states() == {location: "condemned"}
    week = maintenance.KEEP_CONDEMNED
    now = time.time
    monkeypatch.setattr(maintenance.time, "time", lambda: now() + week - 60)
    rig.gc()
    assert rig.states() == {location: "condemned"}
    monkeypatch.setattr(maintenance.time, "time", lambda: now() + week + 60)
    rig.gc(dry_run=True)
    assert rig.states() == {location: "condemned"}
    rig.gc()
    assert rig.states() == {}


KILLED = """
import os, sys
from blobstore.backends import FilesystemBlobBackend
from blobstore.keys import new_location
sink = FilesystemBlobBackend(sys.argv[1]).writer(new_location(".bin"))
sink.write(bytes(1000))
os.kill(os.getpid(), 9)
"""


def test_unfinished_files_of_the_dead_are_left_over(rig, objects):
    done = subprocess.run([sys.executable, "-c", KILLED, str(objects.base_dir)], check=False)
    assert done.returncode == -9
    (left,) = objects.leftovers()
    assert rig.gc(grace=HOUR).items == ()
    assert [item.kind for item in rig.gc(dry_run=True).items] == ["leftover"]
    assert [*objects.leftovers()] != []
    report = rig.gc()
    assert report.items == (Garbage("leftover", left.name, left.size),)
    assert [*objects.leftovers()] == []


def test_unfinished_files_of_the_living_are_not(rig, objects):
    with objects.writer(location := new_location(".bin")) as sink:
        sink.write(noise(1))
        rig.gc()
    assert objects.get(location) == noise(1)


def test_a_failing_store_stops_gc_and_it_can_go_on_later(rig):
    rig.put(noise(1))
    location = rig.orphan()
    original = rig.objects.delete_many

    def broken(names):
        raise OutOfSpaceError("cannot unlink")

    rig.objects.delete_many = broken
    with pytest.raises(OutOfSpaceError):
        rig.gc()
    rig.objects.delete_many = original
    assert kinds(rig.gc()) == [("condemned", location)]
    assert rig.verify(deep=True).ok
    assert len(rig.blobs()) == 1


# --- gc: stores that cannot list -----------------------------------------------------------------


class Unlisted(DictStore):
    @property
    def capabilities(self):
        return Capabilities(list=False, persistent=False)

    def keys(self, prefix=""):
        raise AssertionError("it said that it cannot list")


def pending(location, age=0.0):
    return Blob(
        location, 0, "", "none", "bytes", 1, state="pending", created_us=now_us() - int(age * 1e6)
    )


def test_what_was_announced_and_never_committed(index):
    with Unlisted() as objects:
        rig = Rig(index, objects)
        kept = rig.put(noise(1)).locations
        written, absent, young = (new_location(".bin") for _ in range(3))
        objects.put(written, noise(2))
        objects.put(young, noise(2))
        index.announce([pending(written, 2 * HOUR), pending(absent, 2 * HOUR), pending(young)])
        expected = sorted([("pending", written), ("pending", absent)])
        assert kinds(rig.gc(dry_run=True, grace=HOUR)) == expected
        assert objects.exists(written)
        report = rig.gc(grace=HOUR)
        assert kinds(report) == expected
        assert {item.name: item.size for item in report.items} == {written: 1000, absent: 0}
        assert not objects.exists(written)
        assert objects.exists(young)
        assert objects.exists(*kept)
        assert rig.states() == {
            written: "condemned",
            absent: "condemned",
            young: "pending",
            kept[0]: "live",
        }
        assert kinds(rig.gc(grace=0)) == [("pending", young)]
        assert objects.exists(*kept)


def test_many_announced_blobs(index):
    with Unlisted() as objects:
        rig = Rig(index, objects)
        names = [new_location(".bin") for _ in range(1100)]
        index.announce([pending(name, 2 * HOUR) for name in names])
        assert kinds(rig.gc()) == sorted(("pending", name) for name in names)
        assert set(rig.states().values()) == {"condemned"}


# --- gc: arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [-1, -0.001, float("nan"), float("-inf"), "60", None])
def test_wrong_grace(rig, grace):
    location = rig.orphan()
    with pytest.raises(InvalidInputError, match="grace"):
        rig.gc(grace=grace)
    assert location in rig.blobs()


@pytest.mark.parametrize("grace", [float("inf"), 1e300, 10**12])
def test_endless_grace_frees_nothing(rig, grace):
    location = rig.orphan()
    assert rig.gc(grace=grace).items == ()
    assert location in rig.blobs()


# --- verify --------------------------------------------------------------------------------------


def test_a_sound_store(rig):
    rig.put(noise(1), "a")
    rig.put({"a": array(1), "b": array(2)}, "b")
    rig.put("text", "c")
    assert rig.verify() == VerifyReport(entries=3, blobs=5, bytes=0, problems=())
    size = sum(entry.size for entry in rig.index.scan(Query()))
    assert rig.verify(deep=True) == VerifyReport(entries=3, blobs=5, bytes=size, problems=())
    assert rig.verify().ok


@pytest.mark.parametrize("deep", [False, True])
def test_a_missing_blob(rig, deep):
    (location,) = rig.put(noise(1), "lost").locations
    rig.put(noise(2), "fine")
    rig.objects.delete(location)
    (problem,) = rig.verify(deep=deep).problems
    assert (problem.kind, problem.key, problem.location) == ("missing", "lost", location)
    assert "'lost'" in problem.message
    assert location in problem.message


@pytest.mark.parametrize(("deep", "kind"), [(False, "size"), (True, "checksum")])
def test_a_blob_of_another_size(rig, deep, kind):
    (location,) = rig.put(noise(1)).locations
    rig.objects.put(location, noise(1, 999))
    (problem,) = rig.verify(deep=deep).problems
    assert (problem.key, problem.location) == ("k", location)
    assert problem.kind in (kind, "size")
    assert "999" in problem.message


def test_an_altered_blob_is_found_by_looking_deep(rig):
    (location,) = rig.put(noise(1)).locations
    rig.damage(location)
    assert rig.verify().ok
    (problem,) = rig.verify(deep=True).problems
    assert (problem.kind, problem.key, problem.location) == ("checksum", "k", location)


@pytest.mark.parametrize("deep", [False, True])
def test_every_part_that_is_wrong_is_named(rig, deep):
    entry = rig.put({"a": array(1), "b": array(2), "c": array(3)})
    for location in entry.locations[1:]:
        rig.objects.delete(location)
    problems = rig.verify(deep=deep).problems
    assert {problem.location for problem in problems} == {*entry.locations[1:]}
    assert {problem.kind for problem in problems} == {"missing"}


def test_damage_is_not_hidden_behind_other_damage(index, objects):
    """A blob that a damaged object shares with another is looked at for the other's sake."""
    rig = Rig(index, objects, digest="blake3")
    both = rig.put({"a": array(1), "b": 1}, "a")
    other = rig.put(array(1), "z")
    assert {*other.locations} < {*both.locations}
    for location in both.locations:
        rig.damage(location)
    problems = rig.verify(deep=True).problems
    assert {problem.location for problem in problems} == {*both.locations}


def test_shared_blobs_are_looked_at_once(index, objects):
    rig = Rig(index, objects, digest="blake3")
    (location,) = rig.put(noise(1), "a").locations
    rig.put(noise(1), "b")
    rig.committer.apply([Copy("a", "c", 5)])
    for deep in (False, True):
        report = rig.verify(deep=deep)
        assert (report.entries, report.blobs, report.problems) == (3, 1, ())
    rig.damage(location)
    problems = rig.verify(deep=True).problems
    assert [(problem.key, problem.location) for problem in problems] == [("a", location)]
    rig.objects.delete(location)
    assert [problem.kind for problem in rig.verify().problems] == ["missing"]


def test_values_in_the_index_are_looked_at(index, objects):
    rig = Rig(index, objects, inline_max_bytes=8000)
    entry = rig.put([1, 2, 3])
    assert entry.inline
    assert rig.verify() == VerifyReport(entries=1, blobs=0, bytes=0, problems=())
    assert rig.verify(deep=True).bytes == entry.size
    (part,) = entry.parts
    altered = entry._replace(parts=(part._replace(payload=b"x" * entry.size),))
    rig.index.scan = lambda query: iter([altered])
    (problem,) = rig.verify(deep=True).problems
    assert (problem.kind, problem.key, problem.location) == ("checksum", "k", None)


def test_what_the_index_says_of_itself_comes_first(rig):
    (location,) = rig.put(noise(1)).locations
    rig.objects.delete(location)
    rig.index.check = lambda: ["page 3 is torn", "row 4 is odd"]
    problems = rig.verify().problems
    assert problems[:2] == (
        Problem("index", None, None, "page 3 is torn"),
        Problem("index", None, None, "row 4 is odd"),
    )
    assert problems[2].kind == "missing"


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("change", ["overwrite", "delete"])
def test_what_changes_meanwhile_is_no_problem(rig, deep, change):
    rig.put(noise(1))
    scan = rig.index.scan

    def outdated(query):
        for entry in [*scan(query)]:
            rig.put(noise(2)) if change == "overwrite" else rig.delete()
            yield entry

    rig.index.scan = outdated
    assert rig.verify(deep=deep).problems == ()


def test_verifying_changes_nothing(rig):
    entry = rig.put({"a": array(1)})
    rig.damage(entry.locations[0])
    rig.objects.delete(entry.locations[1])
    orphan = rig.orphan()
    before = rig.blobs(), rig.states(), [*rig.index.scan(Query())]
    rig.verify(deep=True)
    rig.verify()
    assert (rig.blobs(), rig.states(), [*rig.index.scan(Query())]) == before
    assert orphan in rig.blobs()


def test_deep_reads_no_more_than_needed_and_shallow_nothing(rig):
    rig.put(noise(1))
    opened = []
    source = rig.objects.source
    rig.objects.source = lambda location: opened.append(location) or source(location)
    rig.verify()
    assert opened == []
    rig.verify(deep=True)
    assert len(opened) == 1


def test_times_are_compared_whatever_their_zone(index):
    class Elsewhere(DictStore):
        def stat(self, key):
            zone = timezone(timedelta(hours=-11))
            return ObjectStat(1000, super().stat(key).modified.astimezone(zone))

    with Elsewhere() as objects:
        rig = Rig(index, objects)
        location = rig.orphan()
        assert rig.gc(grace=HOUR).items == ()
        assert kinds(rig.gc(grace=0)) == [("orphan", location)]


def test_a_store_that_tells_no_time(index):
    """What has no age counts as old: else it would never be collected."""

    class Timeless(DictStore):
        def stat(self, key):
            return ObjectStat(super().stat(key).size)

    with Timeless() as objects:
        rig = Rig(index, objects)
        location = rig.orphan()
        kept = rig.put(noise(1)).locations
        assert kinds(rig.gc(grace=HOUR)) == [("orphan", location)]
        assert rig.blobs() == {*kept}
