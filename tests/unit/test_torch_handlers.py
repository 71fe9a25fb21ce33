"""Tensors, state dicts and modules: exact, shared where they were, without a pickle of a tensor."""

from __future__ import annotations

import pickletools
import subprocess
import sys

import pytest
from counting import CountingSource
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore, InvalidInputError
from blobstore.handlers.mapping import LARGE, SKELETON, MappingHandler
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.registry import HandlerSet
from blobstore.testing.handler import digests, read, write

torch = pytest.importorskip("torch")

from blobstore.handlers.torch import TorchHandler  # noqa: E402

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2,
    torch.float8_e4m3fn, torch.complex64, torch.int8, torch.int64, torch.uint8, torch.uint32,
    torch.bool,
]  # fmt: skip


def raw(tensor):
    if not tensor.numel():
        return []
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype)
    plain.copy_(tensor.detach().reshape(-1))
    return plain.view(torch.uint8).tolist()


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = dtype.itemsize
    for length in shape:
        size *= length
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    if size:
        tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)
    else:
        tensor = torch.empty(shape, dtype=dtype)
    order = draw(st.permutations(range(len(shape))))
    tensor = tensor.permute(order)
    if tensor.ndim and draw(st.booleans()):
        tensor = tensor[:: draw(st.integers(1, 2))]
    return tensor


def trip(obj, handler=None, **options):
    handler = handler or HandlerSet().plan(obj, WriteOptions()).handler
    plan = handler.plan(obj, WriteOptions())
    return read_trusted(handler, plan, write(plan), **options)


def read_trusted(handler, plan, stored, **options):
    return read(handler, plan, stored, **options)


@settings(max_examples=150)
@given(tensors(), st.sampled_from(["lz4", "zstd", "none"]))
def test_any_tensor_comes_back(tensor, codec):
    handler = TorchHandler()
    plan = handler.plan(tensor, WriteOptions(codec))
    found = read(handler, plan, write(plan))
    assert (found.dtype, found.shape, raw(found)) == (tensor.dtype, tensor.shape, raw(tensor))
    if "dimension_order" in plan.info or tensor.is_contiguous():
        sizes = [size > 1 for size in tensor.shape]
        strides = zip(found.stride(), tensor.stride(), sizes, strict=True)
        assert not tensor.numel() or all(a == b for a, b, matters in strides if matters)
    assert digests(handler.plan(found, WriteOptions())) == digests(plan)
    assert digests(handler.plan(tensor.contiguous(), WriteOptions())) == digests(plan)


@settings(max_examples=60)
@given(tensors().filter(lambda tensor: tensor.ndim), st.data())
def test_rows_are_those_of_the_tensor(tensor, data):
    rows = data.draw(st.slices(tensor.shape[0]))
    places = list(range(*rows.indices(tensor.shape[0])))
    assert raw(trip(tensor, rows=rows)) == raw(tensor[places])


def test_only_the_wanted_rows_are_read():
    tensor = torch.randn(4_000_000, 2, dtype=torch.float32).to(torch.bfloat16)
    plan = TorchHandler().plan(tensor, WriteOptions("none"))
    (content,) = write(plan).values()
    source = CountingSource(content)
    found = TorchHandler().read(
        {"data": StoredPart("data", source, "none", "torch", 1)}, plan.info, rows=slice(9, 20)
    )
    assert raw(found) == raw(tensor[9:20])
    assert source.count < len(content) * 0.1


# --- what holds tensors --------------------------------------------------------------------------


def network():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.Linear(100, 300, bias=False))


def test_a_checkpoint_has_a_part_for_each_large_tensor():
    state = {"model": network().state_dict(), "epoch": 3}
    plan = MappingHandler().plan(state, WriteOptions())
    assert [part.name for part in plan.parts] == [SKELETON, "0", "1"]
    assert all(part.size_hint >= LARGE for part in plan.parts[1:])
    assert plan.parts[1].encoding().extension == ".b2nd"


def test_no_tensor_is_pickled():
    state = network().state_dict()
    plan = MappingHandler().plan({"m": state, "small": torch.ones(3)}, WriteOptions("none"))
    names = {
        value
        for opcode, value, _ in pickletools.genops(write(plan)[SKELETON])
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE") and "torch" in value
    }
    assert names == {"torch"}  # the name of the handler, and of no function


