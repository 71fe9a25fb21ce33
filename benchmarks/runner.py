"""Running every contender of a workload in turn, round after round, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.registry import CONTENDERS
from benchmarks.results import Measurement, Results
from benchmarks.servers import NoServerError, Servers
from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 600.0
"""Seconds that one process may take before its contender is given up."""


def run(
    chosen: list[Workload],
    *,
    servers: Servers,
    rounds: int | None,
    quick: bool,
    scratch: Path | None,
    tell: Callable[[str], None],
) -> Results:
    """Measure the chosen workloads.

    Contenders take turns, so that whatever else the machine does hits all of them; every other
    round goes backwards, so that none always comes after the same one.
    """
    results = Results(quick=quick)
    for workload in chosen:
        active = list(workload.contenders)
        for number in range(rounds or (1 if quick else workload.rounds)):
            tell(f"{workload.name}: round {number + 1}")
            for contender in active if number % 2 == 0 else active[::-1]:
                measured = measure(
                    workload, contender, servers=servers, quick=quick, scratch=scratch
                )
                results.add(workload.name, contender, measured)
            active = [name for name in active if not results.problem(workload.name, name)]
    return results


def measure(
    workload: Workload,
    contender: str,
    *,
    servers: Servers,
    quick: bool = False,
    profile: bool = False,
    scratch: Path | None = None,
) -> Measurement:
    """Run all steps of one workload with one contender, in a folder that is removed afterwards."""
    flags = ["quick"] * quick + ["profile"] * profile
    total = Measurement()
    with ExitStack() as lent:
        try:
            environment = lent.enter_context(servers.environment(CONTENDERS[contender].server))
        except NoServerError as exc:
            return Measurement(problem=f"skipped: {exc}")
        folder = lent.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=scratch))
        os.sync()  # what others left to be written back is not this contender's to wait for
        for step in workload.steps:
            arguments = [workload.name, step, contender, str(Path(folder, "store")), *flags]
            total.merge(_in_a_process(arguments, environment))
            if total.problem:
                return Measurement(problem=total.problem)  # half of it would mislead
    return total


def _in_a_process(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.worker", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {TIMEOUT:.0f} s"}
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"}
    result: dict[str, Any] = json.loads(lines[-1])
    if "failed" in result:
        sys.stderr.write(done.stderr)
    return result
