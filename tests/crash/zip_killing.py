"""Kills writers of a ZipStore, at each of their steps or at random moments, and looks at what is left.

Run as a program in a process of its own, so that forking is safe; what is found goes to standard
output as JSON. What a step is, `steps` tells.
"""

from __future__ import annotations

import json
import os
import random
import sys
import zipfile
from pathlib import Path

from steps import in_child, kill_at_every_step, killed_at_some_moment, take_in

from blobstore.backends.blob.zip import ZipStore

STEPS = {
    "open", "close", "pwritev", "write", "flock", "ftruncate", "fsync", "replace", "unlink",
    "copy_file_range", "fchmod", "fchown", "stat", "fstat", "pread", "preadv", "mkdir",
}  # fmt: skip
OTHERS = {f"other/{i}": bytes([i]) * (1 + 5000 * i) for i in range(5)}
OLD, NEW = b"old" * 1000, b"new" * 30_000


def put(store):
    store.put("key", NEW)


def stream(store):
    with store.writer("key", size_hint=3 << 20) as sink:
        for _ in range(30):
            sink.write(NEW[: len(NEW) // 30])


def lend(store):
    with store.writer("key") as sink:
        sink.path().write_bytes(NEW)


def copy(store):
    store.put("source", NEW)
    store.copy("source", "key")
    store.delete("source")


def delete(store):
    store.delete("key")


def delete_many(store):
    store.delete_many(["key", "absent"])


def close(store):
    store.put("key", NEW)
    store.close()


def compact(store):
    store.put("key", NEW)
    store.compact()


SCENARIOS = {
    # name: (change, prepared content of "key" or None, contents allowed afterwards)
    "first": (put, None, {None, NEW}),
    "put": (put, OLD, {OLD, NEW}),
    "stream": (stream, OLD, {OLD, NEW}),
    "lend": (lend, OLD, {OLD, NEW}),
    "copy": (copy, OLD, {OLD, NEW}),
    "delete": (delete, OLD, {OLD, None}),
    "delete_many": (delete_many, OLD, {OLD, None}),
    "close": (close, OLD, {OLD, NEW}),
    "compact": (compact, OLD, {OLD, NEW}),
}


def prepare(folder: Path, options: dict, content: bytes | None, *, foreign: bool) -> None:
    folder.mkdir()
    objects = dict(OTHERS)
    if content is not None:
        objects["key"] = content
    if foreign:
        with zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, data in objects.items():
                archive.writestr(key, data)
        return
    if content is None:  # then the file is made by the change, too
        return
    with ZipStore(folder / "z.zip", **options) as store:
        for key, data in objects.items():
            store.put(key, data)
    with ZipStore(folder / "z.zip", **options) as store:  # and some that no directory names yet
        store.put("other/0", b"again")
        store.put("other/0", OTHERS["other/0"])
        store._file.dirty = False
        store._finish.detach()


def examine(folder: Path, options: dict, possible: dict[str, set]) -> None:
    """Everything that has to hold after a kill."""

    def look(store) -> None:
        for key, contents in possible.items():
            found = store.get(key) if store.exists(key) else None
            assert found in contents, (key, found and found[:20], [c and c[:20] for c in contents])
        for key in list(store.keys()):
            store.get(key)

    def work() -> None:
        before = (folder / "z.zip").read_bytes() if (folder / "z.zip").exists() else None
        reader = ZipStore(folder / "z.zip", **options)
        look(reader)
        assert before is None or (folder / "z.zip").read_bytes() == before, "reading changed it"
        reader.close()
        if before is not None and len(before) >= 128:
            readable(folder, possible)
        with ZipStore(folder / "z.zip", **options) as store:
            for left in list(store.leftovers()):
                store.remove_leftover(left.name)
            store.put("afterwards", b"7")
            look(store)
            assert store.get("afterwards") == b"7"
            store.delete("afterwards")
        readable(folder, possible)
        assert os.listdir(folder) == ["z.zip"], os.listdir(folder)

    assert in_child(work) == 0, "what was found after the kill is above"


def readable(folder: Path, possible: dict[str, set]) -> None:
    with zipfile.ZipFile(folder / "z.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        for key, contents in possible.items():
            assert (archive.read(key) if key in names else None) in contents, key


def every_step(root: Path, options: dict, scenario: str, *, foreign: bool) -> dict:
    """Kill the change at step 1, 2, 3 ... until it gets through."""
    change, content, allowed = SCENARIOS[scenario]
    prepare(root / "master", options, content, foreign=foreign)
    possible: dict[str, set] = {"key": allowed}
    if content is not None or foreign:
        possible |= {key: {data} for key, data in OTHERS.items()}
    return kill_at_every_step(
        root,
        STEPS,
        lambda folder: ZipStore(folder / "z.zip", **options),
        change,
        lambda folder: examine(folder, options, possible),
    )


def random_moments(root: Path, options: dict, kills: int, seed: int) -> dict:
    """Kill busy writers after a random time; what they had acknowledged must be there."""
    rng = random.Random(seed)
    prepare(root / "store", options, OLD, foreign=False)
    possible: dict[str, set] = {key: {data} for key, data in OTHERS.items()}
    done = 0
    for _ in range(kills):
        lines = killed_at_some_moment(busy(root / "store", options, rng), rng, longest=0.03)
        done += take_in(possible, lines, lambda number: made(int(number)))
        examine(root / "store", options, possible)
    return {"kills": kills, "acknowledged": done}


def made(number: int) -> bytes | None:
    """What is under a key after the change of this number; None if that deletes."""
    mine = random.Random(number)
    return mine.randbytes(mine.choice([0, 10, 3000, 600_000])) if mine.random() < 0.8 else None


def change_once(store, key: str, number: int) -> None:
    content = made(number)
    if content is None:
        store.delete_many([key])
    elif number % 3:
        store.put(key, content)
    else:
        with store.writer(key, size_hint=number % 5 << 20) as sink:
            sink.write(content[:1000])
            sink.write(content[1000:])
    if number % 40 == 1:
        store.flush()
    if number % 60 == 1:
        store.compact()


def busy(folder: Path, options: dict, rng: random.Random):
    """Make a writer that says what it begins, and what it has done."""
    start = rng.randrange(1 << 40)

    def write(say) -> None:
        store = ZipStore(folder / "z.zip", **options)
        mine = random.Random(start)
        for number in range(start, start + 100_000):
            key = f"k/{mine.randrange(8)}"
            say(f"begin {key} {number}")
            change_once(store, key, number)
            say(f"done {key} {number}")

    return write


def main() -> None:
    task = json.loads(sys.argv[1])
    root, options = Path(task["root"]), task["options"]
    if task["do"] == "every_step":
        result = every_step(root, options, task["scenario"], foreign=task["foreign"])
    else:
        result = random_moments(root, options, task["kills"], task["seed"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
