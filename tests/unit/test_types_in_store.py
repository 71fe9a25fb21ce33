"""Every kind of object through whole stores: inline, in blobs, shared, copied, verified, from others."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from blobstore import BlobStore, DictStore, InvalidInputError
from blobstore.backends import FilesystemStore

NOISE = np.random.default_rng(1).standard_normal((120, 100))


@dataclasses.dataclass
class Settings:
    rate: float
    weights: Any = None

    def __eq__(self, other):
        return self.rate == other.rate and np.array_equal(self.weights, other.weights)


def tables():
    import polars as pl

    table = pa.table({"x": NOISE[:, 0], "y": [str(i) for i in range(120)]})
    return {
        "arrow": (table, pa.Table.equals),
        "arrow array": (pa.array([1, None]), pa.Array.equals),
        "polars": (pl.from_arrow(table), pl.DataFrame.equals),
        "polars series": (pl.Series("s", [1, 2]), pl.Series.equals),
        "table inside": ({"t": table}, lambda a, b: a["t"].equals(b["t"])),
    }


def arrays():
    import scipy.sparse
    import xarray as xr

    sparse = scipy.sparse.csr_array(np.where(NOISE > 1, NOISE, 0))
    return {
        "sparse": (sparse, lambda a, b: (a != b).nnz == 0 and type(a) is type(b)),
        "xarray": (xr.DataArray(NOISE, dims=("a", "b")), xr.DataArray.identical),
        "list": ([NOISE, "x"], lambda a, b: np.array_equal(a[0], b[0]) and a[1] == b[1]),
    }


def images():
    from PIL import Image

    same = Image.Image.__eq__
    return {
        "image": (Image.linear_gradient("L").rotate(30), same),
        "pixels": (Image.new("F", (9, 8), 0.5), same),
    }


def objects():
    return {
        "dataclass": (Settings(0.1), Settings.__eq__),
        "dataclass of arrays": (Settings(0.1, NOISE), Settings.__eq__),
    }


def tensors():
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    return {
        "tensor": (torch.from_numpy(NOISE), torch.equal),
        "state": (
            {"w": torch.from_numpy(NOISE), "b": torch.ones(3)},
            lambda a, b: all(map(torch.equal, a.values(), b.values())),
        ),
    }


def everything():
    return tables() | arrays() | images() | objects() | tensors()


NAMES = list(everything())


@pytest.mark.parametrize("addressed", [False, True], ids=["keys", "content"])
@pytest.mark.parametrize("backend", ["json", "sqlite"])
@pytest.mark.parametrize("name", NAMES)
def test_it_comes_back_and_is_shared(tmp_path, name, backend, addressed):
    obj, equal = everything()[name]
    again, _ = everything()[name]
    with BlobStore(tmp_path, backend=backend, content_addressable=addressed) as store:
        store.put(obj, key="k", metadata={"n": 1})
        store.copy("k", "copy")
        store.update_metadata("copy", {"n": 2})
        assert equal(store["k"], obj)
        assert equal(store["copy"], obj)
        assert store.verify(deep=True).ok
        assert store.get_metadata("k")["handler"] != "pickle"
        if addressed:
            assert store.put(obj) == store.put(again)
            store.put(again, key="again")
            assert equal(store["again"], obj)
            assert set(store.entry("again").locations) == set(store.entry("k").locations)
        with pytest.raises(InvalidInputError, match="no_such"):
            store.get("k", no_such=1)


@pytest.mark.parametrize("name", [n for n in NAMES if "dataclass" not in n])
def test_what_others_stored_loads_if_it_is_only_data(tmp_path, name):
    obj, equal = everything()[name]
    with BlobStore(tmp_path) as store:
        store.put(obj, key="k")
    with BlobStore(tmp_path, signing_keys=[b"k" * 32]) as store:
        assert equal(store["k"], obj)


class Counting(FilesystemStore):
    """Counts the bytes that are read of it."""

    count = 0

    def source(self, key):
        from counting import CountingSource

        store = self

        class Source(CountingSource):
            @property
            def count(self):
                return store.count

            @count.setter
            def count(self, value):
                store.count = value

        data = super().get(key)
        before = store.count
        source = Source(data)
        store.count = before
        return source


def test_a_store_reads_no_more_than_is_wanted(tmp_path):
    blobs = Counting(tmp_path / "blobs")
    table = pa.table({name: np.random.default_rng(2).random(300_000) for name in "abcd"})
    frame = pd.DataFrame({name: table.column(name).to_numpy() for name in "abcd"})
    array = np.random.default_rng(3).random((3_000_000, 2))
    with BlobStore(tmp_path / "s", blob_backend=blobs, verify_on_read=False) as store:
        for key, obj in {"table": table, "frame": frame, "array": array}.items():
            store.put(obj, key=key)

        def read(key, **options):
            blobs.count = 0
            found = store.get(key, **options)
            return found, blobs.count / store.entry(key).size

        found, share = read("table", columns=["b"])
        assert found.equals(table.select(["b"]))
        assert share < 0.27
        found, share = read("frame", columns=["b"])
        assert found.equals(frame[["b"]])
        assert share < 0.27
        found, share = read("array", rows=slice(5, 9))
        assert np.array_equal(found, array[5:9])
        assert share < 0.2


def test_each_library_is_imported_when_it_is_met(tmp_path):
    """And not for objects of the others."""
    code = f"""
import json, sys
from blobstore import BlobStore
libraries = ("polars", "scipy", "PIL", "xarray", "pydantic", "torch", "sklearn", "skops")
import pyarrow, pandas
before = {{name for name in libraries if name in sys.modules}}
with BlobStore({str(tmp_path)!r}) as store:
    for number, obj in enumerate([pyarrow.table({{"x": [1]}}), pandas.DataFrame({{"x": [1]}})]):
        store.put(obj, key=str(number))
        store[str(number)]
print(json.dumps(sorted({{name for name in libraries if name in sys.modules}} - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_memory_store_too(tmp_path):
    with BlobStore(tmp_path, blob_backend=DictStore()) as store:
        for name, (obj, equal) in everything().items():
            store.put(obj, key=name)
            assert equal(store[name], obj)
