"""What a workload is made of: how much, with whom, in which steps, and what counts as right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.contenders import Contender
from benchmarks.data import MIB
from benchmarks.meter import Meter


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    keys: int = 2000
    arrays: int = 5
    array: int = 8 * MIB
    rows: int = 500_000
    checkpoints: int = 10
    frozen_checkpoints: int = 20
    tensors: int = 8
    tensor: int = 8 * MIB
    width: int = 768
    large: int = 256 * MIB
    stream: int = 64 * MIB
    ranges: int = 200
    at_once: int = 1000
    s3_objects: int = 200
    entries: Mapping[str, int] = field(
        default_factory=lambda: {"1k": 1_000, "100k": 100_000, "1M": 1_000_000}
    )


FULL = Sizes()
QUICK = Sizes(
    keys=400, arrays=3, rows=100_000, checkpoints=4, frozen_checkpoints=8, tensor=2 * MIB, width=256,
    large=64 * MIB, stream=16 * MIB, ranges=50, at_once=200, s3_objects=50,
    entries={"1k": 1_000, "100k": 5_000, "1M": 20_000},
)  # fmt: skip


class WrongResultError(Exception):
    """A contender gave back something else than was stored, so its times mean nothing."""


@dataclass(frozen=True)
class Case:
    """One contender in one workload, in this process."""

    contender: Contender
    meter: Meter
    sizes: Sizes

    def warm(self, value: Any) -> None:
        """Import, allocate and start what the first use does, outside of what is measured."""
        self.contender.put("warm", value, {"warm": True})
        self.contender.get("warm")

    def check(self, got: Any, wanted: Any) -> None:
        if not _same(got, wanted):
            name = type(self.contender).__name__
            raise WrongResultError(f"{name} gave back something else than was stored")


Step = Callable[[Case], None]


@dataclass(frozen=True)
class Workload:
    """A row group of the table.

    Parameters
    ----------
    steps : mapping of str to callable
        Run in this order on one folder, each in a process of its own.
    reference : str
        The contender whose speed is 1.00 x.
    rounds : int
        How often, unless the command line says; work whose figures hardly vary needs fewer.
    peaks : bool
        Whether peak memory is shown for each part, not only the highest.
    """

    name: str
    title: str
    contenders: tuple[str, ...]
    reference: str
    steps: Mapping[str, Step]
    rounds: int = 5
    peaks: bool = False


def _same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, np.ndarray):
        return got.dtype == wanted.dtype and np.array_equal(got, wanted)
    if isinstance(wanted, dict):
        return wanted.keys() == got.keys() and all(_same(got[k], wanted[k]) for k in wanted)
    if isinstance(wanted, data.Model):
        return type(got) is data.Model and _same(got.weights, wanted.weights)
    if hasattr(wanted, "equals"):
        return bool(wanted.equals(got))
    return bool(got == wanted)
