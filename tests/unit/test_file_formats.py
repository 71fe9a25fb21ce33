"""What the formats of open files take comes back as it was, whatever it is."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from blobstore.autostore.formats import built_in
from blobstore.files.json import JsonFormat, JsonLinesFormat, YamlFormat, is_exact
from blobstore.files.numpy import NpyFormat, NpzFormat
from blobstore.files.text import BytesFormat, TextFormat
from blobstore.protocols.file_format import FileContext
from blobstore.registry import load
from blobstore.streams import BytesSource, MemorySink

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
ANYTHING = st.recursive(
    SCALARS | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | TEXT, inner, max_size=3)
    ),
)


def through(each, value, extension=None, **options):
    context = FileContext("k", extension or each.extensions[0])
    with MemorySink() as sink:
        each.write(value, sink, context)
    return each.read(BytesSource(sink.content), context, **options)


def same(left, right):
    return type(left) is type(right) and (
        [*map(type, flat(left))] == [*map(type, flat(right))] and left == right
    )


def flat(value):
    if isinstance(value, dict):
        return [*value, *(one for item in value.values() for one in flat(item))]
    if isinstance(value, list):
        return [one for item in value for one in flat(item)]
    return [value]


@given(VALUES)
def test_json(value):
    assert is_exact(value)
    loaded = through(JsonFormat(), value)
    assert same(loaded, value)
    assert repr(loaded) == repr(value)  # the order of names, too; -0.0 and 0.0


@given(ANYTHING)
def test_what_is_taken_for_exact_is(value):
    if is_exact(value):
        assert repr(json.loads(json.dumps(value))) == repr(value)
    else:
        again = None
        try:
            again = json.loads(json.dumps(value, allow_nan=False).encode("utf-8"))
        except (TypeError, ValueError):
            return
        assert repr(again) != repr(value) or "\\ud" in repr(value)


@given(st.lists(st.dictionaries(TEXT, VALUES, max_size=3), min_size=1, max_size=5))
def test_json_lines(rows):
    assert JsonLinesFormat().can_handle(rows)
    assert repr(through(JsonLinesFormat(), rows)) == repr(rows)


@given(VALUES)
def test_yaml_gives_it_back_or_refuses(value):
    yaml = pytest.importorskip("yaml")
    from blobstore.errors import UnsupportedTypeError

    try:
        loaded = through(YamlFormat(), value)
    except (UnsupportedTypeError, yaml.YAMLError):
        return
    assert loaded == value


@given(TEXT)
def test_text(value):
    assert through(TextFormat(), value) == value


@given(st.binary())
def test_bytes(value):
    assert through(BytesFormat(), value) == value


ARRAYS = npst.arrays(
    npst.scalar_dtypes() | npst.array_dtypes() | npst.unicode_string_dtypes(),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


def check_array(loaded, array):
    assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
    assert loaded.tobytes() == array.tobytes()  # NaN and NaT equal nothing


@given(ARRAYS)
def test_arrays(array):
    if NpyFormat().can_handle(array):
        check_array(through(NpyFormat(), array), array)


@given(npst.arrays("i4", st.tuples(st.integers(0, 9), st.integers(0, 3))), st.slices(9))
def test_rows(array, rows):
    check_array(through(NpyFormat(), array, rows=rows), array[rows])


@given(st.dictionaries(st.text(min_size=1), npst.arrays("f4", 3), min_size=1, max_size=3))
def test_arrays_by_name(arrays):
    if NpzFormat().can_handle(arrays):
        loaded = through(NpzFormat(), arrays)
        assert list(loaded) == list(arrays)
        for name, array in arrays.items():
            check_array(loaded[name], array)


@pytest.mark.parametrize(("target", "extensions"), built_in())
def test_the_table_of_formats_is_true(target, extensions):
    """What it says of a format before it is imported is what that says."""
    pytest.importorskip(
        {
            "torch": "torch",
            "safetensors": "safetensors.torch",
            "images": "PIL",
            "sparse": "scipy",
            "netcdf": "xarray",
        }.get(target.partition(":")[0], "json")
    )
    from blobstore.autostore import formats

    each = load(f"blobstore.files.{target}")()
    (lazy,) = [lazy for lazy in formats._BUILTIN if lazy.target == target]
    assert (each.extensions, each.priority) == (extensions, lazy.priority)


def test_a_picture_that_grows_is_refused(monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    from blobstore.errors import DecodeError
    from blobstore.files import images

    monkeypatch.setattr("blobstore.limits.MAX_IMAGE_PIXELS", 100)
    content = io.BytesIO()
    Image.new("1", (20, 20)).save(content, "PNG")
    with pytest.raises(DecodeError, match="20 x 20"):
        images.ImageFormat().read(BytesSource(content.getvalue()), FileContext("k", ".png"))
