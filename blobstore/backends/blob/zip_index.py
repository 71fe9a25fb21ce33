"""What is in a zip file: read from its last directory, and from the records behind that.

A `View` is one file as far as it was read. It grows by what others append, and is replaced by
another when the file is. Reading takes no lock: a record counts once all its bytes are there, and
the last one may be what a killed writer left, or what a living one is writing.
"""

from __future__ import annotations

import zlib

from blobstore.backends.blob.zip_directory import pack_entry, parse_comment, parse_directory
from blobstore.backends.blob.zip_fields import UTF8, BadRecordError
from blobstore.backends.blob.zip_format import (
    HEAD,
    Kind,
    Member,
    Record,
    Slot,
    descriptor,
    head_version,
    is_head,
    member_of,
    parse_record,
    parse_slots,
)
from blobstore.backends.blob.zip_io import Handle
from blobstore.backends.blob.zip_names import is_safe
from blobstore.errors import IncompatibleStoreError, IntegrityError

_STEP = 1 << 14
_LONGEST_HEADER = 30 + 2 * 0xFFFF
_CHUNK = 1 << 20


class View:
    """One file, as far as it was read.

    Attributes
    ----------
    handle : Handle
        To read it with.
    members : dict of str to Member
        The objects.
    hidden : dict of bytes to Member
        What is in a zip file of another program and is no object: folders, unsafe names.
    end : int
        Behind the last whole record.
    directory_end : int
        Behind the last directory; the file is as other programs need it if nothing follows.
    directory_size : int
        Of the last directory.
    sequence : int
        Of the newest slot.
    fell_back : bool
        Whether the newest directory is not where its slot says.
    live : int
        Bytes of the records that are in use.
    comment : bytes
        Of the archive.
    foreign : bool
        Whether another program wrote the file as it is: it is copied before it is changed.
    """

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.members: dict[str, Member] = {}
        self.hidden: dict[bytes, Member] = {}
        self._folders: dict[str, int] = {}
        self.end = 0
        self.directory_end = 0
        self.directory_size = 0
        self.sequence = 0
        self.fell_back = False
        self.live = 0
        self.comment = b""
        self.foreign = False
        self.changed_ns = 0

    @property
    def clean(self) -> bool:
        """Whether other programs see all that is there, and nothing of a record that was cut short."""
        return self.foreign or (self.end == self.directory_end and self.handle.size() <= self.end)

    @property
    def garbage(self) -> int:
        """Bytes that nobody needs: of replaced and deleted objects, and of older directories."""
        needed = len(HEAD) + self.live + self.directory_size
        return 0 if self.foreign else max(0, self.end - needed)

    def entries(self) -> list[tuple[bytes, Member]]:
        """All that belongs into a directory, in the order of the file."""
        found = [(name_of(key, member), member) for key, member in self.members.items()]
        found += self.hidden.items()
        return sorted(found, key=lambda entry: entry[1].offset)

    def in_the_way(self, key: str) -> str | None:
        """The object, or the folder, that an object of this name cannot be beside of.

        With both a file and a folder of one name nobody could extract the archive.
        """
        if key in self._folders or f"{key}/".encode() in self.hidden:
            return f"{key}/"
        at = key.find("/")
        while at >= 0:
            if key[:at] in self.members:
                return key[:at]
            at = key.find("/", at + 1)
        return None

    def take(self, record: Record, offset: int, head: int) -> None:
        """Take in a record that was read, or written, at the end of what is known."""
        if record.kind in (Kind.MEMBER, Kind.FOREIGN):
            member = member_of(record, offset, head)
            if record.kind == Kind.FOREIGN:  # its directory is lost; its bytes are not
                member = member._replace(raw=pack_entry(record.name, member))
            self.add(record.name, member)
        elif record.kind == Kind.DELETION:
            self._remove(decode_name(record.name, UTF8) or "")
        self.end = offset + head + record.follows
        if record.kind == Kind.DIRECTORY:
            self.directory_end = self.end
            self.directory_size = self.end - offset
            self.sequence += 1

    def add(self, name: bytes, member: Member) -> None:
        """Add a member; the last one of a name is the one."""
        key = decode_name(name, member.flags)
        if key is None:
            if (old := self.hidden.get(name)) is not None:
                self.live -= record_length(old)
            self.hidden[name] = member
        else:
            # In one step: who reads meanwhile, without a lock, finds the old one or the new one.
            old = self.members.get(key)
            self.members[key] = member
            if old is not None:
                self.live -= record_length(old)
            else:
                self._count_folders(key, 1)
        self.live += record_length(member)

    def _remove(self, key: str) -> None:
        old = self.members.pop(key, None)
        if old is not None:
            self.live -= record_length(old)
            self._count_folders(key, -1)

    def _count_folders(self, key: str, change: int) -> None:
        at = key.find("/")
        while at >= 0:
            folder = key[:at]
            count = self._folders.get(folder, 0) + change
            if count:
                self._folders[folder] = count
            else:
                del self._folders[folder]
            at = key.find("/", at + 1)


