"""The handler of xarray passes the suite."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore
from blobstore.protocols import WriteOptions
from blobstore.testing.handler import HandlerSuite, digests, read, write

xr = pytest.importorskip("xarray")

from blobstore.handlers.xarray import XarrayHandler  # noqa: E402

NOISE = np.random.default_rng(4).standard_normal((90, 120))


def field(**attrs):
    return xr.DataArray(
        NOISE.copy(),
        dims=("lat", "lon"),
        coords={
            "lat": np.linspace(-90, 90, 90),
            "lon": ("lon", np.arange(120), {"units": "deg"}),
            "area": (("lat", "lon"), NOISE**2),
            "run": 7,
        },
        name="temperature",
        attrs=attrs,
    )


def variables_of(obj):
    if isinstance(obj, xr.DataArray):
        return {"": obj.variable, **{name: obj.coords[name].variable for name in obj.coords}}
    return dict(obj.variables)


class TestXarrayHandler(HandlerSuite):
    def make_handler(self):
        return XarrayHandler()

    def objects(self):
        times = pd.date_range("2024-05-01", periods=90, freq="h")
        encoded = field()
        encoded.encoding = {"dtype": np.dtype("i2"), "scale_factor": 0.5}
        return {
            "array": field(units="K", history=["a", (1, 2)], level=np.float32(2.5)),
            "no coords": xr.DataArray(NOISE.copy()),
            "number": xr.DataArray(2.5, name="x"),
            "times": xr.DataArray(np.arange(90), {"time": times}, ["time"]),
            "durations": xr.DataArray([1, 2], {"d": pd.to_timedelta([1, 2], "h")}, ["d"]),
            "strings": xr.DataArray([1, 2], {"s": ["a", "bc"]}, ["s"]),
            "objects": xr.DataArray(np.array(["a", None, 3], object), dims="x"),
            "encoded": encoded,
            "dataset": xr.Dataset(
                {"t": field(), "mask": (("lat", "lon"), NOISE > 0), "n": 3},
                attrs={"title": "x", 5: [np.arange(3)]},
            ),
            "empty": xr.Dataset(),
            "integer names": xr.Dataset({1: ("x", [1, 2])}),
        }

    def equal(self, one, other):
        if type(one) is not type(other) or not one.identical(other):
            return False
        if repr(one.encoding) != repr(other.encoding):
            return False
        ours, others = variables_of(one), variables_of(other)
        return all(
            type(x) is type(others[name])
            and x.dtype == others[name].dtype
            and repr(x.encoding) == repr(others[name].encoding)
            for name, x in ours.items()
        ) and all(
            getattr(one.indexes[name], "freq", None) == getattr(other.indexes[name], "freq", None)
            for name in one.indexes
        )

    def spoil(self, obj):
        obj.attrs.clear()
        obj.attrs["spoilt"] = 1

    def same(self):
        array = xr.DataArray(NOISE, dims=("y", "x"))
        return {"memory": (array, array.copy(data=np.asfortranarray(NOISE)))}

    def different(self):
        one = field()
        return {
            "attrs": (one, field(units="K")),
            "name": (one, one.rename("other")),
            "dims": (one, one.rename(lat="y")),
            "values": (one, one + 1),
            "kind": (one, one.to_dataset()),
            "coords": (one, one.drop_vars("run")),
        }

    def refused(self):
        stacked = field().stack(point=("lat", "lon"))
        return {
            "many levels": stacked,
            "no index": field().drop_indexes("lat"),
            "time zone": xr.DataArray(
                [1], {"t": pd.DatetimeIndex(["2024-01-01"], tz="UTC")}, ["t"]
            ),
            "object": xr.DataArray([1], attrs={"x": object()}),
            "pandas": pd.Series([1]),
        }


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3),
    st.sampled_from(["f8", "i2", "?", "M8[ns]", "m8[s]", "c16", "U3"]),
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2),
    st.booleans(),
)
def test_any_array_comes_back(shape, dtype, attrs, with_coords):
    values = np.arange(np.prod(shape, dtype=int)).astype("i8")
    values = values.astype(dtype).reshape(shape)
    dims = [f"d{i}" for i in range(len(shape))]
    coords = {name: range(size) for name, size in zip(dims, shape, strict=True)}
    array = xr.DataArray(values, coords if with_coords else None, dims, attrs=attrs)
    plan = XarrayHandler().plan(array, WriteOptions())
    found = read(XarrayHandler(), plan, write(plan))
    assert found.identical(array)
    assert found.dtype == array.dtype
    assert digests(XarrayHandler().plan(found, WriteOptions())) == digests(plan)


def test_it_is_read_by_those_who_never_unpickle(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(field(units="K"), key="t")
    with BlobStore(tmp_path, pickle="deny") as store:
        assert store["t"].identical(field(units="K"))
        assert store.get_metadata("t")["info"]["sizes"] == {"lat": 90, "lon": 120}


def test_arrays_of_dask_stay_what_they_are(tmp_path):
    dask = pytest.importorskip("dask.array")
    lazy = xr.DataArray(dask.arange(10, chunks=5), dims="x")
    with BlobStore(tmp_path) as store:
        store.put(lazy, key="k")
        assert store.get_metadata("k")["handler"] == "pickle"
        assert store["k"].chunks == ((5, 5),)


def test_files_that_xarray_has_not_read_yet_are_read(tmp_path):
    field().drop_vars("run").to_netcdf(tmp_path / "x.nc", engine="scipy")
    with (
        xr.open_dataarray(tmp_path / "x.nc", engine="scipy") as lazy,
        BlobStore(tmp_path / "s") as store,
    ):
        store.put(lazy, key="k")
        assert store["k"].identical(lazy)
        assert store.get_metadata("k")["handler"] == "xarray"
