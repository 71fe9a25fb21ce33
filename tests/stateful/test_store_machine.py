"""Random histories of a BlobStore, with several handles and reopening, against a dictionary."""

from __future__ import annotations

import copy
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blobstore import (
    BlobStore,
    ConflictError,
    KeyExistsError,
    KeyNotFoundError,
    UnsupportedTypeError,
)
from blobstore.keys import is_location
from blobstore.testing.blob_store import assert_same

VALUES = [
    None,
    {"x": [1, (2.5, "y")]},
    "text " * 3000,
    np.random.default_rng(1).bytes(20_000),
    np.random.default_rng(2).bytes(20_000),
    np.arange(9000.0),
    np.zeros((3, 0)),
    {"w": np.arange(12_000), "b": np.arange(12_000) * 2, "e": 1},
    {
        "w": np.arange(12_000),
        "b": np.arange(12_000) * 3,
        "e": 2,
    },  # shares a part with the one above
]
numbers = st.integers(0, len(VALUES) - 1)
keys = st.sampled_from(["a", "ab", "a%", "b/../c", "é", "\U0001f389"])
names = st.sampled_from(["v", "w", "a.b", ""])
metadata = st.dictionaries(
    names, st.sampled_from([0, 1, 1.0, True, None, "1", [1, {"x": None}], 2**60]), max_size=3
)
handles = st.integers(0, 2)


def matches(stored, wanted):
    """Equality of JSON values, written down apart from the one in the package."""
    if isinstance(stored, bool) or isinstance(wanted, bool) or stored is None or wanted is None:
        return stored is wanted
    return (isinstance(stored, int | float) == isinstance(wanted, int | float)) and stored == wanted


@dataclass
class Row:
    """What the model knows of a key."""

    number: int
    metadata: dict
    version: int


