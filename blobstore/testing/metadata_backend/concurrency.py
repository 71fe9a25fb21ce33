"""Threads, processes, forked children."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobstore.errors import (
    ConflictError,
    KeyExistsError,
)
from blobstore.keys import random_id
from blobstore.protocols import (
    MetadataBackend,
    Operation,
)
from blobstore.query import Query
from blobstore.testing.metadata_backend.build import (
    ALL,
    BackendFactory,
    commit,
    make_blob,
    make_patch,
    make_put,
    put,
    states,
    stored,
)


class ThreadTests(BackendFactory):
    """One backend shared by threads."""

    THREADS = 8
    COMMITS = 50

    def together(self, work: Callable[[int], object]) -> None:
        """Run `work(number)` in all threads at once; raise what any of them raised."""
        start = threading.Barrier(self.THREADS)

        def run(number: int) -> object:
            start.wait()
            return work(number)

        with ThreadPoolExecutor(self.THREADS) as pool:
            for future in [pool.submit(run, number) for number in range(self.THREADS)]:
                future.result()

    def test_every_commit_counts(self, backend: MetadataBackend) -> None:
        """Own and shared keys, changed by all: no update is lost, none is done twice."""
        put(backend, "shared")

        def work(number: int) -> None:
            for i in range(self.COMMITS):
                result = commit(
                    backend,
                    make_put(f"own/{number}"),
                    make_patch("shared", {f"t{number}": i}),
                )
                assert result.entries[0] is not None
                assert result.entries[0].version == i + 1

        self.together(work)
        shared = stored(backend, "shared")
        assert shared.version == 1 + self.THREADS * self.COMMITS
        assert shared.metadata == {f"t{n}": self.COMMITS - 1 for n in range(self.THREADS)}
        assert [e.version for e in backend.scan(Query(prefix="own/"))] == [
            self.COMMITS
        ] * self.THREADS
        assert sorted(states(backend).values()).count("live") == self.THREADS + 1
        assert backend.check() == []

    def test_only_one_creates(self, backend: MetadataBackend) -> None:
        """Of those who expect the key absent, one wins each time."""
        won: list[str] = []

        def work(number: int) -> None:
            for i in range(10):
                with contextlib.suppress(KeyExistsError):
                    put(backend, f"k{i}", metadata={"by": number}, expected="absent")
                    won.append(f"k{i}")

        self.together(work)
        assert sorted(won) == sorted(f"k{i}" for i in range(10))

    def test_compare_and_swap_loses_no_increment(self, backend: MetadataBackend) -> None:
        """Whoever was slower reads again."""
        put(backend, "k", metadata={"n": 0})

        def increment() -> bool:
            entry = stored(backend, "k")
            try:
                commit(backend, make_patch("k", {"n": entry.metadata["n"] + 1}, expected=entry))
            except ConflictError:
                return False
            return True

        def work(_: int) -> None:
            done = 0
            while done < 5:
                done += increment()

        self.together(work)
        assert stored(backend, "k").metadata == {"n": 5 * self.THREADS}

    def test_equal_content_keeps_one_blob(self, backend: MetadataBackend) -> None:
        """All writers of one digest end up with one live blob."""
        blobs = [make_blob(digest="d") for _ in range(self.THREADS)]
        self.together(lambda number: put(backend, f"k{number}", blobs[number]))
        (live,) = [blob.location for blob in backend.blobs() if blob.state == "live"]
        assert {entry.locations for entry in backend.scan(ALL)} == {(live,)}
        assert sorted(states(backend)) == sorted(blob.location for blob in blobs)

    def test_a_reader_sees_whole_commits(self, backend: MetadataBackend) -> None:
        """Two keys of one commit are never of two commits, in one scan."""
        commit(backend, make_put("a", metadata={"n": -1}), make_put("b", metadata={"n": -1}))

        def work(number: int) -> None:
            for i in range(20):
                if number % 2:
                    n = number * 1000 + i
                    commit(
                        backend, make_put("a", metadata={"n": n}), make_put("b", metadata={"n": n})
                    )
                else:
                    one, two = backend.scan(ALL)
                    assert one.metadata == two.metadata

        self.together(work)

    def test_reading_while_writing(self, backend: MetadataBackend) -> None:
        """Every answer is of some moment: entries are whole, keys in order."""
        commit(backend, *(make_put(f"k{i:03}", metadata={"n": 0}) for i in range(50)))

        def work(number: int) -> None:
            for i in range(10):
                if number % 2:
                    key = f"k{(number * 7 + i) % 50:03}"
                    put(backend, key, make_blob(), make_blob(), metadata={"n": i})
                else:
                    keys = [e.key for e in backend.scan(ALL) if len(e.parts) in {1, 2}]
                    assert keys == [f"k{j:03}" for j in range(50)]
                    assert len(backend.get_many(keys)) == 50

        self.together(work)


_CHILD = """
import pickle, sys
backend, commits = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
sys.stdin.buffer.readline()
for number, (operations, commit_id) in enumerate(commits):
    backend.commit(operations, commit_id)
    print(number, flush=True)
