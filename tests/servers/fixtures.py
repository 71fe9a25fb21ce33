"""Fixtures of the real servers: one server for each pytest-xdist worker, started on first use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[object]:
    """A running `S3Server`; do not stop it, others use it too."""
    from servers.s3 import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server) -> Iterator[str]:
    """The name of a bucket that only this test uses."""
    name = s3_server.new_bucket()
    yield name
    s3_server.delete_bucket(name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[object]:
    """A running `PostgresServer`; do not stop it, others use it too."""
    from servers.postgres import PostgresServer

    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server) -> Iterator[str]:
    """SQLAlchemy's URL of an empty database that only this test uses."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)
