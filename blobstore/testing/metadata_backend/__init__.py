"""The conformance suite of metadata backends.

Subclass `MetadataBackendSuite` in a test module, and say how to open a backend::

    from blobstore.testing.metadata_backend import MetadataBackendSuite

    class TestMyBackend(MetadataBackendSuite):
        def make_backend(self, path, **options):
            return MyBackend(path / "index.db", **options)

Every behaviour that the rest of blobstore counts on is a test. What a test expects is written out
in it, or follows from plain Python (sorting, ``startswith``); no backend is compared with itself.
Needs pytest.
"""

from __future__ import annotations

import pytest

_MODULES = [
    "blobs",
    "build",
    "commits",
    "concurrency",
    "filters",
    "lifecycle",
    "listing",
    "operations",
    "queries",
]
# Before they load: then failures of their assertions show the values.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))

from blobstore.testing.metadata_backend.blobs import (  # noqa: E402
    CollectingTests,
    SharingTests,
)
from blobstore.testing.metadata_backend.build import (  # noqa: E402
    commit,
    equal_to,
    make_blob,
    make_copy,
    make_inline,
    make_patch,
    make_put,
    put,
    rows,
    snapshot,
    states,
    stored,
)
from blobstore.testing.metadata_backend.commits import (  # noqa: E402
    AtomicityTests,
    ExpectationTests,
    RetryTests,
)
from blobstore.testing.metadata_backend.concurrency import (  # noqa: E402
    ForkTests,
    ProcessTests,
    ThreadTests,
)
from blobstore.testing.metadata_backend.filters import (  # noqa: E402
    ExactnessTests,
    FilterTests,
)
from blobstore.testing.metadata_backend.lifecycle import (  # noqa: E402
    LifecycleTests,
)
from blobstore.testing.metadata_backend.listing import (  # noqa: E402
    ListingTests,
)
from blobstore.testing.metadata_backend.operations import (  # noqa: E402
    CopyTests,
    DeleteTests,
    PatchTests,
    PutTests,
)
from blobstore.testing.metadata_backend.queries import (  # noqa: E402
    ConditionTests,
    OrderTests,
    QueryTests,
)

__all__ = [
    "MetadataBackendSuite",
    "commit",
    "equal_to",
    "make_blob",
    "make_copy",
    "make_inline",
    "make_patch",
    "make_put",
    "put",
    "rows",
    "snapshot",
    "states",
    "stored",
]


class MetadataBackendSuite(
    PutTests,
    DeleteTests,
    CopyTests,
    PatchTests,
    ExpectationTests,
    AtomicityTests,
    SharingTests,
    RetryTests,
    CollectingTests,
    ListingTests,
    FilterTests,
    ExactnessTests,
    ConditionTests,
    OrderTests,
    QueryTests,
    LifecycleTests,
    ThreadTests,
    ProcessTests,
    ForkTests,
):
    """All that a metadata backend must do. Subclass it and override `make_backend`.

    An inherited test is never overridden to weaken it; a backend that cannot do something says so
    with ``pytest.mark.skip(reason=...)`` on a test of the same name.
    """
