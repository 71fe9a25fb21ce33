"""What a transfer is asked for, checked before anything is done."""

from __future__ import annotations

from blobstore.errors import ConfigError, InvalidInputError, NotSupportedError
from blobstore.protocols import Capabilities, ObjectStore
from blobstore.wrappers.base import require_raising, require_store


def check_arguments(prefix: object, **flags: object) -> None:
    """Refuse a prefix that is no text, and flags that are something else, such as a prefix.

    Raises
    ------
    InvalidInputError
    """
    if not isinstance(prefix, str):
        raise InvalidInputError(f"prefix must be a str, not {prefix!r}")
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, not {value!r}")


def require_source(store: ObjectStore) -> None:
    """Refuse a store that does not say what is in it.

    Raises
    ------
    ConfigError, NotSupportedError
    """
    can = _capabilities(store, "from_store")
    if not (can.list and can.readable):
        raise NotSupportedError(
            f"{store!r} cannot list or cannot be read, so there is no telling what to copy: copy "
            "from the store beneath it, or put the objects one by one"
        )


def require_target(store: ObjectStore, *, readable: bool, lists: bool) -> None:
    """Refuse a store that cannot be written, or read and listed where that is needed.

    Raises
    ------
    ConfigError, NotSupportedError
    """
    can = _capabilities(store, "the store to be written")
    if not can.writable:
        raise NotSupportedError(f"{store!r} is read-only: give the store beneath it")
    if readable and not can.readable:
        raise NotSupportedError(
            f"{store!r} cannot be read, so there is no telling what is in it: "
            "copy_store(..., overwrite=True) does not need to know"
        )
    if lists and not (can.list and can.readable):
        raise NotSupportedError(
            f"{store!r} cannot list, so there is no telling what to delete: "
            "clear the store beneath it, or sync with delete=False"
        )


def _capabilities(store: ObjectStore, what: str) -> Capabilities:
    return require_raising(require_store(store, what), what).capabilities
