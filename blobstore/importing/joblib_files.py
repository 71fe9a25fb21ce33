"""Files that `joblib.dump` writes (0.10 and later), read without joblib.

Such a file is a pickle, compressed or not. Where an array would be, there is a pickled object
``joblib.numpy_pickle.NumpyArrayWrapper`` (subclass, shape, order, dtype, alignment), and behind the
opcode that sets its state stand the elements: a byte that says how many bytes of padding follow it,
these (neither, if there is no alignment), and the array's memory; for arrays of objects a pickle of
the array instead.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from blobstore.errors import DecodeError
from blobstore.handlers import unpickling
from blobstore.handlers.unpickling import Rule
from blobstore.importing.pickles import Pickles
from blobstore.importing.unpacking import unpacked
from blobstore.limits import check_allocation
from blobstore.streams import CHUNK
from blobstore.trust import Trust

_MODULES = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")
_OLD = ("joblib.numpy_pickle_compat", *_MODULES)


def load_file(path: Path, pickles: Pickles) -> Any:
    """Load one, as far as pickles are trusted.

    Raises
    ------
    UntrustedTypeError
        It names a type that is not trusted.
    DecodeError
        It is none, or an array in it is cut off.
    """
    pickles.check()
    with path.open("rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        file = unpacked(raw, size, pickles.max_decompressed)
        return _load(file, pickles.trust)


def _load(file: BinaryIO, trust: Trust) -> Any:
    if trust.everything:
        return _Trusting(file).load()
    return _Careful(file, trust).load()


class _Wrapper:
    """Stands for an array whose elements follow."""

    subclass: Any
    shape: tuple[int, ...]
    order: Any
    dtype: np.dtype[Any]
    padded: bool

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("it refers to an array before that was read, which joblib never does")

    def set_state(self, state: Any) -> None:
        """Take over what is known, checked."""
        if not isinstance(state, dict):
            raise DecodeError("it has an array that is none")
        dtype, shape, order = (state.get(name) for name in ("dtype", "shape", "order"))
        if (
            not isinstance(dtype, np.dtype)
            or not isinstance(shape, tuple)
            or any(type(length) is not int or length < 0 for length in shape)
            or order not in ("C", "F")
        ):
            raise DecodeError("it has an array that is none")
        self.subclass, self.shape, self.order, self.dtype = (
            state.get("subclass"),
            shape,
            order,
            dtype,
        )
        self.padded = state.get("numpy_array_alignment_bytes") is not None

    def read(self, file: BinaryIO, nested: Callable[[BinaryIO], Any]) -> Any:
        """Read the array from where the file is."""
        if self.dtype.hasobject:
            return nested(file)
        if self.padded:
            _exactly(file, _exactly(file, 1)[0])
        memory = _exactly(file, math.prod(self.shape) * self.dtype.itemsize)
        array: Any = np.ndarray(self.shape, self.dtype, memory, order=self.order)
        return array.view(np.matrix) if self.subclass is np.matrix and array.ndim == 2 else array


def _exactly(file: BinaryIO, size: int) -> bytearray:
    check_allocation(size, "an array")
    memory = bytearray()
    while len(memory) < size:  # grows with what there is, not with what is said
        piece = file.read(min(CHUNK, size - len(memory)))
        if not piece:
            raise DecodeError(f"{size - len(memory)} bytes of an array are missing")
        memory += piece
    return memory


def _is_wrapper(module: str, name: str) -> bool:
    if module in _OLD and name in ("NDArrayWrapper", "ZNDArrayWrapper"):
        raise DecodeError(
            "joblib before 0.10 wrote it, with its arrays in files beside it: load it with joblib and "
            "dump it anew"
        )
    return module in _MODULES and name == "NumpyArrayWrapper"


_Python: Any = pickle._Unpickler  # noqa: SLF001 - the C one cannot stop in the middle of a file


class _Trusting(_Python):  # type: ignore[misc]
    """Loads everything, for who said so."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Python.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name; the wrapper is our own."""
        return _Wrapper if _is_wrapper(module, name) else super().find_class(module, name)

    def load_build(self) -> None:
        """Set a state; a wrapper gives way to its array."""
        wrapper = self.stack[-2]
        if isinstance(wrapper, _Wrapper):
            wrapper.set_state(self.stack.pop())
            self.stack[-1] = wrapper.read(self._file, lambda file: _Trusting(file).load())
        else:
            super().load_build()


class _Careful(unpickling.CarefulUnpickler):
    """Loads plain data, arrays, harmless types, and what is trusted."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(
        unpickling.CarefulUnpickler.dispatch
    )

    def __init__(self, file: BinaryIO, trust: Trust) -> None:
        super().__init__(file, trust, None, None)
        self._file = file
        rule = Rule(_Wrapper, new=_Wrapper, build=_Wrapper.set_state, once=True)
        self._rules[id(_Wrapper)] = rule

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name; the wrapper is our own."""
        return _Wrapper if _is_wrapper(module, name) else super().find_class(module, name)

    def load_build(self) -> None:
        """Set a state; a wrapper gives way to its array."""
        super().load_build()
        wrapper = self.stack[-1]
        if isinstance(wrapper, _Wrapper):
            self.stack[-1] = wrapper.read(
                self._file, lambda file: _Careful(file, self._trust).load()
            )


for _class in (_Trusting, _Careful):
    _class.dispatch[pickle.BUILD[0]] = _class.load_build
