"""What is stored: values, arrays, frames and checkpoints, the same ones in every process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

KIB = 1 << 10
MIB = 1 << 20
Array = npt.NDArray[Any]


@dataclass
class Model:
    """An object of a user's own class, with a large array in it."""

    name: str
    weights: Array


def small_value(number: int) -> dict[str, Any]:
    """About 1 KB when pickled: the configuration and scores of one training run."""
    rng = np.random.default_rng(number)
    return {
        "id": number,
        "name": f"experiment {number}",
        "optimizer": {"name": "adam", "lr": 0.001, "betas": [0.9, 0.999]},
        "losses": rng.random(60).tolist(),
        "notes": rng.bytes(128).hex(),
    }


def small_metadata(number: int) -> dict[str, Any]:
    return {"accuracy": number / 10_000, "model": f"m{number % 7}", "epoch": number}


def small_keys(count: int) -> list[str]:
    """A hundred keys for each prefix, in an order that is not theirs."""
    keys = [f"run-{number // 100:03d}/item-{number:05d}" for number in range(count)]
    np.random.default_rng(1).shuffle(keys)
    return keys


def array(kind: str, nbytes: int, seed: int = 0) -> Array:
    """Make an array: "noise" does not shrink, "compressible" to about an eighth, "weights" hardly."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 2**63, nbytes // 8, dtype=np.int64)
    if kind == "weights":
        return rng.standard_normal(nbytes // 4, dtype=np.float32) * np.float32(0.02)
    return np.cumsum(rng.integers(0, 3, nbytes // 8, dtype=np.int64))


def frame(rows: int, seed: int = 0) -> pd.DataFrame:
    """What tables are made of: ids, measurements, a time, a flag, and text that repeats."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    cities = np.array(
        ["Lisbon", "Oslo", "Kraków", "Nairobi", "Osaka", "Lima", "Perth"], dtype=object
    )
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "x": rng.standard_normal(rows),
            "y": rng.standard_normal(rows, dtype=np.float32),
            "price": rng.integers(100, 99_900, rows) / 100,
            "count": rng.integers(0, 50, rows),
            "at": pd.Timestamp("2026-01-01")
            + pd.to_timedelta(rng.integers(0, 10**7, rows), unit="s"),
            "flag": rng.random(rows) < 0.3,
            "city": cities[rng.integers(0, len(cities), rows)],
        }
    )


def frame_bytes(value: pd.DataFrame) -> int:
    return int(value.memory_usage(deep=True).sum())


def frame_of(nbytes: int) -> pd.DataFrame:
    """Make a frame of about so many bytes in memory."""
    return frame(nbytes * 10_000 // frame_bytes(frame(10_000)))


def checkpoint(tensors: int, nbytes: int) -> dict[str, Array]:
    return {f"layer{number}.weight": array("weights", nbytes, number) for number in range(tensors)}


def state_dict(width: int, layers: int = 6) -> dict[str, Array]:
    """Make what a transformer is saved as: a few large weights in each layer, many short biases."""
    shapes: dict[str, tuple[int, ...]] = {"tokens": (8192, width)}
    for layer in range(layers):
        for name, rows, columns in (
            ("attention", 3 * width, width), ("output", width, width),
            ("up", 4 * width, width), ("down", width, 4 * width),
        ):  # fmt: skip
            shapes[f"{layer}.{name}.weight"] = (rows, columns)
            shapes[f"{layer}.{name}.bias"] = (rows,)
    return {
        name: array("weights", 4 * math.prod(shape), seed).reshape(shape)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def train(state: dict[str, Array], step: int) -> None:
    """Change one of the arrays, all of it; the others are frozen."""
    changing = next(reversed(state))
    state[changing] = array("weights", state[changing].nbytes, 1000 + step)


def small_objects(count: int) -> list[bytes]:
    """Objects of 1 KiB, each another one."""
    rng = np.random.default_rng(2)
    return [rng.bytes(KIB) for _ in range(count)]


def positions(stop: int, count: int) -> list[int]:
    return np.random.default_rng(3).integers(0, stop, count).tolist()


class Stream:
    """A large object in pieces of 1 MiB, each another one, that is never in memory as a whole."""

    def __init__(self, nbytes: int, kind: str = "noise") -> None:
        self.nbytes = nbytes
        self._pool = memoryview(array(kind, 16 * MIB)).cast("B")

    def piece(self, number: int) -> memoryview:
        start = number * 1_000_000 % (15 * MIB)
        return self._pool[start : start + MIB]

    def pieces(self) -> Iterator[memoryview]:
        return map(self.piece, range(self.nbytes // MIB))

    def content(self, start: int, stop: int) -> bytes:
        """Give the bytes ``[start, stop)`` of it."""
        out = bytearray()
        while start < stop:
            number, offset = divmod(start, MIB)
            part = self.piece(number)[offset : offset + stop - start]
            out += part
            start += len(part)
        return bytes(out)
