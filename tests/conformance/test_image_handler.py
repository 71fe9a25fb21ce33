"""The handler of Pillow's images passes the suite."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobstore import BlobStore
from blobstore.errors import DecodeError
from blobstore.protocols import StoredPart, WriteOptions
from blobstore.streams import BytesSource
from blobstore.testing.handler import HandlerSuite, digests, read, write
from blobstore.trust import Trust

Image = pytest.importorskip("PIL.Image")

from blobstore.handlers.image import ImageHandler  # noqa: E402

MODES = [
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "F", "I;16", "I;16B",
]  # fmt: skip


def picture(mode="RGB", size=(61, 43), seed=3):
    blank = Image.new(mode, size)
    noise = np.random.default_rng(seed).integers(0, 256, len(blank.tobytes()), dtype="u1")
    made = Image.frombytes(mode, size, noise.tobytes())
    if mode in ("P", "PA"):
        made.putpalette(noise[:96].tobytes())
    return made


def opened(format, mode="RGB", **options):
    file = io.BytesIO()
    picture(mode).save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


class TestImageHandler(HandlerSuite):
    def make_handler(self):
        return ImageHandler()

    def objects(self):
        noted = picture()
        noted.info = {"dpi": (72, 72.5), "icc_profile": b"\0\1", "comment": "süß"}
        return {
            **{mode: picture(mode) for mode in MODES},
            "info": noted,
            "nothing": Image.new("RGB", (0, 5)),
            "png": opened("PNG", dpi=(100, 100)),
            "jpeg": opened("JPEG", quality=50),
            "gif": opened("GIF", mode="P"),
            "smooth": Image.linear_gradient("L").resize((400, 300)),
        }

    def equal(self, one, other):
        if one.mode in ("P", "PA") and one.getpalette("RGBA") != other.getpalette("RGBA"):
            return False
        return type(one) is type(other) and one == other and one.format == other.format

    def spoil(self, obj):
        obj.info["spoilt"] = 1

    def same(self):
        return {"copies": (picture(), picture().crop((0, 0, 61, 43)))}

    def different(self):
        noted = picture()
        noted.info = {"a": 1}
        return {
            "pixels": (picture(), picture(seed=4)),
            "mode": (picture("CMYK"), picture("RGBA")),
            "size": (Image.new("L", (4, 6)), Image.new("L", (6, 4))),
            "info": (picture(), noted),
            "class": (opened("PNG"), opened("PNG").copy()),
        }

    def refused(self):
        strange = picture()
        strange.info = {"x": object()}
        large = picture()
        large.info = {"icc_profile": bytes(100_000)}
        mine = type("Mine", (Image.Image,), {})()
        return {"info": strange, "much info": large, "subclass": mine, "array": np.zeros((2, 2))}


@settings(max_examples=100)
@given(
    st.sampled_from(MODES),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from(["lz4", "none"]),
    st.dictionaries(st.text(max_size=3), st.integers() | st.binary(max_size=3), max_size=2),
)
def test_any_image_comes_back(mode, size, codec, info):
    image = picture(mode, size)
    image.info = info
    plan = ImageHandler().plan(image, WriteOptions(codec))
    found = read(ImageHandler(), plan, write(plan))
    assert found == image
    assert digests(ImageHandler().plan(found, WriteOptions())) == digests(plan)


def test_the_alpha_of_a_palette_is_kept():
    """Pillow's own copies and pickles lose it."""
    image = picture("P")
    image.putpalette(bytes(range(128)), "RGBA")
    plan = ImageHandler().plan(image, WriteOptions())
    found = read(ImageHandler(), plan, write(plan))
    assert found.getpalette("RGBA") == image.getpalette("RGBA") == [*range(128)]
    assert found.convert("RGBA") == image.convert("RGBA")


def test_the_file_is_a_png_that_any_tool_opens(tmp_path):
    with BlobStore(tmp_path, pickle="deny") as store:
        store.put(picture("RGBA"), key="p", metadata={"of": "noise"})
        with store.open("p") as file:
            assert Image.open(file).tobytes() == picture("RGBA").tobytes()
        assert store["p"] == picture("RGBA")
        assert store.get_metadata("p")["data_type"] == "image"


def test_a_bomb_is_not_unpacked():
    """A black image is some kilobytes, whatever its size is."""
    plan = ImageHandler().plan(Image.new("L", (20_000, 2_000)), WriteOptions("gzip", 9))
    (content,) = write(plan).values()
    assert len(content) < 100_000
    trust = Trust(max_decompressed=1 << 20)
    part = StoredPart("data", BytesSource(content), "gzip", "image", 1, trust)
    with pytest.raises(DecodeError, match="grows to more than"):
        ImageHandler().read({"data": part}, plan.info)


@pytest.mark.parametrize("name", ["os.system", "PIL.ImageFile.ImageFile", "PIL.XImagePlugin.X"])
def test_only_classes_of_pillow_are_made(name):
    plan = ImageHandler().plan(picture(), WriteOptions())
    part = StoredPart("data", BytesSource(*write(plan).values()), "gzip", "image", 1)
    with pytest.raises(DecodeError, match="is stored as"):
        ImageHandler().read({"data": part}, {**plan.info, "class": name})
