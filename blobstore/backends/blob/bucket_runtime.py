"""obstore in this process, also after a fork.

obstore has one runtime for all its calls, with threads of its own, in the memory of its extension
module. A forked child inherits the module without the threads, and its first call would wait for
ever. So a child loads a copy of the module from another file, which brings a runtime of its own.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import obstore

from blobstore.errors import StorageError

_NAME = "_obstore"

_loaded: tuple[int, ModuleType] = (os.getpid(), obstore._obstore)  # noqa: SLF001 - what there is to copy


def runtime() -> ModuleType:
    """Give the functions of obstore, with `_store` and `exceptions`, for this process.

    Raises
    ------
    StorageError
        This process is a forked child, and cannot load a copy.
    """
    global _loaded  # noqa: PLW0603 - one for each process, as the module itself
    pid, module = _loaded
    if pid != os.getpid():
        # Two threads that come here at once load one each, and both work.
        module = _load_copy(Path(str(obstore._obstore.__file__)))  # noqa: SLF001 - as above
        _loaded = (os.getpid(), module)
    return module


def _load_copy(original: Path) -> ModuleType:
    try:
        # The file can go once it is loaded; a loader tells modules apart by file, not by name.
        with tempfile.TemporaryDirectory(prefix="blobstore-") as folder:
            copy = shutil.copyfile(original, Path(folder, original.name))
            loader = importlib.machinery.ExtensionFileLoader(_NAME, str(copy))
            spec = importlib.util.spec_from_file_location(_NAME, copy, loader=loader)
            if spec is None:
                raise ImportError(f"{copy} is no extension module")  # noqa: TRY301 - one way out
            before = sys.modules.get(_NAME)
            module = importlib.util.module_from_spec(spec)
            loader.exec_module(module)
            assert sys.modules.get(_NAME) is before
            return module
    except (ImportError, OSError) as exc:
        raise StorageError(
            f"buckets cannot be used in this forked process: no copy of {original} could be loaded "
            f"({exc}). Start processes by 'spawn' or 'forkserver', or free some temporary space"
        ) from exc
