"""Estimators of scikit-learn, by skops: a zip of JSON and arrays that names types and calls none.

What skops would give back otherwise than it was (it is read once, when it is stored, and compared) is
left to pickle, and so is everything where skops is not installed. An entry that the reader did not
sign loads what skops knows to be harmless, and the types that the reader trusts.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from blobstore.ast_race import parsing_again
from blobstore.digest import Canonical, new_digest
from blobstore.errors import BlobStoreError, DecodeError, UnsupportedTypeError
from blobstore.handlers.options import refuse_options
from blobstore.handlers.pickle import known_types
from blobstore.handlers.stream import StreamPart, read_stream
from blobstore.handlers.trusted import find_by_full_name
from blobstore.limits import check_archive
from blobstore.protocols import Handler, Plan, StoredPart, WriteOptions
from blobstore.registry import base_names, load
from blobstore.streams import Hasher
from blobstore.trust import Trust

_ESTIMATOR = "sklearn.base.BaseEstimator"
_REFUSALS = (pickle.PicklingError, TypeError, ValueError, AttributeError, KeyError, RecursionError)
"""What skops raises for objects that it cannot take; its own error is a TypeError."""


class SkopsHandler(Handler):
    """`sklearn.base.BaseEstimator` and all that derive from it, pipelines and searches too."""

    name: ClassVar[str] = "skops"
    type_names: ClassVar[tuple[str, ...]] = ()
    base_names: ClassVar[tuple[str, ...]] = (_ESTIMATOR,)
    runs_code: ClassVar[bool] = True

    def can_handle(self, obj: Any) -> bool:
        """Whether it is an estimator; `plan` finds out whether skops takes it."""
        return _ESTIMATOR in base_names(type(obj))

    def plan(self, obj: Any, options: WriteOptions) -> Plan:
        """Write it with skops, into memory, and see whether it comes back equal.

        Raises
        ------
        UnsupportedTypeError
            It does not, or skops is not installed.
        """
        if not self.can_handle(obj):
            raise UnsupportedTypeError(f"{type(obj)!r} is no estimator")
        dumped = _Dumped(obj)
        part = StreamPart(
            self.name,
            "data",
            (dumped.data,),
            options,
            extension=".skops",
            digest=lambda hasher: _feed(hasher, dumped.digest),
            executable=True,
        )
        cls = type(obj)
        return Plan("estimator", {"type": f"{cls.__module__}.{cls.__qualname__}"}, (part,))

    def read(self, parts: Mapping[str, StoredPart], info: Mapping[str, Any], **options: Any) -> Any:
        """Rebuild an estimator, if the reader trusts the types in it.

        Raises
        ------
        DecodeError
            The part is nothing that skops wrote, or needs something that is not here.
        UntrustedTypeError
            It names a type that is neither harmless nor trusted.
        MissingDependencyError
            skops is not installed.
        """
        refuse_options(self, options)
        if "data" not in parts:
            raise DecodeError("an estimator was stored without its data")
        part = parts["data"]
        untrusted_types, loads = load("skops.io:get_untrusted_types"), load("skops.io:loads")
        data = read_stream(part)
        try:
            if not part.trust.everything:
                _check_size(data, part.trust)
            names = untrusted_types(data=data)
            if not part.trust.everything:
                for name in names:
                    find_by_full_name(name, part.trust)
            return parsing_again(lambda: loads(data, trusted=names))
        except BlobStoreError:
            raise
        except Exception as exc:
            # The classes of the estimator set their state by code of their own.
            raise DecodeError(f"the stored estimator cannot be loaded: {exc!r}") from exc


def _check_size(data: bytes, trust: Trust) -> None:
    """Refuse a file whose members grow by too much; `zipfile` reads no more than they say."""
    check_archive(io.BytesIO(data), trust.growth_limit(len(data)), "an estimator")


class _Dumped:
    """An estimator as skops writes it."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj
        try:
            from skops.io import dumps, get_untrusted_types, loads
        except ImportError as exc:
            raise UnsupportedTypeError(
                "skops, which is to write estimators, is not installed"
            ) from exc
        try:
            self.data: bytes = dumps(obj)
            again = loads(self.data, trusted=get_untrusted_types(data=self.data))
        except _REFUSALS as exc:
            raise UnsupportedTypeError(f"skops does not take the estimator: {exc}") from exc
        if _digest(again) != self.digest:
            raise UnsupportedTypeError("skops would not give back the estimator as it is")

    @cached_property
    def digest(self) -> str:
        """Of the estimator itself."""
        return _digest(self._obj)


def _digest(obj: Any) -> str:
    hasher = new_digest()
    try:
        Canonical(hasher, known_types).add(obj)
    except RecursionError as exc:
        raise UnsupportedTypeError("the estimator is nested too deeply to be compared") from exc
    return hasher.hexdigest()


def _feed(hasher: Hasher, digest: str) -> None:
    hasher.update(b"blobstore:estimator:1\0" + bytes.fromhex(digest))
