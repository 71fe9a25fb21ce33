"""Kills a process at each of its steps, or at random moments: what the programs beside it share.

A step is a call into C that can touch a file or a database; `sys.setprofile` sees each of them
before it is made. Nothing in the package knows of this. The programs run in a process of their own,
so that forking is safe: it imports everything once, then forks a child for each kill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import traceback


class KillAt:
    """A profile function that ends the process at the n-th of the calls with these names."""

    def __init__(self, n: int, names: set[str]) -> None:
        self.left = n
        self.names = names
        self.lock = threading.Lock()

    def __call__(self, frame, event, argument) -> None:
        if event != "c_call" or getattr(argument, "__name__", "") not in self.names:
            return
        if isinstance(argument.__self__, str):
            return  # str.replace
        with self.lock:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def in_child(work) -> int:
    """Run `work` in a forked child; returns the wait status."""
    child = os.fork()
    if child == 0:
        _end_with(work)
    return os.waitpid(child, 0)[1]


def _end_with(work) -> None:
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def kill_at_every_step(root, names, opened, change, examine) -> dict:
    """Kill the change at step 1, 2, 3 ... until it gets through.

    Each time it works on a copy of the folder ``root / "master"``: `opened` gives the store in a
    folder, `change` changes it, and `examine` looks at the folder afterwards.
    """
    kills = 0
    while True:
        folder = root / "victim"
        shutil.copytree(root / "master", folder)

        def work(n=kills + 1, folder=folder) -> None:
            store = opened(folder)
            killer = KillAt(n, names)
            threading.setprofile(killer)
            sys.setprofile(killer)
            change(store)
            sys.setprofile(None)

        status = in_child(work)
        examine(folder)
        shutil.rmtree(folder)
        if status == 0:
            return {"kills": kills}
        assert os.WIFSIGNALED(status), "the change failed by itself; its error is above"
        kills += 1


def killed_at_some_moment(write, rng, longest=0.02) -> list[list[str]]:
    """Run a writer until it is killed, after some seconds; gives the lines that it had said.

    Parameters
    ----------
    write : callable
        It is given a function to say lines with: ``begin KEY ...`` before a change, and the same
        with ``done`` after it.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _end_with(lambda: write(lambda line: os.write(write_end, line.encode() + b"\n")))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        log = [pipe.readline()]  # the writer is at work now
        # A real delay is the point here: the kill comes at whatever moment it comes.
        threading.Event().wait(rng.random() * longest)
        os.kill(child, signal.SIGKILL)
        log += pipe.read().splitlines(keepends=True)
    os.waitpid(child, 0)
    return [line.decode().split() for line in log if line.endswith(b"\n")]


def take_in(possible: dict[str, set], lines, parse) -> int:
    """Note what each key may have: the last that was done, and what was begun since then.

    Returns how much was done.
    """
    done = 0
    for word, key, text in lines:
        if word == "done":
            possible[key] = {parse(text)}
            done += 1
        else:
            possible.setdefault(key, {None}).add(parse(text))
    return done
