"""A folder of plain files."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blobstore.autostore.formats import Formats
from blobstore.autostore.names import split
from blobstore.errors import DecodeError
from blobstore.files.text import BytesFormat
from blobstore.files.trust import FileTrust
from blobstore.handlers.file import LocalFile
from blobstore.importing.importer import Found, Importer, Item, Progress
from blobstore.importing.report import ImportReport, Unreadable
from blobstore.importing.source import SourceFolder
from blobstore.limits import MAX_DECOMPRESSED
from blobstore.protocols.file_format import FileContext
from blobstore.reading import Pickle
from blobstore.store import BlobStore
from blobstore.streams import FileSource


def import_folder(
    path: str | os.PathLike[str],
    store: BlobStore,
    *,
    prefix: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    parse: bool = True,
    pickle: Pickle = "signed",
    trusted_types: Iterable[str] = (),
    signing_keys: Iterable[bytes | str] | None = None,
    max_decompressed_bytes: int = MAX_DECOMPRESSED,
) -> ImportReport:
    """Import the files of a folder; the path of each below it is its key.

    Files of the types that `AutoStore` reads become the objects in them (`.parquet`, `.csv`, `.json`,
    `.npy`, `.txt` ...), all others their bytes. An AutoStore's own folder can be imported, too.

    Parameters
    ----------
    path : path
        Never written to.
    store : BlobStore
        Outside of that folder.
    prefix : str
        Put before each key.
    overwrite : bool
        Replace what is in the store under such a key. By default it is left and the file skipped,
        so that an import that was interrupted goes on where it was.
    dry_run : bool
        Read all and report, but store nothing.
    progress : callable, optional
        ``progress(done, total, place)`` after each file.
    parse : bool
        False: the bytes of all files, streamed; `BlobStore.get_file` gives each back as it was.
    pickle : {"signed", "allow", "deny"}
        Which pickles are loaded: those that your own AutoStore signed and, of the others, those
        that hold only plain and harmless types; all, which runs whatever is in them; none.
    trusted_types : iterable of str
        Types that pickles may name besides: ``"sklearn.*"``.
    signing_keys : iterable of (bytes or str), optional
        What an AutoStore signed its files with, if not with your own key.
    max_decompressed_bytes : int
        A compressed file may grow to so many bytes, or to 256 times its size, whichever is more.

    Returns
    -------
    ImportReport
        Files that are damaged, not trusted, or links out of the folder are in its `unreadable`.

    Raises
    ------
    InvalidInputError
        There is no such folder, or the store is in it.
    StorageError
        The store cannot be written. What was imported stays; run it again to go on.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "notes.md").write_text("# Notes")
    >>> store = BlobStore(tempfile.mkdtemp())
    >>> import_folder(folder, store, prefix="old/").imported, store["old/notes.md"]
    (['old/notes.md'], '# Notes')
    """
    source = SourceFolder(path)
    trust = FileTrust(pickle, trusted_types, signing_keys, max_decompressed_bytes)
    importer = Importer(
        source,
        store,
        "folder",
        prefix=prefix,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    paths = list(source.walk())
    return importer.run(_items(source, paths, Formats() if parse else None, trust), len(paths))


def file_facts(file: Path) -> dict[str, Any]:
    """What is kept of a file beside its content."""
    stat = file.stat()
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return {"size": stat.st_size, "modified": modified.isoformat()}


def local_file(file: Path) -> LocalFile:
    """A file to be stored by its content, if it can be opened."""
    with file.open("rb"):
        return LocalFile(file)


def _items(
    source: SourceFolder,
    paths: Iterable[Path | Unreadable],
    formats: Formats | None,
    trust: FileTrust,
) -> Iterator[Found]:
    for path in paths:
        if isinstance(path, Unreadable):
            yield path
            continue
        name = source.place(path)
        try:
            file = source.file(path)
            facts = file_facts(file)
        except (DecodeError, OSError) as exc:
            yield Unreadable(name, str(exc))
            continue
        yield Item(name, name, functools.partial(_load, file, name, formats, trust), facts)


def _load(file: Path, name: str, formats: Formats | None, trust: FileTrust) -> Any:
    extension = split(name, formats.extensions)[1] if formats is not None else ""
    if formats is None or not extension:
        return local_file(file)
    reader = formats.for_reading(extension, name)
    if isinstance(reader, BytesFormat):
        return local_file(file)
    with FileSource(file) as content:
        return reader.read(content, FileContext(name, extension, trust))
