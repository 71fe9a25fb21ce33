"""Servers that contenders speak to: started with the first workload that needs one, ended with the run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

VARIABLE = "BLOBSTORE_BENCHMARK_BUCKET"
"""Of the environment of the workers: the bucket they are lent, as JSON."""

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
        self._s3: Any = None

    @contextmanager
    def environment(self, server: str) -> Iterator[dict[str, str]]:
        """Give the environment for workers: with a bucket of their own if the server is "s3"."""
        if not server:
            yield dict(os.environ)
            return
        if self._s3 is None:
            self._s3 = self._started.enter_context(_s3_server())
        s3 = self._s3
        name = s3.new_bucket()
        bucket = Bucket(name, s3.endpoint, s3.region, s3.access_key, s3.secret_key)
        try:
            yield _undisturbed() | {VARIABLE: json.dumps(asdict(bucket))}
        finally:
            s3.delete_bucket(name)  # with its files, so that a run needs the space of one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._started.close()


def _s3_server() -> Any:
    """The server of the tests, which are no package: they have their folder on the path."""
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    try:
        from servers.s3 import S3Server, weed

        weed()
    except ImportError as exc:
        raise NoServerError(f"{exc.name or exc} is not installed") from exc
    except FileNotFoundError as exc:
        raise NoServerError(str(exc)) from exc
    return S3Server()


def _undisturbed() -> dict[str, str]:
    """Leave out what would lead a client to another server, or to this one by a proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
