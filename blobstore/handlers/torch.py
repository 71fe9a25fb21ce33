"""PyTorch tensors and parameters, as Blosc2 frames like arrays; and as leaves of what holds them.

Values come back bit for bit, with dtype, shape, order of dimensions in memory (``channels_last``
is one), type and ``requires_grad``. Types that NumPy does not have (bfloat16, the 8-bit floats) are
stored as unsigned integers of their width. The graph, ``.grad`` and hooks are not kept; tensors that
have gaps or overlaps in memory come back without them.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from blobstore.digest import Canonical
from blobstore.errors import DecodeError, InvalidInputError, UnsupportedTypeError
from blobstore.handlers.leaves import LeafHandler, LeafPlan
from blobstore.handlers.numpy import ArrayPart, NumpyHandler
from blobstore.handlers.options import refuse_options
from blobstore.protocols import Encoding, Plan, PlannedPart, StoredPart, WriteOptions
from blobstore.streams import Hasher, Sink

_TYPES = {"tensor": torch.Tensor, "parameter": torch.nn.Parameter}
_NUMBERS = ("bool", "int", "uint", "float", "bfloat", "complex")
_ARRAYS = NumpyHandler()


class TorchHandler(LeafHandler):
    """`torch.Tensor` and `torch.nn.Parameter`, dense, of every dtype that is not quantized.

    `read` takes ``rows=slice(...)``, and ``map_location=`` for the device: the CPU, if nothing is
    said.

    Examples
    --------
    >>> weights = torch.ones(2, 3, dtype=torch.bfloat16)
    >>> plan = TorchHandler().plan(weights, WriteOptions())
    >>> plan.info["dtype"], plan.info["shape"], plan.parts[0].encoding().extension
    ('bfloat16', [2, 3], '.b2nd')
    """

    name: ClassVar[str] = "torch"
    type_names: ClassVar[tuple[str, ...]] = ("torch.Tensor", "torch.nn.parameter.Parameter")

    def can_handle(self, obj: Any) -> bool:
        """Whether it is a tensor or parameter, and of no subclass; `plan` looks closer."""
        return type(obj) in (torch.Tensor, torch.nn.Parameter)

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Look at a tensor; its values stay where they are.

        Raises
        ------
        UnsupportedTypeError
            It is sparse, quantized, nested, of names or attributes, or on no device (meta).
        """
        found = self.plan_leaf(obj, options)
        assert isinstance(found.part, TensorPart)
        found.part.said = found.facts
        return Plan("tensor", found.info, (found.part,))

    def plan_leaf(self, obj: Any, options: WriteOptions) -> LeafPlan:
        """Look at a tensor; what is only of the object, and not of its values, is in the facts."""
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no tensor")
        _check(obj)
        kind = "parameter" if type(obj) is torch.nn.Parameter else "tensor"
        info: dict[str, Any] = {
            "type": kind,
            "dtype": _name(obj.dtype),
            "shape": list(obj.shape),
            "nbytes": obj.nbytes,
            "device": str(obj.device),
            "requires_grad": obj.requires_grad,
        }
        order = _dimension_order(obj)
        if order is not None:
            info["dimension_order"] = order
        part = TensorPart(obj, options)
        return LeafPlan(part, info, (kind, obj.requires_grad), _memory(obj))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Read a tensor, or some of its rows.

        Parameters
        ----------
        parts, info : mapping
        rows : slice, optional
            Along the first dimension; only what is needed for them is read.
        map_location : str or torch.device, optional
            Where the tensor is to be.

        Raises
        ------
        DecodeError
            The part is no tensor, or another one than `info` says.
        InvalidInputError
            An unknown option, or one that makes no sense here.
        """
        refuse_options(self, options, "rows", "map_location")
        if "data" not in parts:
            raise DecodeError("a tensor was stored without its data")
        rows = options.get("rows")
        content = self.read_leaf(
            parts["data"], info, map_location=options.get("map_location"), rows=rows
        )
        return self.view_leaf(content, info)

    def read_leaf(self, part: StoredPart, info: Mapping[str, Any], **options: Any) -> Any:
        """Read the values."""
        try:
            dtype, shape, order = info["dtype"], info["shape"], info.get("dimension_order")
            kind, text = _dtype(dtype), _array_text(dtype)
        except (KeyError, TypeError) as exc:
            raise DecodeError(f"a tensor was stored without its {exc}") from exc
        device = _device(options.get("map_location"))
        wanted = {} if options.get("rows") is None else {"rows": options["rows"]}
        facts = {"dtype": text, "shape": shape, "order": "C"}
        array = _ARRAYS.read({"data": part}, facts, **wanted)
        if text != np.dtype(array.dtype).str:  # pragma: no cover - read() compared them
            raise DecodeError(f"a tensor of {dtype} is stored as {array.dtype}")
        tensor = torch.from_numpy(array)
        tensor = tensor if tensor.dtype == kind else tensor.view(kind)
        if order is not None:
            tensor = _in_order(tensor, order)
        try:
            return tensor if device is None else tensor.to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as exc:
            raise InvalidInputError(
                f"no tensor can be loaded to map_location={str(device)!r} here: {exc}"
            ) from exc

    def view_leaf(self, content: Any, info: Mapping[str, Any]) -> Any:
        """Make a tensor or parameter over the values."""
        try:
            cls, requires_grad = _TYPES[info["type"]], info["requires_grad"]
            if cls is torch.nn.Parameter:
                return torch.nn.Parameter(content, requires_grad=requires_grad)
            return content.detach().requires_grad_(requires_grad)
        except (KeyError, TypeError, RuntimeError) as exc:
            raise DecodeError(f"a tensor was stored with a wrong description: {exc}") from exc


class TensorPart(PlannedPart):
    """The values of a tensor about to be written.

    Attributes
    ----------
    said : object
        What a digest is to tell besides dtype, shape and values.
    """

    handler = TorchHandler.name

    def __init__(self, tensor: Any, options: WriteOptions) -> None:
        self.said: Any = None
        self.size_hint = tensor.nbytes
        self._tensor = tensor.detach()
        self._options = options
        self._encoding: Encoding | None = None
        if _is_here(tensor):
            self._kept: ArrayPart | None = ArrayPart(_array(self._tensor), options)
        else:
            self._kept = None
            ArrayPart(np.empty((0,) * tensor.ndim, _array_text(_name(tensor.dtype))), options)

    def _array_part(self) -> ArrayPart:
        """The values on this side; those of another device are fetched, and not kept."""
        return self._kept or ArrayPart(_array(self._tensor), self._options)

    def digest(self, hasher: Hasher) -> None:
        """Feed dtype, shape and values in the order of the dimensions, wherever they are."""
        Canonical(hasher).add(("blobstore.torch", 1, _name(self._tensor.dtype), self.said))
        self._array_part().digest(hasher)

    def encoding(self) -> Encoding:
        """As for an array."""
        if self._encoding is None:
            self._encoding = self._array_part().encoding()
        return self._encoding

    def write(self, sink: Sink) -> None:
        """Write the values; no more than some chunks of them are held at a time."""
        self._array_part().write(sink)


def _is_here(tensor: Any) -> bool:
    """Whether its memory can be read without a copy."""
    return bool(tensor.device.type == "cpu")


def _check(tensor: Any) -> None:
    """Refuse what would not come back as it is."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        raise UnsupportedTypeError(f"a tensor of layout {tensor.layout} has no plain values")
    if tensor.is_quantized or not _name(tensor.dtype).startswith(_NUMBERS):
        raise UnsupportedTypeError(f"a tensor of {tensor.dtype} is no plain numbers")
    if tensor.device.type == "meta":
        raise UnsupportedTypeError("a tensor on the device 'meta' has no values")
    if any(name is not None for name in getattr(tensor, "names", ())):
        raise UnsupportedTypeError("the names of dimensions would be lost")
    if tensor.__dict__:
        raise UnsupportedTypeError(f"attributes would be lost: {sorted(tensor.__dict__)}")


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> Any:
    found = getattr(torch, name, None) if name.startswith(_NUMBERS) else None
    if not isinstance(found, torch.dtype):
        raise DecodeError(f"a tensor is stored with the dtype {name!r}, unknown here")
    return found