def test_state_dicts_load_without_trust(tmp_path):
    """And so does the state of an optimizer."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    checkpoint = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 7}
    found = trip(checkpoint)
    assert found["model"]._metadata == net.state_dict()._metadata
    again = network()
    again.load_state_dict(found["model"])
    assert all(map(torch.equal, again.state_dict().values(), net.state_dict().values()))
    torch.optim.Adam(again.parameters()).load_state_dict(found["optimizer"])
    assert found["epoch"] == 7


def test_tied_weights_stay_tied():
    net = network()
    net[1].weight = torch.nn.Parameter(net[0].weight.detach().T.contiguous())
    state = {"a": net[1].weight, "b": net[1].weight, "c": net[1].weight.detach()}
    plan = MappingHandler().plan(state, WriteOptions())
    assert len(plan.parts) == 2
    found = trip(state)
    assert found["a"] is found["b"]
    assert type(found["c"]) is torch.Tensor
    assert found["c"].data_ptr() == found["a"].data_ptr()
    with torch.no_grad():
        found["a"].zero_()
    assert not found["c"].any()


def test_other_views_of_one_memory_come_apart():
    whole = torch.arange(10.0)
    found = trip([whole, whole[2:5]])
    found[0].zero_()
    assert found[1].tolist() == [2, 3, 4]


def test_small_tensors_that_share_memory_do_so_again():
    tensor = torch.ones(3)
    found = trip({"a": tensor, "b": tensor.view(3), "c": tensor})
    assert found["a"] is found["c"]
    assert found["a"] is not found["b"]
    found["a"][0] = 9
    assert found["b"][0] == 9


def test_checkpoints_share_what_did_not_change(tmp_path):
    with BlobStore(tmp_path, content_addressable=True) as store:
        net = network()
        store.put(net.state_dict(), key="1")
        with torch.no_grad():
            net[1].weight += 1
        store.put(net.state_dict(), key="2")
        store.put(net, key="module")  # the same parameters once more
        entries = [store.entry(key) for key in ("1", "2", "module")]
        parts = [{part.name: part.blob.location for part in entry.parts} for entry in entries]
        assert parts[0]["0"] == parts[1]["0"] == parts[2]["0"]
        assert parts[0]["1"] != parts[1]["1"] == parts[2]["1"]


def test_modules_and_optimizers_come_back_whole(tmp_path):
    with BlobStore(tmp_path) as store:
        net = network().eval()
        store.put(net, key="net", metadata={"loss": 0.5})
        found = store["net"]
        inputs = torch.ones(2, 300)
        assert torch.equal(found(inputs), net(inputs))
        assert not found.training
        assert store.get_metadata("net")["data_type"] == "module"
        optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
        store.put([net, optimizer, torch.ones(1)], key="both")
        net2, optimizer2, _ = store["both"]
        assert optimizer2.param_groups[0]["params"][0] is net2[0].weight


def test_where_tensors_are_loaded_to(tmp_path):
    with BlobStore(tmp_path) as store:
        store.put(torch.ones(3), key="t")
        store.put({"a": torch.ones(3), "b": torch.ones(200, 200)}, key="d")
        assert store.get("t", map_location="cpu").device.type == "cpu"
        assert store.get("t", map_location="meta").device.type == "meta"
        found = store.get("d", map_location=torch.device("meta"))
        assert {tensor.device.type for tensor in found.values()} == {"meta"}
        with pytest.raises(InvalidInputError, match="no device"):
            store.get("t", map_location="nowhere")
        if not torch.cuda.is_available():
            with pytest.raises(InvalidInputError, match="cuda"):
                store.get("d", map_location="cuda")


def test_tensors_of_other_devices_are_fetched_and_not_kept(monkeypatch):
    monkeypatch.setattr("blobstore.handlers.torch._is_here", lambda tensor: False)
    tensor = torch.randn(100, 100).to(torch.bfloat16)
    plan = TorchHandler().plan(tensor, WriteOptions())
    assert plan.parts[0]._kept is None
    assert raw(read(TorchHandler(), plan, write(plan))) == raw(tensor)
    monkeypatch.undo()
    assert digests(plan) == digests(TorchHandler().plan(tensor, WriteOptions()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_a_gpu(tmp_path):
    with BlobStore(tmp_path, content_addressable=True) as store:
        tensor = torch.randn(300, 300, device="cuda", dtype=torch.bfloat16)
        store.put({"a": tensor, "b": tensor.cpu()}, key="k")
        assert store["k"]["a"].device.type == "cpu"
        found = store.get("k", map_location="cuda")
        assert found["a"].is_cuda
        assert torch.equal(found["a"], tensor)


def test_unusual_tensors_are_left_to_pickle(tmp_path):
    with BlobStore(tmp_path) as store:
        sparse = torch.eye(3).to_sparse()
        store.put(sparse, key="s")
        assert store["s"].is_sparse
        assert torch.equal(store["s"].to_dense(), torch.eye(3))
        assert store.get_metadata("s")["handler"] == "pickle"


def test_plain_lists_do_not_load_torch():
    code = """
import sys
from blobstore.registry import HandlerSet
from blobstore.protocols import WriteOptions
for obj in ([1, 2], (1,), {"a": [1]}, {1}):
    assert HandlerSet().plan(obj, WriteOptions()).handler.name == "pickle"
assert not {"torch", "polars", "pyarrow", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
