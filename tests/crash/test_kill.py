"""Writers killed by SIGKILL at every step and at random moments lose and tear nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = (
    "first overwrite overwrite_small overwrite_mapping many delete move describe clear close"
)
OPTIONS = {
    "json": {"backend": "json"},
    "sqlite": {"backend": "sqlite"},
    "sqlite-shared": {"backend": "sqlite", "content_addressable": True},
    "json-synced": {"backend": "json", "fsync": True},
}


def run(tmp_path: Path, **task) -> dict:
    program = Path(__file__).with_name("killing.py")
    task["root"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS.split())
@pytest.mark.parametrize("options", ["json", "sqlite"])
def test_killed_at_every_step(tmp_path, options, scenario):
    result = run(tmp_path, do="every_step", scenario=scenario, options=OPTIONS[options])
    assert result["kills"] >= 1, "the change was never interrupted"


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS.split())
@pytest.mark.parametrize("options", ["sqlite-shared", "json-synced"])
def test_killed_at_every_step_with_other_options(tmp_path, options, scenario):
    assert run(tmp_path, do="every_step", scenario=scenario, options=OPTIONS[options])["kills"]


@pytest.mark.parametrize("options", ["json", "sqlite"])
def test_killed_at_random_moments(tmp_path, options):
    run(tmp_path, do="random", kills=50, seed=1, options=OPTIONS[options])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", list(OPTIONS))
def test_killed_at_random_moments_thousands_of_times(tmp_path, options, seed):
    run(tmp_path, do="random", kills=250, seed=seed, options=OPTIONS[options])
