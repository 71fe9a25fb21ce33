"""What was measured, and the medians and ratios of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Measurement:
    """One contender in one round of one workload."""

    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    profiles: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    def merge(self, result: dict[str, Any]) -> None:
        """Add what one process printed."""
        for name in ("skipped", "failed"):
            if name in result:
                self.problem = f"{name}: {result[name]}"
        self.seconds |= result.get("seconds", {})
        self.peaks |= result.get("peaks", {})
        self.facts |= result.get("facts", {})
        self.profiles |= result.get("profiles", {})


class Results:
    """All measurements of a run. Figures are None where there are none."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._rounds: dict[tuple[str, str], list[Measurement]] = {}

    def add(self, workload: str, contender: str, measured: Measurement) -> None:
        self._rounds.setdefault((workload, contender), []).append(measured)

    def rounds(self, workload: str, contender: str) -> list[Measurement]:
        """All rounds, those that failed included."""
        return self._rounds.get((workload, contender), [])

    def problem(self, workload: str, contender: str) -> str:
        return next((m.problem for m in self.rounds(workload, contender) if m.problem), "")

    def parts(self, workload: str, contender: str) -> list[str]:
        return list(dict.fromkeys(p for m in self.rounds(workload, contender) for p in m.seconds))

    def seconds(self, workload: str, contender: str, part: str) -> float | None:
        return self._median(workload, contender, lambda m: m.seconds.get(part))

    def peak(self, workload: str, contender: str, part: str) -> float | None:
        return self._median(workload, contender, lambda m: m.peaks.get(part))

    def fact(self, workload: str, contender: str, name: str) -> float | None:
        return self._median(workload, contender, lambda m: m.facts.get(name))

    def speed(self, workload: str, contender: str, part: str, reference: str) -> float | None:
        """How many times as fast as the reference: the median of the ratios within each round."""
        pairs = zip(
            self.rounds(workload, contender), self.rounds(workload, reference), strict=False
        )
        ratios = [
            theirs.seconds[part] / ours.seconds[part]
            for ours, theirs in pairs
            if part in ours.seconds and part in theirs.seconds
        ]
        return median(ratios) if ratios else None

    def _median(
        self, workload: str, contender: str, figure: Callable[[Measurement], float | None]
    ) -> float | None:
        found = [
            value for m in self.rounds(workload, contender) if (value := figure(m)) is not None
        ]
        return median(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """Everything measured, round by round."""
        out: dict[str, Any] = {"quick": self.quick, "workloads": {}}
        for (workload, contender), rounds in self._rounds.items():
            out["workloads"].setdefault(workload, {})[contender] = [
                {
                    "seconds": m.seconds,
                    "peaks": m.peaks,
                    "facts": m.facts,
                    **({"problem": m.problem} if m.problem else {}),
                }
                for m in rounds
            ]
        return out
