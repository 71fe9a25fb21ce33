"""Handlers of tensors, and of what holds them, pass the suite."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from blobstore.handlers.mapping import MappingHandler
from blobstore.testing.handler import HandlerSuite

torch = pytest.importorskip("torch")

from blobstore.handlers.torch import TorchHandler  # noqa: E402


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def raw(tensor):
    return (
        tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    )


def same_tensor(one, other):
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and one.requires_grad == other.requires_grad
        and raw(one) == raw(other)
    )


def same(one, other):
    """Equal all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return same_tensor(one, other)
    if isinstance(one, dict):
        extra = getattr(one, "__dict__", {}) == getattr(other, "__dict__", {})
        return extra and [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.nn.Module):
        return str(one) == str(other) and same(one.state_dict(), other.state_dict())
    return one == other


class TestTorchHandler(HandlerSuite):
    def make_handler(self):
        return TorchHandler()

    def objects(self):
        return {
            "noise": noise(300, 101),
            "number": torch.tensor(2.5, dtype=torch.float64),
            "nothing": torch.empty(0, 3),
            "bfloat16": noise(70, 50, dtype=torch.bfloat16),
            "float8": noise(70, 50, dtype=torch.float8_e4m3fn),
            "float16": noise(70, 50, dtype=torch.float16),
            "complex": torch.complex(noise(9, 9), noise(9, 9)),
            "conjugated": torch.complex(noise(9, 9), noise(9, 9)).conj(),
            "uint16": torch.arange(5000).to(torch.uint16),
            "booleans": noise(1000) > 0,
            "channels last": noise(2, 3, 20, 30).contiguous(memory_format=torch.channels_last),
            "transposed": noise(40, 50).T,
            "slice": noise(40, 50)[::2, 3:],
            "expanded": noise(1, 50).expand(40, 50),
            "parameter": torch.nn.Parameter(noise(30, 30)),
            "frozen": torch.nn.Parameter(noise(30, 30), requires_grad=False),
            "requires grad": noise(5).requires_grad_(),
        }

    def equal(self, one, other):
        return same_tensor(one, other)

    def spoil(self, obj):
        obj.data.zero_()

    def same(self):
        square = noise(30, 30)
        return {
            "memory order": (square, square.T.contiguous().T),
            "strides": (square[:, ::2], square[:, ::2].contiguous()),
        }

    def different(self):
        ones = torch.ones(4)
        return {
            "dtype": (ones.to(torch.bfloat16), ones.to(torch.float16)),
            "bits": (ones.to(torch.bfloat16), ones.to(torch.bfloat16).view(torch.uint16)),
            "shape": (ones, ones.reshape(2, 2)),
            "parameter": (ones, torch.nn.Parameter(ones, requires_grad=False)),
            "requires grad": (ones, ones.clone().requires_grad_()),
            "values": (ones, torch.zeros(4)),
        }

    def refused(self):
        named = torch.ones(2)
        named.note = "x"
        return {
            "sparse": torch.eye(3).to_sparse(),
            "meta": torch.empty(3, device="meta"),
            "attributes": named,
            "no tensor": 1.5,
            "subclass": torch.ones(2).as_subclass(type("Mine", (torch.Tensor,), {})),
        }


def model():
    torch.manual_seed(5)
    return torch.nn.Sequential(
        torch.nn.Linear(200, 100), torch.nn.BatchNorm1d(100), torch.nn.Linear(100, 2)
    )


class TestMappingHandlerOfTensors(HandlerSuite):
    def make_handler(self):
        return MappingHandler()

    def objects(self):
        return {
            "state": model().state_dict(),
            "plain": {"w": noise(300, 100), "b": noise(3), "epoch": 3},
            "list": [noise(2), (noise(300, 100), "x")],
            "parameters": OrderedDict(w=torch.nn.Parameter(noise(5))),
            "module": model(),
        }

    def equal(self, one, other):
        return same(one, other)

    def spoil(self, obj):
        if isinstance(obj, dict | list):
            obj.clear()

    def different(self):
        return {
            "small": ({"w": noise(3)}, {"w": noise(3) + 1}),
            "large": ({"w": noise(300, 100)}, {"w": noise(300, 100) + 1}),
            "flag": ({"w": noise(3)}, {"w": noise(3).requires_grad_()}),
            "order": ([noise(3), noise(4)], [noise(4), noise(3)]),
        }

    def same(self):
        square = noise(300, 300)
        return {
            "memory": ({"w": square}, {"w": square.T.contiguous().T}),
            "state": (model().state_dict(), model().state_dict()),
        }
