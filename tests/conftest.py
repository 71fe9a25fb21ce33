"""Hypothesis profiles, and checks that hold for every test."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading

import pytest
from hypothesis import HealthCheck, settings

# Signing keys are made here, also by child processes, and never in the home of whoever runs the tests.
_CONFIG = tempfile.mkdtemp(prefix="blobstore-config-")
os.environ["XDG_CONFIG_HOME"] = _CONFIG
os.environ.pop("BLOBSTORE_SIGNING_KEY", None)
atexit.register(shutil.rmtree, _CONFIG, ignore_errors=True)

pytest_plugins = ["servers.fixtures"]

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True)
settings.register_profile("nightly", settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: tests wait for servers and killed processes more than they compute."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def logging_stays_as_it_was():
    """What a test or an example sets up for our logger ends with it."""
    logger = logging.getLogger("blobstore")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    for handler in [h for h in logger.handlers if h not in handlers]:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    """Threads that a store starts end with the call that started them."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("blobstore")]
    assert not left, left
