"""Each example of the AutoStore document, import names aside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blobstore import BlobStore
from blobstore.autostore import AutoStore, DataHandler, S3Backend, S3StorageConfig


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frame():
    polars = pytest.importorskip("polars")
    return polars.DataFrame({"a": [1, 2], "b": ["x", "y"]})


def test_basic_usage():
    df = frame()
    store = AutoStore("./data")

    # Write data - automatically saves with appropriate extensions
    store["my_dataframe"] = df
    store["config"] = {"key": "value"}
    store["logs"] = [{"event": "start"}]
    assert sorted(path.name for path in Path("data").iterdir() if path.is_file()) == [
        "config.json",
        "logs.jsonl",
        "my_dataframe.parquet",
    ]

    # Read data
    assert store["my_dataframe"].equals(df)
    assert type(store["my_dataframe"]) is type(df)
    assert store["config"] == {"key": "value"}
    assert store["logs"] == [{"event": "start"}]
    assert sorted(store.keys()) == ["config", "logs", "my_dataframe"]


@pytest.fixture
def s3_config(s3_server, tmp_path):
    """The document's configuration, and where the server of the tests is."""

    def make(**options):
        return S3StorageConfig(
            region_name="us-east-1",
            endpoint_url=s3_server.endpoint,
            aws_access_key_id=s3_server.access_key,
            aws_secret_access_key=s3_server.secret_key,
            cache_dir=tmp_path / "cache",
            **options,
        )

    return make


def test_cloud_storage(s3_bucket, s3_config):
    AutoStore.register_backend("s3", S3Backend)

    config = s3_config(
        cache_enabled=True, cache_expiry_hours=12, multipart_threshold=64 * 1024 * 1024
    )
    store = AutoStore(f"s3://{s3_bucket}/data/", config=config)

    # Write data to S3
    store["experiment/results"] = {"accuracy": 0.95, "epochs": 100}

    # Read data from S3
    for _ in range(2):  # the second time from the cache
        assert store["experiment/results"] == {"accuracy": 0.95, "epochs": 100}
    assert list(store.keys()) == ["experiment/results"]
    assert list(store.list_files()) == ["experiment/results.json"]
    assert store.cleanup_cache() == 0

    metadata = store.get_metadata("experiment/results")
    assert metadata.size > 0
    assert metadata.etag
    store.close()


def test_another_writer_is_noticed_behind_the_cache(s3_bucket, s3_config):
    url = f"s3://{s3_bucket}/data/"
    with (
        AutoStore(url, config=s3_config(cache_enabled=True)) as ours,
        AutoStore(url, config=s3_config()) as theirs,
    ):
        ours["a"] = {"n": 1}
        assert ours["a"] == {"n": 1}
        theirs["a"] = {"n": 2}
        assert ours["a"] == {"n": 2}
        theirs["a"] = "another type"
        assert ours["a"] == "another type"
        del theirs["a"]
        with pytest.raises(KeyError):
            ours["a"]


def test_the_same_name_below_two_prefixes(s3_bucket, s3_config):
    config = s3_config(cache_enabled=True)
    with AutoStore(f"s3://{s3_bucket}/", config=config) as store:
        store["p/df"] = {"p": 1}
        store["q/df"] = {"q": 2}
        for _ in range(2):
            assert store["p/df"] == {"p": 1}
            assert store["q/df"] == {"q": 2}
    with AutoStore(f"s3://{s3_bucket}/q/", config=config) as store:
        assert store["df"] == {"q": 2}
        with pytest.raises(ValueError):
            store["../p/df"]


def test_s3_storage_config():
    config = S3StorageConfig(
        aws_access_key_id="your-key",
        aws_secret_access_key="your-secret",
        region_name="us-east-1",
        cache_enabled=True,
        cache_expiry_hours=12,
        multipart_threshold=64 * 1024 * 1024,
        multipart_chunksize=16 * 1024 * 1024,
        max_concurrency=10,
    )
    assert "your-secret" not in repr(config)


def test_supported_types():
    """The table of the document, as far as the libraries are here."""
    store = AutoStore("./data")
    rows = [
        ({"a": [1]}, ".json"),
        ([1, 2], ".json"),
        ([{"a": 1}], ".jsonl"),
        ("text", ".txt"),
        (np.arange(3), ".npy"),
        ({1, 2}, ".pkl"),
        (pd.DataFrame({"a": [1]}), ".parquet"),
    ]
    for number, (value, extension) in enumerate(rows):
        name = store.put(f"value-{number}", value)
        assert name == f"value-{number}{extension}"
        loaded = store[f"value-{number}"]
        assert type(loaded) is type(value)
        assert bool(np.all(loaded == value))
    for name in ("page.html", "notes.md"):
        store[name] = "text"
        assert store[name] == "text"
    store["settings.yaml"] = {"a": 1}
    assert Path("data/settings.yaml").read_text() == "a: 1\n"


