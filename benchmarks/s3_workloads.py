"""Objects in a bucket of a real server on this machine: one at a time, and 16 at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from benchmarks import data
from benchmarks.case import Case, Workload
from benchmarks.data import KIB, MIB
from benchmarks.s3_contenders import AT_ONCE, S3_CONTENDERS, S3Contender

PASSES = 5
"""In so many batches objects are put and got; the median counts."""
LARGE = "large"
LARGE_TIMES = 3
WARM = 2 * AT_ONCE
"""As many calls before, so that all connections are there, and the server has room for the bucket."""


def _small(case: Case) -> None:
    _objects(case, data.small_objects(case.sizes.keys), KIB)


def _medium(case: Case) -> None:
    stream = data.Stream(case.sizes.s3_objects * MIB)
    _objects(case, [bytes(piece) for piece in stream.pieces()], MIB)
    case.meter.facts["raw"] = float(MIB)


def _objects(case: Case, values: list[bytes], size: int) -> None:
    """Measure puts and gets, first one at a time, then at once; nothing that was got is kept."""
    store = cast("S3Contender", case.contender)

    def put(item: tuple[str, bytes]) -> None:
        store.put(*item)

    def get(item: tuple[str, bytes]) -> int:
        return len(store.get(item[0]))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ways: dict[str, Callable[..., Any]] = {"": map, f" {AT_ONCE}": pool.map}
        for name, run in ways.items():
            warm = [(f"warm{name}/{number}", values[0]) for number in range(WARM)]
            for work in (put, get):
                list(run(work, warm))
            objects = [(f"at{name}/{number:05d}", value) for number, value in enumerate(values)]
            for work in (put, get):
                for number in range(PASSES):
                    batch = objects[number::PASSES]
                    with case.meter.part(f"{work.__name__}{name}", len(batch)):
                        done = list(run(work, batch))
            case.check(done, [size] * len(done))
            case.check(bytes(store.get(objects[-1][0])), objects[-1][1])


def _put_large(case: Case) -> None:
    store, value = _warmed(case), _large_value(case)
    for _ in range(LARGE_TIMES):
        with case.meter.part("put"):
            store.put_large(LARGE, value)
    case.meter.facts["raw"] = float(len(value))


def _get_large(case: Case) -> None:
    store = _warmed(case)
    for _ in range(LARGE_TIMES):
        with case.meter.part("get"):
            got = store.get_large(LARGE)
        case.check(memoryview(got), _large_value(case))
        del got


def _warmed(case: Case) -> S3Contender:
    """Have the code for large objects used, and the connections made, by one of an eighth."""
    store = cast("S3Contender", case.contender)
    value = bytes(case.sizes.large // 8)
    store.put_large("warm", value)
    case.check(len(store.get_large("warm")), len(value))
    return store


def _large_value(case: Case) -> bytes:
    return data.array("noise", case.sizes.large).tobytes()


S3_WORKLOADS = tuple(
    Workload(
        name,
        title,
        tuple(S3_CONTENDERS),
        "obstore S3",
        steps,
        rounds=3,
        peaks=True,
    )
    for name, title, steps in (
        (
            "s3 small",
            "2,000 objects of 1 KiB in a bucket, one at a time and 16 at once (threads)",
            {"all": _small},
        ),
        (
            "s3 medium",
            "200 objects of 1 MiB in a bucket, one at a time and 16 at once (threads)",
            {"all": _medium},
        ),
        (
            "s3 large",
            "one object of 256 MiB in a bucket",
            {"put": _put_large, "get": _get_large},
        ),
    )
)
