"""A server process that cannot outlive the tests; base of the servers in this folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
GUARD = Path(__file__).with_name("guard.py")


class ServerDied(RuntimeError):
    """The server ended while it was expected to start; the message holds the end of its log."""


class ServerProcess:
    """One process of a server, in a session of its own so that Ctrl-C does not reach it.

    Parameters
    ----------
    command : sequence of str
    folder : Path
        Holds all that the server writes; removed by the guard if the tests end before `end`.
    environment : mapping of str to str
    identity : mapping, optional
        The `user` and `group` to run as.
    last_signal : str
        The quickest signal that lets the server end whole, for when the tests are gone.
    leftovers : sequence of Path
        What the server leaves outside of its folder.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        identity: Mapping[str, int] | None = None,
        last_signal: str = "SIGKILL",
        leftovers: Sequence[Path] = (),
    ) -> None:
        self._log = folder / "server.log"
        task = {
            "command": [str(part) for part in command],
            "folder": str(folder),
            "environment": dict(environment),
            "identity": dict(identity or {}),
            "log": str(self._log),
            "last_signal": last_signal,
            "leftovers": [str(path) for path in leftovers],
        }
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(GUARD), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        line = self._guard.stdout.readline()
        if not line:
            _, error = self._guard.communicate()
            raise ServerDied(f"{command[0]} cannot be run:\n{error.decode()}")
        self.pid = int(line)

    @property
    def running(self) -> bool:
        """Whether the server has not ended."""
        return self._guard.poll() is None

    def log(self) -> str:
        """Tell the end of what the server said."""
        try:
            return self._log.read_text(errors="replace")[-4000:]
        except FileNotFoundError:
            return ""

    def wait_ready(self, is_ready: Callable[[], bool]) -> None:
        """Ask again and again until the server does its work; `ServerDied` if it never will."""
        deadline = time.monotonic() + START_TIMEOUT
        while not is_ready():
            if not self.running:
                raise ServerDied(f"the server ended at its start:\n{self.log()}")
            if time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise ServerDied(f"not ready after {START_TIMEOUT} s:\n{self.log()}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the server has ended."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def end(self, number: signal.Signals) -> None:
        """Send a signal and return once the server has ended; kill it if that takes too long."""
        self.signal(number)
        try:
            self._guard.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self._guard.wait(STOP_TIMEOUT)
        # Only now: the guard takes a closed pipe for the end of the tests.
        for pipe in (self._guard.stdin, self._guard.stdout, self._guard.stderr):
            pipe.close()


class Server:
    """A server with a folder of its own: started, stopped, killed and started again.

    Subclasses give `_launch`, which starts a `ServerProcess` and returns once it does its work.
    """

    stop_signal = signal.SIGTERM
    close_signal = signal.SIGKILL

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: ServerProcess | None = None

    def _launch(self) -> ServerProcess:
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether the server runs now."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start on the same data and at the same address; nothing happens if it runs."""
        if not self.running:
            self._end(signal.SIGKILL)
            self._process = self._launch()

    def stop(self) -> None:
        """End in an orderly way; killed if that takes too long."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End at once, as in a crash: SIGKILL."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the server still (SIGSTOP) for the block: it accepts connections, and says nothing."""
        main = psutil.Process(self.pid)
        held = [main, *main.children(recursive=True)]
        for process in held:
            process.suspend()
        while any(process.status() != psutil.STATUS_STOPPED for process in held):
            time.sleep(0.001)  # a signal takes effect a little later
        try:
            yield
        finally:
            for process in held:
                process.resume()

    def close(self) -> None:
        """End at once, and remove the folder."""
        self._end(self.close_signal)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(number)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; where nobody gathers orphans they stay as zombies, which hold nothing."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
