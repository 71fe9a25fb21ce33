"""What an AutoStore in a bucket asks of the server, and what its cache spares it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from servers.proxy import Proxy

from blobstore.autostore import AutoStore, S3StorageConfig, StorageConnectionError

MOST_FOR_A_HIT = 4


@pytest.fixture
def proxy(s3_server):
    with Proxy((s3_server.host, s3_server.port)) as proxy:
        yield proxy


@pytest.fixture
def make(s3_server, s3_bucket, proxy, tmp_path):
    def make(**options):
        config = S3StorageConfig(
            region_name=s3_server.region,
            endpoint_url=proxy.endpoint,
            aws_access_key_id=s3_server.access_key,
            aws_secret_access_key=s3_server.secret_key,
            cache_dir=tmp_path / "cache",
            max_retries=0,
            **options,
        )
        return AutoStore(f"s3://{s3_bucket}/data/", config=config)

    return make


def asked(proxy, call):
    before = len(proxy.requests)
    result = call()
    return result, proxy.requests[before:]


def test_a_hit_asks_little_and_downloads_nothing(make, proxy):
    with make(cache_enabled=True) as store:
        store["a"] = np.arange(100_000)
        store["a"]
        _, requests = asked(proxy, lambda: store["a"])
        assert len(requests) <= MOST_FOR_A_HIT
        assert not any(r.method == "GET" and "list-type" not in r.line for r in requests)
    with make(cache_enabled=True) as store:  # another process would find the copies as well
        loaded, requests = asked(proxy, lambda: store["a"])
        np.testing.assert_array_equal(loaded, np.arange(100_000))
        assert len(requests) <= MOST_FOR_A_HIT
        assert not any(r.method == "GET" and "list-type" not in r.line for r in requests)


def test_expired_copies_are_removed_by_another_process(make, tmp_path):
    with make(cache_enabled=True, cache_expiry_hours=1e-5) as store:
        store["a"] = {"x": 1}
        assert store["a"] == {"x": 1}
    copies = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert copies
    time.sleep(0.1)  # longer than copies last
    with make(cache_enabled=True, cache_expiry_hours=1e-5) as store:
        assert store.cleanup_cache() >= 1
        assert store["a"] == {"x": 1}


def test_copies_can_be_dropped(make, proxy):
    with make(cache_enabled=True) as store:
        store["a"] = {"x": 1}
        store["a"]
        store.invalidate_cache("a")
        _, requests = asked(proxy, lambda: store["a"])
        assert any(r.method == "GET" and "list-type" not in r.line for r in requests)
        store.invalidate_cache()
        assert store["a"] == {"x": 1}


def test_an_outage_is_an_error_and_not_a_miss(make, proxy):
    with make() as store:
        store["a"] = 1
        proxy.close()
        for call in (
            lambda: "a" in store,
            lambda: store["a"],
            lambda: store.get("a", 5),
            lambda: list(store),
            lambda: store.put("b", 1),
        ):
            with pytest.raises(StorageConnectionError):
                call()
