"""One command prints how fast blobstore is beside its peers: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks import report, runner
from benchmarks.registry import CONTENDERS
from benchmarks.servers import Servers
from benchmarks.workloads import WORKLOADS, Workload


def main() -> int:
    arguments = _parser().parse_args()
    chosen = _chosen(arguments.only)
    if not chosen:
        known = ", ".join(repr(workload.name) for workload in WORKLOADS)
        print(
            f"no workload is called {', '.join(arguments.only)}: there are {known}", file=sys.stderr
        )
        return 2
    if arguments.profile:
        with Servers() as servers:
            _profile(chosen, servers, arguments)
        return 0
    started = time.perf_counter()
    with Servers() as servers:
        results = runner.run(
            chosen,
            servers=servers,
            rounds=arguments.rounds,
            quick=arguments.quick,
            scratch=arguments.folder,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results.to_json(), indent=1), encoding="utf-8")
    print(_machine())
    if arguments.quick:
        print("--quick: sizes are smaller than the titles say, and there is one round")
    for workload in chosen:
        print("\n" + report.table(workload, results))
    if aims := report.aims(results, [workload.name for workload in chosen]):
        print("\n" + aims)
    print("\n" + report.notes(chosen))
    print(f"\nTook {time.perf_counter() - started:.0f} s.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=_positive, help="how often each is measured (default: 1 to 5, by workload)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME",
        help="a workload, or the beginning of some; may be repeated",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    parser.add_argument(
        "--folder", type=Path, help="where stores are made (default: the temporary folder)"
    )
    parser.add_argument(
        "--profile", action="store_true",
        help="instead of measuring, show where the blobstore contenders spend their time",
    )  # fmt: skip
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _chosen(names: list[str]) -> list[Workload]:
    if not names:
        return list(WORKLOADS)
    return [workload for workload in WORKLOADS if workload.name.startswith(tuple(names))]


def _profile(chosen: list[Workload], servers: Servers, arguments: argparse.Namespace) -> None:
    for workload in chosen:
        for contender in workload.contenders:
            if not CONTENDERS[contender].ours:
                continue
            measured = runner.measure(
                workload,
                contender,
                servers=servers,
                quick=arguments.quick,
                profile=True,
                scratch=arguments.folder,
            )
            print(f"=== {workload.name}, {contender} {measured.problem}")
            for part, text in measured.profiles.items():
                print(f"--- {part}\n{text}")


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