backend.close()
"""


class ProcessTests(BackendFactory):
    """One index shared by processes; a pickled backend is how they get it."""

    def start(
        self, backend: MetadataBackend, commits: Sequence[Sequence[Operation]]
    ) -> subprocess.Popen[bytes]:
        """Start a process that makes these commits, and wait until it is about to."""
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps((backend, [(ops, random_id()) for ops in commits])))
        process.stdin.flush()
        assert process.stdout.readline().strip() == b"ready"
        return process

    def test_no_commit_is_lost(self, backend: MetadataBackend) -> None:
        """Two processes and this one write own and shared keys."""
        put(backend, "shared")

        def commits(name: str) -> list[list[Operation]]:
            return [[make_put(f"{name}/{i}"), make_patch("shared", {name: i})] for i in range(30)]

        processes = [self.start(backend, commits(name)) for name in ("one", "two")]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for operations in commits("here"):
            commit(backend, *operations)
        for process in processes:
            process.communicate()
            assert process.returncode == 0
        shared = stored(backend, "shared")
        assert (shared.version, shared.metadata) == (91, {"one": 29, "two": 29, "here": 29})
        assert backend.count(ALL) == 91
        assert len({entry.id for entry in backend.scan(ALL)}) == 91
        assert backend.check() == []

    def test_a_killed_writer_loses_nothing_it_was_told_of(self, place: Path) -> None:
        """Acknowledged commits are there, others wholly or not at all, and work goes on."""
        with self.opened(place) as backend:
            commits = [[make_put(f"a/{i:05}"), make_put(f"b/{i:05}")] for i in range(2000)]
            process = self.start(backend, commits)
            _, stdout = process.stdin, process.stdout
            assert process.stdin is not None
            assert stdout is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
            for number in range(25):
                assert stdout.readline().strip() == str(number).encode()
            process.kill()
            process.communicate()
            self.check_after_kill(backend)
        with self.opened(place) as backend:
            self.check_after_kill(backend)

    def check_after_kill(self, backend: MetadataBackend) -> None:
        """Insist on whole commits, and that a new one can be made."""
        ones = [key[2:] for key in backend.keys(Query(prefix="a/"))]
        twos = [key[2:] for key in backend.keys(Query(prefix="b/"))]
        assert ones == twos == [f"{i:05}" for i in range(len(ones))]
        assert len(ones) >= 25
        assert backend.check() == []
        put(backend, "after")
        assert stored(backend, "after").parts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
class ForkTests(BackendFactory):
    """A backend that a forked child inherits."""

    def fork(self, work: Callable[[], object]) -> int:
        """Run `work` in a forked child, which ends without any clean-up; return its pid."""
        with warnings.catch_warnings():
            # Python warns of forking with threads; that the index bears it is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.alarm(60)  # a child that waits for a lock nobody holds must not wait for ever
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not run the rest of the tests
            traceback.print_exc()
        finally:
            os._exit(status)

    def join(self, pid: int) -> None:
        """Wait for a child and insist that it went well."""
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0

    def test_child_and_parent_both_commit(self, backend: MetadataBackend) -> None:
        """Neither disturbs the other, nor does the end of the child."""
        put(backend, "shared")

        def work(name: str) -> None:
            for i in range(20):
                commit(backend, make_put(f"{name}/{i}"), make_patch("shared", {name: i}))
                assert stored(backend, f"{name}/{i}").version == 1

        pid = self.fork(lambda: work("child"))
        work("parent")
        self.join(pid)
        assert stored(backend, "shared").version == 41
        assert stored(backend, "shared").metadata == {"child": 19, "parent": 19}
        assert backend.count(ALL) == 41
        assert backend.check() == []
        put(backend, "after")

    def test_child_closes_what_it_inherited(self, backend: MetadataBackend) -> None:
        """The parent's stays open."""
        put(backend, "k")
        self.join(self.fork(backend.close))
        assert put(backend, "k").version == 2

    def test_forking_in_the_middle_of_a_scan(self, backend: MetadataBackend) -> None:
        """Both go on from there."""
        commit(backend, *(make_put(f"k{i:04}") for i in range(1500)))
        scan = backend.scan(ALL)
        assert next(scan).key == "k0000"

        def work() -> None:
            put(backend, "child")
            assert backend.count(ALL) == 1501

        self.join(self.fork(work))
        assert {f"k{i:04}" for i in range(1, 1500)} <= {entry.key for entry in scan}
        assert backend.get("child") is not None

    def test_forking_while_another_thread_commits(self, backend: MetadataBackend) -> None:
        """The child inherits no lock that nobody will release."""
        started, stop = threading.Event(), threading.Event()

        def keep_committing() -> int:
            count = 0
            while not stop.is_set():
                put(backend, "busy")
                count += 1
                started.set()
            return count

        with ThreadPoolExecutor(1) as pool:
            busy = pool.submit(keep_committing)
            try:
                assert started.wait(60)
                for number in range(5):
                    self.join(self.fork(lambda n=number: put(backend, f"child/{n}")))  # type: ignore[misc]
            finally:
                stop.set()
            count = busy.result()
            assert stored(backend, "busy").version == count
        assert backend.count(Query(prefix="child/")) == 5
        assert backend.check() == []
