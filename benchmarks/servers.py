"""Servers that contenders speak to: started with the first workload that needs one, ended with the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

VARIABLE = "BLOBSTORE_BENCHMARK_BUCKET"
"""Of the environment of the workers: the bucket they are lent, as JSON."""

DATABASE = "BLOBSTORE_BENCHMARK_DATABASE"
"""The same: SQLAlchemy's URL of the empty database they are lent."""

_TESTS = Path(__file__).resolve().parent.parent / "tests"


class NoServerError(Exception):
    """A server cannot be started here, so what needs it is skipped."""


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and how to get at it."""

    name: str
    endpoint: str
    region: str
    access_key: str
    secret_key: str

    @classmethod
    def lent(cls) -> Self:
        """Find the one that this process was lent."""
        return cls(**json.loads(os.environ[VARIABLE]))


class Servers:
    """What one run has started."""

    def __init__(self) -> None:
        self._started = ExitStack()
        self._running: dict[str, Any] = {}

    @contextmanager
    def environment(self, server: str) -> Iterator[dict[str, str]]:
        """Give the environment for workers, with a bucket or a database of their own in it."""
        if not server:
            yield dict(os.environ)
            return
        if server not in self._running:
            self._running[server] = self._started.enter_context(_START[server]())
        lend = self._bucket if server == "s3" else self._database
        with lend(self._running[server]) as environment:
            yield environment

    @contextmanager
    def _bucket(self, s3: Any) -> Iterator[dict[str, str]]:
        name = s3.new_bucket()
        bucket = Bucket(name, s3.endpoint, s3.region, s3.access_key, s3.secret_key)
        try:
            yield _undisturbed() | {VARIABLE: json.dumps(asdict(bucket))}
        finally:
            s3.delete_bucket(name)  # with its files, so that a run needs the space of one

    @contextmanager
    def _database(self, postgres: Any) -> Iterator[dict[str, str]]:
        url = postgres.new_database()
        try:
            yield dict(os.environ) | {DATABASE: url}
        finally:
            postgres.drop_database(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._started.close()


@contextmanager
def _servers_of_the_tests() -> Iterator[None]:
    """They are no package: they have their folder on the path."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    try:
        yield
    except ImportError as exc:
        raise NoServerError(f"{exc.name or exc} is not installed") from exc
    except FileNotFoundError as exc:
        raise NoServerError(str(exc)) from exc


def _s3_server() -> Any:
    with _servers_of_the_tests():
        from servers.s3 import S3Server, weed

        weed()
    return S3Server()


def _postgres_server() -> Any:
    with _servers_of_the_tests():
        from servers.postgres import PostgresServer, installed_programs

        installed_programs()
    return PostgresServer()


_START: dict[str, Callable[[], Any]] = {"s3": _s3_server, "postgres": _postgres_server}


def _undisturbed() -> dict[str, str]:
    """Leave out what would lead a client to another server, or to this one by a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
