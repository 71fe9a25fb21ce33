"""Measuring inside one process: wall time, peak memory, bytes on disk."""

from __future__ import annotations

import cProfile
import ctypes
import gc
import io
import pstats
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path


class Meter:
    """Times the parts of a workload, and how much memory each added at its peak.

    A part that is entered more than once keeps its highest peak, and the median of its times, or
    their mean where it makes a difference which time it was.
    """

    def __init__(self, *, profile: bool = False) -> None:
        self.peaks: dict[str, int] = {}
        self.facts: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = {}
        self._averages: dict[str, Callable[[list[float]], float]] = {}
        self._profiles: dict[str, cProfile.Profile] | None = {} if profile else None

    @contextmanager
    def part(self, name: str, count: int = 1, *, mean: bool = False) -> Iterator[None]:
        """Measure what is inside, which does `count` operations."""
        gc.collect()
        if name not in self._seconds:  # each time would make every allocation a slow one
            return_free_memory()
        baseline = start_watching_memory()
        with self._profiler(name):
            started = time.perf_counter()
            yield
            elapsed = time.perf_counter() - started
        self.peaks[name] = max(self.peaks.get(name, 0), peak_memory() - baseline)
        self._seconds.setdefault(name, []).append(elapsed / count)
        self._averages[name] = statistics.fmean if mean else statistics.median

    def _profiler(self, name: str) -> cProfile.Profile | nullcontext[None]:
        if self._profiles is None:
            return nullcontext()
        return self._profiles.setdefault(name, cProfile.Profile())

    def result(self) -> dict[str, dict[str, float]]:
        """Seconds per operation, added bytes at the peak, and other facts, by name."""
        times = {name: self._averages[name](each) for name, each in self._seconds.items()}
        return {"seconds": times, "peaks": {**self.peaks}, "facts": self.facts}

    def profiles(self, lines: int = 12) -> dict[str, str]:
        """Describe where each part spent its time, if profiling was asked for."""
        described = {}
        for name, profile in (self._profiles or {}).items():
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(lines)
            described[name] = text.getvalue()
        return described


def start_watching_memory() -> int:
    """Forget the highest peak so far, where the system allows it, and return what is in use now.

    Where it does not (anything but Linux, or some containers) the peak of the whole process is
    what `peak_memory` gives, which is the same as long as the measured part is the hungriest.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    current = _status("VmRSS")
    return current if current is not None else _ru_maxrss()


def peak_memory() -> int:
    peak = _status("VmHWM")
    return peak if peak is not None else _ru_maxrss()


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None


def _ru_maxrss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def return_free_memory() -> None:
    """Make glibc and Arrow give back freed memory, which a later peak would otherwise hide in."""
    if (arrow := sys.modules.get("pyarrow")) is not None:
        arrow.default_memory_pool().release_unused()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
