"""xarray: a `Dataset` or `DataArray`, each large array a part, the rest JSON.

Names, dimensions, coordinates, attributes and encodings come back as they were, and the values bit for
bit. Arrays that are not in memory yet are loaded, if xarray itself reads them from a file; Dask's are
left to other handlers, as are indexes that are more than the values of a coordinate (MultiIndex).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core import indexing
from xarray.core.indexes import PandasIndex

from blobstore.errors import DecodeError, UnsupportedTypeError
from blobstore.handlers.options import refuse_options
from blobstore.handlers.tree import Tree, read_tree
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions

_INDEXES = (pd.Index, pd.RangeIndex, pd.DatetimeIndex, pd.TimedeltaIndex)
_TYPES = {"dataset": "dataset", "array": "array"}
_SHOWN = 100


class XarrayHandler(Handler):
    """`xarray.Dataset` and `xarray.DataArray` over NumPy arrays.

    Examples
    --------
    >>> field = xr.DataArray(np.zeros((2, 3)), dims=("y", "x"), coords={"x": [10, 20, 30]})
    >>> plan = XarrayHandler().plan(field, WriteOptions())
    >>> plan.info["sizes"], plan.info["coords"]
    ({'y': 2, 'x': 3}, ['x'])
    """

    name: ClassVar[str] = "xarray"
    type_names: ClassVar[tuple[str, ...]] = (
        "xarray.core.dataset.Dataset",
        "xarray.core.dataarray.DataArray",
    )

    def can_handle(self, obj: Any) -> bool:
        """Whether it is a dataset or array, and of no subclass; `plan` looks closer."""
        return type(obj) in (xr.Dataset, xr.DataArray)

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Take it apart.

        Raises
        ------
        UnsupportedTypeError
            It has arrays of other libraries, indexes of other kinds, or attributes that have no
            exact form as JSON.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is neither a Dataset nor a DataArray")
        _check_indexes(obj)
        kind = "dataset" if isinstance(obj, xr.Dataset) else "array"
        tree = Tree({"kind": kind, **_content(obj)}, options)
        if tree.names_classes:
            raise UnsupportedTypeError("an attribute is of a class that would have to be imported")
        info: dict[str, Any] = {
            "sizes": {str(name): int(size) for name, size in obj.sizes.items()},
            "coords": [str(name) for name in obj.coords][:_SHOWN],
        }
        if isinstance(obj, xr.Dataset):
            info["variables"] = [str(name) for name in obj.data_vars][:_SHOWN]
        else:
            info["dtype"] = str(obj.dtype)
        return Plan(_TYPES[kind], info, (tree.part(self.name, executable=False), *tree.parts))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Put it together.

        Raises
        ------
        DecodeError
            The parts are not what this handler writes.
        """
        refuse_options(self, options)
        found = read_tree(parts)
        try:
            return _dataset(found) if found["kind"] == "dataset" else _array(found)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise DecodeError(f"what is stored is nothing of xarray: {exc}") from exc


def _check_indexes(obj: Any) -> None:
    """Refuse indexes that are not what xarray makes of a coordinate by itself."""
    dimensions = {name for name in obj.coords if obj.coords[name].dims == (name,)}
    if set(obj.xindexes) != dimensions:
        raise UnsupportedTypeError("a coordinate without index, or an index of other coordinates")
    for name, index in obj.xindexes.items():
        if type(index) is not PandasIndex or type(index.index) not in _INDEXES:
            raise UnsupportedTypeError(f"the index of {name!r} is a {type(index).__name__}")
        if getattr(index.index, "tz", None) is not None:
            raise UnsupportedTypeError(f"the index of {name!r} has a time zone")


def _content(obj: Any) -> dict[str, Any]:
    coords = [[name, _variable(obj.coords[name].variable)] for name in obj.coords]
    if isinstance(obj, xr.DataArray):
        return {"name": obj.name, "variable": _variable(obj.variable), "coords": coords}
    variables = [[name, _variable(obj.data_vars[name].variable)] for name in obj.data_vars]
    return {
        "variables": variables,
        "coords": coords,
        "attrs": dict(obj.attrs),
        "encoding": dict(obj.encoding),
    }


def _variable(variable: Any) -> dict[str, Any]:
    return {
        "dims": list(variable.dims),
        "values": _values(variable),
        "attrs": dict(variable.attrs),
        "encoding": dict(variable.encoding),
        "freq": _freq(variable),
    }


def _values(variable: Any) -> Any:
    data = variable._data  # noqa: SLF001 - asking for `data` would load what Dask has
    if not isinstance(data, np.ndarray | indexing.ExplicitlyIndexed):
        raise UnsupportedTypeError(f"an array of type {type(data).__name__} is left as it is")
    values = np.asarray(variable.values)
    if values.dtype != variable.dtype:
        raise UnsupportedTypeError(f"{variable.dtype} is no type of NumPy's")
    if values.dtype != object:
        return values
    return {"shape": list(values.shape), "objects": values.ravel().tolist()}


def _freq(variable: Any) -> str | None:
    if not isinstance(variable, xr.IndexVariable):
        return None
    freq = getattr(variable.to_index(), "freq", None)
    if freq is None:
        return None
    made = pd.DatetimeIndex([], freq=freq.freqstr) if not _of_durations(variable) else None
    if made is not None and made.freq != freq:
        raise UnsupportedTypeError(f"the frequency {freq!r} has no exact name")
    return str(freq.freqstr)


def _of_durations(variable: Any) -> bool:
    return bool(variable.dtype.kind == "m")


def _made(facts: Any) -> Any:
    values, dims = facts["values"], tuple(facts["dims"])
    if isinstance(values, dict):
        flat = np.empty(len(values["objects"]), object)
        flat[:] = values["objects"]
        values = flat.reshape(values["shape"])
    if facts["freq"] is not None:
        kind = pd.TimedeltaIndex if values.dtype.kind == "m" else pd.DatetimeIndex
        values = kind(values, freq=facts["freq"])
    return xr.Variable(dims, values, facts["attrs"], facts["encoding"])


def _dataset(found: Any) -> Any:
    made = xr.Dataset(
        {name: _made(facts) for name, facts in found["variables"]},
        {name: _made(facts) for name, facts in found["coords"]},
        found["attrs"],
    )
    made.encoding = found["encoding"]
    return made


def _array(found: Any) -> Any:
    coords = {name: _made(facts) for name, facts in found["coords"]}
    made = xr.DataArray(_made(found["variable"]), coords, name=found["name"])
    made.encoding = found["variable"]["encoding"]
    return made
