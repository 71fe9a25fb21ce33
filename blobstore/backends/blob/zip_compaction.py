"""Copying what is alive in a zip file into a new one, raw as it is."""

from __future__ import annotations

import os

from blobstore.backends.blob.zip_directory import pack_directory
from blobstore.backends.blob.zip_fields import DESCRIPTOR, ENCRYPTED, foreign_fields
from blobstore.backends.blob.zip_foreign import find_data, local_extras
from blobstore.backends.blob.zip_format import (
    HEAD,
    Kind,
    Member,
    Record,
    Slot,
    descriptor,
    pack_record,
    pack_slot,
)
from blobstore.backends.blob.zip_index import View
from blobstore.backends.blob.zip_io import Extent, Handle, write_at
from blobstore.errors import IntegrityError


def write_copy(view: View, target: int) -> None:
    """Write head, members and directory of `view` into an empty file, to the disk.

    Data that are compressed, encrypted or damaged stay so. A kill, or a power cut, leaves a file
    that nobody knows.

    Raises
    ------
    IntegrityError
        A member is not where the directory says.
    """
    entries: list[tuple[bytes, Member]] = []
    write_at(target, 0, HEAD, b"")
    at = len(HEAD)
    for name, old in view.entries():
        record, data = record_of(view.handle, name, old)
        header = pack_record(record)
        try:
            write_at(target, at, header, data)
        except EOFError as exc:
            raise IntegrityError(
                f"the zip file ends within {name.decode(errors='replace')!r}: restore it from a copy"
            ) from exc
        new = old._replace(offset=at, head=len(header), flags=record.flags)
        if trailer := descriptor(new):
            write_at(target, at + len(header) + old.stored, trailer, b"")
        entries.append((name, new))
        at += len(header) + record.follows
    write_directory(target, at, entries, view.comment, sequence=1)
    os.fsync(target)


def write_directory(
    fd: int, at: int, entries: list[tuple[bytes, Member]], comment: bytes, sequence: int
) -> None:
    """Write a directory and its slot, into a file that nobody knows yet."""
    directory, data, size = pack_directory(entries, at, comment)
    header = pack_record(directory)
    write_at(fd, at, header, data)
    where, slot = pack_slot(Slot(sequence, at, len(header) + len(data), size))
    write_at(fd, where, slot, b"")


def record_of(handle: Handle, name: bytes, member: Member) -> tuple[Record, Extent]:
    """The record that a member is to have in another place, and its bytes."""
    start = find_data(handle, name, member)
    # Sizes are in the header now; only the check of a password needs to know that they were not.
    flags = member.flags if member.flags & ENCRYPTED else member.flags & ~DESCRIPTOR
    extras = foreign_fields(local_extras(handle, member)) if member.raw else b""
    record = Record(
        Kind.FOREIGN if member.raw else Kind.MEMBER, name, member.method, flags, member.crc,
        member.stored, member.size, member.modified, member.tag,
        member.stored + len(descriptor(member._replace(flags=flags))), extras,
    )  # fmt: skip
    return record, Extent(handle.fd, start, member.stored)
