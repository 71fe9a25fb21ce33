"""Wrappers that change bytes pass the suite, over memory and over files, and stacked."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import sys

import blake3
import lz4.frame
import pytest
import xxhash
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from blobstore.backends.blob.filesystem import FilesystemBlobBackend, FilesystemStore
from blobstore.backends.blob.memory import DictStore
from blobstore.errors import ClosedError, InvalidInputError
from blobstore.protocols import Capabilities
from blobstore.testing.object_store import ObjectStoreSuite
from blobstore.wrappers.base64 import Base64Store
from blobstore.wrappers.checksum import ChecksumStore
from blobstore.wrappers.compress import GzipStore, Lz4Store, ZstdStore
from blobstore.wrappers.encrypt import EncryptingStore
from blobstore.wrappers.prefix import PrefixStore
from blobstore.wrappers.transform import DataTransformer, TransformingStore

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    """These stores let go of the interpreter a few times a call, and would wait long to go on."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 20)
    yield
    sys.setswitchinterval(before)


class WrapperSuite(ObjectStoreSuite):
    """Over memory. What is stored is made and read by other means than those of the wrapper."""

    machine_examples = 5
    ranges = True
    encrypted = False

    def wrap(self, store):
        raise NotImplementedError

    def stored(self, data, key):
        raise NotImplementedError

    def plain(self, stored, key):
        raise NotImplementedError

    def make_store(self, tmp_path):
        return self.wrap(DictStore())

    def peek(self, store, key):
        return self.plain(store.store.get(key), key) if store.store.exists(key) else None

    def poke(self, store, key, data):
        store.store.put(key, self.stored(data, key))

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=self.ranges,
            conditional_writes=True,
            etags=True,
            persistent=False,
            encrypted=self.encrypted,
        )

    @pytest.mark.parametrize("wrong", ["text", 5, None], ids=repr)
    def test_wrong_types_are_invalid_input(self, store, wrong):
        with pytest.raises(InvalidInputError):
            store.put("key", wrong)
        with pytest.raises(InvalidInputError):
            store.put_if_absent("key", wrong)
        with pytest.raises(InvalidInputError), store.writer("key") as sink:
            sink.write(wrong)
        assert not store.exists("key")

    def test_closing_closes_the_store_beneath(self, store):
        store.close()
        for call in (store.leftovers, lambda: store.sync([]), lambda: store.store.get("key")):
            with pytest.raises(ClosedError):
                call()

    def test_its_repr_shows_the_store_beneath(self, store):
        assert repr(store).startswith(f"{type(store).__name__}({store.store!r}")


class OverFiles:
    key_style = "paths"

    def make_store(self, tmp_path):
        return self.wrap(FilesystemStore(tmp_path / "root"))

    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(
            ranges=self.ranges,
            streams=True,
            conditional_writes=True,
            etags=True,
            encrypted=self.encrypted,
        )


class TestGzipStore(WrapperSuite):
    ranges = False

    def wrap(self, store):
        return GzipStore(store)

    def stored(self, data, key):
        return gzip.compress(data)

    def plain(self, stored, key):
        return gzip.decompress(stored)


class TestGzipStoreOverFiles(OverFiles, TestGzipStore):
    pass


class TestZstdStore(WrapperSuite):
    ranges = False

    def wrap(self, store):
        return ZstdStore(store)

    def stored(self, data, key):
        return zstandard.compress(data)

    def plain(self, stored, key):
        with zstandard.ZstdDecompressor().stream_reader(stored) as reader:
            return reader.read()


class TestZstdStoreOverFiles(OverFiles, TestZstdStore):
    pass


class TestLz4Store(WrapperSuite):
    ranges = False

    def wrap(self, store):
        return Lz4Store(store, level=4)

    def stored(self, data, key):
        return lz4.frame.compress(data)

    def plain(self, stored, key):
        return lz4.frame.decompress(stored)


class TestLz4StoreOverFiles(OverFiles, TestLz4Store):
    pass


class TestBase64Store(WrapperSuite):
    def wrap(self, store):
        return Base64Store(store)

    def stored(self, data, key):
        return base64.b64encode(data)

    def plain(self, stored, key):
        return base64.b64decode(stored, validate=True)


class TestBase64StoreOverFiles(OverFiles, TestBase64Store):
    pass


