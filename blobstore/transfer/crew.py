"""The threads of a transfer: a bounded number of objects on their way, and a tally of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, TypeVar

from blobstore.errors import ConfigError

T = TypeVar("T")
Action = Literal["copy", "delete", "keep"]

_OTHERS_TOLD = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """What was done with one object, and how much was done so far.

    Attributes
    ----------
    action : {"copy", "delete", "keep"}
    key : str
    size : int
        Bytes that were copied, or would be in a dry run; 0 for what was deleted or kept.
    done : int
        Objects so far, this one included.
    bytes : int
        The sum of all sizes so far.
    """

    action: Action
    key: str
    size: int
    done: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What a transfer did, or would do.

    Attributes
    ----------
    dry_run : bool
        Whether nothing was changed, and this is what would be done.
    copied : int
    deleted : int
    unchanged : int
        Objects that are the same already, or that were not to be overwritten.
    vanished : int
        Objects that somebody removed from the source after they were listed.
    bytes : int
        Size of what was copied; values other than bytes count as nothing.
    cancelled : bool
        Whether `cancelled` ended it early: something is left to do.
    actions : tuple of (str, str)
        Of a dry run, each ("copy", key) and ("delete", key); about 150 bytes of memory for each.
    """

    dry_run: bool
    copied: int = 0
    deleted: int = 0
    unchanged: int = 0
    vanished: int = 0
    bytes: int = 0
    cancelled: bool = False
    actions: tuple[tuple[Action, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one object."""

    action: Action | Literal["vanished"]
    key: str
    size: int = 0


class Crew:
    """Threads that work on a bounded number of things at a time, and the tally of what they did.

    Parameters
    ----------
    workers : int
        How many threads.
    progress, cancelled : callable, optional
        As for `sync_stores`.
    dry_run : bool
        Whether to keep what would be done, for the report.

    Raises
    ------
    ConfigError
        A parameter is wrong.
    """

    def __init__(
        self,
        workers: int,
        progress: Callable[[Progress], object] | None,
        cancelled: Callable[[], bool] | None,
        *,
        dry_run: bool,
    ) -> None:
        if type(workers) is not int or workers < 1:
            raise ConfigError(f"workers must be an int, 1 or more, not {workers!r}")
        for name, call in (("progress", progress), ("cancelled", cancelled)):
            if call is not None and not callable(call):
                raise ConfigError(f"{name} must be callable or None, not {call!r}")
        self.dry_run = dry_run
        self._workers = workers
        self._progress = progress
        self._ask = cancelled
        self._cancelled = False
        self._closing = False  # an error was met: what is begun is finished
        self._aborted = False  # somebody wants out: what is half written is dropped
        self._tally = {"copy": 0, "delete": 0, "keep": 0, "vanished": 0}
        self._bytes = 0
        self._actions: list[tuple[Action, str]] = []

    def stopping(self) -> bool:
        """Whether nothing new is to be begun, and what is half done is to be dropped."""
        if self._ask is not None and not self._cancelled and self._ask():
            self._cancelled = True
        return self._cancelled or self._aborted

    def run(self, work: Callable[[T], Sequence[Done]], items: Iterable[T]) -> None:
        """Give each item to `work` in some thread, taking no more of them than are soon begun.

        The first error ends it: what is under way is finished, or, if the error is none of a
        program but of its user (`KeyboardInterrupt`), dropped.
        """
        pending: set[Future[Sequence[Done]]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="blobstore-transfer") as pool:
            try:
                for item in items:
                    if self.stopping():
                        break
                    pending.add(pool.submit(self._guarded, work, item))
                    if len(pending) >= 2 * self._workers:
                        self._collect(pending)
                while pending:
                    self._collect(pending)
            except BaseException as exc:
                self._closing = True
                self._aborted = not isinstance(exc, Exception)
                self._explain(exc, pending)
                raise

    def report(self) -> TransferReport:
        """What was done so far."""
        return TransferReport(
            dry_run=self.dry_run,
            copied=self._tally["copy"],
            deleted=self._tally["delete"],
            unchanged=self._tally["keep"],
            vanished=self._tally["vanished"],
            bytes=self._bytes,
            cancelled=self._cancelled,
            actions=tuple(self._actions),
        )

    def _guarded(self, work: Callable[[T], Sequence[Done]], item: T) -> Sequence[Done]:
        if self._closing or self.stopping():
            return ()
        try:
            return work(item)
        except Exception as exc:
            self._closing = True
            exc.add_note(f"This was met at {item!r:.200}.")
            raise

    def _collect(self, pending: set[Future[Sequence[Done]]]) -> None:
        """Wait for one or more, and count what they did."""
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            pending.remove(future)
            for done in future.result():
                self._count(done)
                if self._progress is not None and done.action != "vanished":
                    count = sum(self._tally.values()) - self._tally["vanished"]
                    step = Progress(done.action, done.key, done.size, count, self._bytes)
                    self._progress(step)

    def _count(self, done: Done) -> None:
        self._tally[done.action] += 1
        self._bytes += done.size
        if self.dry_run and done.action in ("copy", "delete"):
            self._actions.append((done.action, done.key))

    def _explain(self, exc: BaseException, pending: Iterable[Future[Sequence[Done]]]) -> None:
        """Wait for those that are under way, and say on the error what was done."""
        others = []
        for future in pending:
            if (error := future.exception()) is None:
                for done in future.result():
                    self._count(done)
            else:
                others.append(f"{type(error).__name__}: {error}")
        tally = self._tally
        exc.add_note(
            f"Until then {tally['copy']} objects ({self._bytes:,} bytes) were copied, "
            f"{tally['delete']} deleted and {tally['keep']} left as they were. Each of them is "
            "whole: the same call goes on from there."
        )
        if others:
            exc.add_note(f"{len(others)} more failed: " + "; ".join(others[:_OTHERS_TOLD]))
