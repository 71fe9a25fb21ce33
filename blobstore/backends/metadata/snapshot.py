"""The snapshot of a JSON index: a readable document that ends with a checksum of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from blobstore.backends.metadata.journal import checksum
from blobstore.backends.metadata.state import IndexState
from blobstore.errors import IncompatibleStoreError, IntegrityError

FORMAT = "blobstore-index"
FORMAT_VERSION = 1

_STORE_ID = re.compile(r"[0-9a-f]{32}")
_CHECKSUM = ',\n  "checksum": "'


def journal_name(generation: int) -> str:
    """The journal that goes on from the snapshot of this generation."""
    return f"cache_metadata.{generation}.journal"


def write_snapshot(state: IndexState, generation: int) -> bytes:
    """The document of a state, with its checksum as the last member."""
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "store_id": state.store_id,
        "generation": generation,
        "journal": journal_name(generation),
        "next_id": state.next_id,
    }
    text = json.dumps(header, indent=2)[:-2] + ",\n" + "".join(state.document_lines())
    body = text.encode("utf-8")
    return body + f'{_CHECKSUM}{_checksum_text(body)}"\n}}\n'.encode("ascii")


def _checksum_text(body: bytes) -> str:
    return f"xxh3-64:{checksum(body):016x}"


def parse_snapshot(path: Path, data: bytes) -> dict[str, Any]:
    """The document, once it is sure to be ours and whole.

    Raises
    ------
    IncompatibleStoreError
        It belongs to another program, or to a newer version.
    IntegrityError
        It is damaged.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        what = f"is no whole JSON document ({exc})" if data else "is empty"
        raise damaged(path, what) from exc
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise IncompatibleStoreError(
            f"{path} is not an index of blobstore: another program made it. Choose another folder, "
            "or move the file away"
        )
    version = document.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IncompatibleStoreError(
            f"{path} has format version {version}, and this blobstore knows {FORMAT_VERSION} at "
            "most: upgrade blobstore"
        )
    _check_document(path, data, document)
    return document


def _check_document(path: Path, data: bytes, document: dict[str, Any]) -> None:
    # One without the member was edited by hand, on purpose.
    if "checksum" in document:
        body = data[: max(0, data.rfind(_CHECKSUM.encode("ascii")))]
        if document["checksum"] != _checksum_text(body):
            raise damaged(
                path,
                "does not match its checksum (if you edited it on purpose, remove the member "
                '"checksum")',
            )
    generation, next_id, store_id = (document.get(n) for n in ("generation", "next_id", "store_id"))
    if (
        document.get("format_version") != FORMAT_VERSION
        or not (isinstance(generation, int) and isinstance(next_id, int))
        or not (isinstance(store_id, str) and _STORE_ID.fullmatch(store_id))
        or document.get("journal") != journal_name(generation)
    ):
        raise damaged(path, "has a header that no version of blobstore writes")


def damaged(path: Path, what: str) -> IntegrityError:
    """The error for an index that cannot be trusted, with what to do about it."""
    return IntegrityError(
        f"{path} {what}. It was left as it is: restore the folder from a backup, or move all "
        "cache_metadata.* files away to start an empty index"
    )
