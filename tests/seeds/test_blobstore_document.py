"""Each example of the BlobStore document, import names aside, with what its comments promise."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from blobstore import BlobStore
from blobstore.backends import FilesystemBlobBackend


class Model:
    """Stands for a trained model: it has weights, and a state to be saved and loaded."""

    def __init__(self, seed: int = 0) -> None:
        self.weights = np.random.default_rng(seed).standard_normal((200, 200))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Model) and np.array_equal(self.weights, other.weights)

    __hash__ = None

    def state_dict(self) -> dict[str, np.ndarray]:
        return {"layer.weight": self.weights, "layer.bias": self.weights[0]}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        self.weights = state["layer.weight"]


@pytest.fixture(autouse=True)
def in_a_fresh_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store():
    with BlobStore("./store") as store:
        yield store


def test_quick_start():
    my_model = Model()
    store = BlobStore(
        cache_dir="./my_storage",
        backend="sqlite",
        compression="lz4",
    )
    key = store.put(my_model, key="model_v1", metadata={"accuracy": 0.95, "author": "alice"})
    assert key == "model_v1"
    model = store.get("model_v1")
    assert model == my_model
    meta = store.get_metadata("model_v1")
    assert meta["metadata"] == {"accuracy": 0.95, "author": "alice"}
    assert store.list() == ["model_v1"]
    assert store.list(prefix="model_") == ["model_v1"]
    store.delete("model_v1")
    assert store.list() == []
    store.close()


def test_built_in_blob_backends(tmp_path):
    for options in ({}, {"blob_backend": "filesystem"}):
        with BlobStore(cache_dir="./data", **options) as store:
            store.put(b"bytes", key="k")
            assert store.get("k") == b"bytes"
    with BlobStore(cache_dir="./temp", blob_backend="memory") as store:
        store.put(b"bytes" * 10_000, key="k")
        assert store.get("k") == b"bytes" * 10_000
        assert store.exists("k")
        assert not [*(tmp_path / "temp").rglob("*.bin*")]


def test_custom_blob_backend_instance(tmp_path):
    custom_backend = FilesystemBlobBackend(base_dir="./cache", shard_chars=3)
    with BlobStore(cache_dir="./cache", blob_backend=custom_backend) as store:
        store.put(np.arange(10_000), key="array")
        (file,) = (tmp_path / "cache").rglob("*.b2nd")
        assert len(file.parent.name) == 3
        assert file.name.startswith(file.parent.name)
        np.testing.assert_array_equal(store.get("array"), np.arange(10_000))


def test_constructor_with_all_its_parameters_by_position():
    with BlobStore("./positional", "sqlite", "zstd", 6, True, "filesystem") as store:
        assert store.get(store.put("text")) == "text"
    with BlobStore() as store:
        assert store.path.name == ".blobstore"


def test_put(store):
    model = Model()
    assert store.put(model, key="fraud_detector_v1") == "fraud_detector_v1"
    generated = store.put(model)
    assert isinstance(generated, str)
    assert len(generated) >= 16
    assert store.get(generated) == model
    key = store.put(
        model,
        key="fraud_detector_v1",
        metadata={"accuracy": 0.95, "training_date": "2024-01-15", "author": "alice"},
    )
    assert store.get_metadata(key)["metadata"]["training_date"] == "2024-01-15"


def test_get(store):
    assert store.get("fraud_detector_v1") is None
    store.put(Model(), key="fraud_detector_v1")
    assert store.get("fraud_detector_v1") == Model()


def test_get_metadata(store):
    assert store.get_metadata("fraud_detector_v1") is None
    store.put(Model(), key="fraud_detector_v1", metadata={"accuracy": 0.95})
    meta = store.get_metadata("fraud_detector_v1")
    assert f"Accuracy: {meta['metadata']['accuracy']}" == "Accuracy: 0.95"
    (file,) = store.path.rglob("*.pkl*")
    assert f"Size: {meta['file_size']} bytes" == f"Size: {file.stat().st_size} bytes"


def test_update_metadata(store):
    store.put(Model(), key="fraud_detector_v1", metadata={"accuracy": 0.95})
    assert store.update_metadata(
        "fraud_detector_v1", {"deployed": True, "deployment_date": "2024-01-20"}
    )
    assert store.get_metadata("fraud_detector_v1")["metadata"] == {
        "accuracy": 0.95,
        "deployed": True,
        "deployment_date": "2024-01-20",
    }
    assert store.update_metadata("nobody", {"deployed": True}) is False


def test_delete(store):
    store.put(Model(), key="old_model")
    assert store.delete("old_model")
    assert not store.delete("old_model")
    assert not [*store.path.rglob("*.pkl*")]


def test_exists(store):
    assert not store.exists("fraud_detector_v1")
    store.put(Model(), key="fraud_detector_v1")
    assert store.exists("fraud_detector_v1")
    (file,) = store.path.rglob("*.pkl*")
    file.unlink()
    assert not store.exists("fraud_detector_v1"), "both metadata and file"


def test_list(store):
    store.put(1, key="model_a", metadata={"deployed": True})
    store.put(2, key="model_b", metadata={"deployed": False})
    store.put(3, key="data", metadata={"deployed": True})
    assert set(store.list()) == {"model_a", "model_b", "data"}
    assert set(store.list(prefix="model_")) == {"model_a", "model_b"}
    assert set(store.list(metadata_filter={"deployed": True})) == {"model_a", "data"}


def test_clear(store):
    store.put(1, key="a")
    store.put(Model(), key="b")
    count = store.clear()
    assert f"Removed {count} blobs" == "Removed 2 blobs"
    assert store.list() == []


def test_close():
    store = BlobStore("./store")
    store.close()
    with BlobStore("./store") as store:
        store.put({"x": 1}, key="key")
    with BlobStore("./store") as store:
        assert store.get("key") == {"x": 1}


def test_content_addressable_storage(tmp_path):
    model_a = Model()
    store = BlobStore(cache_dir="./models", content_addressable=True)
    key1 = store.put(model_a)
    key2 = store.put(model_a)
    assert key1 == key2
    assert len(bytes.fromhex(key1)) >= 16
    assert len([*(tmp_path / "models").rglob("*.pkl*")]) == 1
    store.close()


def test_metadata_backends(tmp_path):
    with BlobStore(cache_dir="./store", backend="json") as store:
        store.put(1, key="k")
    assert (tmp_path / "store/cache_metadata.json").exists()
    with BlobStore(cache_dir="./store2", backend="sqlite") as store:
        store.put(1, key="k")
        assert (tmp_path / "store2/cache_metadata.db").exists()


@pytest.mark.parametrize(
    "options", [{"compression": "lz4"}, {"compression": "zstd", "compression_level": 6},
                {"compression": "gzip"}, {"compression": "blosclz"}],
)  # fmt: skip
def test_compression_options(options):
    with BlobStore(**options) as store:
        for data in ({"text": "a" * 5000}, np.arange(50_000)):
            key = store.put(data)
            loaded = store.get(key)
            assert (loaded == data) if isinstance(data, dict) else np.array_equal(loaded, data)
            assert store.get_metadata(key)["compression"] == options["compression"]


def test_type_aware_serialization(store):
    array = np.random.default_rng(0).standard_normal((1000, 1000))
    store.put(array, key="array")
    np.testing.assert_array_equal(store.get("array"), array)
    store.put(pd.DataFrame({"a": [1, 2, 3]}), key="df")
    pd.testing.assert_frame_equal(store.get("df"), pd.DataFrame({"a": [1, 2, 3]}))
    store.put({"config": "value"}, key="config")
    assert store.get("config") == {"config": "value"}
    files = [path.name for path in (store.path / "blobs").rglob("*") if path.is_file()]
    for extension in (".b2nd", ".parquet", ".pkl"):
        assert sum(extension in name for name in files) == 1


def test_ml_model_storage():
    trained_model = Model()
    model_store = BlobStore(cache_dir="./models", backend="sqlite", content_addressable=True)
    model_store.put(
        trained_model,
        key="fraud_detector_v2.1",
        metadata={
            "model_name": "fraud_detector",
            "version": "2.1",
            "accuracy": 0.95,
            "f1_score": 0.92,
            "author": "alice",
            "training_date": datetime.now().isoformat(),
            "hyperparameters": {
                "learning_rate": 0.001,
                "epochs": 100,
            },
        },
    )
    lines = []
    for key in model_store.list(prefix="fraud_detector"):
        nested = model_store.get_metadata(key).get("metadata", {})
        lines.append(f"{key}: accuracy={nested.get('accuracy')}")
    assert lines == ["fraud_detector_v2.1: accuracy=0.95"]
    assert model_store.update_metadata(
        "fraud_detector_v2.1", {"deployed": True, "deployment_env": "production"}
    )
    assert model_store.get("fraud_detector_v2.1") == trained_model
    model_store.close()


def test_pipeline_artifacts():
    raw_data = pd.DataFrame({"x": range(1000), "y": ["a", "b"] * 500})
    artifact_store = BlobStore(
        cache_dir="./pipeline_artifacts", backend="sqlite", compression="zstd"
    )
    run_id = f"run_{datetime.now().strftime('%Y%m%d_%H%M%S')}"
    artifact_store.put(
        raw_data,
        key=f"{run_id}/raw_data",
        metadata={"stage": "extract", "row_count": len(raw_data), "depends_on": None},
    )
    transformed = raw_data[raw_data.x > 10]
    artifact_store.put(
        transformed,
        key=f"{run_id}/transformed",
        metadata={
            "stage": "transform",
            "row_count": len(transformed),
            "depends_on": f"{run_id}/raw_data",
        },
    )
    stages = [
        f"{key}: {artifact_store.get_metadata(key)['metadata']['stage']}"
        for key in artifact_store.list(prefix=run_id)
    ]
    assert stages == [f"{run_id}/raw_data: extract", f"{run_id}/transformed: transform"]
    pd.testing.assert_frame_equal(artifact_store.get(f"{run_id}/transformed"), transformed)
    artifact_store.close()


def test_training_checkpoints():
    checkpoint_store = BlobStore(cache_dir="./checkpoints", compression="lz4")
    current_lr = 0.01
    losses = [3.0, 2.0, 1.0, 0.5, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7]
    for epoch in range(100):
        model = Model(epoch)
        loss = losses[epoch // 10]
        if epoch % 10 == 0:
            checkpoint_store.put(
                model.state_dict(),
                key=f"checkpoint_epoch_{epoch:04d}",
                metadata={"epoch": epoch, "loss": loss, "learning_rate": current_lr},
            )
    best_loss = float("inf")
    best_key = None
    for key in checkpoint_store.list(prefix="checkpoint_"):
        meta = checkpoint_store.get_metadata(key)
        loss = meta["metadata"]["loss"]
        if loss < best_loss:
            best_loss = loss
            best_key = key
    assert best_key == "checkpoint_epoch_0040"
    state = checkpoint_store.get(best_key)
    model = Model(7)
    model.load_state_dict(state)
    assert model == Model(40)
    checkpoint_store.close()