@functools.cache
def _array_text(name: str) -> str:
    """The dtype of the array that the values are stored as."""
    empty = torch.empty(0, dtype=_dtype(name))
    try:
        return str(empty.numpy().dtype.str)
    except TypeError:
        return str(np.dtype(f"u{empty.element_size()}").str)


def _array(tensor: Any) -> Any:
    """The values as an array over the same memory, if that is here."""
    values = tensor.resolve_conj().resolve_neg().cpu()
    text = _array_text(_name(tensor.dtype))
    try:
        return values.numpy()
    except TypeError:
        whole = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
        return values.view(whole[values.element_size()]).numpy().view(text)


def _dimension_order(tensor: Any) -> list[int] | None:
    """Dimensions from the outermost in memory to the innermost, if not as they are counted."""
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.ndim), key=lambda i: -tensor.stride(i))
    return order if tensor.permute(order).is_contiguous() else None


def _in_order(tensor: Any, order: Any) -> Any:
    if not isinstance(order, list) or sorted(order) != list(range(tensor.ndim)):
        raise DecodeError(f"a tensor was stored with the impossible order {order!r} of dimensions")
    arranged = torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype)
    arranged.copy_(tensor)
    return arranged


def _memory(tensor: Any) -> Hashable:
    """The same for tensors that are the same view of the same memory."""
    if not tensor.numel():
        return None
    placed = tensor.data_ptr(), str(tensor.device), tuple(tensor.shape), tensor.stride()
    return ("torch", _name(tensor.dtype), tensor.is_conj(), tensor.is_neg(), *placed)


def _device(location: Any) -> Any:
    if location is None:
        return None
    try:
        return torch.device(location)
    except (RuntimeError, TypeError) as exc:
        raise InvalidInputError(f"map_location={location!r} is no device: {exc}") from exc
