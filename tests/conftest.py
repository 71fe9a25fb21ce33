"""Hypothesis profiles, and checks that hold for every test."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["servers.fixtures"]

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    """Threads that a store starts end with the call that started them."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("blobstore")]
    assert not left, left
