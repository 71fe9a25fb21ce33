"""What blobstore sets out to reach, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.data import MIB
from benchmarks.results import Results

Figure = Callable[[Results], float | None]


@dataclass(frozen=True)
class Aim:
    """A figure, and what it should be at least (or, if `at_most`, at most)."""

    workload: str
    text: str
    figure: Figure
    target: float
    at_most: bool = False
    unit: str = "x"

    def met(self, figure: float) -> bool:
        return figure <= self.target if self.at_most else figure >= self.target


def _speed(workload: str, part: str, contender: str, reference: str) -> Figure:
    return lambda results: results.speed(workload, contender, part, reference)


def _rate(workload: str, part: str, nbytes: int) -> Figure:
    """GB/s."""

    def figure(results: Results) -> float | None:
        seconds = results.seconds(workload, "blobstore", part)
        return None if seconds is None else nbytes / seconds / 1e9

    return figure


def _microseconds(workload: str, part: str) -> Figure:
    def figure(results: Results) -> float | None:
        seconds = results.seconds(workload, "blobstore", part)
        return None if seconds is None else seconds * 1e6

    return figure


def _fact_ratio(workload: str, contender: str, above: str, below: str) -> Figure:
    def figure(results: Results) -> float | None:
        over = results.fact(workload, contender, above)
        under = results.fact(workload, contender, below)
        return over / under if over is not None and under else None

    return figure


def _peak_ratio(workload: str, part: str) -> Figure:
    """Peak memory above what was there before, per byte of the value."""

    def figure(results: Results) -> float | None:
        peak = results.peak(workload, "blobstore", part)
        raw = results.fact(workload, "blobstore", "raw")
        return peak / raw if peak is not None and raw else None

    return figure


def _peak_beyond(workload: str, part: str, values: int) -> Figure:
    """Peak memory in MiB beyond so many times the value itself."""

    def figure(results: Results) -> float | None:
        peak = results.peak(workload, "blobstore", part)
        raw = results.fact(workload, "blobstore", "raw")
        return (peak - values * raw) / MIB if peak is not None and raw else None

    return figure


def _memory(kind: str, put: float, get: float) -> list[Aim]:
    name = f"memory {kind}"
    return [
        Aim(name, "put: peak above the value, per its size", _peak_ratio(name, "put"), put, at_most=True),
        Aim(name, "get: peak, result included, per its size", _peak_ratio(name, "get"), get, at_most=True),
    ]  # fmt: skip


def _bounded(kind: str, copies: int = 0) -> list[Aim]:
    name = f"memory {kind}"
    beyond = " beyond one copy" if copies else ""
    return [
        Aim(name, f"put adds{beyond}", _peak_beyond(name, "put", copies), 64, at_most=True, unit="MiB"),
        Aim(name, "get adds beyond the result", _peak_beyond(name, "get", 1), 64, at_most=True, unit="MiB"),
    ]  # fmt: skip


def _milliseconds(workload: str, part: str, contender: str) -> Figure:
    def figure(results: Results) -> float | None:
        seconds = results.seconds(workload, contender, part)
        return None if seconds is None else seconds * 1e3

    return figure


def _mebibytes(workload: str, part: str, contender: str) -> Figure:
    def figure(results: Results) -> float | None:
        peak = results.peak(workload, contender, part)
        return None if peak is None else peak / MIB

    return figure


def _slower(part: str, contender: str, workload: str, than: str) -> Figure:
    """How many times as long it takes in one workload as in another."""

    def figure(results: Results) -> float | None:
        here = results.seconds(workload, contender, part)
        there = results.seconds(than, contender, part)
        return here / there if here is not None and there else None

    return figure


def _million(contender: str) -> list[Aim]:
    name, kind = "query 1M", contender.removeprefix("blobstore ")
    return [
        Aim(name, f"{kind}: top 10 by an index", _milliseconds(name, "top 10", contender), 5, at_most=True, unit="ms"),
        Aim(name, f"{kind}: count without an index", _milliseconds(name, "count", contender), 2000, at_most=True, unit="ms"),
        Aim(name, f"{kind}: list 100 by prefix", _milliseconds(name, "list 100", contender), 2, at_most=True, unit="ms"),
        Aim(name, f"{kind}: put, beside that at 1,000", _slower("put", contender, name, "query 1k"), 1.2, at_most=True),
        Aim(name, f"{kind}: stream all, peak", _mebibytes(name, "stream", contender), 16, at_most=True, unit="MiB"),
    ]  # fmt: skip


WITHIN_TEN_PERCENT = 1 / 1.1
_S3_PARTS = {
    "s3 small": ("put", "get", "put 16", "get 16"),
    "s3 medium": ("put", "get", "put 16", "get 16"),
    "s3 large": ("put", "get"),
}


def _slowest_lead(workload: str, part: str, contender: str, peers: tuple[str, ...]) -> Figure:
    """The speed beside the fastest of those peers that were measured."""

    def figure(results: Results) -> float | None:
        speeds = [results.speed(workload, contender, part, peer) for peer in peers]
        return min((speed for speed in speeds if speed is not None), default=None)

    return figure


def _buckets() -> list[Aim]:
    aims = []
    for name, parts in _S3_PARTS.items():
        for part in parts:
            bare = _speed(name, part, "BucketStore", "obstore S3")
            others = _slowest_lead(name, part, "BucketStore", ("boto3", "s3fs"))
            alike = _speed(name, part, "BucketStore", "obstore S3 bytes")
            if name != "s3 small":
                aims += [
                    Aim(name, f"{part}, within 10 % of bare obstore", bare, WITHIN_TEN_PERCENT),
                    Aim(
                        name, f"{part}, within 10 % of obstore and bytes", alike, WITHIN_TEN_PERCENT
                    ),
                ]
            aims.append(Aim(name, f"{part}, ahead of boto3 and s3fs", others, 1.0))
    return aims


AIMS = (
    Aim("small", "put, as fast as diskcache", _speed("small", "put", "blobstore", "diskcache"), 1.0),
    Aim("small", "get, half of diskcache's rate", _speed("small", "get", "blobstore", "diskcache"), 0.5),
    Aim("small", "get, then diskcache's own rate", _speed("small", "get", "blobstore", "diskcache"), 1.0),
    Aim("frame", "put lz4, within 10 % of to_parquet", _speed("frame", "put", "blobstore", "parquet lz4"), WITHIN_TEN_PERCENT),
    Aim("frame", "get lz4, within 10 % of read_parquet", _speed("frame", "get", "blobstore", "parquet lz4"), WITHIN_TEN_PERCENT),
    Aim("frame", "put zstd, within 10 % of to_parquet", _speed("frame", "put", "blobstore zstd", "parquet zstd"), WITHIN_TEN_PERCENT),
    Aim("frame", "get zstd, within 10 % of read_parquet", _speed("frame", "get", "blobstore zstd", "parquet zstd"), WITHIN_TEN_PERCENT),
    Aim("frozen", "stored, per (one and the changes)", _fact_ratio("frozen", "blobstore shared", "stored", "one and changes"), 1.25, at_most=True),
    Aim("frozen", "save, 3 x as fast as np.savez", _speed("frozen", "save", "blobstore shared", "np.savez"), 3.0),
    Aim("frozen", "save, 3 x as fast as torch.save", _speed("frozen", "save", "blobstore shared", "torch.save"), 3.0),
    Aim("state dict", "save, as fast as torch.save", _speed("state dict", "save", "blobstore tensors", "torch.save"), 1.0),
    Aim("state dict", "load, within 1.2 x of torch.load", _speed("state dict", "load", "blobstore tensors", "torch.save"), 1 / 1.2),
    *_bounded("noise"),
    *_bounded("compressible"),
    *_bounded("strided", copies=1),
    *_memory("noise", 1.3, 1.6),
    *_memory("compressible", 1.3, 1.6),
    *_memory("object", 2.3, 2.6),
    *_memory("checkpoint", 2.3, 2.6),
    *_memory("frame", 2.3, 3.2),
    *_buckets(),
    *_million("blobstore sqlite"),
    *_million("blobstore postgres"),
)  # fmt: skip

_ARRAY = 8 * MIB
ELSEWHERE = (
    Aim("small", "put, 5 x cacheness (340 us)", _microseconds("small", "put"), 68, at_most=True, unit="us"),
    Aim("small", "get, 20 x cacheness (467 us)", _microseconds("small", "get"), 23.4, at_most=True, unit="us"),
    Aim("array noise", "put, 1.5 x cacheness (0.6 GB/s)", _rate("array noise", "put", _ARRAY), 0.9, unit="GB/s"),
    Aim("array noise", "get, 1.5 x cacheness (1.4 GB/s)", _rate("array noise", "get", _ARRAY), 2.1, unit="GB/s"),
    Aim("array compressible", "put, 1.5 x cacheness (1.2 GB/s)", _rate("array compressible", "put", _ARRAY), 1.8, unit="GB/s"),
    Aim("array compressible", "get, 1.5 x cacheness (1.4 GB/s)", _rate("array compressible", "get", _ARRAY), 2.1, unit="GB/s"),
)  # fmt: skip
"""Against a peer that no package index has, whose figures were taken on one machine: a hint, where
the others are ratios within one run."""
