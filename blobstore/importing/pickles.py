"""Pickles of other programs, which say nothing of who wrote them."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from blobstore.arguments import check_pickle
from blobstore.errors import UntrustedTypeError
from blobstore.limits import check_limit
from blobstore.trust import EVERYTHING, Trust, TypePatterns


class Pickles:
    """How far the pickles of a source are trusted.

    Parameters
    ----------
    mode : {"signed", "allow", "deny"}
        "signed": only plain and harmless types load, since no such pickle bears a signature.
    trusted_types : iterable of str
        Types that may load besides; see `BlobStore`.
    max_decompressed : int
        Bytes that a compressed file may grow to, if that is over 256 times its size.

    Raises
    ------
    ConfigError
        One of them is wrong.
    """

    def __init__(self, mode: Any, trusted_types: Iterable[str], max_decompressed: int) -> None:
        self._mode = check_pickle(mode)
        reason = "another program wrote it, which signs nothing"
        limit = check_limit(max_decompressed)
        self.trust = Trust(types=TypePatterns(trusted_types), reason=reason, max_decompressed=limit)
        if self._mode == "allow":
            self.trust = EVERYTHING
        self.max_decompressed = limit

    def check(self) -> None:
        """Refuse pickles altogether, if they are.

        Raises
        ------
        UntrustedTypeError
        """
        if self._mode == "deny":
            raise UntrustedTypeError("it is a pickle, and none is loaded with pickle='deny'")

    def load(self, data: bytes) -> Any:
        """Load one.

        Raises
        ------
        UntrustedTypeError
            It names a type that is not trusted.
        """
        self.check()
        if self.trust.everything:
            return pickle.loads(data)
        from blobstore.handlers.unpickling import load_untrusted

        return load_untrusted(data, self.trust)
