"""Stores that travel to the workers of a Dask cluster: processes on this machine, by loopback."""

from __future__ import annotations

import numpy as np
import pytest
from distributed import Client, LocalCluster

from blobstore import BlobStore, KeyExistsError

RESULTS = 1000
TASKS = 40
WORKERS = 3


@pytest.fixture(scope="module")
def environment(s3_server, tmp_path_factory):
    """What a user would have set, for the workers too."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", str(nowhere / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere / "credentials"))
        patch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        patch.setenv("AWS_REGION", s3_server.region)
        patch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
        yield


@pytest.fixture(scope="module")
def client(environment):
    """A cluster of processes, which begin with the environment of this one."""
    cluster = LocalCluster(
        n_workers=WORKERS,
        threads_per_worker=2,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        worker_dashboard_address=None,
    )
    with cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def in_folder():
    return {"backend": "sqlite"}


@pytest.fixture
def on_servers(environment, s3_bucket, postgres_url):
    return {"backend": postgres_url, "blob_backend": f"s3://{s3_bucket}/dask"}


@pytest.fixture(params=["in_folder", "on_servers"])
def store(request, tmp_path):
    with BlobStore(tmp_path / "store", **request.getfixturevalue(request.param)) as store:
        yield store


def test_results_of_many_processes_are_written_and_found(store, client):
    # Functions inside a function travel whole: the workers cannot import this file.
    def write(store, task):
        import os

        import numpy as np

        per_task = 1000 // 40
        for number in range(task * per_task, (task + 1) * per_task):
            result = {"number": number, "scores": np.full(100, number / 7)}
            facts = {"task": task, "even": number % 2 == 0, "worker": os.getpid()}
            store.put(result, key=f"run/{number:04}", metadata=facts)
        return os.getpid()

    def read(store, key):
        return float(store[key]["scores"].sum())

    there = client.scatter(store, broadcast=True)
    writers = client.gather(client.map(write, [there] * TASKS, range(TASKS), pure=False))

    assert len(set(writers)) > 1
    assert store.count() == RESULTS
    assert store.list(metadata_filter={"task": 3}) == [f"run/{n:04}" for n in range(75, 100)]
    assert store.count(metadata_filter={"even": True}) == RESULTS // 2
    by_worker = [store.count(metadata_filter={"worker": worker}) for worker in set(writers)]
    assert sum(by_worker) == RESULTS
    assert store["run/0500"]["number"] == 500
    np.testing.assert_array_equal(store["run/0999"]["scores"], np.full(100, 999 / 7))

    keys = store.list(prefix="run/00")
    sums = client.gather(client.map(read, [there] * len(keys), keys, pure=False))
    assert sums == [pytest.approx(100 * n / 7) for n in range(100)]
    assert store.verify(deep=True).ok
    assert store.gc(grace=0).items == ()


def test_a_store_travels_with_each_task_as_well(store, client):
    def write(store, number):
        with store:  # this copy is the task's own
            return store.put(np.arange(number), key=f"array/{number}")

    tasks = [client.submit(write, store, number, pure=False) for number in range(6)]
    assert client.gather(tasks) == [f"array/{number}" for number in range(6)]
    for number in range(6):
        np.testing.assert_array_equal(store[f"array/{number}"], np.arange(number))


def test_an_error_of_a_store_comes_back_as_what_it_was(store, client):
    def write(store, number):
        return store.put(number, key="one", overwrite=False)

    there = client.scatter(store, broadcast=True)
    tasks = client.map(write, [there] * 8, range(8), pure=False)
    errors = [task.exception() for task in tasks]
    (winner,) = [number for number, error in enumerate(errors) if error is None]
    assert store["one"] == winner
    losers = [error for error in errors if error is not None]
    assert {type(error) for error in losers} == {KeyExistsError}
    assert {error.key for error in losers} == {"one"}
