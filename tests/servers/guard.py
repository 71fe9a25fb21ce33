"""Runs one server and ends it when the tests end, in whatever way they do.

A program of its own, started by `process.ServerProcess`: it is the parent of the server, so the
server's process id stays taken as long as somebody may send it a signal, and it holds the reading
end of a pipe. When the pipe closes, the tests are gone (finished, interrupted, or killed by
SIGKILL): then it kills the server and removes the server's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

GRACE = 5.0  # seconds for a server to end by itself once the tests are gone


def main() -> int:
    task = json.loads(sys.argv[1])
    with Path(task["log"]).open("ab") as log:
        server = subprocess.Popen(
            task["command"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=task["folder"],
            env=task["environment"],
            **task["identity"],
        )
    print(server.pid, flush=True)
    threading.Thread(target=end_with_the_tests, args=(server, task), daemon=True).start()
    code = server.wait()
    with removing:
        return code if code >= 0 else 128 - code


removing = threading.Lock()


def end_with_the_tests(server: subprocess.Popen[bytes], task: dict) -> None:
    # Not sys.stdin: its lock would be held here while the interpreter shuts down.
    while os.read(0, 4096):
        pass
    with removing:
        server.send_signal(getattr(signal, task["last_signal"]))
        try:
            server.wait(GRACE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(task["folder"], ignore_errors=True)
        for path in task["leftovers"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())
