"""Writers of an AutoStore are killed: each key is what it was, or what it was to become."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import numpy as np

from blobstore.autostore import AutoStore

KILLS = 15
PROGRAM = """
import itertools, sys
import numpy as np
from blobstore.autostore import AutoStore
store = AutoStore(sys.argv[1])
print("ready", flush=True)
for number in itertools.count():
    kind = number % 3
    value = [np.full(200_000, number), {"n": number, "pad": "x" * 50_000}, f"{number}:" + "y" * 50_000][kind]
    store["key"] = value
    store["other"] = (number, b"z" * 50_000)
"""


def check(value):
    """Insist that a value is whole."""
    if isinstance(value, np.ndarray):
        assert len(value) == 200_000
        assert (value == value[0]).all()
    elif isinstance(value, dict):
        assert value["pad"] == "x" * 50_000
    elif isinstance(value, str):
        assert value.partition(":")[2] == "y" * 50_000
    else:
        assert value[1] == b"z" * 50_000


def test_a_killed_writer_leaves_whole_files(tmp_path):
    chance = random.Random(7)
    with AutoStore(tmp_path / "data") as store:
        store["key"], store["other"] = "0:" + "y" * 50_000, (0, b"z" * 50_000)
        for _ in range(KILLS):
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path / "data")], stdout=subprocess.PIPE
            )
            try:
                assert process.stdout.readline() == b"ready\n"
                time.sleep(chance.uniform(0, 0.05))  # somewhere in its writes
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
                process.stdout.close()
            for key in ("key", "other"):
                check(store[key])
            assert sorted(store) == ["key", "other"]
        store["key"], store["other"] = "1:" + "y" * 50_000, (1, b"")
        assert sorted(store.list_files()) == ["key.txt", "other.pkl"]
