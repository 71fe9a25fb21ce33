"""xarray's datasets and arrays as NetCDF, by SciPy."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from blobstore.errors import UnsupportedTypeError
from blobstore.files.options import reading, refuse_options
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Sink, Source

_MARK = "blobstore_array"
_REFUSALS = (TypeError, ValueError, NotImplementedError, OSError, ImportError)


class NetcdfFormat(FileFormat):
    """A `Dataset` or `DataArray` that NetCDF 3 holds exactly; others are left to pickle."""

    name = "netcdf"
    extensions = (".nc",)
    priority = 58
    type_names: ClassVar[tuple[str, ...]] = (
        "xarray.core.dataset.Dataset",
        "xarray.core.dataarray.DataArray",
    )

    def can_handle(self, obj: Any) -> bool:
        """Datasets and arrays; writing finds out."""
        return type(obj) in (xr.Dataset, xr.DataArray)

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the file, once it came back as it was.

        Raises
        ------
        UnsupportedTypeError
            NetCDF would change it: 64-bit integers, for instance.
        """
        try:
            content = bytes(_marked(obj).to_netcdf(engine="scipy"))
            back = _read(io.BytesIO(content))
        except (*_REFUSALS, KeyError) as exc:
            raise UnsupportedTypeError(
                f"{context.key!r}: NetCDF does not take this: {exc}"
            ) from exc
        if not _is_same(obj, back):
            raise UnsupportedTypeError(f"{context.key!r}: NetCDF does not hold this exactly")
        sink.write(content)

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Read the dataset, or the array that it was."""
        refuse_options(context, options)
        with (
            reading(context, *_REFUSALS, KeyError, IndexError, AttributeError),
            source.open() as file,
        ):
            return _read(io.BytesIO(file.read()))


def _marked(obj: Any) -> xr.Dataset:
    """A dataset of its own, that notes whether it was an array and of what name."""
    if isinstance(obj, xr.Dataset):
        return obj
    name = "" if obj.name is None else obj.name
    if not isinstance(name, str):
        raise TypeError(f"the name of an array is text here, not {name!r}")
    marked: xr.Dataset = obj.rename("array").to_dataset().assign_attrs({_MARK: "1" + name})
    return marked


def _read(file: io.BytesIO) -> Any:
    dataset = xr.load_dataset(file, engine="scipy")
    for notes in (dataset.attrs, *(each.attrs for each in dataset.variables.values())):
        for name, value in notes.items():
            if isinstance(value, np.generic):  # a number of Python, before
                notes[name] = value.item()
    mark = dataset.attrs.pop(_MARK, None)
    if mark is None:
        return dataset
    return dataset["array"].rename(mark[1:] or None)


def _types_of_notes(obj: Any) -> dict[Any, Any]:
    """Of what types the attributes are: to NetCDF a list is an array, and True is 1."""
    parts = {
        name: obj[name].attrs
        for name in (obj.variables if isinstance(obj, xr.Dataset) else obj.coords)
    }
    return {
        name: {note: type(value) for note, value in notes.items()}
        for name, notes in {**parts, None: obj.attrs}.items()
    }


def _is_same(obj: Any, back: Any) -> bool:
    def kinds(one: Any) -> dict[Any, Any]:
        found = {name: (one.coords[name].dtype, one.coords[name].dims) for name in one.coords}
        inside = (
            {name: one[name].dtype for name in one.data_vars} if isinstance(one, xr.Dataset) else {}
        )
        notes = _types_of_notes(one)
        return {"coords": found, "vars": inside, "dtype": getattr(one, "dtype", None), "of": notes}

    return type(obj) is type(back) and obj.identical(back) and kinds(obj) == kinds(back)
