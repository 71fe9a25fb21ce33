"""Runs a change of a store again and again, and kills it at each step, or at random moments.

Run as a program in a process of its own, so that forking is safe: it imports everything once,
then forks a child for each kill. What is found afterwards goes to standard output as JSON.

What a step is, `steps` tells.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
from steps import in_child, kill_at_every_step, killed_at_some_moment, take_in

from blobstore import BlobStore

STEPS = {
    "open", "write", "writelines", "flush", "close", "replace", "rename", "link", "unlink", "remove",
    "mkdir", "rmdir", "fsync", "fdatasync", "truncate", "ftruncate", "pwrite", "sendfile",
    "copy_file_range", "execute", "executemany", "commit", "flock",
}  # fmt: skip
BIG = 40_000  # float64 values: well above what is kept inline
OTHERS = [f"other/{i}" for i in range(4)]


def value(seed: int, *, big: bool) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(BIG if big else 20)


def put(store: BlobStore, key: str, seed: int, *, big: bool = True) -> None:
    store.put(value(seed, big=big), key=key, metadata={"seed": seed, "big": big})


def whole(store: BlobStore, key: str) -> int | None:
    """The seed of what is under the key, after comparing all of it with what the seed gives."""
    meta = store.get_metadata(key)
    if meta is None:
        return None
    seed, big = meta["metadata"]["seed"], meta["metadata"]["big"]
    loaded = store[key]
    if isinstance(loaded, dict):
        loaded = loaded["array"]
    np.testing.assert_array_equal(loaded, value(seed, big=big))
    return seed


# Each scenario: what to prepare, what to do, and the states of "key" that may be found after it.
def first(store):
    put(store, "key", 1)


def overwrite(store):
    put(store, "key", 2)


def overwrite_small(store):
    put(store, "key", 2, big=False)


def overwrite_mapping(store):
    data = {"array": value(2, big=True), "epoch": 2}
    store.put(data, key="key", metadata={"seed": 2, "big": True})


def many(store):
    store.put_many(
        (key, value(2, big=True), {"seed": 2, "big": True}) for key in ("key", "key2", "key3")
    )


def delete(store):
    store.delete("key")


def move(store):
    store.move("key", "key2")


def describe(store):
    store.update_metadata("key", {"note": "x" * 1000})


def clear(store):
    store.clear()


def close(store):
    store.close()


SCENARIOS = {
    # name: (change, prepared seed of "key" or None, seeds allowed afterwards)
    "first": (first, None, {None, 1}),
    "overwrite": (overwrite, 1, {1, 2}),
    "overwrite_small": (overwrite_small, 1, {1, 2}),
    "overwrite_mapping": (overwrite_mapping, 1, {1, 2}),
    "many": (many, 1, {1, 2}),
    "delete": (delete, 1, {1, None}),
    "move": (move, 1, {1, None}),
    "describe": (describe, 1, {1}),
    "clear": (clear, 1, {1, None}),
    "close": (close, 1, {1}),
}


def prepare(folder: Path, options: dict, seed: int | None) -> None:
    def work() -> None:
        with BlobStore(folder, **options) as store:
            for i, key in enumerate(OTHERS):
                put(store, key, 100 + i, big=i % 2 == 0)
            if seed is not None:
                put(store, "key", seed)

    assert in_child(work) == 0, "preparing failed"


def examine(folder: Path, options: dict, allowed: set, *, others: bool = True) -> None:
    """Everything that has to hold after a kill."""

    def work() -> None:
        with BlobStore(folder, **options) as store:
            report = store.verify(deep=True)
            assert report.ok, report.problems
            assert whole(store, "key") in allowed, whole(store, "key")
            if others:
                found = [whole(store, key) for key in OTHERS]
                assert found == [100 + i for i in range(len(OTHERS))] or not any(found), found
            for key in store:
                whole(store, key)
            store.gc(dry_run=False, grace=0)
            assert not store.gc(grace=0).items
            live = {location for key in store for location in store.entry(key).locations}
            blobs = {p.name for p in (folder / "blobs").rglob("*") if p.is_file()}
            assert blobs - {".blobstore-id"} == live, blobs ^ live
            tmp = folder / "tmp"
            assert not tmp.exists() or not [*tmp.iterdir()]
            put(store, "afterwards", 7)
            assert whole(store, "afterwards") == 7

    assert in_child(work) == 0, "what was found after the kill is above"


def warm_up(root: Path, options: dict) -> None:
    """Import here, once, all that the children would else import, each of them anew."""
    with BlobStore(root / "warm", **options) as store:
        for change in (first, overwrite_small, overwrite_mapping, many, describe, move, delete):
            change(store) if change is not delete else store.delete("key2")
            put(store, "key", 1)
            whole(store, "key")
        store.verify(deep=True)
        store.gc(dry_run=False, grace=0)
    shutil.rmtree(root / "warm")


def every_step(root: Path, options: dict, scenario: str) -> dict:
    """Kill the change at step 1, 2, 3 ... until it gets through."""
    change, seed, allowed = SCENARIOS[scenario]
    prepare(root / "master", options, seed)
    return kill_at_every_step(
        root,
        STEPS,
        lambda folder: BlobStore(folder, **options),
        change,
        lambda folder: examine(folder, options, allowed, others=scenario != "clear"),
    )


def random_moments(root: Path, options: dict, kills: int, seed: int) -> dict:
    """Kill a busy writer after a random time; what it had acknowledged must be there."""
    rng = random.Random(seed)
    folder = root / "store"
    prepare(folder, options, None)
    # For each key the seeds it may have: the last acknowledged one, and those begun since then.
    possible: dict[str, set[int | None]] = {}
    for number in range(kills):
        lines = killed_at_some_moment(busy(folder, options, rng, number), rng)
        take_in(possible, lines, int)
        examine_possible(folder, options, possible)
    return {"kills": kills, "keys": len(possible)}


def busy(folder: Path, options: dict, rng: random.Random, number: int):
    """Make a writer that says what it begins, and what it has done."""
    mine = random.Random(rng.randrange(1 << 30))

    def write(say) -> None:
        store = BlobStore(folder, **options)
        for i in range(100_000):
            key, seed = f"k{mine.randrange(8)}", number * 100_000 + i
            say(f"begin {key} {seed}")
            put(store, key, seed, big=mine.random() < 0.5)
            say(f"done {key} {seed}")

    return write


def examine_possible(folder: Path, options: dict, possible: dict) -> None:
    def work() -> None:
        with BlobStore(folder, **options) as store:
            for key, seeds in possible.items():
                assert whole(store, key) in seeds, (key, whole(store, key), seeds)

    assert in_child(work) == 0, "an acknowledged value is lost, or a value is torn"
    examine(folder, options, {None})


def main() -> None:
    task = json.loads(sys.argv[1])
    root = Path(task["root"])
    warm_up(root, task["options"])
    if task["do"] == "every_step":
        result = every_step(root, task["options"], task["scenario"])
    else:
        result = random_moments(root, task["options"], task["kills"], task["seed"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
