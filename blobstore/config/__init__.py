"""Stores from a description: a YAML file, a mapping, a path or a URL.

::

    stores:
      disk:
        type: FilesystemStore              # the name of a class, see `blobstore.registry`
        config:
          root_path: ${DATA_DIR:-./data}   # a parameter of its constructor
      packed:
        type: GzipStore
        base: disk                         # the store beneath
      cached:
        type: CachingStore
        base: {main_store: packed, cache_store: {type: DictStore}}
    main: cached

- `type`: a class of this library, one marked with `@register_store`, one that an installed package
  offers, ``Async`` before any of these, ``BlobStore``, or a dotted path if the caller allows it.
- `base`: a name, or a description in its place, fills the parameter `store` (of a BlobStore:
  `blob_backend`); a list fills `children`; a mapping fills the parameters that it names.
- `config`: the other parameters. Relative paths start at the working directory.
- ``${NAME}`` in `base` and `config` is read from the environment when the store is built;
  ``${NAME:-default}`` where it is not set, or empty. ``$${`` is a literal ``${``.
- `main`: what is built when no name is given. Other entries at the top are left alone: a place for
  YAML anchors, or for the settings of a program of which this is a part.
"""

from __future__ import annotations

from blobstore.config.factory import StoreFactory
from blobstore.config.s3 import S3StorageConfig
from blobstore.config.urls import open_store

__all__ = ["S3StorageConfig", "StoreFactory", "open_store"]
