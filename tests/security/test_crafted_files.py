"""Files of other formats that ask for more than they hold."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest

from blobstore import AutoStore
from blobstore.errors import DecodeError, UntrustedTypeError

MIB = 1 << 20
LIMIT = "max_decompressed_bytes"


def read(folder, name, content, limit=MIB, **options):
    (folder / name).write_bytes(content)
    with AutoStore(folder, max_decompressed_bytes=limit, **options) as store:
        return store[name.partition(".")[0]]


def sparse_file(layout):
    """A quarter of a million entries, in a few thousand bytes."""
    file, side = io.BytesIO(), np.arange(500, dtype="i2")
    np.savez_compressed(
        file,
        row=np.repeat(side, len(side)),
        col=np.tile(side, len(side)),
        data=np.ones(len(side) ** 2),
        format=b"coo",
        shape=(len(side), len(side)),
        _is_array=True,
        blobstore_format=np.array(layout.encode()),
    )
    return file.getvalue()


@pytest.mark.parametrize("layout", ["dok", "lil"])
def test_sparse_layouts_of_python_objects(tmp_path, layout):
    pytest.importorskip("scipy")
    content = sparse_file(layout)
    assert len(content) < 20_000
    with pytest.raises(DecodeError, match=LIMIT):
        read(tmp_path, "m.sparse.npz", content, 10 * MIB)
    assert read(tmp_path, "m.sparse.npz", content, 100 * MIB).nnz == 250_000


def test_a_sparse_file_of_a_strange_layout(tmp_path):
    pytest.importorskip("scipy")
    file = io.BytesIO()
    np.savez(file, format=np.array(7))
    with pytest.raises(DecodeError, match="m"):
        read(tmp_path, "m.sparse.npz", file.getvalue())


def test_a_picture_of_wide_pixels(tmp_path):
    image = pytest.importorskip("PIL.Image").new("F", (1500, 1500))
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_adobe_deflate")
    assert len(file.getvalue()) * 256 < 5 * MIB
    with pytest.raises(DecodeError, match=LIMIT):
        read(tmp_path, "i.tiff", file.getvalue(), 5 * MIB)  # 2.2 million pixels
    assert read(tmp_path, "i.tiff", file.getvalue(), 10 * MIB).size == (1500, 1500)


def torch_file(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return file.getvalue()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("module", [b"__builtin__", b"builtins"])
def test_a_file_of_torch_that_asks_for_a_bytearray(tmp_path, old, module):
    pytest.importorskip("torch")
    room = b"\x80\x02c" + module + b"\nbytearray\n\x8a\x04" + (1 << 28).to_bytes(4, "little")
    room += b"\x85R."
    head = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {})]
    content = b"".join([*head, room, pickle.dumps([], 2)]) if old else torch_file(room)
    with pytest.raises(UntrustedTypeError, match="more than tensors"):
        read(tmp_path, "m.pt", content)


def test_a_bytearray_of_torch_that_the_reader_signed(tmp_path):
    torch = pytest.importorskip("torch")
    value = {"tensor": torch.zeros(2), "bytes": bytearray(b"abc")}
    with (
        AutoStore(tmp_path, pickle="deny") as store,
        pytest.raises(UntrustedTypeError, match="more than tensors"),
    ):
        store["m.pt"] = value
    with AutoStore(tmp_path, signing_keys=[bytes(32)]) as store:
        store["m.pt"] = value
        assert store["m.pt"]["bytes"] == b"abc"
    with (
        AutoStore(tmp_path, signing_keys=[b"x" * 32]) as store,
        pytest.raises(UntrustedTypeError, match="more than tensors"),
    ):
        store["m.pt"]


def test_numbers_of_very_many_digits(tmp_path):
    pytest.importorskip("yaml")
    with pytest.raises(DecodeError, match="digits"):
        read(tmp_path, "n.yaml", b"a: " + b"1:" * 5000 + b"1\n")
    assert read(tmp_path, "n.yaml", b"a: 1:30\nb: 0x10\nc: [1, -2]\n") == {
        "a": 90,
        "b": 16,
        "c": [1, -2],
    }
