"""BucketStore passes the suite over a real server."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from blobstore.backends.blob.bucket import BucketStore
from blobstore.errors import InvalidInputError
from blobstore.keys import random_id
from blobstore.protocols import Capabilities
from blobstore.testing.object_store import ObjectStoreSuite


@pytest.fixture(scope="module")
def shared_bucket(s3_server):
    name = s3_server.new_bucket()
    yield name
    s3_server.delete_bucket(name)


class BucketSuite(ObjectStoreSuite):
    machine_examples = 4
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def in_buckets(self, s3_server, shared_bucket):
        self.server = s3_server
        self.shared_bucket = shared_bucket
        self.buckets = []
        yield
        for bucket in self.buckets:
            s3_server.delete_bucket(bucket)

    @property
    def odd_keys(self):
        # Of any length that S3 takes, this server refuses long names between two slashes.
        return [key for key in super().odd_keys if len(key) < 1000]

    def make_store(self, tmp_path):
        return self.make(self.new_bucket())

    def make(self, bucket, **options):
        return BucketStore(
            bucket,
            endpoint_url=self.server.endpoint,
            s3_access_key=self.server.access_key,
            s3_secret_key=self.server.secret_key,
            **{**self.options, **options},
        )

    def new_bucket(self):
        self.buckets.append(self.server.new_bucket())
        return self.buckets[-1]

    def name(self, store, key):
        """What `key` is called in the bucket; the keys that the suite looks at are not escaped."""
        return store.prefix + key

    def peek(self, store, key):
        client = self.server.client
        try:
            found = client.get_object(Bucket=store.bucket_name, Key=self.name(store, key))
        except client.exceptions.NoSuchKey:
            return None
        return found["Body"].read()

    def poke(self, store, key, data):
        self.server.client.put_object(
            Bucket=store.bucket_name, Key=self.name(store, key), Body=data
        )


class TestBucketStore(BucketSuite):
    @pytest.mark.parametrize("wrong", ["text", 5, None], ids=repr)
    def test_wrong_types_are_invalid_input(self, store, wrong):
        for call in (store.put, store.put_if_absent):
            with pytest.raises(InvalidInputError):
                call("key", wrong)
        assert not store.exists("key")

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=True, streams=True, conditional_writes=True, etags=True
        )


class InAFolder(BucketSuite):
    """Buckets take a while to make, so these stores share one."""

    machine_examples = 1

    def make_store(self, tmp_path):
        return self.make(self.shared_bucket, prefix=f"a folder/{random_id()}")


class TestBucketStoreInAFolder(InAFolder):
    pass


class TestBucketStoreInParts(InAFolder):
    """Everything that can be sent and read in parts is."""

    options: ClassVar[dict[str, Any]] = {
        "multipart_threshold": 0,
        "multipart_chunksize": 5 << 20,
        "max_concurrency": 2,
    }
