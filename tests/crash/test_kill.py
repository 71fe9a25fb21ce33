"""Writers killed by SIGKILL at every step and at random moments lose and tear nothing."""

from __future__ import annotations

import pytest

PROGRAM = "killing.py"
SCENARIOS = (
    "first overwrite overwrite_small overwrite_mapping many delete move describe clear close"
)
OPTIONS = {
    "json": {"backend": "json"},
    "sqlite": {"backend": "sqlite"},
    "sqlite-shared": {"backend": "sqlite", "content_addressable": True},
    "json-synced": {"backend": "json", "fsync": True},
}


@pytest.mark.parametrize("scenario", SCENARIOS.split())
@pytest.mark.parametrize("options", ["json", "sqlite"])
def test_killed_at_every_step(run, options, scenario):
    result = run(PROGRAM, do="every_step", scenario=scenario, options=OPTIONS[options])
    assert result["kills"] >= 1, "the change was never interrupted"


@pytest.mark.nightly
@pytest.mark.parametrize("scenario", SCENARIOS.split())
@pytest.mark.parametrize("options", ["sqlite-shared", "json-synced"])
def test_killed_at_every_step_with_other_options(run, options, scenario):
    assert run(PROGRAM, do="every_step", scenario=scenario, options=OPTIONS[options])["kills"]


@pytest.mark.parametrize("options", ["json", "sqlite"])
def test_killed_at_random_moments(run, options):
    run(PROGRAM, do="random", kills=50, seed=1, options=OPTIONS[options])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", list(OPTIONS))
def test_killed_at_random_moments_thousands_of_times(run, options, seed):
    run(PROGRAM, do="random", kills=250, seed=seed, options=OPTIONS[options])
