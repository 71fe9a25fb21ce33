"""Bytes under keys: object stores beside their peers, and wrappers beside the bare store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

from benchmarks import data
from benchmarks.case import Case, Workload
from benchmarks.data import KIB, MIB
from benchmarks.meter import Meter
from benchmarks.store_contenders import ManyContender, ObjectContender
from benchmarks.wrapper_contenders import WRAPPER_CONTENDERS, Wrapped

LARGE, WARM = "large", "warm-large"
RANGE = 64 * KIB
PASSES = 5
"""How often small calls that take microseconds are measured in one process; the median counts."""
WARM_CALLS = 200
STREAMS = 3
"""How often a stream that takes milliseconds is."""


# --- small objects ---


def _small(case: Case) -> None:
    store, meter = cast("ObjectContender", case.contender), case.meter
    keys = data.small_keys(case.sizes.keys)
    values = data.small_objects(len(keys))
    _warm(case, store)
    with meter.part("put", len(keys)):
        for key, value in zip(keys, values, strict=True):
            store.put(key, value)
        store.finish()
    with meter.part("get", len(keys)):
        for key in keys:
            got = store.get(key)
    case.check(bytes(got), values[-1])
    if store.replaces:
        _overwrite(case, store, keys[::4], values)
    prefixes = sorted({key.split("/")[0] + "/" for key in keys})
    with meter.part("list 100", 2 * len(prefixes)):
        for prefix in prefixes * 2:
            found = store.keys(prefix)
    case.check(len(found), 100)
    gone = keys[1::4] if store.replaces else []
    if gone:
        with meter.part("delete", len(gone)):
            for key in gone:
                store.delete(key)
    case.check(sum(len(store.keys(prefix)) for prefix in prefixes), len(keys) - len(gone))
    meter.facts["raw"] = float(KIB * (len(keys) - len(gone)))


def _overwrite(case: Case, store: ObjectContender, keys: list[str], values: list[bytes]) -> None:
    with case.meter.part("overwrite", len(keys)):
        for key, value in zip(keys, values, strict=False):
            store.put(key, value)
        store.finish()
    case.check(bytes(store.get(keys[0])), values[0])


def _warm(case: Case, store: ObjectContender) -> None:
    case.warm(bytes(KIB))
    store.finish()
    store.keys("warm")
    if store.replaces:
        store.delete("warm")


# --- one large object ---


def _large(case: Case) -> None:
    store, meter, sizes = cast("ObjectContender", case.contender), case.meter, case.sizes
    _warm(case, store)
    _warm_streams(case, store)
    if store.replaces:
        store.delete(WARM)
    stream = data.Stream(sizes.large)
    _write(meter, store, stream)
    _read(case, meter, store, stream)
    starts = data.positions(sizes.large - RANGE, sizes.ranges // (10 if store.slow_ranges else 1))
    with meter.part("64 KiB range", len(starts)):
        for start in starts:
            got = store.get_range(LARGE, start, start + RANGE)
    case.check(bytes(got), stream.content(starts[-1], starts[-1] + RANGE))
    meter.facts["raw"] = float(sizes.large)


def _warm_streams(case: Case, store: Any) -> None:
    stream = data.Stream(2 * MIB)
    _write(Meter(), store, stream, WARM)
    _read(case, Meter(), store, stream, WARM)


def _write(meter: Meter, store: Any, stream: data.Stream, key: str = LARGE) -> None:
    with meter.part("write"), store.writer(key, stream.nbytes) as sink:
        for piece in stream.pieces():
            sink.write(piece)


def _read(case: Case, meter: Meter, store: Any, stream: data.Stream, key: str = LARGE) -> None:
    length = 0
    with meter.part("read"), closing(store.open(key)) as file:
        while len(piece := file.read(MIB)):
            length += len(piece)
            last = piece
    case.check(length, stream.nbytes)
    case.check(bytes(last), stream.content(length - len(last), length))


# --- wrappers ---


def _wrappers(case: Case) -> None:
    contender = cast("Wrapped", case.contender)
    can = contender.small.capabilities
    # What a wrapper refuses is done beneath it, and not measured.
    putting = case.meter if can.writable else Meter()
    getting = case.meter if can.readable else Meter()
    small, streams = contender.small, contender.streams
    beneath, files = contender.beneath, contender.files
    _puts(case, putting, contender, small if can.writable else beneath)
    _gets(case, getting, contender, small if can.readable else beneath)
    if contender.has_streams:
        _warm_streams(case, streams if can.readable and can.writable else files)
        stream = data.Stream(case.sizes.stream, "compressible")
        for number in range(STREAMS):
            _write(putting, streams if can.writable else files, stream, f"large-{number}")
        for number in range(STREAMS):
            _read(case, getting, streams if can.readable else files, stream, f"large-{number}")


def _objects(case: Case, contender: Wrapped) -> Iterator[dict[str, Any]]:
    """Give the same objects again, divided among the passes."""
    keys = map(contender.key, data.small_keys(case.sizes.keys))
    contents = data.small_objects(case.sizes.keys)
    pairs = list(zip(keys, map(contender.value, contents), strict=True))
    return (dict(pairs[number::PASSES]) for number in range(PASSES))


def _puts(case: Case, meter: Meter, contender: Wrapped, store: Any) -> None:
    for number in range(WARM_CALLS):  # what the interpreter specializes is to be so by then
        store.put(contender.key(f"warm-{number}"), contender.value(bytes(KIB)))
    for objects in _objects(case, contender):
        with meter.part("put", len(objects)):
            for key, value in objects.items():
                store.put(key, value)


def _gets(case: Case, meter: Meter, contender: Wrapped, store: Any) -> None:
    for number in range(WARM_CALLS):
        store.get(contender.key(f"warm-{number}"))
    for objects in _objects(case, contender):
        with meter.part("get", len(objects)):
            for key in objects:
                got = store.get(key)
        case.check(contender.content(got), contender.content(objects[key]))


# --- many calls at once ---


def _at_once(case: Case) -> None:
    store, meter, count = cast("ManyContender", case.contender), case.meter, case.sizes.at_once
    store.put_all({f"warm/{number}": bytes(KIB) for number in range(64)})
    store.get_all([f"warm/{number}" for number in range(64)])
    values = data.small_objects(count)
    batches = [
        {f"batch-{batch}/{number:05d}": value for number, value in enumerate(values)}
        for batch in range(PASSES)
    ]
    for batch in batches:
        with meter.part("put", count):
            store.put_all(batch)
    for batch in batches:
        with meter.part("get", count):
            got = store.get_all(list(batch))
    case.check(got, list(batches[-1].values()))
    meter.facts["raw"] = float(KIB * count * PASSES)


_STORES = (
    "files", "FilesystemStore", "FilesystemBlobBackend", "obstore", "sqlite3", "SqliteStore", "zipfile",
    "ZipStore", "DictStore",
)  # fmt: skip

STORE_WORKLOADS = (
    Workload(
        "stores small",
        "2,000 objects of 1 KiB, one at a time",
        _STORES,
        "files",
        {"all": _small},
    ),
    Workload(
        "stores large",
        "one object of 256 MiB of noise in pieces of 1 MiB, and ranges of it",
        _STORES,
        "files",
        {"all": _large},
        rounds=3,
        peaks=True,
    ),
    Workload(
        "wrappers",
        "1 KiB put and get over a DictStore, 64 MiB that compress streamed over files",
        tuple(WRAPPER_CONTENDERS),
        "bare",
        {"all": _wrappers},
        rounds=3,
    ),
    Workload(
        "async",
        "1,000 puts, then gets, of 1 KiB at once, over files",
        ("one by one", "32 threads", "to_thread", "AsyncFilesystemStore"),
        "one by one",
        {"all": _at_once},
    ),
)
