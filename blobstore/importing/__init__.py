"""Bringing in what other programs stored, as library calls that leave the source as it is.

Each reads one kind of folder and gives an `ImportReport`, which names what was imported, what was
skipped, and what could not be read, with the reason. Nothing of another program is trusted: pickles
load as those of strangers do (see `blobstore.trust`), and paths that an index names must stay in
its folder.
"""

from blobstore.importing.cacheness import import_cacheness
from blobstore.importing.diskcache import import_diskcache
from blobstore.importing.folder import import_folder
from blobstore.importing.joblib import import_joblib
from blobstore.importing.report import ImportReport, Skipped, Unreadable

__all__ = [
    "ImportReport",
    "Skipped",
    "Unreadable",
    "import_cacheness",
    "import_diskcache",
    "import_folder",
    "import_joblib",
]