class StoreMachine(RuleBasedStateMachine):
    """Subclasses say with which options."""

    options: dict
    root: Path

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.root))
        self.stores = [self.open()]
        self.rows: dict[str, Row] = {}
        self.past = []  # entries as they once were

    def open(self):
        return BlobStore(self.folder, **self.options)

    @property
    def shared(self):
        return self.options.get("content_addressable", False)

    def store(self, handle):
        return self.stores[handle % len(self.stores)]

    def teardown(self):
        try:
            for store in self.stores:
                store.close()
            with self.open() as store:
                self.compare(store)
                for key, row in self.rows.items():
                    assert_same(store[key], VALUES[row.number])
                report = store.verify(deep=True)
                assert report.ok, report.problems
                assert store.clear() == len(self.rows)
                assert self.files() == set()
        finally:
            shutil.rmtree(self.folder)

    def files(self):
        return {p.name for p in self.folder.rglob("*") if p.is_file() and is_location(p.name)}

    # --- what must hold after each step ---

    @invariant()
    def index_is_the_model(self):
        for store in self.stores:
            self.compare(store)

    def compare(self, store):
        assert store.list() == sorted(self.rows)
        entries = {key: store.entry(key) for key in store}
        assert {k: (e.metadata, e.version) for k, e in entries.items()} == {
            key: (row.metadata, row.version) for key, row in self.rows.items()
        }
        assert self.files() == {x for entry in entries.values() for x in entry.locations}
        if self.shared:
            by_content = {}
            for key, entry in entries.items():
                by_content.setdefault(self.rows[key].number, set()).add(entry.locations)
            assert all(len(locations) == 1 for locations in by_content.values())

    # --- changes ---

    def stored(self, key, number, metadata):
        old = self.rows.get(key)
        self.rows[key] = Row(number, copy.deepcopy(metadata), old.version + 1 if old else 1)

    @rule(handle=handles, key=keys, number=numbers, metadata=metadata)
    def put(self, handle, key, number, metadata):
        store = self.store(handle)
        if key in self.rows:
            self.past.append(store.entry(key))
        assert store.put(VALUES[number], key=key, metadata=metadata) == key
        self.stored(key, number, metadata)

    @rule(handle=handles, number=numbers, metadata=metadata)
    def put_without_a_key(self, handle, number, metadata):
        key = self.store(handle).put(VALUES[number], metadata=metadata or None)
        there = self.rows.get(key)
        assert there is None or self.shared
        if there is not None:
            assert there.number == number
            found = self.store(handle).entry(key)
            assert found.version - there.version in (0, 1)  # nothing need change
            self.rows[key] = Row(number, metadata or there.metadata, found.version)
        else:
            self.stored(key, number, metadata)

    @rule(handle=handles, key=keys, number=numbers)
    def put_if_absent(self, handle, key, number):
        try:
            self.store(handle).put(VALUES[number], key=key, overwrite=False)
        except KeyExistsError:
            assert key in self.rows
        else:
            assert key not in self.rows
            self.stored(key, number, {})

    @rule(handle=handles, key=keys, number=numbers, version=st.integers(1, 4))
    def put_if_version(self, handle, key, number, version):
        try:
            self.store(handle).put(VALUES[number], key=key, if_version=version)
        except ConflictError:
            assert key not in self.rows or self.rows[key].version != version
        else:
            assert self.rows[key].version == version
            self.stored(key, number, {})

    @precondition(lambda self: self.past)
    @rule(handle=handles, number=numbers, pick=st.integers(0, 99))
    def put_if_it_is_still_what_it_was(self, handle, number, pick):
        entry = self.past[pick % len(self.past)]
        now = self.store(handle)._index.get(entry.key)
        try:
            self.store(handle).put(VALUES[number], key=entry.key, if_version=entry)
        except ConflictError:
            assert now is None or (now.id, now.version) != (entry.id, entry.version)
        else:
            assert (now.id, now.version) == (entry.id, entry.version)
            self.stored(entry.key, number, {})

    @rule(handle=handles, items=st.lists(st.tuples(keys, numbers, metadata), max_size=4))
    def put_many(self, handle, items):
        store = self.store(handle)
        given = [(key, VALUES[number], metadata) for key, number, metadata in items]
        assert store.put_many(given) == [key for key, _, _ in items]
        for key, number, wanted in items:
            self.stored(key, number, wanted)
        # How a key that is given twice counts is not said.
        for key in {key for key, _, _ in items if [k for k, _, _ in items].count(key) > 1}:
            found = store.entry(key).version
            assert 1 <= found <= self.rows[key].version
            self.rows[key].version = found

    @rule(handle=handles, key=keys, number=numbers)
    def put_what_cannot_be_stored(self, handle, key, number):
        items = [("new", VALUES[number]), (key, lambda: None)]
        with pytest.raises(UnsupportedTypeError):
            self.store(handle).put_many(items)

    @rule(handle=handles, key=keys)
    def delete(self, handle, key):
        assert self.store(handle).delete(key) is (self.rows.pop(key, None) is not None)

    @rule(handle=handles, wanted=st.lists(keys, max_size=4))
    def delete_many(self, handle, wanted):
        there = {key for key in wanted if key in self.rows}
        assert self.store(handle).delete_many(wanted) == len(there)
        for key in there:
            del self.rows[key]

    @rule(handle=handles, key=keys, change=metadata, replace=st.booleans())
    def update_metadata(self, handle, key, change, replace):
        row = self.rows.get(key)
        done = self.store(handle).update_metadata(key, change, replace=replace)
        assert done is (row is not None)
        if row is not None:
            merged = {**({} if replace else row.metadata), **copy.deepcopy(change)}
            self.rows[key] = Row(row.number, merged, row.version + 1)

    @rule(handle=handles, source=keys, goal=keys, overwrite=st.booleans(), move=st.booleans())
    def copy_or_move(self, handle, source, goal, overwrite, move):
        store = self.store(handle)
        call = store.move if move else store.copy
        try:
            assert call(source, goal, overwrite=overwrite) == goal
        except KeyNotFoundError:
            assert source not in self.rows
        except KeyExistsError:
            assert goal in self.rows
            assert not overwrite
        else:
            row = self.rows[source]
            if source == goal:
                found = store.entry(goal).version
                assert found - row.version in (0, 1)
                row.version = found
                return
            assert overwrite or goal not in self.rows
            self.stored(goal, row.number, row.metadata)
            if move:
                del self.rows[source]

    @rule(handle=handles)
    def clear(self, handle):
        assert self.store(handle).clear() == len(self.rows)
        self.rows.clear()

    # --- questions ---

    @rule(handle=handles, key=keys)
    def get(self, handle, key):
        store, row = self.store(handle), self.rows.get(key)
        missing = object()
        found = store.get(key, missing)
        assert (key in store, store.exists(key)) == (row is not None,) * 2
        if row is None:
            assert found is missing
            assert store.get_metadata(key) is None
        else:
            assert_same(found, VALUES[row.number])
            assert store.get_metadata(key)["metadata"] == row.metadata

    @rule(handle=handles, wanted=st.lists(keys, max_size=4))
    def get_many(self, handle, wanted):
        found = self.store(handle).get_many(wanted)
        assert [*found] == [key for key in dict.fromkeys(wanted) if key in self.rows]
        for key, value in found.items():
            assert_same(value, VALUES[self.rows[key].number])

    @rule(handle=handles, prefix=st.sampled_from(["", "a", "a%", "b/", "é", "z"]), wanted=metadata)
    def listing(self, handle, prefix, wanted):
        def fits(row):
            return all(
                name in row.metadata and matches(row.metadata[name], value)
                for name, value in wanted.items()
            )

        selected = sorted(k for k, row in self.rows.items() if k.startswith(prefix) and fits(row))
        assert self.store(handle).list(prefix, wanted) == selected
        assert self.store(handle).count(prefix=prefix, metadata_filter=wanted) == len(selected)

    # --- life ---

    @precondition(lambda self: len(self.stores) < 3)
    @rule(pickled=st.booleans())
    def open_another(self, pickled):
        first = self.stores[0]
        self.stores.append(pickle.loads(pickle.dumps(first)) if pickled else self.open())

    @rule(handle=handles)
    def close_and_open(self, handle):
        self.store(handle).close()
        self.stores[handle % len(self.stores)] = self.open()

    @rule()
    def close_all_and_open(self):
        for store in self.stores:
            store.close()
        self.stores = [self.open()]

    @rule(handle=handles, dry_run=st.booleans())
    def gc(self, handle, dry_run):
        """Nobody was killed, so there is nothing to collect."""
        assert self.store(handle).gc(dry_run=dry_run, grace=0).items == ()


