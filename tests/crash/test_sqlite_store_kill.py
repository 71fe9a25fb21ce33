"""Writers of a SqliteStore killed by SIGKILL, at every step and at random moments, tear nothing.

This file is its own program: it runs itself in a process that imports everything once and then
forks a child for each kill. A step is a call into C that can touch a file or the database, as
`sys.setprofile` sees it before it is made; the random moments lie inside those calls, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from contextlib import closing
from pathlib import Path

import pytest

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


class KillAt:
    """A profile function that ends the process at the n-th step."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, frame, event, argument) -> None:
        if event == "c_call" and getattr(argument, "__name__", "") in STEPS:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work) -> int:
    """Run `work` in a forked child; returns the wait status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


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
    return kill_until_done(kind, root, master, change, allowed)


def first_of_all(kind: str, root: Path) -> dict:
    """The same for the write that makes the file."""
    master = root / "master"
    master.mkdir()
    change = SCENARIOS["first_large"][0]
    return kill_until_done(kind, root, master, change, {"key": {None, 2}})


def kill_until_done(kind: str, root: Path, master: Path, change, allowed: dict) -> dict:
    kills = 0
    while True:
        folder = root / "victim"
        shutil.copytree(master, folder)

        def work(n: int = kills + 1, folder: Path = folder) -> None:
            store = STORES[kind](folder / "objects.db")
            sys.setprofile(KillAt(n))
            change(store)
            sys.setprofile(None)

        status = in_child(work)
        examine(kind, folder / "objects.db", allowed)
        shutil.rmtree(folder)
        if status == 0:
            return {"kills": kills}
        assert os.WIFSIGNALED(status), "the change failed by itself; its error is above"
        kills += 1


def random_moments(kind: str, root: Path, kills: int, seed: int) -> dict:
    """Kill busy writers after a random time; what they had acknowledged must be there."""
    rng = random.Random(seed)
    path = root / "store" / "objects.db"
    # For each key the seeds it may have: the last acknowledged one, and those begun since then.
    possible: dict[str, set] = {}
    for number in range(kills):
        for word, key, written in busy(kind, path, rng, number):
            if word == "done":
                possible[key] = {written}
            else:
                possible.setdefault(key, {None}).add(written)
        examine(kind, path, possible)
    return {"kills": kills, "keys": len(possible)}


def busy(kind: str, path: Path, rng: random.Random, number: int) -> list[tuple]:
    """Run a writer until it is killed; gives what it had begun, and what it had done."""
    read_end, write_end = os.pipe()
    start = rng.randrange(1 << 30)
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            work_until_killed(kind, path, random.Random(start), number, write_end)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        log = [pipe.readline()]  # the writer is at work now
        # A real delay is the point here: the kill comes at whatever moment it comes.
        threading.Event().wait(rng.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        log += pipe.read().splitlines(keepends=True)
    os.waitpid(child, 0)
    whole = [line.split() for line in log if line.endswith(b"\n")]
    return [(word.decode(), key.decode(), parse_seed(seed)) for word, key, seed in whole]


def parse_seed(text: bytes) -> int | None:
    return None if text == b"-" else int(text)


def work_until_killed(kind, path, mine, number, write_end) -> None:
    store = STORES[kind](path)
    kept: set[str] = set()
    for i in range(100_000):
        key, seed = f"k{mine.randrange(8)}", number * 100_000 + i
        gone = key in kept and mine.random() < 0.2
        line = f"{key} {'-' if gone else seed}\n".encode()
        os.write(write_end, b"begin " + line)
        if gone:
            store.delete(key)
            kept.discard(key)
        else:
            write = put if mine.random() < 0.7 else stream
            write(store, key, seed, mine.choice([SMALL, LARGE, 40 * LARGE]))
            kept.add(key)
        os.write(write_end, b"done " + line)


def main() -> None:
    sqlite_sink._IN_MEMORY = 2500  # so that streams use their temporary file
    task = json.loads(sys.argv[1])
    do, kind, root = task.pop("do"), task.pop("kind"), Path(task.pop("root"))
    doings = {"every": every_step, "first": first_of_all, "random": random_moments}
    print(json.dumps(doings[do](kind, root, **task)))


def run(tmp_path: Path, **task) -> dict:
    task["root"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, json.dumps(task)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step(tmp_path, scenario):
    assert run(tmp_path, do="every", kind="default", scenario=scenario)["kills"] >= 3


def test_killed_while_the_file_is_made(tmp_path):
    assert run(tmp_path, do="first", kind="default")["kills"] >= 20


def test_killed_at_random_moments(tmp_path):
    result = run(tmp_path, do="random", kind="default", kills=40, seed=1)
    assert result["keys"] == 8


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step_when_synced(tmp_path, scenario):
    assert run(tmp_path, do="every", kind="synced", scenario=scenario)["kills"] >= 3


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", list(STORES))
def test_killed_at_random_moments_hundreds_of_times(tmp_path, kind, seed):
    run(tmp_path, do="random", kind=kind, kills=250, seed=seed)


if __name__ == "__main__":
    main()
