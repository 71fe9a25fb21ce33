"""The same attacks in the folders of other programs, when those are imported."""

from __future__ import annotations

import json
import sqlite3

import diskcache
import pytest

from blobstore import BlobStore
from blobstore.importing import import_cacheness, import_diskcache, import_folder, import_joblib
from security import attacks
from security.attacks import PROVEN, UNPROVEN, ran

EVERY = PROVEN | UNPROVEN | attacks.numpy_attacks()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def files(folder):
    for number, payload in enumerate(EVERY.values()):
        (folder / f"{number}.pkl").write_bytes(payload)


def as_diskcache(folder):
    with diskcache.Cache(str(folder)) as cache:
        for number in range(len(EVERY)):
            cache[number] = None
            cache[(number,)] = 1
    database = sqlite3.connect(folder / "cache.db")
    for number, payload in enumerate(EVERY.values()):
        database.execute("UPDATE Cache SET value = ? WHERE key = ?", (payload, number))
        row = 2 * number + 2  # a key that is a pickle
        database.execute("UPDATE OR REPLACE Cache SET key = ? WHERE rowid = ?", (payload, row))
    database.commit()
    database.close()


def as_cacheness(folder):
    files(folder)
    entries = {
        str(n): {"metadata": {"actual_path": f"{n}.pkl", "storage_format": "pickle"}}
        for n in range(len(EVERY))
    }
    (folder / "cache_metadata.json").write_text(json.dumps({"entries": entries}))


KINDS = {
    "folder": (files, import_folder),
    "joblib": (files, import_joblib),
    "diskcache": (as_diskcache, import_diskcache),
    "cacheness": (as_cacheness, import_cacheness),
}


@pytest.mark.parametrize("pickles", ["signed", "deny"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_import_runs_nothing(kind, pickles, tmp_path):
    make, call = KINDS[kind]
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    with BlobStore(tmp_path / "store", backend="sqlite") as store:
        report = call(source, store, pickle=pickles)
    assert not ran()
    assert report.imported == []
    expected = 2 * len(EVERY) if kind == "diskcache" else len(EVERY)
    assert len(report.unreadable) == expected
