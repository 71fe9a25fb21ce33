"""The files of cacheness: which form one has, and how it is read.

- ``.b2nd`` is not the format of that name, but a container: the length of a text (4 bytes, little
  endian) and the shape as that text, the same for the dtype, then the elements as a Blosc chunk.
- ``.npz``, ``.parquet`` and ``.bin`` are what they are called.
- ``.pkl`` is a pickle; behind ``.pkl.lz4``, ``.pkl.zstd`` ... is one in a run of Blosc chunks.
"""

from __future__ import annotations

import ast
import functools
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from blobstore.ast_race import parsing_again
from blobstore.errors import DecodeError, IntegrityError
from blobstore.importing.cacheness_index import IndexEntry
from blobstore.importing.folder import local_file
from blobstore.importing.pickles import Pickles
from blobstore.importing.unpacking import blosc_chunks
from blobstore.limits import allowed_growth, bomb, check_allocation
from blobstore.streams import hash_file

_MAX_DESCRIPTION = 1 << 16
_SINGLE = "data"
"""The name under which an array that is alone stands in its ``.npz``."""


def read_value(entry: IndexEntry, file: Path | None, pickles: Pickles) -> Any:
    """Read what an entry stands for.

    Raises
    ------
    IntegrityError
        The bytes are not those that were written.
    UntrustedTypeError, DecodeError
        They may not, or cannot, be loaded here.
    """
    if entry.text("encryption_algorithm"):
        raise DecodeError("it is encrypted: open it with cacheness and its key, and store it anew")
    name = file.name if file is not None else entry.text("inline_ext")
    kind = _kind(name, entry.text("storage_format"))
    expected = entry.text("file_hash")
    if kind == "bytes" and file is not None:
        _check(expected, file)
        return local_file(file)
    data = file.read_bytes() if file is not None else entry.inline or b""
    _check(expected, data)
    if kind == "bytes":
        return data
    if kind == "array":
        return read_array(data, pickles.max_decompressed)
    if kind == "arrays":
        return _read_npz(data, entry.user, pickles)
    if kind == "table":
        return _read_table(data, entry, allowed_growth(len(data), pickles.max_decompressed))
    if kind == "chunks":
        data = blosc_chunks(data, pickles.max_decompressed)
    return pickles.load(data)


def _kind(name: str, storage_format: str) -> str:
    """What is in a file, by its name and what the index says."""
    lowered = name.lower()
    for ending, kind in (
        (".b2nd", "array"),
        (".npz", "arrays"),
        (".parquet", "table"),
        (".bin", "bytes"),
    ):
        if lowered.endswith(ending):
            return kind
    if lowered.endswith(".pkl"):
        return "pickle"
    if ".pkl." in lowered:
        # Without a codec, and below a size, cacheness wrote plain pickles under either name.
        return "pickle" if storage_format in ("pickle", "dill") else "chunks"
    raise DecodeError(
        f"{name!r} is of a kind that is not supported ({storage_format or 'unknown'})"
    )


def _check(expected: str, content: bytes | Path) -> None:
    """Compare with the hash in the index, if there is one: XXH3 of 64 bits, in hex."""
    if len(expected) != 16:
        return
    hasher = xxhash.xxh3_64()
    if isinstance(content, Path):
        hash_file(content, hasher)
    else:
        hasher.update(content)
    if hasher.hexdigest() != expected.lower():
        raise IntegrityError("its bytes are not those that were written: the hash differs")


def read_array(data: bytes, max_decompressed: int) -> np.ndarray[Any, Any]:
    """Read the container that cacheness names ``.b2nd``.

    Raises
    ------
    DecodeError
        It is none, or is cut off.
    """
    shape_text, start = _description(data, 0)
    dtype_text, start = _description(data, start)
    try:
        shape = parsing_again(lambda: ast.literal_eval(shape_text))
        plain = dtype_text[:1] not in ("[", "{", "(")
        dtype = np.dtype(
            dtype_text if plain else parsing_again(lambda: ast.literal_eval(dtype_text))
        )
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as exc:
        raise DecodeError(f"it is no array of cacheness: {exc}") from exc
    if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise DecodeError(f"it is no array of cacheness: its shape is {shape_text!r}")
    if dtype.hasobject:
        raise DecodeError("it is an array of objects, of which cacheness wrote only the addresses")
    content = blosc_chunks(data[start:], max_decompressed)
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise DecodeError(f"{len(content)} bytes are no array of shape {shape} and dtype {dtype}")
    return np.ndarray(shape, dtype, bytearray(content))


def _description(data: bytes, start: int) -> tuple[str, int]:
    size = int.from_bytes(data[start : start + 4], "little")
    end = start + 4 + size
    if size > _MAX_DESCRIPTION or end > len(data):
        raise DecodeError("it is no array of cacheness, or cut off")
    try:
        return data[start + 4 : end].decode("utf-8"), end
    except UnicodeDecodeError as exc:
        raise DecodeError("it is no array of cacheness: its shape or dtype is no text") from exc


def _read_npz(data: bytes, user: Mapping[str, Any], pickles: Pickles) -> Any:
    """One array, or a dictionary of them; with Python objects only if all pickles are trusted."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        grown = sum(member.file_size for member in archive.infolist())
    limit = allowed_growth(len(data), pickles.max_decompressed)
    if grown > limit:
        raise bomb("the file", limit)
    check_allocation(grown, "the file")
    with np.load(io.BytesIO(data), allow_pickle=pickles.trust.everything) as arrays:
        found = {name: parsing_again(functools.partial(arrays.get, name)) for name in arrays.files}
    alone = list(found) == [_SINGLE] and not isinstance(user.get("arrays"), dict)
    return found[_SINGLE] if alone else found


def _read_table(data: bytes, entry: IndexEntry, limit: int) -> Any:
    """A frame or series of pandas or polars."""
    from blobstore.handlers.parquet_growth import check_file

    file = io.BytesIO(data)
    check_file(file, limit)
    of_polars = entry.data_type.startswith("polars") or entry.user.get("backend") == "polars"
    is_series = entry.data_type.endswith("series") or entry.user.get("is_series") is True
    named = "series_name" in entry.user
    if of_polars:
        import polars as pl

        frame = pl.read_parquet(file)
        if not is_series:
            return frame
        series = frame.to_series(0)
        return series.alias(entry.user["series_name"] or "") if named else series
    import pandas as pd

    table = pd.read_parquet(file)
    if not is_series:
        return table
    column = table.iloc[:, 0]
    return column.rename(entry.user["series_name"]) if named else column
