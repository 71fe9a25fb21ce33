"""How the programs of this folder are run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path):
    """Run one of the programs beside this file on a task; gives what it found."""

    def run(program: str, **task) -> dict:
        task["root"] = str(tmp_path)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(program)), json.dumps(task)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-6000:]
        return json.loads(done.stdout)

    return run
