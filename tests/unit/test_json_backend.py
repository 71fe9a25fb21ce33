"""The JSON index: its files, how they are folded, and what happens when they, or we, are harmed.

What it has in common with every other index is in tests/conformance.
"""

import contextlib
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.backends.metadata import json as backend_module
from blobstore.backends.metadata.json import JsonBackend
from blobstore.backends.metadata.state import IndexState, plan
from blobstore.entry import Blob, EntryDraft, Part
from blobstore.errors import (
    ClosedError,
    ConfigError,
    IncompatibleStoreError,
    IntegrityError,
    InvalidInputError,
    NotSupportedError,
    OutOfSpaceError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from blobstore.keys import new_location, random_id
from blobstore.protocols import Copy, Delete, Patch, Put
from blobstore.query import F, Query, parse_order
from blobstore.testing.metadata_backend import equal_to
from blobstore.testing.model import Model

TEXTS = [
    "{}",
    '{"a":1,"b":[1.5,null,true,"x"],"c":{"d":{}}}',
    '{"b":1,"a":2}',
    '{"big":123456789012345678901234567890,"small":-1e-300,"float":1.0,"third":0.1}',
    '{"nul":"\\u0000","line":"\\u2028\\n","astral":"\U0001f600","ü":"ü"}',
    # Not as we would write them, and yet to come back as they are:
    '{"a": 1e5}',
    '{"a":1,"a":2}',
    '{"a":"\\u00fc","b":"\\ud800"}',
    '{"a":1e999}',
    '{"a":NaN}',
    '{"a":' + "9" * 5000 + "}",
    "[" * 100_000,
    "null",
    "[]",
    "0",
    "no json",
]


def blob(digest=None, **facts):
    return Blob(new_location(".pkl"), 10, "xxh3-128:00", "none", "pickle", 1, digest, **facts)


def put(key, *blobs, metadata="{}", info="{}", expected="any", payload=None):
    parts = tuple(Part(f"p{i}", b) for i, b in enumerate(blobs))
    if payload is not None:
        parts = (Part("data", Blob("", len(payload), "blake3:00", "lz4", "pickle", 1), payload),)
    draft = EntryDraft(key, "pickle", "object", info, metadata, parts, 10, now_us=5, signature="s")
    return Put(draft, expected=expected)


def commit(backend, *operations, commit_id=None):
    return backend.commit(operations, commit_id or random_id())


def opened(*arguments, **options):
    return contextlib.closing(JsonBackend(*arguments, **options))


def journals(folder):
    return sorted(path.name for path in Path(folder).glob("*.journal"))


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def entries(folder):
    with opened(folder, readonly=True) as backend:
        assert backend.check() == []
        return list(backend.scan(Query()))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def backend(folder):
    with opened(folder) as backend:
        yield backend


@pytest.fixture
def no_folding(monkeypatch):
    """Leave the journal as it is when a backend is closed."""
    monkeypatch.setattr(JsonBackend, "_fold_at_close", lambda self: None)


# --- what is in the files


def test_a_commit_is_one_line_however_many_keys_it_has(backend, folder):
    before = (folder / "cache_metadata.json").read_bytes()
    commit(backend, *[put(f"k{i}", blob()) for i in range(20)])
    commit(backend, Delete("k3"), put("k4", blob()))
    assert len((folder / "cache_metadata.1.journal").read_bytes().splitlines()) == 2
    assert (folder / "cache_metadata.json").read_bytes() == before


def test_after_closing_the_document_shows_all(folder):
    with opened(folder) as backend:
        store_id = backend.store_id
        commit(backend, put("runs/ü", blob(digest="d"), metadata='{"f1":0.5,"tags":["a"]}'))
        commit(backend, put("small", payload=b"\0\xff"))
    text = (folder / "cache_metadata.json").read_text("utf-8")
    document = json.loads(text)
    assert document["format"] == "blobstore-index"
    assert document["store_id"] == store_id
    assert document["journal"] == "cache_metadata.2.journal"
    assert document["entries"]["runs/ü"]["metadata"] == {"f1": 0.5, "tags": ["a"]}
    assert document["entries"]["small"]["parts"][0]["payload"] == "AP8="
    (row,) = document["blobs"].values()
    assert row["digest"] == "d"
    assert sorted(content(folder)) == [
        "cache_metadata.2.journal",
        "cache_metadata.json",
        "cache_metadata.lock",
    ]
    assert '    "runs/ü": {"id":1,' in text


def test_no_path_is_in_the_files(folder, tmp_path, no_folding):
    with opened(folder) as backend:
        commit(backend, put("k", blob()))
    assert not any(bytes(tmp_path) in data for data in content(folder).values())
    folder.rename(tmp_path / "moved")
    assert [entry.key for entry in entries(tmp_path / "moved")] == ["k"]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_texts_come_back_exactly_from_journal_and_document(folder, monkeypatch, text):
    with monkeypatch.context() as patch:
        patch.setattr(JsonBackend, "_fold_at_close", lambda self: None)
        with opened(folder) as backend:
            result = commit(backend, put("k", blob(), metadata=text, info=text))
        assert entries(folder) == [result.entries[0]]
    JsonBackend(folder).close()
    assert (folder / "cache_metadata.1.journal").exists() is False
    assert entries(folder) == [result.entries[0]]
    assert entries(folder)[0].metadata_text == entries(folder)[0].info_text == text
    json.loads((folder / "cache_metadata.json").read_text("utf-8"), parse_constant=pytest.fail)


def test_every_field_comes_back_from_journal_and_document(folder, monkeypatch):
    shared = blob(digest="d", created_us=7)
    with monkeypatch.context() as patch:
        patch.setattr(JsonBackend, "_fold_at_close", lambda self: None)
        with opened(folder) as backend:
            commit(backend, put("a\n\"'", shared, blob()), put("inline", payload=bytes(range(256))))
            commit(backend, Copy("a\n\"'", "b", 9), put("old", blob()))
            commit(backend, Delete("old"), Patch("b", '{"x":1}', 11))
            backend.announce([blob(created_us=3)])
            backend.condemn(["unknown"], 12)
            commit(backend, put("lost", blob(digest="d")))
            expected = list(backend.scan(Query())), sorted(backend.blobs(), key=repr)
    for _ in range(2):
        with opened(folder) as backend:
            assert (list(backend.scan(Query())), sorted(backend.blobs(), key=repr)) == expected
            assert backend.find_digests(["d"]) == {"d": shared}


def test_ids_are_not_used_again_after_folding(folder):
    with opened(folder) as backend:
        commit(backend, put("a"), put("b"))
        commit(backend, Delete("b"))
    with opened(folder) as backend:
        assert commit(backend, put("b")).entries[0].id == 3


def test_opening_and_reading_write_nothing(folder, no_folding):
    with opened(folder) as backend:
        commit(backend, put("k", blob()))
    before = content(folder), os.stat(folder).st_mtime_ns
    with opened(folder) as backend:
        backend.get("k")
        backend.sync()
        commit(backend, Delete("absent"))
        commit(backend)
    assert (content(folder), os.stat(folder).st_mtime_ns) == before


def test_a_lone_surrogate_harms_nothing(backend):
    commit(backend, put("k"))
    with pytest.raises(InvalidInputError, match="surrogate"):
        commit(backend, put("bad", metadata='{"a":"\ud800"}'))
    assert commit(backend, put("k2")).entries[0].id == 2
    assert list(backend.keys(Query())) == ["k", "k2"]


# --- arguments, readonly, closed


@pytest.mark.parametrize(
    "options", [{"timeout": -1}, {"timeout": float("nan")}, {"timeout": "1"}, {"timeout": True}]
)
def test_wrong_arguments(folder, options):
    with pytest.raises(ConfigError, match="timeout"):
        JsonBackend(folder, **options)
    assert not folder.exists()


def test_a_directory_that_is_no_path():
    with pytest.raises(ConfigError, match="directory"):
        JsonBackend(17)


def test_a_directory_that_is_a_file(folder):
    folder.write_text("x")
    with pytest.raises(StorageError, match="store"):
        JsonBackend(folder)


def test_readonly_needs_an_index_and_makes_nothing(folder):
    with pytest.raises(ConfigError, match="readonly=True"):
        JsonBackend(folder, readonly=True)
    assert not folder.exists()


def test_readonly_sees_what_others_write_and_writes_nothing(folder):
    JsonBackend(folder).close()
    (folder / "cache_metadata.lock").unlink()
    with opened(folder, readonly=True) as reader:
        changes = [
            lambda: commit(reader, put("k")),
            lambda: reader.announce([blob()]),
            lambda: reader.condemn(["x"], 1),
            lambda: reader.forget(["x"]),
        ]
        for change in changes:
            with pytest.raises(PermissionDeniedError, match="readonly"):
                change()
        reader.sync()
        assert sorted(content(folder)) == ["cache_metadata.1.journal", "cache_metadata.json"]
        with opened(folder) as writer:
            commit(writer, put("k"))
            assert reader.get("k") == writer.get("k")
        assert reader.stats()["generation"] == 2
        before = content(folder)
    assert content(folder) == before


def test_use_after_closing(folder):
    backend = JsonBackend(folder)
    backend.close()
    backend.close()
    calls = [
        lambda: backend.get("k"),
        lambda: backend.scan(Query()),
        lambda: backend.scan(Query(limit=0)),
        lambda: backend.count(Query()),
        lambda: commit(backend, put("k")),
        lambda: backend.store_id,
        backend.sync,
        backend.check,
        backend.stats,
        backend.blobs,
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_a_pickled_copy_opens_the_same_index_when_it_is_first_used(backend, folder):
    data = pickle.dumps(backend)
    commit(backend, put("k", blob()))
    with contextlib.closing(pickle.loads(data)) as copied:
        assert copied.get("k") == backend.get("k")
        commit(copied, put("k2"))
        assert backend.get("k2") == copied.get("k2")
    shutil.rmtree(folder)
    with pytest.raises(IntegrityError, match="missing"):
        pickle.loads(data).get("k")
    assert not folder.exists()


def test_a_pickled_copy_keeps_its_options(folder):
    JsonBackend(folder).close()
    with opened(folder, readonly=True) as reader:
        copied = pickle.loads(pickle.dumps(reader))
    with pytest.raises(PermissionDeniedError):
        commit(copied, put("k"))


# --- foreign and damaged files


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"entries":{"k":{}}}', '"blobstore-index"', '{"format":"other"}']
)
def test_a_file_of_another_program_is_left_alone(folder, text):
    folder.mkdir()
    (folder / "cache_metadata.json").write_text(text)
    with pytest.raises(IncompatibleStoreError, match="another program"):
        JsonBackend(folder)
    assert content(folder) == {"cache_metadata.json": text.encode()}


