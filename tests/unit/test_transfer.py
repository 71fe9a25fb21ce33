"""sync_stores, copy_store and clear_store: what they promise, and what happens when they cannot."""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest

import blobstore
from blobstore.backends.blob.filesystem import FilesystemBlobBackend, FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IntegrityError,
    InvalidInputError,
    KeyNotFoundError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
)
from blobstore.protocols import Capabilities
from blobstore.streams import CHUNK
from blobstore.testing.object_store import in_threads, peak_memory
from blobstore.transfer import Progress, TransferReport, clear_store, copy_store, sync_stores
from blobstore.transfer import copying as copying_module
from blobstore.transfer import listing as listing_module
from blobstore.transfer.copying import _is_same_value
from blobstore.wrappers.access import ReadonlyStore, WriteonlyStore
from blobstore.wrappers.base import IdentityStore
from blobstore.wrappers.compress import GzipStore
from blobstore.wrappers.key_transform import KeyTransformer, KeyTransformingStore
from blobstore.wrappers.log import ExceptionLoggingStore
from blobstore.wrappers.prefix import PrefixStore
from blobstore.wrappers.text import BufferStore, JsonStore, TextEncodingStore

LARGE = bytes(range(256)) * (4 * CHUNK // 256) + b"and a bit"


def filled(objects: dict[str, bytes], store=None):
    store = DictStore() if store is None else store
    for key, data in objects.items():
        store.put(key, data)
    return store


def contents(store) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is no dictionary


def recorded(store):
    """Lets a store note the name and the key of each call to it."""

    class Recorded(IdentityStore):
        def get(self, key):
            self.calls.append(("get", key))
            return super().get(key)

        def put(self, key, data):
            self.calls.append(("put", key))
            super().put(key, data)

        def exists(self, key):
            self.calls.append(("exists", key))
            return super().exists(key)

        def open(self, key):
            self.calls.append(("open", key))
            return super().open(key)

        def writer(self, key, size_hint=None):
            self.calls.append(("writer", key, size_hint))
            return super().writer(key, size_hint)

        def put_if_absent(self, key, data):
            self.calls.append(("put_if_absent", key))
            return super().put_if_absent(key, data)

        def delete_many(self, keys):
            keys = list(keys)
            self.calls.append(("delete_many", *keys))
            super().delete_many(keys)

        def names(self):
            return {call[0] for call in self.calls}

    found = Recorded(store)
    found.calls = []
    return found


@pytest.fixture(params=["memory", "files", "gzip"])
def make_store(request, tmp_path):
    numbers = itertools.count()

    def make():
        if request.param == "memory":
            return DictStore()
        files = FilesystemStore(tmp_path / f"store-{next(numbers)}")
        return files if request.param == "files" else GzipStore(files)

    return make


# --- sync ----------------------------------------------------------------------------------------


class TestSync:
    def test_missing_and_changed_objects_are_copied(self, make_store):
        wanted = {"new": b"1", "changed": b"2", "same": b"3", "d/large": LARGE, "empty": b""}
        source = filled(wanted, make_store())
        target = recorded(filled({"changed": b"x", "same": b"3", "extra": b"5"}, make_store()))
        report = sync_stores(source, target)
        assert contents(target) == wanted | {"extra": b"5"}
        assert report == TransferReport(dry_run=False, copied=4, unchanged=1, bytes=len(LARGE) + 2)
        written = [call[1] for call in target.calls if call[0] in ("put", "writer")]
        assert sorted(written) == ["changed", "d/large", "empty", "new"]
        assert contents(source) == wanted

    def test_with_delete_the_contents_are_identical(self, make_store):
        wanted = {"a": b"1", "b/c": LARGE}
        source = filled(wanted, make_store())
        target = filled({"a": b"x", "b/c": LARGE, "b/d": b"extra", "z": b"extra"}, make_store())
        report = sync_stores(source, target, True)
        assert contents(target) == wanted
        assert (report.copied, report.deleted, report.unchanged) == (1, 2, 1)
        again = sync_stores(source, target, delete=True)
        assert again == TransferReport(dry_run=False, unchanged=2)

    def test_the_last_byte_of_a_large_object_counts(self, make_store):
        source = filled({"key": LARGE}, make_store())
        target = filled({"key": LARGE[:-1] + b"?"}, make_store())
        assert sync_stores(source, target).copied == 1
        assert target.get("key") == LARGE
        target.put("key", LARGE + b"?")
        assert sync_stores(source, target).copied == 1
        target.put("key", LARGE[:CHUNK])
        assert sync_stores(source, target).copied == 1
        assert target.get("key") == LARGE
        assert sync_stores(source, target).unchanged == 1

    def test_only_keys_with_the_prefix(self):
        source = filled({"a/1": b"new", "b/1": b"new"})
        target = filled({"a/1": b"old", "a/2": b"extra", "b/1": b"old", "b/2": b"extra"})
        report = sync_stores(source, target, delete=True, prefix="a/")
        assert contents(target) == {"a/1": b"new", "b/1": b"old", "b/2": b"extra"}
        assert (report.copied, report.deleted, report.unchanged) == (1, 1, 0)

    def test_without_overwriting_what_is_there_stays(self, make_store):
        source = filled({"a": b"new", "b": b"new", "large": LARGE}, make_store())
        target = filled({"a": b"old", "z": b"extra"}, make_store())
        report = sync_stores(source, target, delete=True, overwrite=False)
        assert contents(target) == {"a": b"old", "b": b"new", "large": LARGE}
        assert (report.copied, report.unchanged, report.deleted) == (2, 1, 1)

    def test_without_overwriting_nothing_is_compared(self):
        source = filled({"a": b"new", "b": b"new"})
        target = recorded(filled({"a": b"old"}))
        sync_stores(source, target, overwrite=False, compare="size")
        assert sorted(target.calls) == [("exists", "a"), ("exists", "b"), ("put_if_absent", "b")]

    def test_sizes_alone_are_compared_when_asked_to(self, make_store):
        source = filled({"a": b"new", "b": b"longer", "c": b"1"}, make_store())
        target = recorded(filled({"a": b"old", "b": b"old"}, make_store()))
        report = sync_stores(source, target, compare="size")
        assert contents(target.store) == {"a": b"old", "b": b"longer", "c": b"1"}
        assert (report.copied, report.unchanged) == (2, 1)
        assert target.names() == {"put"}, "nothing was read"

    def test_other_sizes_tell_without_reading(self, tmp_path):
        source = filled({"a": b"12", "b": LARGE, "same": b"1"}, FilesystemStore(tmp_path / "from"))
        target = FilesystemStore(tmp_path / "to")
        target = recorded(filled({"a": b"1", "b": LARGE[1:], "same": b"1"}, target))
        assert sync_stores(source, target).copied == 2
        read = {call[1] for call in target.calls if call[0] in ("get", "open")}
        assert read == {"same"}

    def test_what_is_deleted_makes_room(self, tmp_path):
        # A file has the name that a folder needs, and the other way round.
        source = filled({"a/b": b"1", "c": b"2"}, FilesystemStore(tmp_path / "from"))
        target = filled({"a": b"x", "c/d": b"y"}, FilesystemStore(tmp_path / "to"))
        sync_stores(source, target, delete=True)
        assert contents(target) == {"a/b": b"1", "c": b"2"}

    def test_keys_that_the_source_could_not_have_are_extra(self, tmp_path):
        source = filled({"a": b"1"}, FilesystemStore(tmp_path))
        target = filled({"../up": b"x", "a//b": b"y"})
        assert sync_stores(source, target, delete=True).deleted == 2
        assert contents(target) == {"a": b"1"}

    def test_an_object_that_came_to_the_source_late_is_not_deleted(self):
        class Late(DictStore):
            def keys(self, prefix=""):
                yield from super().keys(prefix)
                self.put("late", b"1")

        source, target = filled({"a": b"1"}, Late()), filled({"late": b"1"})
        assert sync_stores(source, target, delete=True).deleted == 0
        assert contents(target) == {"a": b"1", "late": b"1"}

    def test_a_damaged_object_of_the_target_is_replaced(self, tmp_path):
        files = FilesystemStore(tmp_path)
        target = filled({"a": b"1" * 100, "b": LARGE}, GzipStore(files))
        source = filled(contents(target))
        for key in ("a", "b"):
            files.put(key, files.get(key)[:-3])
            with pytest.raises(IntegrityError):
                target.get(key)
        assert sync_stores(source, target).copied == 2
        assert contents(target) == contents(source)
        files.put("a", files.get("a")[:-3])
        assert sync_stores(source, target, compare="size").copied == 1

    @pytest.mark.parametrize("compare", ["content", "size"])
    def test_a_damaged_object_of_the_source_is_an_error(self, tmp_path, compare):
        files = FilesystemStore(tmp_path)
        source = filled({"a": LARGE}, GzipStore(files))
        files.put("a", files.get("a")[:-3])
        target = filled({"a": b"old"}, GzipStore(DictStore()))
        with pytest.raises(IntegrityError):
            sync_stores(source, target, compare=compare)
        assert contents(target) == {"a": b"old"}


# --- copy ----------------------------------------------------------------------------------------


class TestCopy:
    def test_everything_is_copied(self, make_store):
        wanted = {"a": b"1", "b": b"2", "d/large": LARGE, "empty": b"", "exact": bytes(CHUNK)}
        source, target = filled(wanted, make_store()), filled({"b": b"x", "z": b"z"}, make_store())
        report = copy_store(source, target)
        assert contents(target) == wanted | {"z": b"z"}
        total = sum(map(len, wanted.values()))
        assert report == TransferReport(dry_run=False, copied=5, bytes=total)

    def test_from_one_kind_of_store_to_the_other(self, tmp_path):
        wanted = {"ab": b"1", "large": LARGE}
        source = filled(wanted, GzipStore(FilesystemStore(tmp_path / "from")))
        target = FilesystemBlobBackend(tmp_path / "to")
        copy_store(source, target)
        back = DictStore()
        copy_store(target, back)
        assert contents(back) == wanted

    def test_overwriting_is_the_second_argument(self, make_store):
        source = filled({"a": b"new", "b": LARGE, "c": LARGE}, make_store())
        target = filled({"a": b"old", "b": b"old"}, make_store())
        report = copy_store(source, target, False)
        assert contents(target) == {"a": b"old", "b": b"old", "c": LARGE}
        assert (report.copied, report.unchanged, report.bytes) == (1, 2, len(LARGE))

    def test_without_overwriting_whoever_comes_first_wins(self):
        class Raced(DictStore):
            def exists(self, key):
                found = super().exists(key)
                self.put(key, b"somebody else's")
                return found

        target = Raced()
        report = copy_store(filled({"a": b"ours"}), target, overwrite=False)
        assert target.get("a") == b"somebody else's"
        assert (report.copied, report.unchanged) == (0, 1)

    def test_only_keys_with_the_prefix(self):
        target = DictStore()
        copy_store(filled({"a/1": b"1", "b/1": b"2", "a": b"3"}), target, prefix="a/")
        assert contents(target) == {"a/1": b"1"}

    def test_any_key(self):
        wanted = {
            key: key.encode("utf-8", "surrogatepass")
            for key in ("", "\n", '"', "\ud800", "é", "\0")
        }
        source, target = filled(wanted), DictStore()
        copy_store(source, target)
        assert contents(target) == wanted

    def test_a_thousand_objects(self, tmp_path):
        wanted = {f"{n % 7}/{n}": str(n).encode() * 10 for n in range(1000)}
        source = filled(wanted)
        target = FilesystemStore(tmp_path)
        assert copy_store(source, target).copied == 1000
        assert contents(target) == wanted
        assert sync_stores(source, target, delete=True).unchanged == 1000
        assert clear_store(target).deleted == 1000
        assert contents(target) == {}

    def test_nothing_to_do(self):
        assert copy_store(DictStore(), DictStore()) == TransferReport(dry_run=False)

    def test_to_a_store_that_can_only_be_written(self):
        target = DictStore()
        assert copy_store(filled({"a": b"1"}), WriteonlyStore(target)).copied == 1
        assert target.get("a") == b"1"

    def test_the_size_is_told_to_the_writer(self, tmp_path):
        source = filled({"large": LARGE}, FilesystemStore(tmp_path / "from"))
        target = recorded(DictStore())
        copy_store(source, target)
        assert target.calls == [("writer", "large", len(LARGE))]

    def test_files_that_give_less_than_they_are_asked_for(self):
        class Short(io.BytesIO):
            def read(self, size=-1):
                return super().read(min(size, 300_001))

        class Trickling(DictStore):
            capabilities = Capabilities(streams=True, persistent=False)

            def open(self, key):
                return Short(self.get(key))

        source = filled({"large": LARGE, "small": b"s" * 400_000}, Trickling())
        target = DictStore()
        copy_store(source, target)
        assert contents(target) == contents(source)
        assert sync_stores(source, target).unchanged == 2


class TestRealStores:
    """Between the stores that keep things, in threads: each has its own way to be read and written."""

    NAMES = ("FilesystemStore", "SqliteStore", "ZipStore", "HashdirStore")

    @pytest.mark.parametrize("target_name", NAMES)
    @pytest.mark.parametrize("source_name", NAMES[:-1])
    def test_there_and_again(self, tmp_path, source_name, target_name):
        wanted = {f"d{n % 3}/k{n}": str(n).encode() for n in range(40)} | {"large": LARGE}
        with (
            getattr(blobstore, source_name)(tmp_path / "from") as source,
            getattr(blobstore, target_name)(tmp_path / "to") as target,
        ):
            filled(wanted, source)
            assert copy_store(source, target, workers=4).copied == 41
            assert {key: target.get(key) for key in wanted} == wanted
            source.put("large", LARGE[:-1] + b"?")
            source.put("d1/k1", b"new")
            report = sync_stores(source, target, workers=4, delete=target.capabilities.list)
            assert (report.copied, report.unchanged, report.deleted) == (2, 39, 0)
            assert target.get("large") == source.get("large")
            if target.capabilities.list:
                source.delete("d2/k2")
                assert sync_stores(source, target, delete=True).deleted == 1
                assert contents(target) == contents(source)
                assert clear_store(target).deleted == 40
                assert contents(target) == {}


class TestOntoItself:
    @pytest.mark.parametrize("call", [copy_store, sync_stores])
    def test_the_same_object(self, make_store, call):
        wanted = {"a": b"1", "large": LARGE}
        store = recorded(filled(wanted, make_store()))
        report = call(store, store)
        assert report == TransferReport(dry_run=False, unchanged=2)
        assert store.calls == []
        assert sync_stores(store, store, delete=True).deleted == 0
        assert store.calls == []
        assert contents(store) == wanted

    @pytest.mark.parametrize("call", [copy_store, sync_stores])
    def test_the_same_store_in_other_words(self, make_store, call):
        wanted = {"a": b"1", "large": LARGE}
        store = filled(wanted, make_store())
        call(store, IdentityStore(store))
        sync_stores(IdentityStore(store), store, delete=True)
        assert contents(store) == wanted

    def test_a_part_of_itself(self, tmp_path):
        wanted = {"a": b"1", "b/c": b"2"}
        store = filled(wanted, FilesystemStore(tmp_path))
        copy_store(store, PrefixStore(store, "zz/"), workers=1)
        assert contents(store) == wanted | {f"zz/{key}": data for key, data in wanted.items()}

    def test_a_folder_inside(self, tmp_path):
        wanted = {f"{n}/x": b"1" for n in range(50)}
        store = filled(wanted, FilesystemStore(tmp_path))
        inner = FilesystemStore(tmp_path / "zz")
        assert copy_store(store, inner, workers=1).copied == 50
        assert contents(inner) == wanted

    def test_two_parts_of_one_store(self):
        store = filled({"a/1": b"1", "a/2": b"2", "b/1": b"x", "b/3": b"y", "c": b"z"})
        sync_stores(PrefixStore(store, "a/"), PrefixStore(store, "b/"), delete=True)
        assert contents(store) == {
            "a/1": b"1", "a/2": b"2", "b/1": b"1", "b/2": b"2", "c": b"z",
        }  # fmt: skip


# --- values that are not bytes -------------------------------------------------------------------


class TestOtherValues:
    def test_text(self):
        source = filled({"a": "é", "b": "same", "c": "new"}, TextEncodingStore(DictStore()))
        beneath = DictStore()
        target = filled({"a": "x", "b": "same", "z": ""}, TextEncodingStore(beneath, "latin-1"))
        report = sync_stores(source, target, delete=True)
        assert contents(target) == contents(source)
        assert beneath.get("a") == b"\xe9"
        assert (report.copied, report.unchanged, report.deleted, report.bytes) == (2, 1, 1, 0)

    def test_json(self):
        wanted = {"a": {"x": [1, None]}, "b": [True], "c": 1.0, "d": "same"}
        source = filled(wanted, JsonStore(DictStore()))
        target = filled({"b": [1], "c": 1, "d": "same"}, JsonStore(DictStore()))
        planned = sync_stores(source, target, dry_run=True)
        assert (planned.copied, planned.unchanged) == (3, 1)
        assert sync_stores(source, target).copied == 3
        assert contents(target) == wanted
        assert [type(target.get(key)) for key in "bc"] == [list, float]
        assert sync_stores(source, target).unchanged == 4
        assert copy_store(source, target, overwrite=False).unchanged == 4

    def test_files(self):
        source, beneath = BufferStore(DictStore()), DictStore()
        source.put("a", io.BytesIO(b"data"))
        target = BufferStore(beneath)
        assert sync_stores(source, target).copied == 1
        assert sync_stores(source, target).unchanged == 1
        assert contents(beneath) == {"a": b"data"}

    def test_a_damaged_text_is_replaced(self):
        beneath = filled({"a": b"\xff"})
        target = TextEncodingStore(beneath)
        sync_stores(filled({"a": "good"}, TextEncodingStore(DictStore())), target)
        assert contents(beneath) == {"a": b"good"}

    @pytest.mark.parametrize("call", [sync_stores, copy_store])
    def test_kinds_of_values_do_not_mix(self, call):
        source = filled({"a": "text"}, TextEncodingStore(DictStore()))
        target = filled({"z": b"kept"})
        for stores in ((source, target), (target, source), (source, JsonStore(target))):
            with pytest.raises(ConfigError, match="text"):
                call(*stores)
        assert contents(target) == {"z": b"kept"}

    def test_they_have_no_sizes(self):
        source, target = TextEncodingStore(DictStore()), TextEncodingStore(DictStore())
        with pytest.raises(ConfigError, match="compare='content'"):
            sync_stores(source, target, compare="size")
        source.put("a", "nothing to compare")
        assert sync_stores(source, target, overwrite=False, compare="size").copied == 1

    @pytest.mark.parametrize(
        "value",
        [None, True, 1, 1.0, -0.0, 0.0, float("nan"), "1", b"1", [], {}, [1], [1, 2], (1,), {"a": 1},
         {"b": 1}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": [1]}, {1: "a"}, {"a": {"a": True}}],
        ids=repr,
    )  # fmt: skip
    def test_what_is_surely_the_same(self, value):
        copy = pickle.loads(pickle.dumps(value))
        others = [None, True, 1, 1.0, -0.0, 0.0, "1", b"1", [], {}, [1], [1, 2], (1,), {"a": 1},
                  {"b": 1}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": [1]}, {1: "a"},
                  {"a": {"a": True}}, {"a": {"a": 1}}]  # fmt: skip
        assert _is_same_value(value, copy)
        assert [repr(o) for o in others if _is_same_value(value, o)] in ([repr(value)], [])

    def test_what_is_not_surely_the_same(self):
        class Agreeable:
            def __eq__(self, other):
                return True

        assert not _is_same_value(Agreeable(), Agreeable())
        assert not _is_same_value({1}, {1})


# --- clear ---------------------------------------------------------------------------------------


class TestClear:
    def test_all_of_it(self, make_store):
        store = filled({"a": b"1", "b/c": b"2", "b/d": b"3"}, make_store())
        assert clear_store(store) == TransferReport(dry_run=False, deleted=3)
        assert contents(store) == {}
        assert clear_store(store).deleted == 0

    def test_only_what_a_prefix_store_shows(self):
        beneath = filled({"ours/a": b"1", "ours/b": b"2", "theirs/a": b"3", "ours": b"4"})
        assert clear_store(PrefixStore(beneath, "ours/")).deleted == 2
        assert contents(beneath) == {"theirs/a": b"3", "ours": b"4"}

    def test_only_keys_with_the_prefix(self):
        store = filled({"a/1": b"1", "a/2": b"2", "ab": b"3"})
        assert clear_store(store, prefix="a/").deleted == 2
        assert contents(store) == {"ab": b"3"}

    def test_other_files_stay(self, tmp_path):
        store = filled({"ab1": b"1", "ab2": b"2"}, FilesystemBlobBackend(tmp_path))
        foreign = tmp_path / "notes.txt"
        foreign.write_text("mine")
        clear_store(store)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [foreign]

    def test_many_at_a_time(self):
        store = recorded(filled({f"k{n}": b"" for n in range(1000)}))
        seen = []
        clear_store(store, progress=seen.append)
        batches = [call[1:] for call in store.calls if call[0] == "delete_many"]
        assert len(batches) == 10
        assert sorted(itertools.chain(*batches)) == sorted(f"k{n}" for n in range(1000))
        assert [step.done for step in seen] == list(range(1, 1001))
        assert {(step.action, step.size, step.bytes) for step in seen} == {("delete", 0, 0)}

    def test_one_that_cannot_be_removed_does_not_keep_the_others(self, tmp_path):
        class Stubborn(FilesystemStore):
            def delete(self, key):
                if key == "b":
                    raise PermissionDeniedError("not this one", location=key)
                super().delete(key)

        store = filled({"a": b"1", "b": b"2", "c": b"3"}, Stubborn(tmp_path))
        with pytest.raises(PermissionDeniedError, match="not this one"):
            clear_store(store)
        assert contents(store) == {"b": b"2"}


# --- dry runs ------------------------------------------------------------------------------------


class TestDryRun:
    def test_sync(self, make_store):
        source = filled({"new": b"12", "changed": LARGE, "same": b"3"}, make_store())
        target = recorded(filled({"changed": b"x", "same": b"3", "extra": b"5"}, make_store()))
        for options in ({}, {"overwrite": False}, {"delete": True}, {"compare": "size"}):
            before = contents(target.store)
            target.calls.clear()
            planned = sync_stores(source, target, dry_run=True, **options)
            assert contents(target.store) == before
            assert target.names() <= {"get", "open", "exists"}
            twin = filled(before)
            done = sync_stores(source, twin, **options)
            assert planned.dry_run
            assert counts(planned) == counts(done)
            assert sorted(planned.actions) == sorted(
                [("copy", key) for key, data in contents(twin).items() if before.get(key) != data]
                + [("delete", key) for key in before if not twin.exists(key)]
            )

    def test_copy(self, make_store):
        source = recorded(filled({"a": LARGE, "b": b"2"}, make_store()))
        target = filled({"b": b"x"})
        for overwrite, wanted in ((True, ["a", "b"]), (False, ["a"])):
            report = copy_store(source, target, overwrite, dry_run=True)
            assert sorted(report.actions) == [("copy", key) for key in wanted]
            assert report.copied == len(wanted)
            assert report.bytes == len(LARGE) + (1 if overwrite else 0)
        assert source.calls == [], "sizes are enough"
        assert contents(target) == {"b": b"x"}

    def test_copy_of_other_values(self):
        source = filled({"a": "text"}, TextEncodingStore(DictStore()))
        target = TextEncodingStore(DictStore())
        report = copy_store(source, target, dry_run=True)
        assert (report.copied, report.bytes, contents(target)) == (1, 0, {})

    def test_clear(self):
        store = filled({"a": b"1", "b": b"2"})
        report = clear_store(store, dry_run=True)
        assert sorted(report.actions) == [("delete", "a"), ("delete", "b")]
        assert report.deleted == 2
        assert contents(store) == {"a": b"1", "b": b"2"}

    def test_actions_are_kept_for_dry_runs_only(self):
        assert copy_store(filled({"a": b"1"}), DictStore()).actions == ()


def counts(report):
    return (report.copied, report.deleted, report.unchanged, report.vanished, report.bytes)


# --- progress and cancelling ---------------------------------------------------------------------


class TestProgress:
    def test_after_each_object(self):
        source = filled({"a": b"12", "b": b"345", "same": b"6"})
        target = filled({"same": b"6", "extra": b""})
        seen, threads = [], set()

        def progress(step):
            threads.add(threading.current_thread())
            seen.append(step)

        sync_stores(source, target, delete=True, progress=progress)
        assert threads == {threading.current_thread()}
        assert {(step.action, step.key, step.size) for step in seen} == {
            ("copy", "a", 2), ("copy", "b", 3), ("keep", "same", 0), ("delete", "extra", 0),
        }  # fmt: skip
        assert [step.done for step in seen] == [1, 2, 3, 4]
        assert [step.bytes for step in seen] == [*itertools.accumulate(s.size for s in seen)]

    def test_an_error_in_it_ends_the_transfer(self):
        def progress(step):
            if step.done == 3:
                raise ZeroDivisionError("mine")

        target = DictStore()
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            copy_store(filled({str(n): b"" for n in range(200)}), target, progress=progress)
        assert len(contents(target)) < 200
        assert "objects (0 bytes) were copied" in "".join(caught.value.__notes__)

    def test_values(self):
        for value in (Progress("copy", "k", 1, 2, 3), TransferReport(dry_run=True)):
            assert pickle.loads(pickle.dumps(value)) == value
            with pytest.raises(FrozenInstanceError):
                value.bytes = 5


class Endless(io.RawIOBase):
    """A file without an end, that says when it is being read."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.never = threading.Event()
        self.pieces = 0
        self.deadline = time.monotonic() + 20

    def readable(self):
        return True

    def seek(self, offset, whence=0):
        return 0

    def read(self, size=-1):
        self.pieces += 1
        if self.pieces == 3:
            self.begun.set()
        if self.pieces > 3:
            self.never.wait(0.02)  # be gentle to the disk
        assert time.monotonic() < self.deadline, "nobody stops it"
        return bytes(size)


class WithEndless(DictStore):
    """Has one object that a copy of never ends."""

    def __init__(self) -> None:
        super().__init__()
        self.file = Endless()
        self.put("endless", b"")

    @property
    def capabilities(self):
        return Capabilities(streams=True, persistent=False)

    def open(self, key):
        return self.file if key == "endless" else super().open(key)


class TestStopping:
    def test_cancelled_before_it_began(self, make_store):
        source, target = filled({"a": b"1"}, make_store()), filled({"z": b"2"}, make_store())
        for report in (
            sync_stores(source, target, delete=True, cancelled=lambda: True),
            copy_store(source, target, cancelled=lambda: True),
            clear_store(target, cancelled=lambda: True),
        ):
            assert report == TransferReport(dry_run=False, cancelled=True)
        assert contents(target) == {"z": b"2"}

    def test_cancelled_between_objects(self):
        source, target = filled({f"k{n:03}": b"1" for n in range(300)}), DictStore()
        report = copy_store(source, target, workers=2, cancelled=lambda: len(contents(target)) > 10)
        assert report.cancelled
        assert report.copied == len(contents(target)) == report.bytes
        assert 10 < report.copied < 20
        again = sync_stores(source, target)
        assert (again.copied, again.unchanged) == (300 - report.copied, report.copied)
        assert not again.cancelled

    @pytest.mark.parametrize("call", [copy_store, sync_stores])
    def test_cancelled_in_the_middle_of_a_large_object(self, tmp_path, call):
        source = WithEndless()
        target = filled({"endless": b"old"}, FilesystemStore(tmp_path))
        report = call(source, target, cancelled=source.file.begun.is_set)
        assert report == TransferReport(dry_run=False, cancelled=True)
        assert contents(target) == {"endless": b"old"}
        assert list(target.leftovers()) == []

    def test_cancelled_while_two_large_objects_are_compared(self):
        source, target = WithEndless(), WithEndless()
        report = sync_stores(source, target, cancelled=source.file.begun.is_set)
        assert report == TransferReport(dry_run=False, cancelled=True)

    @pytest.mark.parametrize("call", [clear_store, lambda s, **o: copy_store(s, DictStore(), **o)])
    def test_cancelled_while_a_listing_goes_on(self, call):
        class Store(DictStore):
            listed = 0

            def keys(self, prefix=""):
                for self.listed in range(100_000):
                    yield str(self.listed)

            def exists(self, key):
                return True

        store = Store()
        report = call(store, cancelled=lambda: store.listed > 2000)
        assert report.cancelled
        assert store.listed < 10_000

    def test_cancelled_when_all_was_done_is_not_cancelled(self):
        target = DictStore()
        done = threading.Event()
        report = copy_store(
            filled({"a": b"1"}), target, progress=lambda step: done.set(), cancelled=done.is_set
        )
        assert not report.cancelled
        assert report.copied == 1

    def test_an_error_in_asking(self):
        def cancelled():
            raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            copy_store(filled({"a": b"1"}), DictStore(), cancelled=cancelled)

    def test_interrupted_by_its_user(self, tmp_path):
        source = filled({"a": b"1"}, WithEndless())
        target = filled({"endless": b"old"}, FilesystemStore(tmp_path))

        def progress(step):
            assert source.file.begun.wait(60)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            copy_store(source, target, progress=progress)
        (note,) = caught.value.__notes__
        assert "Until then 1 objects (1 bytes) were copied" in note
        assert contents(target) == {"endless": b"old", "a": b"1"}
        assert list(target.leftovers()) == []


# --- what goes wrong -----------------------------------------------------------------------------


class Failing(DictStore):
    """Refuses the n-th put, and all after it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.puts = itertools.count(1)
        self.n = n

    def put(self, key, data):
        if next(self.puts) >= self.n:
            raise OutOfSpaceError("the disk is full", location=key)
        super().put(key, data)


class TestErrors:
    @pytest.mark.parametrize("n", [1, 2, 17, 100])
    def test_a_full_disk(self, n):
        wanted = {f"k{i:03}": str(i).encode() for i in range(100)}
        source, target = filled(wanted), Failing(n)
        with pytest.raises(OutOfSpaceError, match="the disk is full") as caught:
            copy_store(source, target, workers=1)
        assert next(target.puts) == n + 1, "another one was begun"
        done = contents(target)
        assert len(done) == n - 1
        assert done.items() <= wanted.items()
        met, told, *_ = caught.value.__notes__
        assert met == f"This was met at {caught.value.location!r}."
        assert f"Until then {n - 1} objects ({sum(map(len, done.values()))} bytes)" in told
        target.n = 10**9
        report = sync_stores(source, target)
        assert (report.copied, report.unchanged) == (101 - n, n - 1)
        assert contents(target) == wanted

    def test_what_is_under_way_is_finished_and_nothing_new_begun(self):
        failed, begun = threading.Event(), threading.Event()

        class Target(DictStore):
            def put(self, key, data):
                if key == "slow":
                    begun.set()
                    assert failed.wait(60)
                elif key == "bad":
                    assert begun.wait(60)
                    failed.set()
                    raise StorageError("bad luck")
                super().put(key, data)

        source = filled({"slow": b"1", "bad": b"2"} | {f"later{n}": b"" for n in range(100)})
        target = Target()
        with pytest.raises(StorageError, match="bad luck") as caught:
            copy_store(source, target, workers=2)
        assert contents(target) == {"slow": b"1"}
        assert "Until then 1 objects (1 bytes) were copied" in caught.value.__notes__[1]

    def test_other_errors_are_told(self):
        together = threading.Barrier(5)

        class Target(DictStore):
            def put(self, key, data):
                together.wait(60)
                raise StorageError(f"no {key}")

        with pytest.raises(StorageError) as caught:
            copy_store(filled(dict.fromkeys("abcde", b"")), Target(), workers=5)
        (note,) = [note for note in caught.value.__notes__ if "more failed" in note]
        assert note.startswith("4 more failed: StorageError: no ")
        assert note.count("StorageError") == 3

    def test_an_error_while_deleting(self):
        class Target(DictStore):
            def delete_many(self, keys):
                raise StorageError("no")

        target = filled({"extra": b"1"}, Target())
        with pytest.raises(StorageError, match="no"):
            sync_stores(filled({"a": b"1"}), target, delete=True)
        assert contents(target) == {"extra": b"1"}

    def test_an_error_of_the_listing_comes_before_anything_is_deleted(self):
        class Source(DictStore):
            def keys(self, prefix=""):
                yield "a"
                raise StorageError("the list ends here")

        target = filled({"extra": b"1"})
        with pytest.raises(StorageError, match="ends here"):
            sync_stores(filled({"a": b"1"}, Source()), target, delete=True)
        assert contents(target) == {"extra": b"1"}

    def test_half_a_large_object_is_nothing(self, tmp_path):
        class Broken(io.BytesIO):
            def read(self, size=-1):
                if self.tell() >= 2 * CHUNK:
                    raise IntegrityError("damaged from here on")
                return super().read(size)

        class Source(DictStore):
            capabilities = Capabilities(streams=True, persistent=False)

            def open(self, key):
                return Broken(self.get(key))

        source = filled({"old": LARGE, "new": LARGE}, Source())
        target = filled({"old": b"old"}, FilesystemStore(tmp_path))
        for call in (copy_store, sync_stores):
            with pytest.raises(IntegrityError):
                call(source, target)
            assert contents(target) == {"old": b"old"}
            assert list(target.leftovers()) == []

    def test_a_full_temporary_disk_is_told(self, monkeypatch):
        class Full(io.BytesIO):
            def write(self, data):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            listing_module, "tempfile", SimpleNamespace(SpooledTemporaryFile=lambda **_: Full())
        )
        with pytest.raises(OutOfSpaceError, match="noting the keys"):
            copy_store(filled({"a": b"1"}), DictStore())

    def test_closed_stores(self):
        for closed in (0, 1):
            stores = [filled({"a": b"1"}), DictStore()]
            stores[closed].close()
            with pytest.raises(ClosedError):
                copy_store(*stores)
            with pytest.raises(ClosedError):
                sync_stores(*stores, delete=True)
        with pytest.raises(ClosedError):
            clear_store(stores[1])


class TestVanishing:
    @pytest.mark.parametrize(
        ("call", "options"),
        [
            (copy_store, {}),
            (copy_store, {"dry_run": True}),
            (sync_stores, {}),
            (sync_stores, {"dry_run": True}),
            (sync_stores, {"compare": "size"}),
        ],
    )
    def test_objects_that_vanish_are_passed_over(self, tmp_path, call, options):
        class Vanishing(FilesystemStore):
            def keys(self, prefix=""):
                yield from list(super().keys(prefix))
                self.delete("b")

        source = filled({"a": b"1", "b": b"2"}, Vanishing(tmp_path))
        target = DictStore()
        report = call(source, target, **options)
        assert (report.copied, report.vanished) == (1, 1)
        assert contents(target) == ({} if options.get("dry_run") else {"a": b"1"})

    def test_texts_that_vanish(self):
        class Vanishing(DictStore):
            def keys(self, prefix=""):
                yield from [*super().keys(prefix), "b"]

        source = filled({"a": "1"}, TextEncodingStore(Vanishing()))
        assert sync_stores(source, TextEncodingStore(DictStore())).vanished == 1

    def test_in_the_middle(self, tmp_path):
        class Cut(io.BytesIO):
            def read(self, size=-1):
                if self.tell() >= CHUNK:
                    raise KeyNotFoundError("gone")
                return super().read(size)

        class Source(DictStore):
            capabilities = Capabilities(streams=True, persistent=False)

            def open(self, key):
                return Cut(self._objects.pop(key).data)

        for old in ({"a": b"old"}, {}):
            target = filled(old, FilesystemStore(tmp_path))
            assert copy_store(filled({"a": LARGE}, Source()), target).vanished == 1
            assert contents(target) == old
            clear_store(target)

    def test_replaced_while_it_was_read(self):
        class Flickering(DictStore):
            misses = 0

            def get(self, key):
                self.misses += 1
                if self.misses < 3:
                    raise KeyNotFoundError("just being replaced")
                return super().get(key)

        target = DictStore()
        report = copy_store(filled({"a": b"1"}, Flickering()), target)
        assert (report.copied, report.vanished) == (1, 0)
        assert contents(target) == {"a": b"1"}

    def test_there_but_not_to_be_had_is_an_error(self):
        class Contradicting(DictStore):
            def get(self, key):
                raise KeyNotFoundError("lost", location=key)

        with pytest.raises(KeyNotFoundError, match="lost"):
            copy_store(filled({"a": b"1"}, Contradicting()), DictStore())

    def test_what_the_target_misses_is_no_vanishing(self):
        class NoBucket(DictStore):
            def put(self, key, data):
                raise KeyNotFoundError("there is no such bucket")

        with pytest.raises(KeyNotFoundError, match="bucket"):
            copy_store(filled({"a": b"1"}), NoBucket())


class TestWrongInput:
    @pytest.mark.parametrize(
        "options",
        [{"workers": 0}, {"workers": -1}, {"workers": 2.0}, {"workers": True}, {"workers": "2"},
         {"workers": None}, {"prefix": None}, {"prefix": b"a"}, {"dry_run": "yes"}, {"dry_run": 1},
         {"progress": 5}, {"cancelled": True}],
        ids=repr,
    )  # fmt: skip
    def test_of_all_three(self, options):
        target = filled({"z": b"kept"})
        for call in (
            lambda: sync_stores(filled({"a": b"1"}), target, delete=True, **options),
            lambda: copy_store(filled({"a": b"1"}), target, **options),
            lambda: clear_store(target, **options),
        ):
            with pytest.raises(InvalidInputError, match=next(iter(options))):
                call()
        assert contents(target) == {"z": b"kept"}

    @pytest.mark.parametrize("overwrite", ["a/", 1, None])
    def test_flags_are_no_prefixes(self, overwrite):
        with pytest.raises(ConfigError, match="overwrite"):
            copy_store(filled({"a": b"1"}), DictStore(), overwrite)
        with pytest.raises(ConfigError, match="overwrite"):
            sync_stores(filled({"a": b"1"}), DictStore(), overwrite=overwrite)
        with pytest.raises(ConfigError, match="delete"):
            sync_stores(filled({"a": b"1"}), DictStore(), overwrite)

    @pytest.mark.parametrize("compare", ["etag", None, True])
    def test_of_comparing(self, compare):
        with pytest.raises(ConfigError, match="compare"):
            sync_stores(DictStore(), DictStore(), compare=compare)

    @pytest.mark.parametrize("wrong", [None, "store", {}, DictStore])
    def test_of_stores(self, wrong):
        for call in (
            lambda: copy_store(wrong, DictStore()),
            lambda: copy_store(DictStore(), wrong),
            lambda: sync_stores(wrong, DictStore()),
            lambda: sync_stores(DictStore(), wrong),
            lambda: clear_store(wrong),
        ):
            with pytest.raises(ConfigError, match="object store"):
                call()

    def test_stores_that_cannot(self):
        class OneWay(KeyTransformer):
            reversible = False

        inner = filled({"kept": b"1"})
        unlistable = KeyTransformingStore(inner, OneWay())
        other = filled({"a": b"1"})
        for call in (
            lambda: copy_store(unlistable, other),
            lambda: copy_store(WriteonlyStore(inner), other),
            lambda: sync_stores(unlistable, other),
            lambda: sync_stores(other, unlistable, delete=True),
            lambda: clear_store(unlistable),
            lambda: clear_store(WriteonlyStore(inner)),
            lambda: copy_store(other, ReadonlyStore(inner)),
            lambda: copy_store(other, ReadonlyStore(inner), dry_run=True),
            lambda: sync_stores(other, ReadonlyStore(inner)),
            lambda: clear_store(ReadonlyStore(inner)),
            lambda: sync_stores(other, WriteonlyStore(inner)),
            lambda: copy_store(other, WriteonlyStore(inner), overwrite=False),
        ):
            with pytest.raises(NotSupportedError):
                call()
        assert contents(inner) == {"kept": b"1"}
        assert contents(other) == {"a": b"1"}
        with pytest.raises(NotSupportedError, match="does not need to know"):
            sync_stores(DictStore(), WriteonlyStore(inner))
        assert sync_stores(other, unlistable).copied == 1

    def test_stores_that_hide_their_errors(self):
        inner = filled({"kept": b"1"})
        hiding = PrefixStore(ExceptionLoggingStore(inner), "")
        other = filled({"a": b"1"})
        for call in (
            lambda: copy_store(hiding, other),
            lambda: copy_store(other, hiding),
            lambda: sync_stores(hiding, other, delete=True),
            lambda: clear_store(hiding),
        ):
            with pytest.raises(ConfigError, match="swallows errors"):
                call()
        assert contents(inner) == {"kept": b"1"}
        honest = ExceptionLoggingStore(other, reraise=True)
        assert sync_stores(honest, inner, delete=True).copied == 1

    def test_nothing_is_no_object(self):
        class Broken(DictStore):
            def get(self, key):
                return None

        target = filled({"a": b"kept"})
        for call in (copy_store, sync_stores):
            with pytest.raises(InvalidInputError, match="NoneType"):
                call(filled({"a": b"1"}, Broken()), target)
        assert contents(target) == {"a": b"kept"}


# --- threads and memory --------------------------------------------------------------------------


class TestThreads:
    def test_as_many_as_asked_for(self):
        together = threading.Barrier(4)

        class Source(DictStore):
            active = most = 0

            def __init__(self):
                super().__init__()
                self.names = set()
                self.lock = threading.Lock()

            def get(self, key):
                with self.lock:
                    self.active += 1
                    self.most = max(self.most, self.active)
                together.wait(60)
                self.names.add(threading.current_thread().name)
                with self.lock:
                    self.active -= 1
                together.wait(60)
                return super().get(key)

        source = filled({str(n): b"" for n in range(40)}, Source())
        copy_store(source, DictStore(), workers=4)
        assert source.most == 4
        assert len(source.names) == 4
        assert all(name.startswith("blobstore-transfer") for name in source.names)

    def test_keys_are_listed_no_further_than_needed(self):
        class Store(DictStore):
            listed = 0
            furthest = 0

            def keys(self, prefix=""):
                for key in super().keys(prefix):
                    self.listed += 1
                    yield key

            def delete_many(self, keys):
                self.furthest = max(self.furthest, self.listed - 10_000 + len(self._objects))
                super().delete_many(keys)

        store = filled({str(n): b"" for n in range(10_000)}, Store())
        clear_store(store, workers=2)
        assert store.listed == 10_000
        assert store.furthest <= 700

    def test_the_listing_is_not_held_in_memory(self):
        keys = (f"{n:01000}" for n in range(60_000))

        def work():
            with listing_module.listed(keys, lambda: False) as found:
                assert sum(map(len, found)) == 60_000_000

        assert peak_memory(work) < 20 << 20

    def test_large_objects_are_not_held_in_memory(self, tmp_path):
        source = FilesystemStore(tmp_path / "from")
        for name in "ab":
            with source.writer(name) as sink:
                for n in range(40):
                    sink.write(bytes([n]) * CHUNK)
        target = FilesystemStore(tmp_path / "to")
        assert peak_memory(lambda: copy_store(source, target, workers=2)) < 16 << 20
        assert peak_memory(lambda: sync_stores(source, target, workers=2)) < 16 << 20
        with target.writer("a") as sink:
            for _ in range(40):
                sink.write(bytes(CHUNK))
        assert peak_memory(lambda: sync_stores(source, target, workers=2)) < 16 << 20
        assert sync_stores(source, target).unchanged == 2

    def test_changes_of_the_source_give_no_half_objects(self, tmp_path):
        versions = [bytes([n]) * size for n, size in ((1, 3 * CHUNK), (2, CHUNK + 7), (3, 9))]
        source = filled(dict.fromkeys("abc", versions[0]), FilesystemStore(tmp_path / "from"))
        target = FilesystemStore(tmp_path / "to")
        done = threading.Event()

        def work(number):
            if number == 0:
                try:
                    for _ in range(15):
                        sync_stores(source, target, workers=2)
                        assert all(data in versions for data in contents(target).values())
                finally:
                    done.set()
                return
            for turn in itertools.cycle(range(3)):
                if done.is_set():
                    return
                source.put("abc"[turn], versions[turn])
                source.put("b", versions[turn])

        in_threads(work, 2)
        sync_stores(source, target)
        assert contents(target) == contents(source)

    def test_two_at_once(self, tmp_path):
        wanted = {f"k{n}": str(n).encode() for n in range(60)} | {"large": LARGE}
        source = filled(wanted)
        target = filled({f"old{n}": b"" for n in range(30)}, FilesystemStore(tmp_path))
        in_threads(lambda _: sync_stores(source, target, delete=True, workers=2), 3)
        assert contents(target) == wanted

    def test_no_more_is_waited_for_than_what_was_begun(self):
        # Whatever the number of workers, each object is looked at once.
        for workers in (1, 2, 50):
            source = recorded(filled({str(n): b"1" for n in range(120)}))
            copy_store(source, DictStore(), workers=workers)
            looked_at = Counter(call[1] for call in source.calls if call[0] == "get")
            assert looked_at == Counter(map(str, range(120)))


# --- killed --------------------------------------------------------------------------------------


KILLED = """
import itertools, os, signal, sys
from blobstore.backends import FilesystemStore
from blobstore.transfer import sync_stores
from blobstore.wrappers.base import WrapperSink

steps = itertools.count(1)

def step():
    if next(steps) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

class Sink(WrapperSink):
    def write(self, data):
        step()
        return super().write(data)

    def commit(self):
        step()
        super().commit()

class Target(FilesystemStore):
    def writer(self, key, size_hint=None):
        return Sink(super().writer(key, size_hint))

sync_stores(FilesystemStore(sys.argv[1]), Target(sys.argv[2]), delete=True, workers=2,
            progress=lambda p: step())
"""


@pytest.mark.parametrize("steps", [1, 4, 8, 14, 21])
def test_killed_and_run_again(tmp_path, steps):
    wanted = {f"{n % 3}/k{n}": str(n).encode() for n in range(10)}
    wanted |= {f"large/{n}": bytes([n]) * (2 * CHUNK + n) for n in range(3)}
    source = filled(wanted, FilesystemStore(tmp_path / "from"))
    old = {"0/k0": b"old", "large/1": b"old", "extra": b"x"}
    target = filled(old, FilesystemStore(tmp_path / "to"))
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "from"), str(tmp_path / "to"), str(steps)],
        check=False,
    )
    assert child.returncode == -9, "the child got through"

    for key, data in contents(target).items():
        assert data in (wanted.get(key), old.get(key)), key
    report = sync_stores(source, target, delete=True)
    assert contents(target) == wanted
    assert report.copied + report.unchanged == len(wanted)

    def files():
        return [path for path in target.root_path.rglob("*") if path.is_file()]

    left = list(target.leftovers())
    assert len(files()) == len(wanted) + len(left), "what was left behind is in sight"
    for leftover in left:
        target.remove_leftover(leftover.name)
    assert sorted(files()) == sorted(target.root_path / key for key in wanted)


def test_pieces_are_of_the_size_that_streams_have():
    file = io.BytesIO(bytes(CHUNK + 1))
    assert [len(copying_module._piece(file)) for _ in range(3)] == [CHUNK, 1, 0]
    with contextlib.closing(io.BytesIO(b"")) as empty:
        assert copying_module._piece(empty) == b""
