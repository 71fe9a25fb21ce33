"""Settings from the environment and ``.env`` files, and logging, for programs around a store."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping

from blobstore.registry import load

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Config(Mapping[str, str]):
    """The environment of this process, read only.

    Examples
    --------
    >>> import os
    >>> os.environ["RUN_NAME"] = "seven"
    >>> config["RUN_NAME"], config.get("RUN_NUMBER", "0"), config.RUN_NAME
    ('seven', '0', 'seven')
    """

    def __getitem__(self, name: str) -> str:
        return os.environ[name]

    def __getattr__(self, name: str) -> str:
        try:
            return os.environ[name]
        except KeyError:
            raise AttributeError(f"the environment has no variable {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    def __len__(self) -> int:
        return len(os.environ)

    def __repr__(self) -> str:
        return f"Config({len(self)} variables)"  # whose values may be secret


config = Config()


def load_dotenv(path: str | os.PathLike[str] | None = None, *, override: bool = False) -> bool:
    """Put the variables of a ``.env`` file into the environment, by python-dotenv.

    Parameters
    ----------
    path : path, optional
        By default the first ``.env`` in the working directory or above it.
    override : bool
        Whether they go before variables that are set already.

    Returns
    -------
    bool
        Whether there was a file with variables.

    Raises
    ------
    MissingDependencyError
        python-dotenv is not installed (extra ``dotenv``).
    """
    find = load("dotenv:find_dotenv")
    found = os.fspath(path) if path is not None else find(usecwd=True)
    return bool(found) and bool(load("dotenv:load_dotenv")(found, override=override))


def setup_logging(level: int | str = "INFO", *, file: str | os.PathLike[str] | None = None) -> None:
    """Show the log of this library, on standard error or in a file.

    Calling it again changes what it set up before; other loggers are left alone.

    Parameters
    ----------
    level : int or str
    file : path, optional

    Examples
    --------
    >>> setup_logging("WARNING")
    >>> logging.getLogger("blobstore").level == logging.WARNING
    True
    """
    logger = logging.getLogger("blobstore")
    logger.setLevel(level)
    handler = logging.StreamHandler() if file is None else logging.FileHandler(file)
    handler.setFormatter(logging.Formatter(_FORMAT))
    handler.set_name("blobstore.setup_logging")
    for old in [h for h in logger.handlers if h.get_name() == handler.get_name()]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
