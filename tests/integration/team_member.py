"""One process of a team that works on one store: a writer, a reader, or the collector.

Run as a program by `test_team_store`. It opens the store, says "ready", and begins when standard
input says so. What it did and saw goes to its log, one JSON line each, with the time before and
after by a clock that all processes of a machine share. When its standard input ends, so does it.
"""

from __future__ import annotations

import hashlib
import json
import random
import select
import sys
import time

import numpy as np

from blobstore import BlobStore, KeyNotFoundError
from blobstore.errors import ConflictError, KeyExistsError

KEYS = [f"key/{number}" for number in range(6)]
COUNTERS = [f"counter/{number}" for number in range(2)]
COPIES = [f"copy/{number}" for number in range(2)]
CONTENTS = 5  # arrays that all writers have in common: stored once each, whoever puts them
SIZE = 70_000  # what is smaller stays in the part that nobody shares


def content(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, SIZE, dtype=np.uint8)


CONTENT = [content(number) for number in range(CONTENTS)]


def make(key: str, writer: str, number: int, array: np.ndarray) -> dict:
    """A value that tells who wrote it, in two parts that have to belong together."""
    told = {"key": key, "writer": writer, "number": number}
    return {**told, "array": array, "sum": checksum(told, array)}


def checksum(told: dict, array: np.ndarray) -> str:
    text = f"{told['key']}|{told['writer']}|{told['number']}|".encode()
    return hashlib.sha256(text + array.tobytes()).hexdigest()


def identity(value: object, key: str | None) -> str | None:
    """Who wrote a value; None where there is none. One that is not whole ends the process."""
    if value is None:
        return None
    assert isinstance(value, dict), type(value)
    assert value["sum"] == checksum(value, value["array"]), f"torn: {key} {value}"
    assert key in (None, value["key"]), f"{value['key']} was found under {key}"
    return f"{value['writer']}:{value['number']}"


class Member:
    """What a member of the team does.

    Attributes
    ----------
    name : str
    operations : int
        How many a writer does.
    """

    def __init__(self, store: BlobStore, name: str, operations: int, log: str) -> None:
        self.store = store
        self.name = name
        self.operations = operations
        self.random = random.Random(name)
        self.log = open(log, "x", encoding="utf-8")  # noqa: SIM115

    def tell(self, kind: str, begun: int, **facts: object) -> None:
        line = {"kind": kind, "by": self.name, "begun": begun, "done": time.monotonic_ns(), **facts}
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()

    # --- a writer ---

    def write(self) -> None:
        kinds = {self.put: 10, self.delete: 4, self.count: 3, self.copy: 2, self.nameless: 2}
        for number in range(self.operations):
            (kind,) = self.random.choices([*kinds], [*kinds.values()])
            kind(number)

    def put(self, number: int) -> None:
        key, array = self.random.choice(KEYS), self.random.choice(CONTENT)
        begun = time.monotonic_ns()
        self.store.put(make(key, self.name, number, array), key=key, metadata={"by": self.name})
        self.tell("put", begun, key=key, value=f"{self.name}:{number}")
        self.look(key)  # before many others have replaced it

    def delete(self, number: int) -> None:
        key = self.random.choice(KEYS)
        begun = time.monotonic_ns()
        self.tell("delete", begun, key=key, there=self.store.delete(key))
        self.look(key)

    def count(self, number: int) -> None:
        """Add one to a counter, if nobody else was faster."""
        key = self.random.choice(COUNTERS)
        begun = time.monotonic_ns()
        entry = self.store.get_metadata(key)
        reached = entry["metadata"]["reached"] + 1 if entry else 1
        value = make(key, self.name, reached, CONTENT[reached % CONTENTS])
        try:
            if entry is None:
                self.store.put(value, key=key, metadata={"reached": reached}, overwrite=False)
            else:
                version = entry["version"]
                self.store.put(value, key=key, metadata={"reached": reached}, if_version=version)
        except (ConflictError, KeyExistsError):
            self.tell("beaten", begun, key=key)
        else:
            self.tell("count", begun, key=key, reached=reached)

    def copy(self, number: int) -> None:
        begun = time.monotonic_ns()
        try:
            self.store.copy(self.random.choice(KEYS), self.random.choice(COPIES))
        except KeyNotFoundError:
            self.tell("nothing to copy", begun)
        else:
            self.tell("copy", begun)

    def nameless(self, number: int) -> None:
        """Put what others put too, under the digest of the content; sometimes remove it."""
        begun = time.monotonic_ns()
        key = self.store.put(self.random.choice(CONTENT))
        if self.random.random() < 0.5:
            self.store.delete(key)
        self.tell("nameless", begun, key=key)

    # --- a reader ---

    def read(self) -> None:
        while not is_over():
            self.look(self.random.choice([*KEYS, *KEYS, *COUNTERS, *COPIES]))

    def look(self, key: str) -> None:
        begun = time.monotonic_ns()
        value = self.store.get(key)
        self.tell("read", begun, key=key, value=identity(value, None if key in COPIES else key))

    # --- the collector ---

    def collect(self) -> None:
        while not is_over():
            begun = time.monotonic_ns()
            report = self.store.gc(dry_run=False, grace=0)
            self.tell("gc", begun, items=[[item.kind, item.name] for item in report.items])


def is_over() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main() -> None:
    task = json.loads(sys.argv[1])
    with BlobStore(**task["store"]) as store:
        member = Member(store, task["name"], task["operations"], task["log"])
        print("ready", flush=True)
        if sys.stdin.readline():
            with member.log:
                getattr(member, task["work"])()


if __name__ == "__main__":
    main()
