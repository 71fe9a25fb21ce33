"""Kills writers of a SqliteStore, at each of their steps or at random moments, and looks at what is left.

Run as a program in a process of its own, so that forking is safe; what is found goes to standard
output as JSON. What a step is, `steps` tells; the random moments lie inside steps, too.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import warnings
from contextlib import closing
from pathlib import Path

from steps import in_child, kill_at_every_step, killed_at_some_moment, take_in

from blobstore.backends.blob import sqlite_sink
from blobstore.backends.blob.sqlite import SqliteStore

STEPS = {
    "open", "write", "close", "rename", "link", "unlink", "mkdir", "fsync", "pread", "connect",
    "execute", "executemany", "executescript", "fetchall", "fetchone", "rollback", "commit",
    "blobopen", "acquire", "release",
}  # fmt: skip
SMALL, LARGE = 300, 7300  # in one row, and in eight parts
OTHERS = {f"other/{i}": (100 + i, SMALL if i % 2 else LARGE) for i in range(4)}


class PartedStore(SqliteStore):
    part_size = 1000


class SyncedStore(PartedStore):
    def __init__(self, path, **options):
        super().__init__(path, **{**options, "fsync": True})


STORES = {"default": PartedStore, "synced": SyncedStore}


def value(seed: int, size: int) -> bytes:
    return seed.to_bytes(4, "big") + random.Random(seed).randbytes(size)


def put(store, key, seed, size):
    store.put(key, value(seed, size))


def stream(store, key, seed, size):
    data = value(seed, size)
    with store.writer(key) as sink:
        for start in range(0, len(data), len(data) // 4 + 1):
            sink.write(data[start : start + len(data) // 4 + 1])


def lend(store, key, seed, size):
    with store.writer(key) as sink:
        sink.path().write_bytes(value(seed, size))


SCENARIOS = {
    # name: (change, prepared (seed, size) of "key" or None, seeds allowed afterwards)
    "first": (lambda s: put(s, "key", 2, SMALL), None, {None, 2}),
    "first_large": (lambda s: put(s, "key", 2, LARGE), None, {None, 2}),
    "small_over_large": (lambda s: put(s, "key", 2, SMALL), (1, LARGE), {1, 2}),
    "large_over_small": (lambda s: put(s, "key", 2, LARGE), (1, SMALL), {1, 2}),
    "large_over_large": (lambda s: put(s, "key", 2, LARGE), (1, LARGE + 999), {1, 2}),
    "absent": (lambda s: s.put_if_absent("key", value(2, LARGE)), None, {None, 2}),
    "stream": (lambda s: stream(s, "key", 2, LARGE), (1, LARGE), {1, 2}),
    "lend": (lambda s: lend(s, "key", 2, LARGE), (1, SMALL), {1, 2}),
    "copy": (lambda s: s.copy("other/0", "key"), (1, LARGE), {1, 100}),
    "delete": (lambda s: s.delete("key"), (1, LARGE), {1, None}),
    "delete_many": (lambda s: s.delete_many([*OTHERS, "key"]), (1, LARGE), {1, None}),
    "compact": (lambda s: s.compact(), (1, LARGE), {1}),
    "close": (lambda s: (put(s, "key", 2, SMALL), s.close()), (1, LARGE), {1, 2}),
}


def seed_of(store, key) -> int | None:
    """The seed of what is under the key, after comparing all of it with what the seed gives."""
    if not store.exists(key):
        return None
    data = store.get(key)
    seed = int.from_bytes(data[:4], "big")
    assert data == value(seed, len(data) - 4), f"{key} is torn"
    assert store.stat(key).size == len(data)
    with store.open(key) as file:
        assert file.read() == data
    return seed


def check_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        orphans = (
            "SELECT count(*) FROM parts WHERE object NOT IN (SELECT id FROM objects WHERE part > 0)"
        )
        assert connection.execute(orphans).fetchone() == (0,), "parts without an object"


def examine(kind: str, path: Path, allowed: dict[str, set]) -> None:
    """Everything that has to hold after a kill."""

    def work() -> None:
        with STORES[kind](path, timeout=5) as store:
            for key, seeds in allowed.items():
                assert seed_of(store, key) in seeds, (key, seed_of(store, key), seeds)
            assert set(store.keys()) <= set(allowed)
            for leftover in list(store.leftovers()):
                store.remove_leftover(leftover.name)
            put(store, "afterwards", 7, LARGE)
            assert seed_of(store, "afterwards") == 7
            store.delete("afterwards")
        check_database(path)
        assert os.listdir(path.parent) == [path.name], "a file was left behind"

    assert in_child(work) == 0, "what was found after the kill is above"


def every_step(kind: str, root: Path, scenario: str) -> dict:
    """Kill the change at step 1, 2, 3 ... until it gets through."""
    change, prepared, seeds = SCENARIOS[scenario]
    master = root / "master"
    master.mkdir()

    def prepare() -> None:
        with STORES[kind](master / "objects.db") as store:
            for key, (seed, size) in OTHERS.items():
                put(store, key, seed, size)
            if prepared is not None:
                put(store, "key", *prepared)

    assert in_child(prepare) == 0, "preparing failed"
    allowed = {key: {seed} for key, (seed, _) in OTHERS.items()} | {"key": seeds}
    if scenario == "delete_many":
        allowed = {key: found | {None} for key, found in allowed.items()}
    return kill_until_done(kind, root, change, allowed)


def first_of_all(kind: str, root: Path) -> dict:
    """The same for the write that makes the file."""
    (root / "master").mkdir()
    change = SCENARIOS["first_large"][0]
    return kill_until_done(kind, root, change, {"key": {None, 2}})


def kill_until_done(kind: str, root: Path, change, allowed: dict) -> dict:
    return kill_at_every_step(
        root,
        STEPS,
        lambda folder: STORES[kind](folder / "objects.db"),
        change,
        lambda folder: examine(kind, folder / "objects.db", allowed),
    )


def random_moments(kind: str, root: Path, kills: int, seed: int) -> dict:
    """Kill busy writers after a random time; what they had acknowledged must be there."""
    rng = random.Random(seed)
    path = root / "store" / "objects.db"
    # For each key the seeds it may have: the last acknowledged one, and those begun since then.
    possible: dict[str, set] = {}
    for number in range(kills):
        take_in(possible, killed_at_some_moment(busy(kind, path, rng, number), rng), parse_seed)
        examine(kind, path, possible)
    return {"kills": kills, "keys": len(possible)}


def busy(kind: str, path: Path, rng: random.Random, number: int):
    """Make a writer that says what it begins, and what it has done."""
    mine = random.Random(rng.randrange(1 << 30))

    def write(say) -> None:
        store = STORES[kind](path)
        kept: set[str] = set()
        for i in range(100_000):
            key, seed = f"k{mine.randrange(8)}", number * 100_000 + i
            gone = key in kept and mine.random() < 0.2
            line = f"{key} {'-' if gone else seed}"
            say(f"begin {line}")
            if gone:
                store.delete(key)
                kept.discard(key)
            else:
                change = put if mine.random() < 0.7 else stream
                change(store, key, seed, mine.choice([SMALL, LARGE, 40 * LARGE]))
                kept.add(key)
            say(f"done {line}")

    return write


def parse_seed(text: str) -> int | None:
    return None if text == "-" else int(text)


def main() -> None:
    warnings.simplefilter("error")
    sqlite_sink._IN_MEMORY = 2500  # so that streams use their temporary file
    task = json.loads(sys.argv[1])
    do, kind, root = task.pop("do"), task.pop("kind"), Path(task.pop("root"))
    doings = {"every": every_step, "first": first_of_all, "random": random_moments}
    print(json.dumps(doings[do](kind, root, **task)))


if __name__ == "__main__":
    main()