# A history is replayed hundreds of times to make it shorter, and each replay opens real stores: only
# the nightly run does that.
COMMON = settings(
    deadline=None,
    suppress_health_check=[*HealthCheck],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
MACHINES = {
    "json": {"backend": "json"},
    "json-shared": {"backend": "json", "content_addressable": True},
    "sqlite": {"backend": "sqlite"},
    "sqlite-shared": {"backend": "sqlite", "content_addressable": True},
    "postgres": {"backend": "postgres_url"},
    "postgres-shared": {"backend": "postgres_url", "content_addressable": True},
}


@pytest.fixture(params=MACHINES)
def options(request):
    """How the stores of a machine are opened."""
    options = MACHINES[request.param]
    if options["backend"] == "postgres_url":
        return options | {"backend": request.getfixturevalue("postgres_url")}
    return options


def run(options, root, **limits):
    machine = type("Machine", (StoreMachine,), {"options": options, "root": root})
    run_state_machine_as_test(machine, settings=settings(COMMON, **limits))


def test_random_histories(tmp_path, options):
    run(options, tmp_path, max_examples=10, stateful_step_count=25)


@pytest.mark.nightly
def test_many_long_random_histories(tmp_path, options):
    run(options, tmp_path, max_examples=400, stateful_step_count=80, phases=[*Phase])
