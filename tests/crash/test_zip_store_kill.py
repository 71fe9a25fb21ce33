"""Writers of a ZipStore killed at every step and at random moments: nothing acknowledged is lost."""

from __future__ import annotations

import pytest

PROGRAM = "zip_killing.py"
SCENARIOS = ["first", "put", "stream", "lend", "copy", "delete", "delete_many", "close", "compact"]
OPTIONS = {
    "stored": {},
    "deflated": {"compression": "deflated", "level": 1},
    "synced": {"fsync": True},
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_every_step(run, scenario):
    result = run(
        PROGRAM, do="every_step", scenario=scenario, options=OPTIONS["stored"], foreign=False
    )
    assert result["kills"] >= 5, "the change was hardly interrupted"


@pytest.mark.parametrize("options", ["deflated", "synced"])
@pytest.mark.parametrize("scenario", ["stream", "close"])
def test_killed_at_every_step_with_other_options(run, options, scenario):
    result = run(
        PROGRAM, do="every_step", scenario=scenario, options=OPTIONS[options], foreign=False
    )
    assert result["kills"] >= 5


@pytest.mark.parametrize("scenario", ["put", "delete", "close"])
def test_killed_while_a_zip_file_of_another_program_is_taken_over(run, scenario):
    result = run(PROGRAM, do="every_step", scenario=scenario, options={}, foreign=True)
    assert result["kills"] >= 20


@pytest.mark.parametrize("options", ["stored", "deflated"])
def test_killed_at_random_moments(run, options):
    result = run(PROGRAM, do="random", kills=40, seed=1, options=OPTIONS[options])
    assert result["acknowledged"] > 40


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", list(OPTIONS))
def test_killed_at_random_moments_thousands_of_times(run, options, seed):
    run(PROGRAM, do="random", kills=250, seed=seed, options=OPTIONS[options])
