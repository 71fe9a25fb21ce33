"""Pickle, for whatever no open format holds."""

from __future__ import annotations

import pickle
from typing import Any

from blobstore.errors import BlobStoreError, DecodeError, UnsupportedTypeError
from blobstore.files.options import refuse_options
from blobstore.files.trust import FileTrust, new_hasher, without_signature
from blobstore.handlers.unpickling import load_untrusted
from blobstore.protocols.file_format import FileContext, FileFormat
from blobstore.streams import Buffer, BytesSource, Hasher, Sink, Source

_PROTOCOL = 5


class PickleFormat(FileFormat):
    """Any object that pickle takes, signed by its writer; `pickle.load` reads such a file too."""

    name = "pickle"
    extensions = (".pkl", ".pickle")

    def can_handle(self, obj: Any) -> bool:
        """Say yes; writing finds out."""
        return True

    def write(self, obj: Any, sink: Sink, context: FileContext) -> None:
        """Write the pickle and its signature.

        Raises
        ------
        UnsupportedTypeError
            Pickle does not take the object (functions without a name, open files, locks ...).
        UntrustedTypeError
            The store was opened with ``pickle="deny"``, and so could not read it.
        """
        trust = FileTrust.of(context)
        trust.check_allowed(context.key, "a pickle")
        hasher = new_hasher()
        try:
            # Written as it is made, so that a large array is not held twice.
            pickle.Pickler(_Hashed(sink, hasher), protocol=_PROTOCOL).dump(obj)
        except (BlobStoreError, MemoryError):
            raise
        except Exception as exc:
            # The object's class says by code of its own what is pickled, which may raise anything.
            cls = type(obj)
            raise UnsupportedTypeError(
                f"{context.key!r}: an object of type {cls.__module__}.{cls.__qualname__} cannot be "
                f"stored: {exc}. Store what it is made of, or register a handler for it",
                key=context.key,
            ) from exc
        sink.write(trust.signature(context.key, hasher.hexdigest()))

    def read(self, source: Source, context: FileContext, **options: Any) -> Any:
        """Load the object: any, if it is the reader's own, else plain values and trusted types."""
        refuse_options(context, options)
        # Read once: what is unpickled is what was checked, whoever writes meanwhile.
        data = source.read()
        trust = FileTrust.of(context).trust_in(BytesSource(data), context.key)
        try:
            if trust.everything:
                return pickle.loads(data)  # which stops before the signature
            return load_untrusted(without_signature(data), trust)
        except (ImportError, AttributeError) as exc:
            raise DecodeError(
                f"{context.key!r} needs something that is not here: {exc}. Install or import the code "
                "that defines its class",
                key=context.key,
            ) from exc
        except BlobStoreError:
            raise
        except Exception as exc:
            # Unpickling runs the code of the object's class, which may raise anything at all.
            raise DecodeError(
                f"{context.key!r} cannot be unpickled: {exc!r}", key=context.key
            ) from exc


class _Hashed:
    """A file as far as pickle writes to one."""

    def __init__(self, sink: Sink, hasher: Hasher) -> None:
        self._sink = sink
        self._hasher = hasher

    def write(self, data: Buffer | pickle.PickleBuffer) -> int:
        if isinstance(data, pickle.PickleBuffer):  # of a large array
            data = data.raw()
        self._hasher.update(data)
        return self._sink.write(data)
