"""The tables."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.aims import AIMS, ELSEWHERE, Aim
from benchmarks.data import MIB
from benchmarks.registry import CONTENDERS
from benchmarks.results import Results
from benchmarks.workloads import Workload

GAP = "  "


def table(workload: Workload, results: Results) -> str:
    """Render a workload: for each part the time and the speed beside the reference, then memory and bytes."""
    name = workload.name
    good = [c for c in workload.contenders if not results.problem(name, c)]
    parts = list(dict.fromkeys(part for c in good for part in results.parts(name, c)))
    peaks = [f"peak {part}" for part in parts] if workload.peaks else ["peak"]
    header = [name, *(cell for part in parts for cell in (part, "x")), *peaks]
    if on_disk := any(results.fact(name, c, "stored") is not None for c in good):
        header.append("stored")
    rows, problems = [], []
    for contender in workload.contenders:
        if problem := results.problem(name, contender):
            problems.append(f"  {contender}: {problem}")
            continue
        row = _row(workload, contender, parts, results)
        rows.append(row if on_disk else row[:-1])
    count = len(results.rounds(name, workload.reference))
    title = (
        f"{workload.title} (median of {count} round{'s' * (count != 1)}; x: times as fast as "
        f"{workload.reference}; peak: memory on top of what was there)"
    )
    return "\n".join([title, *_aligned([header, *rows]), *problems])


def _row(workload: Workload, contender: str, parts: list[str], results: Results) -> list[str]:
    name = workload.name
    raw = results.fact(name, contender, "raw")
    times = []
    for part in parts:
        speed = results.speed(name, contender, part, workload.reference)
        times += [_time(results.seconds(name, contender, part)), _ratio(speed)]
    peaks = [_memory(results.peak(name, contender, part), raw) for part in parts]
    if not workload.peaks:
        highest = max((results.peak(name, contender, part) or 0 for part in parts), default=None)
        peaks = [_memory(highest, None)]
    return [contender, *times, *peaks, _stored(results.fact(name, contender, "stored"), raw, name)]


def _memory(peak: float | None, raw: float | None) -> str:
    if peak is None:
        return "-"
    text = f"{peak / MIB:.{0 if peak >= 10 * MIB else 1}f} MiB"
    return f"{text} ({peak / raw:.2f})" if raw else text


def _stored(stored: float | None, raw: float | None, workload: str) -> str:
    if stored is None:
        return "-"
    text = f"{stored / MIB:.1f} MiB"
    return f"{text} ({stored / raw:.2f})" if raw and workload != "small" else text


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.{0 if seconds >= 1e-5 else 1}f} us"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def _aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        GAP.join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return lines


def aims(results: Results, workloads: Iterable[str]) -> str:
    """Hold each aim of the workloads that ran against its measured figure; "" if there is none."""
    ran = set(workloads)
    lines = _aims([aim for aim in AIMS if aim.workload in ran], results)
    hints = _aims([aim for aim in ELSEWHERE if aim.workload in ran], results)
    if not lines and not hints:
        return ""
    out = ["Aims" + (" (--quick: smaller sizes, a hint at most)" if results.quick else ""), *lines]
    if hints:
        out += ["", "Beside figures of cacheness from another machine (a hint at most)", *hints]
    return "\n".join(out)


def _aims(chosen: list[Aim], results: Results) -> list[str]:
    rows = [["workload", "what", "aim", "measured", "verdict"]]
    for aim in chosen:
        figure = aim.figure(results)
        verdict = "not measured" if figure is None else "met" if aim.met(figure) else "MISSED"
        sign = "<=" if aim.at_most else ">="
        rows.append(
            [aim.workload, aim.text, f"{sign} {aim.target:.3g} {aim.unit}",
             "-" if figure is None else f"{figure:.2f} {aim.unit}", verdict]
        )  # fmt: skip
    return _aligned(rows, left=2) if chosen else []


def notes(workloads: Iterable[Workload]) -> str:
    """Say what to know about the contenders that took part."""
    said: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for workload in workloads for name in workload.contenders):
        said.setdefault(CONTENDERS[name].note, []).append(name)
    lines = [f"  {', '.join(names)}: {note}" for note, names in said.items() if note]
    common = "  all: page cache warm; none is asked to sync to disk (SQLite in WAL mode does at checkpoints)"
    return "\n".join(["Notes", common, *lines])
