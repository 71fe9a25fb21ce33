"""The handler of sparse arrays passes the suite, and gives back any array in any layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from counting import CountingSource
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore
from blobstore.errors import DecodeError, InvalidInputError
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.testing.handler import HandlerSuite, digests, read, write

sparse = pytest.importorskip("scipy.sparse")

from blobstore.handlers.sparse import SparseHandler  # noqa: E402

LAYOUTS = ["csr", "csc", "bsr", "coo", "dia", "dok", "lil"]


def arrays_of(obj):
    """All that it is made of, types of indices included."""
    if obj.format == "lil":
        return [obj.rows.tolist(), obj.data.tolist()]
    if obj.format == "dok":
        return sorted((tuple(map(int, place)), value.item()) for place, value in obj.items())
    if obj.format == "coo":
        found = [*obj.coords, obj.data]
    elif obj.format == "dia":
        found = [obj.data, obj.offsets]
    else:
        found = [obj.data, obj.indices, obj.indptr]
    return [(array.dtype.str, array.shape, array.tolist()) for array in found]


def same_sparse(one, other):
    return (
        type(one) is type(other)
        and one.shape == other.shape
        and one.dtype == other.dtype
        and repr(arrays_of(one)) == repr(arrays_of(other))
    )


def example(layout, kind="array", shape=(60, 40)):
    rng = np.random.default_rng(5)
    dense = np.where(rng.random(shape) < 0.1, rng.standard_normal(shape), 0)
    return getattr(sparse, f"{layout}_{kind}")(dense)


class TestSparseHandler(HandlerSuite):
    def make_handler(self):
        return SparseHandler()

    def objects(self):
        messy = sparse.coo_array(([1.0, 2.0, 0.0], ([3, 3, 1], [2, 2, 0])), shape=(5, 4))
        wide = sparse.csr_array(example("csr"))
        wide.indices, wide.indptr = wide.indices.astype("i8"), wide.indptr.astype("i8")
        unsorted = sparse.csr_array(([1, 2], [3, 1], [0, 2, 2]), shape=(2, 4))
        return {
            **{layout: example(layout) for layout in LAYOUTS},
            **{f"{layout} matrix": example(layout, "matrix") for layout in LAYOUTS},
            "duplicates and zeros": messy,
            "wide indices": wide,
            "unsorted": unsorted,
            "nothing": sparse.csr_array((0, 7)),
            "empty": sparse.lil_array((3, 3), dtype="f4"),
            "blocks": sparse.bsr_array(example("bsr"), blocksize=(3, 4)),
            "booleans": sparse.csc_array(example("csc") > 0),
            "complex": example("coo") * 1j,
            "one dimension": sparse.coo_array(np.array([0, 2, 0, 3])),
            "large": sparse.random_array((4000, 3000), density=0.002, format="csr", rng=5),
        }

    def equal(self, one, other):
        return same_sparse(one, other)

    def spoil(self, obj):
        if obj.format not in ("dok", "lil"):
            obj.data[...] = 0

    def same(self):
        one = sparse.dok_array((3, 3))
        other = sparse.dok_array((3, 3))
        for target, places in ((one, [(0, 1), (2, 2)]), (other, [(2, 2), (0, 1)])):
            for place in places:
                target[place] = 5.0
        return {"insertion order": (one, other)}

    def different(self):
        csr = example("csr")
        return {
            "layout": (csr, csr.tocsc()),
            "kind": (csr, sparse.csr_matrix(csr)),
            "shape": (sparse.csr_array((2, 3)), sparse.csr_array((2, 4))),
            "dtype": (sparse.csr_array((2, 3)), sparse.csr_array((2, 3), dtype="f4")),
            "values": (csr, csr * 2),
            "index type": (self.objects()["csr"], self.objects()["wide indices"]),
        }

    def refused(self):
        mine = type("Mine", (sparse.csr_array,), {})
        return {"subclass": mine((1, 1)), "dense": np.eye(2)}


@st.composite
def sparse_arrays(draw):
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    places = st.tuples(*(st.integers(0, length - 1) for length in shape))
    found = draw(st.lists(places, max_size=12))
    dtype = draw(st.sampled_from(["f8", "f4", "i4", "c8", "?"]))
    values = draw(st.lists(st.integers(0, 3), min_size=len(found), max_size=len(found)))
    coords = np.array(found, "i4").reshape(-1, 2).T
    coo = sparse.coo_array((np.array(values, dtype), tuple(coords)), shape=shape)
    layout, kind = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(["array", "matrix"]))
    converted = coo if layout == "coo" else coo.asformat(layout)
    return getattr(sparse, f"{layout}_{kind}")(converted)


@settings(max_examples=150)
@given(sparse_arrays(), st.sampled_from(["lz4", "none"]), st.sampled_from([0, 4096]))
def test_any_sparse_array_comes_back(array, codec, inline):
    plan = SparseHandler().plan(array, WriteOptions(codec, inline_max_bytes=inline))
    found = read(SparseHandler(), plan, write(plan))
    assert same_sparse(found, array)
    assert digests(SparseHandler().plan(found, WriteOptions())) == digests(plan)


@settings(max_examples=60)
@given(sparse_arrays(), st.data())
def test_rows_of_csr(array, data):
    csr = array.tocsr()
    rows = data.draw(st.slices(csr.shape[0]))
    plan = SparseHandler().plan(csr, WriteOptions())
    found = read(SparseHandler(), plan, write(plan), rows=rows)
    assert type(found) is type(csr)
    assert np.array_equal(found.toarray(), csr.toarray()[rows])


def test_only_the_entries_of_the_rows_are_read():
    csr = sparse.random_array((150_000, 3000), density=0.01, format="csr", rng=1)
    plan = SparseHandler().plan(csr, WriteOptions())
    stored = write(plan)
    sources = {name: CountingSource(data) for name, data in stored.items()}
    parts = {
        part.name: StoredPart(part.name, sources[part.name], part.encoding().codec, "numpy", 1)
        for part in plan.parts
    }
    found = SparseHandler().read(parts, plan.info, rows=slice(40_000, 40_100))
    assert (found != csr[40_000:40_100]).nnz == 0
    read_bytes = sum(source.count for source in sources.values())
    assert read_bytes < sum(map(len, stored.values())) * 0.3


def test_rows_of_other_layouts_are_refused(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(example("csc"), key="csc")
        with pytest.raises(InvalidInputError, match="for CSR"):
            store.get("csc", rows=slice(2))
        assert store.get_metadata("csc")["data_type"] == "sparse"
        assert same_sparse(store["csc"], example("csc"))


@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "coo", "dok", "lil"])
def test_indices_that_point_outside_are_refused(layout):
    """SciPy would read and write there."""
    plan = SparseHandler().plan(
        example(layout, shape=(60, 4000) if layout != "csc" else (6000, 40)), WriteOptions("none")
    )
    with pytest.raises(DecodeError, match=f"no {layout}_array"):
        read(SparseHandler(), replace(plan, info={**plan.info, "shape": [60, 40]}), write(plan))
