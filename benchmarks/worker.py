"""One measurement in a process of its own; prints its result as JSON.

``python -m benchmarks.worker WORKLOAD STEP CONTENDER FOLDER [quick] [profile]``
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.meter import Meter, bytes_on_disk
from benchmarks.registry import CONTENDERS


def measure(workload: str, step: str, contender: str, folder: Path, *flags: str) -> dict[str, Any]:
    sizes = workloads.QUICK if "quick" in flags else workloads.FULL
    steps = next(known for known in workloads.WORKLOADS if known.name == workload).steps
    meter = Meter(profile="profile" in flags)
    try:
        store = CONTENDERS[contender](folder)
    except ImportError as exc:
        return {"skipped": f"{exc.name or exc} is not installed"}
    try:
        steps[step](workloads.Case(store, meter, sizes))
    finally:
        store.close()
    if store.on_disk:
        meter.facts["stored"] = float(bytes_on_disk(folder))
    return {**meter.result(), "profiles": meter.profiles()}


def main(arguments: list[str]) -> None:
    workload, step, contender, folder, *flags = arguments
    try:
        result = measure(workload, step, contender, Path(folder), *flags)
    except Exception as exc:  # noqa: BLE001  whatever it was, the other contenders go on
        traceback.print_exc()
        result = {"failed": f"{type(exc).__name__}: {exc}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
