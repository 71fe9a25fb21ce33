"""What blobstore is measured beside: each contender behind the same few methods.

A contender is made with its own empty folder. Its libraries are imported when it is made, so one
that is not installed costs its rows and nothing else. Options are each library's defaults unless
said; nobody is asked to sync to disk.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar


class Contender:
    """Stores objects under keys, in a folder.

    Attributes
    ----------
    note : str
        What to know when its figures are compared with others.
    ours : bool
        Whether it is blobstore that is measured.
    on_disk : bool
        Whether what is stored is in the folder, at the latest when it is closed.
    server : str
        What has to run meanwhile (`servers`): "s3", "postgres" or nothing.
    """

    note: ClassVar[str] = ""
    ours: ClassVar[bool] = False
    on_disk: ClassVar[bool] = True
    server: ClassVar[str] = ""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        raise NotImplementedError

    def get(self, key: str) -> Any:
        raise NotImplementedError

    def keys(self, prefix: str) -> list[str]:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files."""


class Blobstore(Contender):
    """Blobstore itself, with an SQLite index unless said otherwise."""

    note = (
        "index and metadata, checksum made and compared, whole or not at all; before the file of a "
        "replaced value goes, what replaced it is synced"
    )
    ours = True
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from blobstore import BlobStore

        self.store = BlobStore(folder, **{"backend": "sqlite", **self.options})

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.store.put(value, key, metadata)

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def keys(self, prefix: str) -> list[str]:
        return self.store.list(prefix)

    def close(self) -> None:
        self.store.close()


class BlobstoreTensors(Blobstore):
    """The same, of tensors over the memory of the arrays."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.torch = torch
        super().__init__(folder)

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        tensors = {name: self.torch.from_numpy(array) for name, array in value.items()}
        super().put(key, tensors, metadata)

    def get(self, key: str) -> Any:
        return {name: tensor.numpy() for name, tensor in super().get(key).items()}


class Diskcache(Contender):
    note = "no prefix listing: iterates over all keys and filters; size_limit raised so that nothing is evicted"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import diskcache

        self.cache = diskcache.Cache(folder, size_limit=1 << 40)

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.cache.set(key, value if metadata is None else (value, metadata))

    def get(self, key: str) -> Any:
        return self.cache.get(key)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.cache.iterkeys() if key.startswith(prefix)]

    def close(self) -> None:
        self.cache.close()


class Sqlitedict(Contender):
    note = "autocommit; PRAGMA synchronous=OFF always; no prefix listing: iterates and filters"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import sqlitedict

        self.table = sqlitedict.SqliteDict(str(folder / "table.sqlite"), autocommit=True)

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.table[key] = (value, metadata)

    def get(self, key: str) -> Any:
        return self.table[key]

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.table if key.startswith(prefix)]

    def close(self) -> None:
        self.table.close()


class Files(Contender):
    """One file for each key, written in place: no index, nothing atomic."""

    extension = ""
    note = "a file per key, written in place (a killed put leaves a torn file); listing reads the folder"

    def path(self, key: str) -> str:
        return str(self.folder / (key.replace("/", "%2F") + self.extension))

    def keys(self, prefix: str) -> list[str]:
        start = prefix.replace("/", "%2F")
        names = (path.name for path in self.folder.iterdir())
        return [name.replace("%2F", "/") for name in names if name.startswith(start)]


class Joblib(Files):
    extension = ".joblib"
    compress: ClassVar[Any] = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import joblib

        self.dump, self.load = joblib.dump, joblib.load

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.dump(value if metadata is None else (value, metadata), self.path(key), self.compress)

    def get(self, key: str) -> Any:
        return self.load(self.path(key))


class NumpySave(Files):
    extension = ".npy"

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        import numpy as np

        np.save(self.path(key), value)

    def get(self, key: str) -> Any:
        import numpy as np

        return np.load(self.path(key))


class NumpySavez(Files):
    extension = ".npz"

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        import numpy as np

        np.savez(self.path(key), **value)

    def get(self, key: str) -> Any:
        import numpy as np

        with np.load(self.path(key)) as archive:
            return dict(archive)


class Blosc2(Files):
    extension = ".b2nd"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import blosc2

        self.blosc2 = blosc2
        self.cparams = blosc2.CParams(codec=blosc2.Codec.LZ4, clevel=3)

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.blosc2.asarray(
            value, urlpath=self.path(key), contiguous=True, mode="w", cparams=self.cparams
        )

    def get(self, key: str) -> Any:
        return self.blosc2.open(self.path(key), mode="r")[...]


class PandasParquet(Files):
    extension = ".parquet"
    codec: ClassVar[str] = "lz4"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import pandas as pd

        self.read = pd.read_parquet

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        value.to_parquet(self.path(key), compression=self.codec)

    def get(self, key: str) -> Any:
        return self.read(self.path(key))


class PickleLz4(Files):
    extension = ".pkl.lz4"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import lz4.frame

        self.frame = lz4.frame

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        Path(self.path(key)).write_bytes(self.frame.compress(pickle.dumps(value, protocol=5)))

    def get(self, key: str) -> Any:
        return pickle.loads(self.frame.decompress(Path(self.path(key)).read_bytes()))


class TorchSave(Files):
    extension = ".pt"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        self.torch = torch

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        tensors = {name: self.torch.from_numpy(array) for name, array in value.items()}
        self.torch.save(tensors, self.path(key))

    def get(self, key: str) -> Any:
        tensors = self.torch.load(self.path(key), weights_only=True)
        return {name: tensor.numpy() for name, tensor in tensors.items()}


def _with(base: type[Contender], **options: Any) -> type[Contender]:
    return type(base.__name__, (base,), options)


def _blobstore(**options: Any) -> type[Contender]:
    return _with(Blobstore, options=options)


CONTENDERS: dict[str, type[Contender]] = {
    "blobstore": _blobstore(),
    "blobstore json": _blobstore(backend="json"),
    "blobstore zstd": _blobstore(compression="zstd"),
    "blobstore none": _blobstore(compression="none"),
    "blobstore shared": _blobstore(content_addressable=True),
    "blobstore tensors": BlobstoreTensors,
    "diskcache": Diskcache,
    "sqlitedict": Sqlitedict,
    "joblib": Joblib,
    "joblib lz4": _with(Joblib, compress=("lz4", 3)),
    "joblib zlib": _with(Joblib, compress=("zlib", 3)),
    "np.save": NumpySave,
    "np.savez": NumpySavez,
    "blosc2": Blosc2,
    "parquet lz4": _with(PandasParquet, codec="lz4"),
    "parquet zstd": _with(PandasParquet, codec="zstd"),
    "pickle+lz4": PickleLz4,
    "torch.save": TorchSave,
}
