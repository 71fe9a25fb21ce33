"""What is measured: each workload, the contenders it makes sense for, and what it does with them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.case import FULL, QUICK, Case, Workload
from benchmarks.data import MIB
from benchmarks.query_workloads import QUERY_WORKLOADS
from benchmarks.s3_workloads import S3_WORKLOADS
from benchmarks.store_workloads import STORE_WORKLOADS

__all__ = ["FULL", "QUICK", "WORKLOADS", "Case", "Workload"]


# --- small values ---


def _small(case: Case) -> None:
    keys = data.small_keys(case.sizes.keys)
    values = [data.small_value(number) for number in range(len(keys))]
    metadata = [data.small_metadata(number) for number in range(len(keys))]
    store, meter = case.contender, case.meter
    case.warm(values[0])
    with meter.part("put", len(keys)):
        for key, value, facts in zip(keys, values, metadata, strict=True):
            store.put(key, value, facts)
    with meter.part("get", len(keys)):
        for key in keys:
            got = store.get(key)
    case.check(got[0] if isinstance(got, tuple) else got, values[-1])
    again = list(zip(keys[::4], values, metadata, strict=False))
    with meter.part("overwrite", len(again)):
        for key, value, facts in again:
            store.put(key, value, facts)
    prefixes = sorted({key.split("/")[0] + "/" for key in keys}) * 2
    with meter.part("list 100", len(prefixes)):
        for prefix in prefixes:
            found = store.keys(prefix)
    case.check(len(found), 100)
    meter.facts["raw"] = 1024.0 * len(keys)


# --- arrays and frames ---


def _put_get_overwrite(case: Case, values: list[Any], nbytes: int) -> None:
    store, meter = case.contender, case.meter
    for number, value in enumerate(values):
        with meter.part("put"):
            store.put(f"v{number}", value)
    for number in range(len(values)):
        got = None
        with meter.part("get"):
            got = store.get(f"v{number}")
    case.check(got, values[-1])
    for number, value in enumerate(reversed(values)):
        with meter.part("overwrite"):
            store.put(f"v{number}", value)
    meter.facts["raw"] = float(nbytes)


def _arrays(kind: str, case: Case) -> None:
    case.warm(data.array(kind, MIB, 99))
    sizes = case.sizes
    values = [data.array(kind, sizes.array, seed) for seed in range(sizes.arrays)]
    _put_get_overwrite(case, values, sizes.array * sizes.arrays)


def _frames(case: Case) -> None:
    case.warm(data.frame(20_000, 99))
    values = [data.frame(case.sizes.rows, seed) for seed in range(2)]
    _put_get_overwrite(case, values, sum(map(data.frame_bytes, values)))


# --- checkpoints ---


def _checkpoints(case: Case, *, count: int) -> None:
    sizes, store, meter = case.sizes, case.contender, case.meter
    case.warm(data.checkpoint(2, MIB // 4))
    state = data.checkpoint(sizes.tensors, sizes.tensor)
    for step in range(count):
        if step:
            data.train(state, step)
        with meter.part("save", mean=True):  # the first one is larger
            store.put(f"step-{step:04d}", state, {"step": step})
    for step in range(count - 3, count):
        got = None
        with meter.part("load"):
            got = store.get(f"step-{step:04d}")
    case.check(got[0] if isinstance(got, tuple) else got, state)
    meter.facts["raw"] = float(count * sizes.tensors * sizes.tensor)
    meter.facts["one and changes"] = float((sizes.tensors + count - 1) * sizes.tensor)


def _ten_checkpoints(case: Case) -> None:
    _checkpoints(case, count=case.sizes.checkpoints)


def _twenty_checkpoints(case: Case) -> None:
    _checkpoints(case, count=case.sizes.frozen_checkpoints)


def _save_states(case: Case) -> None:
    case.warm(data.state_dict(16))
    state = data.state_dict(case.sizes.width)
    for step in range(case.sizes.arrays):
        with case.meter.part("save"):
            case.contender.put(f"step-{step}", state)
    case.meter.facts["raw"] = float(case.sizes.arrays * _large_bytes(state))


def _load_states(case: Case) -> None:
    """Load in a process that did nothing else: as training goes on, or a model is used."""
    case.warm(data.state_dict(16))
    for step in range(case.sizes.arrays):
        got = None
        with case.meter.part("load"):
            got = case.contender.get(f"step-{step}")
    case.check(got, data.state_dict(case.sizes.width))


# --- memory: one large value; put and get in processes of their own ---


def _large(kind: str, nbytes: int) -> Any:
    if kind == "frame":
        return data.frame_of(nbytes)
    if kind == "object":
        return data.Model("large", data.array("weights", nbytes))
    if kind == "checkpoint":
        return data.checkpoint(8, nbytes // 8)
    if kind == "strided":
        return data.array("noise", 2 * nbytes).reshape(-1, 2)[:, 0]
    return data.array(kind, nbytes)


def _large_bytes(value: Any) -> int:
    if isinstance(value, data.Model):
        return int(value.weights.nbytes)
    if isinstance(value, dict):
        return sum(array.nbytes for array in value.values())
    return int(value.nbytes) if isinstance(value, np.ndarray) else data.frame_bytes(value)


def _large_put(kind: str, case: Case) -> None:
    case.warm(_large(kind, MIB))
    value = _large(kind, case.sizes.large)
    with case.meter.part("put"):
        case.contender.put("large", value)
    case.meter.facts["raw"] = float(_large_bytes(value))


def _large_get(kind: str, case: Case) -> None:
    case.warm(_large(kind, MIB))
    with case.meter.part("get"):
        got = case.contender.get("large")
    case.check(got, _large(kind, case.sizes.large))


def _memory(kind: str, title: str, contenders: tuple[str, ...], reference: str) -> Workload:
    steps = {"put": partial(_large_put, kind), "get": partial(_large_get, kind)}
    return Workload(f"memory {kind}", title, contenders, reference, steps, rounds=1, peaks=True)


_ARRAYS = (
    "blobstore", "blobstore zstd", "blobstore none", "blosc2", "np.save", "joblib", "joblib lz4",
    "joblib zlib", "diskcache",
)  # fmt: skip
_CHECKPOINTS = (
    "blobstore", "blobstore shared", "np.savez", "joblib", "diskcache", "pickle+lz4", "torch.save",
)  # fmt: skip
_BIG_ARRAYS = ("blobstore", "blosc2", "np.save", "diskcache")

WORKLOADS = (
    Workload(
        "small",
        "1 KB dict with three metadata fields, one at a time",
        ("blobstore", "blobstore json", "diskcache", "sqlitedict", "joblib"),
        "diskcache",
        {"all": _small},
    ),
    Workload(
        "array noise",
        "8 MiB arrays of noise",
        _ARRAYS,
        "blosc2",
        {"all": partial(_arrays, "noise")},
    ),
    Workload(
        "array compressible",
        "8 MiB arrays that compress",
        _ARRAYS,
        "blosc2",
        {"all": partial(_arrays, "compressible")},
    ),
    Workload(
        "frame",
        "DataFrame of 500,000 rows and 8 columns",
        ("blobstore", "parquet lz4", "blobstore zstd", "parquet zstd", "joblib", "diskcache"),
        "parquet lz4",
        {"all": _frames},
    ),
    Workload(
        "checkpoints",
        "ten checkpoints of eight 8 MiB arrays of which one changes",
        _CHECKPOINTS,
        "np.savez",
        {"all": _ten_checkpoints},
        rounds=3,
    ),
    Workload(
        "frozen",
        "twenty checkpoints of eight 8 MiB arrays, seven of them frozen",
        ("blobstore shared", "np.savez", "torch.save"),
        "np.savez",
        {"all": _twenty_checkpoints},
        rounds=3,
    ),
    Workload(
        "state dict",
        "a state dict of float32 weights, 200 MB in 49 tensors",
        ("torch.save", "blobstore tensors", "np.savez", "blobstore"),
        "torch.save",
        {"save": _save_states, "load": _load_states},
    ),
    _memory("noise", "a 256 MiB array of noise", _BIG_ARRAYS, "np.save"),
    _memory("compressible", "a 256 MiB array that compresses", _BIG_ARRAYS, "np.save"),
    _memory("strided", "a 256 MiB array that is not contiguous", ("blobstore", "np.save"), "np.save"),
    _memory("checkpoint", "a checkpoint of eight 32 MiB arrays", ("blobstore", "np.savez", "joblib"), "np.savez"),
    _memory("object", "an object holding a 256 MiB array", ("blobstore", "joblib", "diskcache"), "joblib"),
    _memory("frame", "a DataFrame of 256 MiB", ("blobstore", "parquet lz4", "joblib"), "parquet lz4"),
    *STORE_WORKLOADS,
    *S3_WORKLOADS,
    *QUERY_WORKLOADS,
)  # fmt: skip
