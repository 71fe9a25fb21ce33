"""Writers of a SqliteStore killed by SIGKILL, at every step and at random moments, tear nothing."""

from __future__ import annotations

import pytest

PROGRAM = "sqlite_killing.py"
SCENARIOS = [
    "first", "first_large", "small_over_large", "large_over_small", "large_over_large", "absent",
    "stream", "lend", "copy", "delete", "delete_many", "compact", "close",
]  # fmt: skip
STORES = ["default", "synced"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step(run, scenario):
    assert run(PROGRAM, do="every", kind="default", scenario=scenario)["kills"] >= 3


def test_killed_while_the_file_is_made(run):
    assert run(PROGRAM, do="first", kind="default")["kills"] >= 20


def test_killed_at_random_moments(run):
    result = run(PROGRAM, do="random", kind="default", kills=40, seed=1)
    assert result["keys"] == 8


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step_when_synced(run, scenario):
    assert run(PROGRAM, do="every", kind="synced", scenario=scenario)["kills"] >= 3


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", STORES)
def test_killed_at_random_moments_hundreds_of_times(run, kind, seed):
    run(PROGRAM, do="random", kind=kind, kills=250, seed=seed)
