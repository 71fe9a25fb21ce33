"""Random histories of two stores, with transfers between them, held against two dictionaries.

A transfer may be broken off at a random write; what it leaves must be old or new object by object,
and the same call again must come to the end that an undisturbed one has.
"""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from blobstore.backends.blob.filesystem import FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import StorageError
from blobstore.transfer import clear_store, copy_store, copying, sync_stores
from blobstore.wrappers.base import WrapperStore
from blobstore.wrappers.compress import GzipStore
from blobstore.wrappers.prefix import PrefixStore

KEYS = ["a", "b", "d/1", "d/2", "d/e/f", "é"]
PREFIXES = ["", "d/", "d/e", "nothing"]

keys = st.sampled_from(KEYS)
# Few, so that they meet: of equal sizes, and the same but for their last bytes.
PIECE = 64
values = st.sampled_from(
    [b"", b"1", b"2", b"22"]
    + [bytes(size) + end for size in (PIECE - 1, PIECE, 2 * PIECE) for end in (b"1", b"2")]
)
transfers = st.fixed_dictionaries(
    {
        "prefix": st.sampled_from(PREFIXES),
        "workers": st.integers(1, 3),
        "overwrite": st.booleans(),
    }
)
syncs = st.tuples(transfers, st.booleans(), st.sampled_from(["content", "size"]))


class BrokenOffError(StorageError):
    """What a fragile store raises."""


class Fragile(WrapperStore):
    """Fails at the n-th write or deletion from now on, if it is told to."""

    def __init__(self, store):
        super().__init__(store)
        self.left = None
        self.lock = threading.Lock()

    def step(self):
        with self.lock:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise BrokenOffError("broken off")

    def put(self, key, data):
        self.step()
        super().put(key, data)

    def put_if_absent(self, key, data):
        self.step()
        return super().put_if_absent(key, data)

    def writer(self, key, size_hint=None):
        self.step()
        return super().writer(key, size_hint)

    def delete_many(self, keys):
        self.step()
        super().delete_many(keys)


class Machine(RuleBasedStateMachine):
    """Two stores and their models; subclasses say which stores."""

    def make_stores(self):
        raise NotImplementedError

    def __init__(self):
        super().__init__()
        self.source, target = self.make_stores()
        self.target = Fragile(target)
        self.models = ({}, {})

    def teardown(self):
        self.source.close()
        self.target.close()

    @rule(side=st.integers(0, 1), key=keys, value=values)
    def put(self, side, key, value):
        (self.source, self.target)[side].put(key, value)
        self.models[side][key] = value

    @rule(key=keys, value=values, end=st.sampled_from([b"", b"1"]))
    def put_alike(self, key, value, end):
        self.put(0, key, value + end)
        self.put(1, key, value + bytes(len(end)))

    @rule(side=st.integers(0, 1), keys=st.sets(keys))
    def delete(self, side, keys):
        (self.source, self.target)[side].delete_many(keys)
        for key in keys:
            self.models[side].pop(key, None)

    @rule(options=syncs, broken_at=st.none() | st.integers(0, 4))
    def sync(self, options, broken_at):
        options, delete, compare = options
        options = options | {"compare": compare}
        wanted, counts = after_sync(*self.models, delete=delete, **options)

        def call(**more):
            return sync_stores(self.source, self.target, delete, **options, **more)

        self.transfer(call, wanted, counts, broken_at)

    @rule(options=transfers, broken_at=st.none() | st.integers(0, 4))
    def copy(self, options, broken_at):
        wanted, counts = after_copy(*self.models, **options)

        def call(**more):
            return copy_store(self.source, self.target, **options, **more)

        self.transfer(call, wanted, counts, broken_at)

    @rule(prefix=st.sampled_from(PREFIXES))
    def clear(self, prefix):
        old = self.models[1]
        wanted = {key: value for key, value in old.items() if not key.startswith(prefix)}
        assert clear_store(self.target, prefix=prefix).deleted == len(old) - len(wanted)
        self.models = (self.models[0], wanted)

    @rule()
    def onto_itself(self):
        assert sync_stores(self.source, self.source, True).unchanged == len(self.models[0])

    def transfer(self, call, wanted, counts, broken_at):
        """Plan it, break it off, do it: each must agree with what the models say of it."""
        old = self.models[1]
        planned = call(dry_run=True)
        assert contents(self.target) == old
        assert told(planned) == counts
        assert planned.bytes == sum(
            len(self.models[0][k]) for a, k in planned.actions if a == "copy"
        )
        self.target.left = broken_at
        try:
            done = call()
        except BrokenOffError:
            halfway = contents(self.target)
            for key in {*old, *wanted, *halfway}:
                assert halfway.get(key) in (old.get(key), wanted.get(key)), key
            self.target.left = None
            call()
        else:
            assert told(done) == counts
            assert done.bytes == planned.bytes
        self.target.left = None
        self.models = (self.models[0], wanted)

    @invariant()
    def agrees(self):
        assert contents(self.source) == self.models[0]
        assert contents(self.target) == self.models[1]
        assert not [*self.target.leftovers()]


def contents(store):
    return {key: store.get(key) for key in store.keys()}  # noqa: SIM118 - a store is no dictionary


def told(report):
    return {"copy": report.copied, "keep": report.unchanged, "delete": report.deleted}


def after_sync(source, target, *, delete, prefix, workers, overwrite, compare):
    """What the target holds after a sync, and how many objects met which fate."""
    kept = {
        key
        for key in source.keys() & target.keys()
        if not overwrite or source[key] == target[key]
        or (compare == "size" and len(source[key]) == len(target[key]))
    }  # fmt: skip
    ours = {key for key in source if key.startswith(prefix)}
    gone = {key for key in target if key.startswith(prefix) and key not in source} if delete else ()
    wanted = {key: value for key, value in target.items() if key not in gone}
    wanted |= {key: source[key] for key in ours - kept}
    return wanted, {"copy": len(ours - kept), "keep": len(ours & kept), "delete": len(gone)}


def after_copy(source, target, *, prefix, workers, overwrite):
    """The same of a copy."""
    ours = {key for key in source if key.startswith(prefix)}
    kept = set() if overwrite else ours & target.keys()
    wanted = target | {key: source[key] for key in ours - kept}
    return wanted, {"copy": len(ours - kept), "keep": len(kept), "delete": 0}


PAIRS = {
    "memory": lambda folder: (DictStore(), DictStore()),
    "files": lambda folder: (FilesystemStore(folder / "from"), FilesystemStore(folder / "to")),
    "memory-gzip": lambda folder: (DictStore(), GzipStore(DictStore())),
    "gzip-files": lambda folder: (
        GzipStore(FilesystemStore(folder / "from")), FilesystemStore(folder / "to"),
    ),
    "files-prefix": lambda folder: (
        FilesystemStore(folder / "from"), PrefixStore(FilesystemStore(folder / "to"), "p/"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Objects of a few bytes count as large ones."""
    monkeypatch.setattr(copying, "CHUNK", PIECE)


def run(make_pair, tmp_path, *, examples, steps):
    numbers = itertools.count()

    class Pair(Machine):
        def make_stores(self):
            return make_pair(tmp_path / str(next(numbers)))

    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Pair, settings=chosen)


@pytest.mark.parametrize("pair", PAIRS)
def test_two_stores(pair, tmp_path):
    run(PAIRS[pair], tmp_path, examples=25, steps=20)


@pytest.mark.nightly
@pytest.mark.parametrize("pair", PAIRS)
def test_two_stores_at_length(pair, tmp_path):
    run(PAIRS[pair], tmp_path, examples=300, steps=30)