def document_of(folder):
    return json.loads((folder / "cache_metadata.json").read_text("utf-8"))


def rewrite(folder, document):
    """Replace the document by one without a checksum, as somebody editing it would."""
    document.pop("checksum", None)
    (folder / "cache_metadata.json").write_text(json.dumps(document, indent=1))


@pytest.fixture
def stored(folder):
    """A closed store of two entries in the document, and one more in the journal."""
    with opened(folder) as backend:
        commit(backend, put("a", blob(digest="d"), metadata='{"x":1}'), put("b", payload=b"bytes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JsonBackend, "_fold_at_close", lambda self: None)
        with opened(folder) as backend:
            commit(backend, put("c", blob()))
    return folder


def test_a_newer_format_is_refused(stored):
    rewrite(stored, document_of(stored) | {"format_version": 2})
    before = content(stored)
    with pytest.raises(IncompatibleStoreError, match="upgrade"):
        JsonBackend(stored)
    assert content(stored) == before


def test_a_document_edited_on_purpose_is_read(stored):
    document = document_of(stored)
    document["entries"]["a"]["metadata"]["x"] = 2
    text = json.dumps(document, indent=4)
    (stored / "cache_metadata.json").write_text(text)
    with pytest.raises(IntegrityError, match="checksum"):
        JsonBackend(stored)
    rewrite(stored, document)
    assert entries(stored)[0].metadata == {"x": 2}


def refused(folder, match="cache_metadata"):
    """The index is refused, again and in each way, and left as it is."""
    before = content(folder)
    for options in ({}, {"readonly": True}):
        with pytest.raises((IntegrityError, IncompatibleStoreError), match=match):
            JsonBackend(folder, **options)
    assert content(folder) | {"cache_metadata.lock": b""} == before | {"cache_metadata.lock": b""}


def test_a_document_cut_off_anywhere_is_refused(stored):
    data = (stored / "cache_metadata.json").read_bytes()
    for size in [0, 1, *range(2, len(data) - 3, 37), len(data) - 3, len(data) - 2]:
        (stored / "cache_metadata.json").write_bytes(data[:size])
        refused(stored)


def test_an_altered_byte_of_the_document_is_refused_or_means_nothing(stored):
    path = stored / "cache_metadata.json"
    data, expected = path.read_bytes(), entries(stored)
    accepted = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        try:
            found = entries(stored)
        except (IntegrityError, IncompatibleStoreError):
            continue
        assert found == expected, position
        accepted += 1
    assert accepted <= len('"checksum": ') + len("\n}\n")


@pytest.mark.parametrize(
    "change",
    [
        {"entries": {"a": {}}},
        {"entries": [1]},
        {"entries": None},
        {"blobs": {}},
        {"blobs": {"x": None, "y": 1}},
        {"next_id": "1"},
        {"store_id": "x"},
        {"store_id": None},
        {"generation": 3},
        {"generation": None},
        {"format_version": "1"},
        {"journal": "../cache_metadata.2.journal"},
    ],
    ids=str,
)
def test_a_document_that_makes_no_sense_is_refused(stored, change):
    rewrite(stored, document_of(stored) | change)
    refused(stored)


def test_a_missing_document_is_not_an_empty_store(stored):
    (stored / "cache_metadata.json").unlink()
    before = content(stored)
    with pytest.raises(IntegrityError, match=r"cache_metadata\.2\.journal is there"):
        JsonBackend(stored)
    with pytest.raises(ConfigError):
        JsonBackend(stored, readonly=True)
    assert content(stored) == before


def test_a_document_that_goes_missing_is_not_an_empty_store(backend, folder):
    commit(backend, put("k"))
    (folder / "cache_metadata.json").rename(folder / "away")
    for call in (lambda: backend.get("k"), lambda: commit(backend, put("k2")), backend.sync):
        with pytest.raises(IntegrityError, match="missing"):
            call()
    assert backend.check()[0].startswith("the index")
    (folder / "away").rename(folder / "cache_metadata.json")
    assert backend.get("k").version == 1


def test_a_missing_journal_is_refused(stored):
    (stored / "cache_metadata.2.journal").unlink()
    refused(stored, match=r"cache_metadata\.2\.journal.* is missing")


def test_the_journal_of_another_store_is_refused(stored, tmp_path):
    with opened(tmp_path / "other") as other:
        commit(other, put("k"))
    shutil.copy(tmp_path / "other/cache_metadata.json", stored)
    refused(stored, match="at byte 0 ")


def test_another_store_in_place_of_an_open_one_is_noticed(backend, folder, tmp_path):
    commit(backend, put("k"))
    with opened(tmp_path / "other"):
        pass
    folder.rename(tmp_path / "away")
    shutil.copytree(tmp_path / "other", folder)
    with pytest.raises(IncompatibleStoreError, match="another store"):
        backend.get("k")


def test_damage_of_the_journal_is_named_and_nothing_is_written_over_it(stored):
    path = stored / "cache_metadata.2.journal"
    with opened(stored) as backend:
        data = path.read_bytes()
        path.write_bytes(data + b"garbage\n")
        for call in (lambda: backend.get("a"), lambda: commit(backend, put("d"))):
            with pytest.raises(IntegrityError, match=f"at byte {len(data)} "):
                call()
        (problem,) = backend.check()
        assert f"truncate -s {len(data)}" in problem
    refused(stored, match=f"at byte {len(data)} ")
    assert path.read_bytes() == data + b"garbage\n"


def test_a_journal_line_that_makes_no_sense_is_named(stored, monkeypatch):
    monkeypatch.setattr(JsonBackend, "_fold_at_close", lambda self: None)
    with opened(stored) as backend:
        backend.get("a")
        journal = backend._loaded.journal
        offset = journal.mark.offset
        journal.append(b'{"entries":{"x":{}},"blobs":{},"next_id":9}')
    refused(stored, match=f"at byte {offset},")


def test_check_tells_what_does_not_fit_together(stored):
    document = document_of(stored)
    location, row = next(iter(document["blobs"].items()))
    document["blobs"]["f" * 32] = row
    document["entries"]["twin"] = document["entries"]["a"]
    document["entries"]["dangling"] = document["entries"]["a"] | {
        "id": 77,
        "parts": [{"name": "p", "location": "e" * 32}],
    }
    document["blobs"]["e" * 32] = row | {"state": "condemned", "digest": None}
    rewrite(stored, document)
    with opened(stored, readonly=True) as backend:
        text = "\n".join(backend.check())
    for part in (
        "'twin' has the id 1",
        "'dangling' has the id 77",
        f"'dangling' refers to the blob {'e' * 32}, which is condemned",
        f"the blob {'f' * 32} is live, but no entry",
        f"the blob {location} is live, and so is another",
    ):
        assert part in text


# --- folding


def always_fold(monkeypatch):
    monkeypatch.setattr(backend_module, "_FOLD_FROM", 0)
    monkeypatch.setattr(backend_module, "_FOLD_FACTOR", 0)


def test_a_long_journal_is_folded(folder, monkeypatch):
    with opened(folder) as backend, opened(folder) as other:
        commit(backend, put("a", blob()))
        assert other.get("a") is not None
        always_fold(monkeypatch)
        commit(backend, put("b", blob()))
        assert journals(folder) == ["cache_metadata.2.journal"]
        assert backend.stats()["journal_bytes"] == 0
        assert list(document_of(folder)["entries"]) == ["a", "b"]
        for which in (other, backend, other):
            commit(which, put("c", blob()), Patch("a", '{"n":1}', 1))
            assert list(backend.scan(Query())) == list(other.scan(Query()))
        assert backend.stats() == other.stats()
        assert backend.stats()["generation"] == 5


def test_folding_is_rare_enough_to_cost_little(folder, monkeypatch):
    """A thousand commits write a few snapshots, each longer than the one before."""
    monkeypatch.setattr(backend_module, "_FOLD_FROM", 2000)
    sizes = []
    with opened(folder) as backend:
        for i in range(1000):
            commit(backend, put(f"k{i}"))
            stats = backend.stats()
            sizes.append((stats["generation"], stats["snapshot_bytes"]))
    assert 3 <= sizes[-1][0] <= 8
    assert sum(size for _, size in set(sizes)) < 2 * sizes[-1][1]


def test_closing_folds_a_large_store_only_if_that_pays(folder, monkeypatch):
    monkeypatch.setattr(backend_module, "_CHEAP_ENTRIES", 5)
    with opened(folder) as backend:
        commit(backend, *[put(f"k{i:03}") for i in range(200)])
    assert journals(folder) == ["cache_metadata.2.journal"]
    with opened(folder) as backend:
        commit(backend, put("new"))
    assert journals(folder) == ["cache_metadata.2.journal"]
    assert len(entries(folder)) == 201


def test_closing_does_not_wait_for_another_writer(folder):
    backend = JsonBackend(folder)
    commit(backend, put("k"))
    with opened(folder) as other, other._lock:
        backend.close()
        assert journals(folder) == ["cache_metadata.1.journal"]


class Crash(BaseException):
    """The process ends here."""


def at_step(monkeypatch, step, error):
    """Raise `error` at the `step`-th call that folding makes to the operating system."""
    count = [0]

    def wrap(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == step:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for owner, name in [
        (os, "open"),
        (os, "fsync"),
        (os, "listdir"),
        (Path, "open"),
        (Path, "replace"),
        (Path, "unlink"),
    ]:
        wrap(owner, name)
    return count


def steps_of_a_fold(folder):
    with opened(folder) as backend, pytest.MonkeyPatch.context() as patch:
        commit(backend, put("k"))
        always_fold(patch)
        count = at_step(patch, -1, None)
        commit(backend, put("k"))
        return count[0]


def test_a_fold_takes_the_steps_that_the_next_tests_break_off(tmp_path):
    assert 10 <= steps_of_a_fold(tmp_path) <= 20


@pytest.mark.parametrize("step", range(1, 20))
@pytest.mark.parametrize("after", [False, True], ids=["before", "again"])
def test_a_crash_at_any_step_of_a_fold_loses_nothing(tmp_path, monkeypatch, step, after):
    folder = tmp_path / "store"
    crashed = JsonBackend(folder)
    commit(crashed, put("a", blob(), metadata='{"n":1}'))
    with monkeypatch.context() as patch:
        always_fold(patch)
        at_step(patch, step, Crash())
        try:
            commit(crashed, put("b", blob()))
        except Crash:
            pass
        else:
            assert step > 10
    left = tmp_path / "left"
    shutil.copytree(folder, left)
    assert [entry.key for entry in entries(left)] == ["a", "b"]
    if after:  # the process only had an exception, and goes on
        left = folder
        commit(crashed, put("c"))
        assert [entry.key for entry in entries(left)] == ["a", "b", "c"]
    with opened(left) as backend:
        commit(backend, put("c"))
    assert [entry.key for entry in entries(left)] == ["a", "b", "c"]
    assert len(content(left)) == 3


@pytest.mark.parametrize("step", range(2, 20))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_fold_that_fails_is_no_failure_of_the_commit(folder, monkeypatch, step, code):
    with opened(folder) as backend, opened(folder) as other:
        commit(backend, put("a", blob()))
        with monkeypatch.context() as patch:
            always_fold(patch)
            at_step(patch, step, OSError(code, os.strerror(code)))
            assert commit(backend, put("b", blob())).entries[0].version == 1
        assert not (folder / "cache_metadata.json.tmp").exists()
        for which in (backend, other):
            commit(which, put("c", blob()))
            assert list(which.keys(Query())) == ["a", "b", "c"]
        assert entries(folder) == list(backend.scan(Query()))
    assert len(content(folder)) == 3


def test_a_fold_that_failed_is_not_tried_again_at_each_commit(folder, monkeypatch):
    always_fold(monkeypatch)
    tries = []

    def fail(self, loaded):
        tries.append(loaded.journal.mark.offset)
        raise OutOfSpaceError("full")

    with opened(folder) as backend, monkeypatch.context() as patch:
        patch.setattr(JsonBackend, "_fold", fail)
        for _ in range(40):
            commit(backend, put("k"))
    assert 3 <= len(tries) <= 8


def test_leftovers_are_removed_and_nothing_else(stored):
    strange = ["cache_metadata.x.journal", "cache_metadata.03.journal", "cache_metadata.json.bak"]
    for name in [*strange, "cache_metadata.1.journal", "cache_metadata.json.tmp"]:
        (stored / name).write_bytes(b"left")
    (stored / "cache_metadata.3.journal").touch()
    (stored / "cache_metadata.4.journal").write_bytes(b"commits of a newer document")
    with opened(stored, readonly=True):
        assert (stored / "cache_metadata.json.tmp").exists()
    kept = [*strange, "cache_metadata.json", "cache_metadata.lock"]
    with opened(stored):
        journals = ["cache_metadata.2.journal", "cache_metadata.4.journal"]
        assert sorted(content(stored)) == sorted([*kept, *journals])
    # A generation that was used is not used again.
    assert sorted(content(stored)) == sorted([*kept, "cache_metadata.5.journal"])
    assert [entry.key for entry in entries(stored)] == ["a", "b", "c"]


def test_a_reader_that_meets_a_fold_reads_again(stored, monkeypatch):
    """The document was read, and then the journal that it names was folded away."""
    real = backend_module._read_file
    folded = []

    def read(path):
        answer = real(path)
        if not folded:
            folded.append(True)
            JsonBackend(stored).close()
        return answer

    monkeypatch.setattr(backend_module, "_read_file", read)
    with opened(stored, readonly=True) as reader:
        assert reader.stats()["generation"] == 3
        assert list(reader.keys(Query())) == ["a", "b", "c"]


def test_a_crash_while_the_index_is_made_does_not_stop_the_next(folder, monkeypatch):
    for step in range(1, 7):
        with monkeypatch.context() as patch:
            at_step(patch, step, Crash())
            with pytest.raises(Crash):
                JsonBackend(folder, fsync=True)
        if (folder / "cache_metadata.json").exists():
            break
    with opened(folder) as backend:
        assert backend.count(Query()) == 0
    assert len(content(folder)) == 3


# --- syncing


def recorded_syncs(monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return synced


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@needs_proc
def test_with_fsync_each_commit_is_synced_before_it_returns(folder, monkeypatch):
    JsonBackend(folder).close()
    with opened(folder, fsync=True) as backend:
        synced = recorded_syncs(monkeypatch)
        commit(backend, put("a"))
        # The index was made without syncing, so document and folder are due as well, once.
        assert sorted(synced) == ["cache_metadata.1.journal", "cache_metadata.json", "store"]
        for change in (
            lambda: commit(backend, put("b")),
            lambda: backend.announce([blob()]),
            lambda: backend.condemn(["x"], 1),
            lambda: backend.forget(["x"]),
        ):
            synced.clear()
            change()
            assert synced == ["cache_metadata.1.journal"]
        synced.clear()
        commit(backend, Delete("absent"))
        assert synced == []


@needs_proc
def test_without_fsync_only_sync_and_folding_do(folder, monkeypatch):
    synced = recorded_syncs(monkeypatch)
    with opened(folder) as backend:
        # An empty document after a power cut would be a store that refuses to open.
        assert synced == ["cache_metadata.json.tmp"]
        synced.clear()
        commit(backend, put("a"))
        assert synced == []
        backend.sync()
        assert sorted(synced) == ["cache_metadata.1.journal", "cache_metadata.json", "store"]
        synced.clear()
    assert synced == ["cache_metadata.json.tmp", "store", "store"]


def test_a_sync_that_fails_leaves_the_outcome_unknown(folder, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "broken")

    with opened(folder, fsync=True) as backend:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            with pytest.raises(UnavailableError, match="commit the same again") as caught:
                commit(backend, put("a", expected="absent"), commit_id="c")
            assert caught.value.outcome == "unknown"
            with pytest.raises(StorageError, match="syncing"):
                backend.sync()
        assert commit(backend, put("a", expected="absent"), commit_id="c").entries[0].version == 1


# --- committing again


def test_a_repeated_delete_is_answered_as_the_first_was(backend):
    old = commit(backend, put("k", blob())).entries[0]
    first = commit(backend, Delete("k"), commit_id="c")
    commit(backend, put("k", blob()))
    assert commit(backend, Delete("k"), commit_id="c") == first
    assert first.entries == (old,)
    assert backend.get("k").id == 2


def test_only_so_many_results_are_remembered(backend):
    for i in range(backend_module._REMEMBERED + 1):
        commit(backend, Delete(f"k{i}"), commit_id=f"c{i}")
    assert len(backend._recent) == backend_module._REMEMBERED
    assert "c0" not in backend._recent


def test_after_reopening_a_commit_is_known_by_what_it_wrote(folder):
    operations = [put("a", expected="absent"), Delete("b"), Copy("a", "c", 1), Patch("d", "{}", 1)]
    with opened(folder) as backend:
        commit(backend, put("b"), put("d"))
        first = commit(backend, *operations, commit_id="c")
    with opened(folder) as backend:
        again = commit(backend, *operations, commit_id="c")
        assert again.entries == (first.entries[0], None, *first.entries[2:])
        assert backend.get("a").version == 1


# --- interruptions


@pytest.mark.parametrize("method", ["_set_blob", "_set_entry"])
def test_an_interrupted_commit_is_never_half_there(backend, monkeypatch, method):
    def interrupt(self, *args):
        raise KeyboardInterrupt

    commit(backend, put("a", blob()))
    with monkeypatch.context() as patch:
        patch.setattr(IndexState, method, interrupt)
        with pytest.raises(KeyboardInterrupt):
            commit(backend, put("a", blob()), put("b", blob()))
    assert backend.get_many(["a", "b"]).keys() == {"a", "b"}
    assert backend.get("a").version == 2
    assert list(backend._loaded.state.problems()) == []
    commit(backend, put("c"))


def test_an_interrupted_reader_does_not_keep_half_a_commit(folder, monkeypatch):
    with opened(folder) as backend, opened(folder) as reader:
        assert reader.get("a") is None
        commit(backend, put("a", blob()), put("b", blob()))
        with monkeypatch.context() as patch:
            patch.setattr(IndexState, "_set_entry", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                reader.get("a")
        assert reader.get_many(["a", "b"]).keys() == {"a", "b"}
        assert list(reader._loaded.state.problems()) == []


def test_a_reader_that_finds_the_line_first_does_not_make_it_count_twice(backend, monkeypatch):
    real = backend_module.Journal.append

    def append(journal, payload):
        end = real(journal, payload)
        reader = threading.Thread(target=backend.get, args=("k",))
        reader.start()
        reader.join()
        return end

    monkeypatch.setattr(backend_module.Journal, "append", append)
    shared = blob()
    for version in (1, 2):
        assert commit(backend, put("k", shared)).entries[0].version == version
    assert list(backend._loaded.state.problems()) == []
    assert backend._loaded.state.references == {shared.location: 1}


def test_a_scan_survives_changes(backend, monkeypatch):
    monkeypatch.setattr(backend_module, "_PAGE", 3)
    commit(backend, *[put(f"k{i:02}") for i in range(0, 40, 2)])
    seen = []
    for entry in backend.scan(Query()):
        seen.append(entry.key)
        if len(seen) % 2:
            commit(backend, put(f"k{len(seen):02}x"), Delete(f"k{39 - len(seen):02}"))
    stayed = [key for key in (f"k{i:02}" for i in range(0, 40, 2)) if backend.get(key)]
    assert set(stayed) <= set(seen)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 7, 100, None])
@pytest.mark.parametrize("equal", [{}, {"even": True}])
def test_pages_add_up(backend, monkeypatch, limit, equal):
    monkeypatch.setattr(backend_module, "_PAGE", 3)
    keys = [f"k{i}" for i in range(9)]
    commit(
        backend,
        *[put(k, metadata=json.dumps({"even": i % 2 == 0})) for i, k in enumerate(keys)],
    )
    expected = keys[::2] if equal else keys
    query = equal_to(equal, limit=limit)
    assert list(backend.keys(query)) == expected[:limit]
    assert backend.count(query) == len(expected[:limit])


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "del", "ask"]), st.text("ab\U0001f600", max_size=3)),
        max_size=200,
    ),
    st.integers(0, 3),
)
def test_keys_stay_in_order(steps, resort):
    state, model = IndexState("0" * 32), Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blobstore.backends.metadata.state._RESORT", resort)
        for kind, key in steps:
            if kind == "ask":
                assert state.ordered() == sorted(model.entries)
                assert state.count(key, None) == len(model.find(Query(prefix=key)))
                page = [entry.key for entry in state.page(key, "a", 2)]
                assert page == [e.key for e in model.find(Query(key, after="a", limit=2))]
                continue
            operation = put(key) if kind == "set" else Delete(key)
            commit_id = random_id()
            changes, _ = plan(state, [operation], commit_id, 0)
            state.apply(changes)
            model.commit([operation], commit_id)
        assert state.ordered() == sorted(model.entries)


