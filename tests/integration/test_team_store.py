"""A team store: many processes write, read and delete the same keys in S3 and PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from integration.team_member import CONTENT, COPIES, COUNTERS, KEYS, identity

from blobstore import BlobStore
from blobstore.backends.blob.bucket import BucketStore
from blobstore.keys import is_location

PROGRAM = Path(__file__).with_name("team_member.py")
WRITERS = 8
READERS = 4


class Process:
    """A member of the team, on a machine of its own: it shares no folder with the others."""

    def __init__(self, folder: Path, name: str, work: str, operations: int, store: dict) -> None:
        self.log = folder / f"{name}.log"
        self.errors = folder / f"{name}.err"
        store = {**store, "cache_dir": str(folder / name)}
        if work == "read" and name.endswith(("0", "1")):
            store["local_cache"] = str(folder / "copies")
        task = {"name": name, "work": work, "operations": operations, "log": str(self.log)}
        with self.errors.open("wb") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "error", PROGRAM, json.dumps({**task, "store": store})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_until_ready(self) -> None:
        assert self.popen.stdout.readline() == "ready\n", self.errors.read_text()

    def go(self) -> None:
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def wait(self, seconds: float) -> list[dict]:
        """Wait until it is done; what it did."""
        code = self.popen.wait(seconds)
        assert code == 0, f"{self.log.stem} ended with {code}:\n{self.errors.read_text()[-5000:]}"
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()
        with contextlib.suppress(BrokenPipeError):
            self.popen.stdin.close()
        self.popen.stdout.close()


@pytest.fixture
def team(s3_server, s3_bucket, postgres_url, monkeypatch, tmp_path):
    """The arguments of the team's store; credentials come from the environment."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_REGION", s3_server.region)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    return {
        "backend": postgres_url,
        "blob_backend": f"s3://{s3_bucket}/team",
        "content_addressable": True,
    }


def work_together(team: dict, folder: Path, writes: int, seconds: float) -> list[dict]:
    """Let the team work; what its members did, in the order in which they were done."""
    with contextlib.ExitStack() as stack:

        def start(name: str, work: str, operations: int = 0) -> Process:
            process = Process(folder, name, work, operations, team)
            stack.callback(process.end)
            return process

        writers = [start(f"writer{n}", "write", writes) for n in range(WRITERS)]
        others = [start(f"reader{n}", "read") for n in range(READERS)]
        others.append(start("collector", "collect"))
        for process in (*writers, *others):
            process.wait_until_ready()
        for process in (*others, *writers):
            process.go()
        done = [line for process in writers for line in process.wait(seconds)]
        for process in others:
            process.popen.stdin.close()
        done += [line for process in others for line in process.wait(seconds)]
    return sorted(done, key=lambda line: line["done"])


# --- what they may have seen --------------------------------------------------------------------------


@dataclass
class Change:
    """A put or a delete that was acknowledged; before all, every key was absent.

    Attributes
    ----------
    value : str or None
        Whom the value is of; None after a delete.
    begun, done : float
        It took effect between these times.
    gone : float
        By then another change, which surely came after it, had taken effect.
    """

    value: str | None
    begun: float
    done: float
    gone: float = math.inf


def changes_of(lines: list[dict], key: str) -> list[Change]:
    return [
        Change(None, -math.inf, -math.inf),
        *(
            Change(line.get("value"), line["begun"], line["done"])
            for line in lines
            if line.get("key") == key and line["kind"] in ("put", "delete")
        ),
    ]


def check_reads(changes: list[Change], reads: list[dict]) -> None:
    """Each read gave what some change left, which no later one had replaced before the read began."""
    by_value = defaultdict(list)
    for change in changes:
        by_value[change.value].append(change)
    for read in sorted(reads, key=lambda line: line["done"]):
        # Whoever has seen a value knows that it is there from then on.
        if read["value"] is not None:
            (seen,) = by_value[read["value"]]
            seen.done = min(seen.done, read["done"])
    for change in changes:
        later = (other.done for other in changes if change.done < other.begun)
        change.gone = min(later, default=math.inf)
    for read in reads:
        candidates = by_value[read["value"]]
        assert any(change.begun < read["done"] for change in candidates), f"not yet put: {read}"
        assert any(
            change.begun < read["done"] and read["begun"] <= change.gone for change in candidates
        ), f"long replaced: {read}"


