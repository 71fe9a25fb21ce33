"""A store whose index is in PostgreSQL and whose blobs are in a bucket, both of real servers."""

from __future__ import annotations

import pytest
from integration.test_store_on_s3 import (  # noqa: F401 - fixtures, which pytest finds by name
    OnS3,
    bucket,
    environment,
    look,
    prefix,
    url,
)

from blobstore import BlobStore


@pytest.fixture(scope="module")
def database(postgres_server):
    """One for all stores of this module: each is on its own in it."""
    address = postgres_server.new_database()
    yield address
    postgres_server.drop_database(address)


class TestPostgresOnS3(OnS3):
    @pytest.fixture(autouse=True)
    def in_a_database(self, database):
        self.index = database

    def make_store(self, folder):
        return BlobStore(
            folder,
            backend=self.index,
            blob_backend=self.url,
            content_addressable=self.content_addressable,
        )


class TestPostgresOnS3Shared(TestPostgresOnS3):
    content_addressable = True