# --- processes


def child(script, *arguments, **options):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(PRELUDE) + textwrap.dedent(script),
            *map(str, arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


PRELUDE = """
    import contextlib, os, resource, signal, sys, threading
    from blobstore.backends.metadata.json import JsonBackend
    from blobstore.entry import Blob, EntryDraft, Part
    from blobstore.errors import *
    from blobstore.keys import new_location, random_id
    from blobstore.protocols import Delete, Patch, Put

    def opened(*arguments, **options):
        return contextlib.closing(JsonBackend(*arguments, **options))

    def put(key, metadata="{}"):
        blob = Blob(new_location(""), 1, "xxh3-128:0", "none", "pickle", 1)
        return Put(EntryDraft(key, "pickle", "object", "{}", metadata, (Part("p", blob),), 1, 1))
"""


def finish(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.split()


def test_processes_and_threads_lose_nothing(folder, monkeypatch):
    """Two processes of four threads: each adds keys of its own and counts up a shared one."""
    JsonBackend(folder).close()
    script = """
        from blobstore.backends.metadata import json as module
        module._FOLD_FROM, module._FOLD_FACTOR = 3000, 1
        backend = JsonBackend(sys.argv[1])

        def work(name):
            for i in range(25):
                pair = [put(f"{name}/{i}/{side}") for side in "ab"]
                backend.commit(pair, random_id())
                assert len(backend.get_many([op.draft.key for op in pair])) == 2
                while True:
                    entry = backend.get("shared")
                    n = entry.metadata["n"] + 1
                    try:
                        patch = Patch("shared", '{"n":%d}' % n, 1, expected=entry)
                        backend.commit([patch], random_id())
                    except ConflictError:
                        continue
                    break

        threads = [threading.Thread(target=work, args=(f"{sys.argv[2]}-{t}",)) for t in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        backend.close()
    """
    with opened(folder) as backend:
        commit(backend, put("shared", metadata='{"n":0}'))
        processes = [child(script, folder, name) for name in "xy"]
        for process in processes:
            finish(process)
        assert backend.get("shared").metadata == {"n": 200}
        assert backend.get("shared").version == 201
        names = Counter(key.split("/")[0] for key in backend.keys(Query()))
        assert sorted(names.values()) == [1] + [50] * 8
        assert backend.check() == []


def killed_writer(folder, acknowledged):
    """Kill a writer of pairs once it has acknowledged so many; the last one acknowledged."""
    script = """
        from blobstore.backends.metadata import json as module
        module._FOLD_FROM, module._FOLD_FACTOR = 2000, 0
        backend = JsonBackend(sys.argv[1])
        start = backend.get("a").metadata["n"] if backend.get("a") else 0
        for n in range(start + 1, start + 100_000):
            backend.commit([put(k, '{"n":%d}' % n) for k in "ab"], random_id())
            print(n, flush=True)
    """
    with child(script, folder) as process:
        for _ in range(acknowledged):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split("\n")
        # The last piece may be half a number.
        return int(rest[-2]) if len(rest) > 1 else last


def kill_and_look(folder, acknowledged):
    last = killed_writer(folder, acknowledged)
    with opened(folder) as backend:
        a, b = (backend.get(key).metadata["n"] for key in "ab")
        assert a == b
        assert last <= a <= last + 1
        assert backend.check() == []
        assert len(backend.condemned()) == 2 * (a - 1)
        commit(backend, put("c"))


@pytest.mark.parametrize("acknowledged", [1, 17, 60])
def test_a_killed_writer_loses_nothing_that_it_acknowledged(folder, acknowledged):
    kill_and_look(folder, acknowledged)


@pytest.mark.nightly
def test_many_killed_writers_lose_nothing(tmp_path):
    for i in range(300):
        kill_and_look(tmp_path / f"{i % 20}", 1 + i % 23)


def test_a_full_disk_fails_the_commit_and_harms_nothing(folder):
    """The file size limit stands for the disk."""
    script = """
        backend = JsonBackend(sys.argv[1])
        backend.commit([put("a")], random_id())
        backend.commit([put("b")], random_id())
        size = os.path.getsize(os.path.join(sys.argv[1], "cache_metadata.1.journal"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
        try:
            backend.commit([put("c"), put("a")], random_id())
        except OutOfSpaceError as exc:
            assert "cache_metadata.1.journal" in str(exc)
            print("full")
        assert os.path.getsize(os.path.join(sys.argv[1], "cache_metadata.1.journal")) == size
        assert backend.get("c") is None and backend.get("a").version == 1
        backend.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        with opened(sys.argv[1]) as backend:
            print(backend.commit([put("c")], random_id()).entries[0].id)
    """
    assert finish(child(script, folder)) == ["full", "3"]
    assert [entry.key for entry in entries(folder)] == ["a", "b", "c"]


def test_a_forked_child_works_while_a_thread_of_the_parent_writes(folder):
    """Locks, state and file descriptors of the parent are not the child's."""
    script = """
        backend = JsonBackend(sys.argv[1], timeout=60)
        backend.commit([put("before")], random_id())
        held, done = threading.Event(), threading.Event()

        def hold():
            with backend._lock, backend._mutex:
                held.set()
                done.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        tried, told = os.pipe()
        child = os.fork()
        if child == 0:
            reading = backend.get("before") is not None
            free = backend._lock.acquire(wait=False)
            print("read", reading, "lock", free, flush=True)
            os.write(told, b"x")
            sys.stdin.readline()
            backend.commit([put("child")], random_id())
            backend.close()
            os._exit(0)
        os.close(told)
        os.read(tried, 1)
        with opened(sys.argv[1], timeout=0) as other:
            try:
                other.commit([put("x")], random_id())
            except UnavailableError:
                print("still held", flush=True)
        done.set()
        thread.join()
        backend.commit([put("parent")], random_id())
        print("go", flush=True)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert backend.get("child") is not None
        backend.commit([put("after")], random_id())
        backend.close()
    """
    process = child(script, folder)
    seen = [process.stdout.readline().strip() for _ in range(3)]
    assert seen == ["read True lock False", "still held", "go"]
    process.stdin.write("\n")
    finish(process)
    assert [entry.key for entry in entries(folder)] == ["after", "before", "child", "parent"]


def test_a_fold_that_fails_leaves_the_commit_that_landed(folder, monkeypatch):
    """Raising would make the caller delete the blobs of an entry that is there."""
    import blobstore.backends.metadata.json as module

    def fold(loaded):
        raise IntegrityError("somebody closed or damaged it meanwhile")

    monkeypatch.setattr(module, "_FOLD_FROM", 0)
    monkeypatch.setattr(module, "_FOLD_FACTOR", 0)
    with opened(folder) as backend:
        folding = monkeypatch.context()
        with folding as patch:
            patch.setattr(backend, "_fold", fold)
            assert commit(backend, put("a")).entries[0].version == 1
        assert backend.get("a").version == 1
    with opened(folder) as backend:
        assert backend.get("a").version == 1


# --- queries


def test_queries_are_explained(backend):
    def told(query):
        explanation = backend.explain(query)
        return explanation.statement, explanation.plan, explanation.scans, explanation.suggestion

    order = parse_order("-a")
    assert told(Query("k")) == ("memory", "by key, from a sorted list", False, None)
    assert told(Query(where=F("a") > 1)) == ("memory", "each entry is looked at", True, None)
    sorted_plan = "each entry is looked at, then sorted in memory"
    assert told(Query(order=order)) == ("memory", sorted_plan, True, None)
    assert told(Query(order=order, limit=1))[1].endswith("the first ones are kept")


def test_there_are_no_field_indexes(backend):
    with pytest.raises(NotSupportedError, match=r"not on a\.b either: .* in memory .*sqlite"):
        backend.create_index(F("a.b").field)
