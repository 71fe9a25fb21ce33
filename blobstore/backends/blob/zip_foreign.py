"""Zip files that other programs wrote, read by the standard library."""

from __future__ import annotations

import os
import struct
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from blobstore.backends.blob.zip_directory import END64_SIZE, END_SIZE, directory_start
from blobstore.backends.blob.zip_fields import UTF8, BadRecordError
from blobstore.backends.blob.zip_format import HEAD, LOCAL_SIZE, Member, is_head, local_parts
from blobstore.backends.blob.zip_index import View
from blobstore.backends.blob.zip_io import Handle
from blobstore.errors import IncompatibleStoreError, IntegrityError

_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_SIGNATURES = (b"PK\3\4", b"PK\5\6")


def read_foreign(handle: Handle, path: str) -> View:
    """Read the directory of a zip file that is not ours.

    Raises
    ------
    IncompatibleStoreError
        It is no zip file, or one that the standard library cannot read.
    """
    view = View(handle)
    found = os.fstat(handle.fd)
    try:
        with _opened(handle) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                view.add(*_member(info))
            view.comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as exc:
        raise IncompatibleStoreError(
            f"{path} is no zip file ({exc}): choose another path, or move that file away; "
            "it was not touched"
        ) from exc
    view.foreign = True
    view.end = found.st_size
    view.changed_ns = found.st_mtime_ns
    return view


def ends_in_a_directory(handle: Handle) -> bool:
    """Whether a file of ours was changed by another program, and left as a good zip file.

    Positions in a directory count from the start of the file. So a zip file that was put into this
    one as an object, and lies at its end because a writer was killed, is not taken for its directory.
    """
    try:
        with _opened(handle) as file, zipfile.ZipFile(file) as archive:
            end = handle.size() - END_SIZE - len(archive.comment)
            before = handle.read(max(0, end - END64_SIZE), end)
            start = directory_start(handle.read(end, end + END_SIZE), before)
            return start == archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error):
        return False


def check_adoptable(view: View, path: str) -> None:
    """Refuse to change a file that begins with another program's bytes.

    Raises
    ------
    IncompatibleStoreError
        It is a self-extracting archive, say.
    """
    head = view.handle.read(0, len(HEAD))
    if head[:4] not in _SIGNATURES and not is_head(head):
        raise IncompatibleStoreError(
            f"{path} begins with something else than a zip file, a program that extracts it for "
            "instance: it can be read, but not changed. Copy its objects into a new ZipStore"
        )


def find_data(handle: Handle, name: bytes, member: Member) -> int:
    """Where the bytes of a member begin.

    Raises
    ------
    IntegrityError
        Its local header is not what the directory says.
    """
    if member.head >= 0:
        return member.offset + member.head
    fixed = handle.read(member.offset, member.offset + LOCAL_SIZE)
    start = member.offset + LOCAL_SIZE
    try:
        names, extra = local_parts(fixed)
    except BadRecordError as exc:
        raise _misplaced(name) from exc
    if handle.read(start, start + names) != name:
        raise _misplaced(name)
    return start + names + extra


def local_extras(handle: Handle, member: Member) -> bytes:
    """The extra fields in the local header of a member."""
    fixed = handle.read(member.offset, member.offset + LOCAL_SIZE)
    names, extra = local_parts(fixed)
    start = member.offset + LOCAL_SIZE + names
    return handle.read(start, start + extra)


def _opened(handle: Handle) -> BinaryIO:
    # Opened anew where that works: a duplicate would share its position with other threads.
    try:
        return Path(f"/proc/self/fd/{handle.fd}").open("rb")
    except OSError:
        return os.fdopen(os.dup(handle.fd), "rb")


def _member(info: zipfile.ZipInfo) -> tuple[bytes, Member]:
    name = info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else "cp437")
    year, month, day, hour, minute, second = info.date_time
    date = max(0, year - 1980) << 9 | month << 5 | day
    clock = hour << 11 | minute << 5 | second // 2
    raw = _CENTRAL.pack(
        b"PK\1\2", info.create_version | info.create_system << 8, info.extract_version,
        info.flag_bits, info.compress_type, clock, date, info.CRC, 0, 0,
        len(name), len(info.extra), len(info.comment), 0, info.internal_attr, info.external_attr, 0,
    )  # fmt: skip
    # Not random: the same before and after the file is copied to be changed.
    tag = (info.CRC << 32 | (date << 16 | clock)) ^ info.file_size ^ info.header_offset << 20
    return name, Member(
        info.header_offset, -1, info.compress_size, info.file_size, info.CRC, info.compress_type,
        info.flag_bits, _microseconds(info.date_time), tag & (1 << 64) - 1,
        raw + name + info.extra + info.comment,
    )  # fmt: skip


def _microseconds(moment: tuple[int, int, int, int, int, int]) -> int:
    """Local time, as the zip format has it; 1980 where it is no time at all."""
    try:
        datetime(*moment)  # noqa: DTZ001 - only whether there is such a day
        return int(time.mktime((*moment, 0, 1, -1))) * 1_000_000
    except (ValueError, OverflowError):
        return 315532800_000_000


def _misplaced(name: bytes) -> IntegrityError:
    return IntegrityError(
        f"the bytes of {name.decode(errors='replace')!r} are not where the directory of the zip "
        "file says: restore it from a copy",
        location=name.decode(errors="replace"),
    )
