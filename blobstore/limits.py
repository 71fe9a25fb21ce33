"""How much a few stored bytes may grow to before they are taken for an attack.

A *decompression bomb* is a small file that unpacks to more than the machine holds. What the reader
wrote itself (its signature verifies), or said to trust, has no limit. All else may grow to
`MAX_DECOMPRESSED` bytes, or to `MAX_RATIO` times its stored size, whichever is more: LZ4 cannot
reach that ratio at all, and data that other codecs shrink further is nearly all one byte.
"""

from __future__ import annotations

import functools
import os
import zipfile
from typing import BinaryIO

from blobstore.errors import ConfigError, DecodeError

MAX_DECOMPRESSED = 1 << 30
"""Bytes that any stream may grow to, unless a store was opened with another limit."""

SIGNED_FROM = MAX_DECOMPRESSED // 4
"""Bytes in memory from which on all that is compressed is signed, so that its writer can read it
again whatever it shrank to."""

MAX_RATIO = 256
"""Times its stored size that a stream may always grow."""

UNLIMITED = 1 << 62
"""A limit of bytes that nothing reaches: of what the reader wrote itself, or trusts."""

MAX_IMAGE_PIXELS = 178_956_970
"""Pixels of an image that is opened without asking (Pillow's own limit, as an error)."""


def allowed_growth(stored: int, max_decompressed: int) -> int:
    """How many bytes `stored` bytes may be decompressed to.

    Examples
    --------
    >>> allowed_growth(10, 1000), allowed_growth(10, 5000)
    (2560, 5000)
    """
    return max(max_decompressed, stored * MAX_RATIO)


def check_limit(asked: object) -> int:
    """Refuse a `max_decompressed_bytes` that is no number of bytes.

    Raises
    ------
    ConfigError
    """
    if type(asked) is not int or asked <= 0:
        raise ConfigError(f"max_decompressed_bytes must be a number of bytes, not {asked!r}")
    return asked


def bomb(what: str, limit: int) -> DecodeError:
    """The error for bytes that grow beyond their limit."""
    return DecodeError(
        f"{what} grows to more than {limit} bytes when it is decompressed, as an attack on memory "
        "would. If it is what you expect, open the store with a larger max_decompressed_bytes"
    )


def check_archive(file: BinaryIO, limit: int, what: str) -> None:
    """Refuse a zip file whose members come to more than `limit` bytes.

    Parameters
    ----------
    file : file
        Seekable; left at its start.
    limit : int
    what : str
        For the message.

    Raises
    ------
    DecodeError
    zipfile.BadZipFile

    Notes
    -----
    It goes by the directory of the file, which is what bounds those who read the members, too.
    """
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > limit:
            raise bomb(what, limit)
    file.seek(0)


def check_allocation(size: int, what: str) -> None:
    """Refuse to make room for more than this machine has.

    Parameters
    ----------
    size : int
        Bytes that `what` says it needs.
    what : str

    Raises
    ------
    DecodeError

    Examples
    --------
    >>> check_allocation(1 << 60, "an array of shape (1073741824, 1073741824)")
    Traceback (most recent call last):
    ...
    blobstore.errors.DecodeError: an array of shape (1073741824, 1073741824) needs 1152921504606846976 bytes, which is more than this machine has: read a part of it
    """
    if size > _memory():
        raise DecodeError(
            f"{what} needs {size} bytes, which is more than this machine has: read a part of it"
        )


def check_pixels(width: int, height: int) -> None:
    """Refuse an image of more than `MAX_IMAGE_PIXELS`.

    Raises
    ------
    DecodeError

    Examples
    --------
    >>> check_pixels(100_000, 100_000)
    Traceback (most recent call last):
    ...
    blobstore.errors.DecodeError: an image of 100000 x 100000 pixels is larger than the limit of 178956970 (blobstore.limits.MAX_IMAGE_PIXELS)
    """
    if width * height > MAX_IMAGE_PIXELS:
        raise DecodeError(
            f"an image of {width} x {height} pixels is larger than the limit of "
            f"{MAX_IMAGE_PIXELS} (blobstore.limits.MAX_IMAGE_PIXELS)"
        )


@functools.cache
def _memory() -> int:
    """Physical memory in bytes; where the system does not say, no limit that matters."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