def check_history(lines: list[dict], store: BlobStore) -> None:
    """Nothing that was acknowledged is lost, to the readers and at the end."""
    for key in KEYS:
        last = {"value": identity(store.get(key), key), "begun": math.inf, "done": math.inf}
        reads = [line for line in lines if line["kind"] == "read" and line["key"] == key]
        check_reads(changes_of(lines, key), [*reads, last])
    for key in COUNTERS:
        reached = [
            line["reached"] for line in lines if line["kind"] == "count" and line["key"] == key
        ]
        assert sorted(reached) == [*range(1, len(reached) + 1)]
        assert store.get_metadata(key)["metadata"]["reached"] == len(reached)
        assert store[key]["number"] == len(reached)
    for key in COPIES:
        identity(store.get(key), None)
    for key in {line["key"] for line in lines if line["kind"] == "nameless"}:
        value = store.get(key)
        assert value is None or any(np.array_equal(value, known) for known in CONTENT)


def check_store(team: dict, folder: Path, lines: list[dict]) -> None:
    with BlobStore(folder / "afterwards", **team) as store:
        assert store.verify(deep=True).problems == ()
        check_history(lines, store)
        store.gc(dry_run=False, grace=0)
        assert store.gc(dry_run=True, grace=0).items == ()
        assert store.verify(deep=True).problems == ()
        check_history(lines, store)
        referenced = {name for key in store for name in store.entry(key).locations}
    collected = {name for line in lines for _, name in line.get("items", ())}
    assert not referenced & collected, "gc took what was in use"
    with BucketStore.from_url(team["blob_backend"]) as bucket:
        assert {*filter(is_location, bucket.keys())} == referenced


def check_team(team: dict, folder: Path, writes: int, seconds: float) -> None:
    lines = work_together(team, folder, writes, seconds)
    kinds = {line["kind"] for line in lines}
    # Else it was no test.
    assert {"put", "delete", "count", "beaten", "copy", "nameless", "read", "gc"} <= kinds
    assert any(line["items"] for line in lines if line["kind"] == "gc")
    assert sum(line["kind"] == "read" and line["value"] is not None for line in lines) > READERS
    check_store(team, folder, lines)


def test_a_team_on_one_store(team, tmp_path):
    check_team(team, tmp_path, writes=50, seconds=180)


@pytest.mark.nightly
def test_a_team_on_one_store_for_long(team, tmp_path):
    check_team(team, tmp_path, writes=500, seconds=900)


# --- the checks find what they are for ------------------------------------------------------------------


def read(value: str | None, begun: float, done: float) -> dict:
    return {"value": value, "begun": begun, "done": done}


BEFORE = Change(None, -math.inf, -math.inf)


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        pytest.param([Change("a", 1, 2)], [read(None, 3, 4)], id="lost"),
        pytest.param([Change("a", 1, 2), Change("b", 3, 4)], [read("a", 5, 6)], id="stale"),
        pytest.param([Change("a", 3, 4)], [read("a", 1, 2)], id="from the future"),
        pytest.param([Change("a", 1, 2), Change(None, 3, 4)], [read("a", 5, 6)], id="undeleted"),
        pytest.param([Change("a", 1, 9)], [read("a", 2, 3), read(None, 4, 5)], id="back again"),
    ],
)
def test_what_must_not_be_seen_is_found(changes, reads):
    with pytest.raises(AssertionError):
        check_reads([BEFORE, *changes], reads)


def test_what_may_be_seen_is_accepted():
    changes = [BEFORE, Change("a", 1, 5), Change("b", 2, 6), Change(None, 7, 9)]
    reads = [read(None, 0, 2), read("a", 3, 4), read("b", 3, 5), read("a", 5, 6), read("b", 8, 8.5)]
    check_reads(changes, reads)
