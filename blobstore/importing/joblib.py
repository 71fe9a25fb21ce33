"""Folders of joblib: results of `Memory`, and files of `joblib.dump`.

`joblib.Memory("cache")` keeps each result in ``cache/joblib/<module>/<function>/<hash>/output.pkl``,
with ``metadata.json`` beside it (arguments as text, duration, time), and the function's code in
``func_code.py`` above. joblib itself is not needed.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blobstore.errors import DecodeError
from blobstore.importing import joblib_files
from blobstore.importing.folder import file_facts
from blobstore.importing.importer import Found, Importer, Item, Progress
from blobstore.importing.pickles import Pickles
from blobstore.importing.report import ImportReport, Skipped, Unreadable
from blobstore.importing.source import SourceFolder
from blobstore.limits import MAX_DECOMPRESSED
from blobstore.reading import Pickle
from blobstore.store import BlobStore

_RESULT, _DETAILS = "output.pkl", "metadata.json"
_DUMPS = (".pkl", ".pickle", ".joblib", ".jbl", ".z", ".gz", ".bz2", ".xz", ".lzma", ".lz4")


def import_joblib(
    path: str | os.PathLike[str],
    store: BlobStore,
    *,
    prefix: str = "",
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    pickle: Pickle = "signed",
    trusted_types: Iterable[str] = (),
    max_decompressed_bytes: int = MAX_DECOMPRESSED,
) -> ImportReport:
    """Import a folder of `joblib.Memory`, or of files that `joblib.dump` wrote, without joblib.

    A cached result gets the key ``module/function/hash``, and its arguments, duration and time as
    metadata below ``"imported"``. A dumped file gets its path below the folder as its key.

    Parameters
    ----------
    path : path
        What `Memory` was given, or any folder of dumped files; never written to.
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
    pickle : {"signed", "allow", "deny"}
        Which are loaded: those of arrays, plain and harmless types, since joblib signs nothing; all,
        which runs whatever is in them; none.
    trusted_types : iterable of str
        Types that they may name besides: ``"sklearn.*"``.
    max_decompressed_bytes : int
        See `BlobStore`.

    Returns
    -------
    ImportReport
        Files that are damaged, not trusted, or of joblib before 0.10 are in its `unreadable`.

    Raises
    ------
    InvalidInputError
        There is no such folder, or the store is in it.
    StorageError
        The store cannot be written. What was imported stays; run it again to go on.
    """
    source = SourceFolder(path)
    pickles = Pickles(pickle, trusted_types, max_decompressed_bytes)
    importer = Importer(
        source,
        store,
        "joblib",
        prefix=prefix,
        overwrite=overwrite,
        dry_run=dry_run,
        progress=progress,
    )
    paths = list(source.walk())
    return importer.run(_items(source, paths, pickles), len(paths))


def _items(
    source: SourceFolder, paths: Iterable[Path | Unreadable], pickles: Pickles
) -> Iterator[Found]:
    for path in paths:
        if isinstance(path, Unreadable):
            yield path
            continue
        place = source.place(path)
        is_result = path.name == _RESULT and path.parent != source.root
        if path.name == _DETAILS and path.with_name(_RESULT).exists():
            continue  # read together with that
        if not is_result and not path.name.lower().endswith(_DUMPS):
            yield Skipped(place, "it is no result, and no file of joblib.dump by its name")
            continue
        try:
            file = source.file(path)
            facts = file_facts(file)
            key = place
            if is_result:
                key = _call(source.place(path.parent))
                facts |= _details(source, path.with_name(_DETAILS))
        except (DecodeError, OSError) as exc:
            yield Unreadable(place, str(exc))
            continue
        yield Item(place, key, functools.partial(joblib_files.load_file, file, pickles), facts)


def _call(place: str) -> str:
    """Module, function and hash of a result by the folder that it is in.

    Examples
    --------
    >>> _call("joblib/train/fit/9d8dd247cf48408847331be6f1226451")
    'train/fit/9d8dd247cf48408847331be6f1226451'
    """
    return place.removeprefix("joblib/")


def _details(source: SourceFolder, path: Path) -> dict[str, Any]:
    """What `Memory` noted of a call; nothing, if that is not there or damaged."""
    try:
        found = json.loads(source.file(path).read_bytes())
    except (DecodeError, OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    details: dict[str, Any] = {}
    when = found.get("time")
    if isinstance(when, int | float) and 0 < when < 1 << 33:
        details["computed"] = datetime.fromtimestamp(when, UTC).isoformat()
    arguments = found.get("input_args")
    if isinstance(arguments, dict):
        details["arguments"] = arguments
    if isinstance(found.get("duration"), float):
        details["duration"] = found["duration"]
    return details
