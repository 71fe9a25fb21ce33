"""Questions to an index of a thousand entries, up to a million of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

from benchmarks.case import Case, Workload
from benchmarks.query_contenders import QUERY_CONTENDERS, TOP, QueryContender, run

TIMES = 20
"""How often each question is asked; the median counts."""
PATIENCE = 5.0
"""Seconds after which a question is not asked again."""
BATCHES = 10
"""In so many batches entries are put; the median counts."""


def _contender(case: Case) -> QueryContender:
    return cast("QueryContender", case.contender)


def _count(size: str, case: Case) -> int:
    return case.sizes.entries[size]


def _fill(size: str, case: Case) -> None:
    _contender(case).fill(_count(size, case))


def _ask(size: str, case: Case) -> None:
    store, count = _contender(case), _count(size, case)
    bounds = [0.9 - 0.01 * number for number in range(TIMES)]
    ranked = range(count)  # an accuracy is rank / count
    for below, found in _asked(case, "top 10", store.top, bounds):
        best = next(rank for rank in reversed(ranked) if rank / count < below)
        case.check(found, [(best - number) / count for number in range(TOP)])
    for epoch, found in _asked(case, "count", store.count, [count // 2 + n for n in range(TIMES)]):
        case.check(found, count - epoch)
    prefixes = [run(number, count)[0][:10] for number in range(0, count, count // 10)] * 2
    for prefix, found in _asked(case, "list 100", store.keys, prefixes):
        case.check(len(found), 100)
        case.check(found[0].startswith(prefix), True)


def _asked(
    case: Case, part: str, question: Callable[[Any], Any], asked: Iterable[Any]
) -> list[tuple[Any, Any]]:
    """Ask about each, for as long as there is patience; the first time is to get warm."""
    each = iter(asked)
    first = next(each)
    answers = [(first, question(first))]
    started = time.perf_counter()
    for one in each:
        with case.meter.part(part):
            answer = question(one)
        answers.append((one, answer))
        if time.perf_counter() - started > PATIENCE:
            break
    return answers


def _stream(size: str, case: Case) -> None:
    """Go through all entries, of which none is kept."""
    store, count = _contender(case), _count(size, case)
    next(iter(store.stream()))
    with case.meter.part("stream", count):
        total = seen = 0.0
        for accuracy in store.stream():
            total += accuracy
            seen += 1
    case.check(seen, float(count))
    case.check(round(total / count, 3), round((count - 1) / 2 / count, 3))


def _put(size: str, case: Case) -> None:
    """Add entries, and index them: behind those that are there, as runs come, and in between."""
    store, count = _contender(case), _count(size, case)
    value = {"weights": [0.5] * 8}
    facts = [run(number * 6_007 % count, count) for number in range(2 * store.puts)]
    behind = [(f"run/{n:07d}", metadata) for n, (_, metadata) in enumerate(facts[: store.puts])]
    between = [(f"{key}/{n}", metadata) for n, (key, metadata) in enumerate(facts[store.puts :])]
    for number in range(20):
        store.put(f"run/{number}", value, facts[number][1])
    for number in range(BATCHES):
        for part, items in ("put", behind), ("put between", between):
            batch = items[number * len(items) // BATCHES : (number + 1) * len(items) // BATCHES]
            with case.meter.part(part, len(batch)):
                for key, metadata in batch:
                    store.put(key, value, metadata)


def _workload(size: str, title: str, entries: int, rounds: int) -> Workload:
    steps = {"fill": _fill, "ask": _ask, "stream": _stream, "put": _put}
    return Workload(
        f"query {size}",
        title,
        tuple(
            name
            for name, kind in QUERY_CONTENDERS.items()
            if cast("type[QueryContender]", kind).most >= entries
        ),
        "plain scan",
        {name: partial(step, size) for name, step in steps.items()},
        rounds=rounds,
    )


QUERY_WORKLOADS = (
    _workload("1k", "1,000 entries with metadata", 1_000, 3),
    _workload("100k", "100,000 entries with metadata", 100_000, 2),
    _workload("1M", "1,000,000 entries with metadata", 1_000_000, 1),
)
