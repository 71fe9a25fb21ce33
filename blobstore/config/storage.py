"""Settings of a storage, typed and checked: what all kinds of storage have in common."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blobstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """What does not depend on where the files are.

    Attributes
    ----------
    timeout : float
        Seconds that one request may take.
    max_retries : int
        How often a request that failed is made again.
    retry_delay : float
        Seconds before the first of these; they double each time.
    chunk_size : int
        Bytes that are moved at a time.
    cache_dir : path, optional
        Where copies are kept; by default a folder of the user's.
    cache_expiry_hours : float
        After how long a copy is not used any more.
    temp_dir : path, optional
        For temporary files; by default the system's.
    extra : mapping
        Options of the storage that have no field. Never shown.

    Raises
    ------
    ConfigError
        A value is of the wrong type, or out of range.

    Examples
    --------
    >>> StorageConfig(timeout=5).max_retries
    3
    >>> StorageConfig(timeout=-1)
    Traceback (most recent call last):
    ...
    blobstore.errors.ConfigError: StorageConfig: timeout must be a number greater than 0, not -1
    """

    timeout: float = 30
    max_retries: int = 3
    retry_delay: float = 1.0
    chunk_size: int = 8 << 20
    cache_dir: str | os.PathLike[str] | None = None
    cache_expiry_hours: float = 24
    temp_dir: str | os.PathLike[str] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.check_number("timeout", least=0, more=True)
        self.check_number("max_retries", least=0, whole=True)
        self.check_number("retry_delay", least=0)
        self.check_number("chunk_size", least=1, whole=True)
        self.check_number("cache_expiry_hours", least=0, more=True)
        for name in ("cache_dir", "temp_dir"):
            self._check_path(name)
        extra: Any = self.extra
        if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
            raise self.wrong("extra must be a mapping of names to options")
        object.__setattr__(self, "extra", dict(extra))

    def check_number(
        self, name: str, *, least: float, more: bool = False, whole: bool = False
    ) -> None:
        """Refuse a field that is no finite number, or too small a one."""
        value: Any = getattr(self, name)
        is_number = type(value) is int or (type(value) is float and not whole)
        if not (is_number and math.isfinite(value) and (value > least if more else value >= least)):
            what = "an integer" if whole else "a number"
            limit = f"greater than {least}" if more else f"of {least} or more"
            raise self.wrong(f"{name} must be {what} {limit}, not {value!r}")

    def check_kind(self, name: str, kind: type[Any], what: str) -> None:
        """Refuse a field that is not of a type; its value is not shown, since it may be secret."""
        value = getattr(self, name)
        if not isinstance(value, kind):
            raise self.wrong(f"{name} must be {what}, not {type(value).__name__}")

    def wrong(self, problem: str) -> ConfigError:
        """An error that names the class."""
        return ConfigError(f"{type(self).__name__}: {problem}")

    def _check_path(self, name: str) -> None:
        value: Any = getattr(self, name)
        if value is None:
            return
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str) or not text or "\0" in text:
            raise self.wrong(f"{name} must be the path of a folder, not {value!r}")
        try:
            object.__setattr__(self, name, Path(text).expanduser().absolute())
        except RuntimeError as exc:
            raise self.wrong(f"{name} is in nobody's home folder: {text!r}") from exc
