"""The three interfaces that carry everything: object stores, metadata backends, handlers.

Each is an abstract class with a small core to write and defaults for the rest. What an
implementation must do beyond the signatures is written as tests in `blobstore.testing`.
"""

from blobstore.protocols.data_handler import DataHandler
from blobstore.protocols.handler import (
    Encoding,
    Handler,
    Plan,
    PlannedPart,
    StoredPart,
    WriteOptions,
)
from blobstore.protocols.metadata_backend import (
    CommitResult,
    Copy,
    Delete,
    Expected,
    Explanation,
    FieldIndex,
    MetadataBackend,
    Operation,
    Patch,
    Put,
    Sign,
    check_expected,
    signature_after,
)
from blobstore.protocols.object_store import (
    BlobBackend,
    Capabilities,
    Leftover,
    ObjectStore,
    Values,
    check_range,
)

__all__ = [
    "BlobBackend",
    "Capabilities",
    "CommitResult",
    "Copy",
    "DataHandler",
    "Delete",
    "Encoding",
    "Expected",
    "Explanation",
    "FieldIndex",
    "Handler",
    "Leftover",
    "MetadataBackend",
    "ObjectStore",
    "Operation",
    "Patch",
    "Plan",
    "PlannedPart",
    "Put",
    "Sign",
    "StoredPart",
    "Values",
    "WriteOptions",
    "check_expected",
    "check_range",
    "signature_after",
]