def name_of(key: str, member: Member) -> bytes:
    """How the name of an object is written."""
    return key.encode("utf-8" if member.flags & UTF8 else "cp437")


def decode_name(name: bytes, flags: int) -> str | None:
    """The key of a member; None if its name is none."""
    try:
        key = name.decode("utf-8" if flags & UTF8 else "cp437")
    except UnicodeDecodeError:
        return None
    return key if is_safe(key) else None


def record_length(member: Member) -> int:
    """Bytes that a member takes in the file."""
    return max(0, member.head) + member.stored + len(descriptor(member))


# --- reading -------------------------------------------------------------------------------------


def is_unwritten(handle: Handle, size: int) -> bool:
    """Whether a file is empty, or was left by one who was killed while making it."""
    return size < len(HEAD) and HEAD.startswith(handle.read(0, size))


def read_own(handle: Handle, size: int, path: str) -> View | None:
    """Read a file of ours; None if it is none, or another program changed it.

    Raises
    ------
    IntegrityError
        It is damaged.
    IncompatibleStoreError
        A newer version made it.
    """
    view = View(handle)
    head = handle.read(0, len(HEAD))
    if not is_head(head):
        return None
    if head_version(head) > head_version(HEAD):
        raise IncompatibleStoreError(
            f"{path} was written by a newer version of blobstore (format {head_version(head)}): "
            "update blobstore"
        )
    view.end = len(HEAD)
    slots = parse_slots(head)
    for slot in slots:
        if _load_directory(view, slot, size, path):
            break
        view.fell_back = True  # a power cut took it, or another program wrote over it
    catch_up(view, size, path)
    return view


def catch_up(view: View, size: int, path: str) -> None:
    """Read the records that were appended.

    Parameters
    ----------
    view : View
    size : int
        Of the file, found out before this call: what is there by then is there as a whole.
    path : str
        For messages.

    Raises
    ------
    IntegrityError
        There is something that no writer of ours leaves.
    """
    buffer, base, step = b"", view.end, _STEP
    while view.end < size:
        at = view.end
        try:
            parsed = parse_record(buffer, at - base) if at - base < len(buffer) else None
        except BadRecordError as exc:
            if _is_blank(view.handle, at, size):  # a power cut between size and content
                return
            raise _damaged(path, at) from exc
        if parsed is None:
            if base == at and len(buffer) >= min(step, size - at):
                if len(buffer) >= min(_LONGEST_HEADER, size - at):
                    return
                step = _LONGEST_HEADER
            buffer, base = view.handle.read(at, min(at + step, size)), at
            if not buffer:
                return  # cut off meanwhile
            continue
        record, head = parsed
        if at + head + record.follows > size:
            return
        if record.kind == Kind.DIRECTORY and not _is_whole(view.handle, record, at + head):
            raise _damaged(path, at)
        view.take(record, at, head)


def _load_directory(view: View, slot: Slot, size: int, path: str) -> bool:
    data = _read_directory(view.handle, slot, size)
    if data is None:
        return False
    try:
        for name, member in parse_directory(data, slot.entries):
            view.add(name, member)
    except BadRecordError as exc:  # although its checksum is right: somebody made it so
        raise _damaged(path, slot.start) from exc
    view.comment = parse_comment(data, slot.entries)
    view.end = view.directory_end = slot.end
    view.directory_size = slot.length
    view.sequence = slot.sequence
    return True


def _read_directory(handle: Handle, slot: Slot, size: int) -> bytes | None:
    if slot.end > size:
        return None
    data = handle.read(slot.start, slot.end)
    try:
        parsed = parse_record(data, 0)
    except BadRecordError:
        return None
    if parsed is None:
        return None
    record, head = parsed
    data = data[head:]
    whole = record.kind == Kind.DIRECTORY and record.tag == zlib.crc32(data)
    return data if whole and len(data) == record.follows else None


def _is_whole(handle: Handle, record: Record, start: int) -> bool:
    return zlib.crc32(handle.read(start, start + record.follows)) == record.tag


def _is_blank(handle: Handle, at: int, size: int) -> bool:
    while at < size:
        chunk = handle.read(at, min(at + _CHUNK, size))
        if chunk.strip(b"\0"):
            return False
        if not chunk:
            return True
        at += len(chunk)
    return True


def _damaged(path: str, at: int) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged at byte {at}: what is there is no record that blobstore wrote. "
        "Restore the file from a copy; 'zip -FF' can rescue members from what is left"
    )