def test_caching_system():
    store = AutoStore("./data")
    store["large_file"] = np.zeros(1000)
    store.cleanup_cache()  # Remove expired cache entries
    metadata = store.get_metadata("large_file")
    assert f"File size: {metadata.size} bytes" == "File size: 8128 bytes"
    assert f"ETag: {metadata.etag}"


class CustomLogHandler(DataHandler):
    def can_handle_extension(self, extension: str) -> bool:
        return extension.lower() == ".log"

    def can_handle_data(self, data) -> bool:
        return isinstance(data, list) and all(
            isinstance(item, dict) and "timestamp" in item for item in data
        )

    def read_from_file(self, file_path: Path, file_extension: str):
        with open(file_path) as f:
            return [json.loads(line) for line in f if line.strip()]

    def write_to_file(self, data, file_path: Path, file_extension: str):
        file_path.parent.mkdir(parents=True, exist_ok=True)
        with open(file_path, "w") as f:
            f.writelines(json.dumps(entry) + "\n" for entry in data)

    @property
    def extensions(self):
        return [".log"]

    @property
    def priority(self):
        return 15


def test_custom_data_handlers():
    store = AutoStore("./data")
    store.register_handler(CustomLogHandler())
    logs = [{"timestamp": 1, "event": "a"}, {"timestamp": 2, "event": "b"}]
    store["app"] = logs
    assert Path("data/app.log").read_text().count("\n") == 2
    assert store["app"] == store["app.log"] == logs
    with BlobStore("./objects") as objects:
        objects.register_handler(CustomLogHandler())
        objects["app"] = logs
        assert objects["app"] == logs
        assert objects.get_metadata("app")["handler"] == "customloghandler"


def test_file_operations():
    store = AutoStore("./data")
    store["config"] = {"a": 1}
    store["large_dataset"] = np.zeros(10)
    store["original"] = [1]
    store["temp_file"] = "x"
    store["old_data"] = 5

    assert "config" in store
    assert {key for key in store.keys()} >= {"config", "original"}  # noqa: C416, SIM118
    metadata = store.get_metadata("large_dataset")
    assert metadata.size == 208
    assert metadata.modified_time.tzinfo is not None

    store.copy("original", "backup")
    store.move("temp_file", "permanent_file")
    del store["old_data"]
    assert sorted(store) == ["backup", "config", "large_dataset", "original", "permanent_file"]


def test_context_management(s3_bucket, s3_config, here, monkeypatch):
    """Temporary files are gone after the block, with and without a cache."""
    temporary = here / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    for cache_enabled in (False, True):
        config = s3_config(cache_enabled=cache_enabled)
        with AutoStore(f"s3://{s3_bucket}/data/", config=config) as store:
            store["data"] = {"x": np.zeros(100), "y": np.ones(5)}
            assert set(store["data"]) == {"x", "y"}
        assert list(temporary.iterdir()) == []
    with AutoStore("./data") as store:
        store["data"] = np.zeros(10)
        store.load("data", rows=slice(2))
    assert list(temporary.iterdir()) == []


def test_multiple_storage_backends(s3_bucket, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_REGION", s3_server.region)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    local_store = AutoStore("./data")
    s3_store = AutoStore(f"s3://{s3_bucket}/prefix/")
    for store in (local_store, s3_store):
        store["a"] = [1, 2]
        assert store["a"] == [1, 2]
        store["a"] = "text"  # replaces it, though another type
        assert store["a"] == "text"
        assert list(store.list_files()) == ["a.txt"]
        store.close()


def test_top_level_names():
    """The change list: config, setup_logging and load_dotenv at the module's top level."""
    from blobstore.autostore import config, load_dotenv, setup_logging

    Path(".env").write_text("MY_RUN='seven # and more'\nOTHER = with blanks\n")
    pytest.importorskip("dotenv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_RUN", "")
        patch.delenv("MY_RUN")
        patch.setenv("OTHER", "")
        patch.delenv("OTHER")
        assert load_dotenv()
        assert config["MY_RUN"] == "seven # and more"
        assert config.OTHER == "with blanks"
        patch.undo()
    setup_logging("WARNING")