class BlockSuite(WrapperSuite):
    """Knows the format from its description: a header, and blocks that are 16 bytes longer."""

    header = 0

    def blocks(self, stored):
        body = stored[self.header :]
        size = (1 << 16) + 16
        return [body[at : at + size] for at in range(0, len(body), size)]

    def plain(self, stored, key):
        seal = self.opener(stored[: self.header], key)
        blocks = self.blocks(stored)
        numbers = range(1, len(blocks) + 1)
        return b"".join(
            seal(n - 1, n == len(blocks), b) for n, b in zip(numbers, blocks, strict=True)
        )

    def stored(self, data, key):
        header = self.new_header()
        seal = self.sealer(header, key)
        parts = [data[at : at + (1 << 16)] for at in range(0, len(data), 1 << 16)] or [b""]
        sealed = (seal(n, n == len(parts) - 1, part) for n, part in enumerate(parts))
        return header + b"".join(sealed)


class TestChecksumStore(BlockSuite):
    header = 24
    number = 1

    def wrap(self, store):
        return ChecksumStore(store)

    def new_header(self):
        return b"BSsum" + bytes([1, self.number, 0]) + bytes(range(16))

    def checksum(self, data):
        return xxhash.xxh3_128_digest(data)

    def sealer(self, header, key):
        def seal(index, last, data):
            return data + self.checksum(header + index.to_bytes(8, "big") + bytes([last]) + data)

        return seal

    def opener(self, header, key):
        assert header[:8] == self.new_header()[:8]
        seal = self.sealer(header, key)

        def unseal(index, last, block):
            assert seal(index, last, block[:-16]) == block
            return block[:-16]

        return unseal


class TestChecksumStoreOverFiles(OverFiles, TestChecksumStore):
    pass


class TestChecksumStoreWithBlake3(TestChecksumStore):
    machine_examples = 2
    number = 2

    def wrap(self, store):
        return ChecksumStore(store, "blake3")

    def checksum(self, data):
        return blake3.blake3(data).digest()[:16]


class TestEncryptingStore(BlockSuite):
    header = 46
    encrypted = True

    def wrap(self, store):
        return EncryptingStore(store, KEY)

    def new_header(self):
        key_id = hmac.digest(KEY, b"blobstore encryption: id of a key", "sha256")[:8]
        return b"BSenc\x01" + key_id + bytes(range(32))

    def cipher(self, header):
        # HKDF (RFC 5869) by hand.
        extracted = hmac.digest(header[14:], KEY, hashlib.sha256)
        info = b"blobstore encryption: AES-256-GCM of one object"
        return AESGCM(hmac.digest(extracted, info + b"\x01", hashlib.sha256))

    def sealer(self, header, key):
        cipher = self.cipher(header)

        def seal(index, last, data):
            nonce = index.to_bytes(11, "big") + bytes([last])
            return cipher.encrypt(nonce, data, header + key.encode())

        return seal

    def opener(self, header, key):
        assert header[:14] == self.new_header()[:14]
        cipher = self.cipher(header)

        def unseal(index, last, block):
            nonce = index.to_bytes(11, "big") + bytes([last])
            return cipher.decrypt(nonce, block, header + key.encode())

        return unseal


class TestEncryptingStoreOverFiles(OverFiles, TestEncryptingStore):
    pass


class Backwards(DataTransformer):
    def transform(self, data):
        assert type(data) is bytes
        return data[::-1]

    def reverse_transform(self, data):
        return data[::-1]


class TestTransformingStore(WrapperSuite):
    """Whole values, not streams; but the interface is the same."""

    ranges = False

    def wrap(self, store):
        return TransformingStore(store, Backwards())

    def stored(self, data, key):
        return data[::-1]

    plain = stored


class TestTransformingStoreOverFiles(OverFiles, TestTransformingStore):
    def test_capabilities(self, store):
        assert store.capabilities == Capabilities(conditional_writes=True, etags=True)


class StackSuite(ObjectStoreSuite):
    machine_examples = 3


class TestGzipOverEncryptionOverChecksums(StackSuite):
    def make_store(self, tmp_path):
        return GzipStore(EncryptingStore(ChecksumStore(DictStore()), KEY))

    def test_capabilities(self, store):
        assert store.capabilities.encrypted
        assert not store.capabilities.ranges


class TestStackOverFiles(StackSuite):
    key_style = "paths"

    def make_store(self, tmp_path):
        files = FilesystemStore(tmp_path / "root")
        return ZstdStore(EncryptingStore(ChecksumStore(files), KEY))


class TestRangesPassThroughAStack(StackSuite):
    key_style = "names"

    def make_store(self, tmp_path):
        files = FilesystemBlobBackend(tmp_path / "root")
        return Base64Store(EncryptingStore(ChecksumStore(files, "blake3"), KEY))

    def test_capabilities(self, store):
        assert store.capabilities.ranges
        assert store.capabilities.streams


class TestEncryptionBetweenPrefixes(StackSuite):
    def make_store(self, tmp_path):
        return PrefixStore(EncryptingStore(PrefixStore(DictStore(), "in/"), KEY), "out/")
