"""What an import did, and what it could not do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Unreadable(NamedTuple):
    """Something in the source that was not imported, because it cannot be.

    Attributes
    ----------
    place : str
        A path below the source, or an index and the entry in it.
    reason : str
    """

    place: str
    reason: str


class Skipped(NamedTuple):
    """Something in the source that was not imported, because it need not be.

    Attributes
    ----------
    place : str
        A path below the source, or an index and the entry in it.
    reason : str
    """

    place: str
    reason: str


@dataclass(slots=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    imported : list of str
        Keys that were stored, in order; with ``dry_run=True`` those that would be.
    unreadable : list of Unreadable
        What is in the source and not in the store, and why.
    skipped : list of Skipped
        What was left out on purpose: keys that are in the store, entries that have expired, files
        that belong to no entry.

    Examples
    --------
    >>> report = ImportReport(["a"], [Unreadable("b.json", "it is cut off")])
    >>> report.ok, str(report)
    (False, '1 imported, 1 unreadable, 0 skipped')
    """

    imported: list[str] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything could be read."""
        return not self.unreadable

    def __str__(self) -> str:
        counts = len(self.imported), len(self.unreadable), len(self.skipped)
        return "{} imported, {} unreadable, {} skipped".format(*counts)
