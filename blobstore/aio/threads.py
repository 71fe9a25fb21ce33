"""The hop into a worker thread: how many there are, and what a cancellation does to a call.

A call that has not begun is dropped. One that runs cannot be interrupted, so it is waited for: when
the caller sees `CancelledError`, nothing of it goes on behind its back. Long writes ask
`stop_if_cancelled` now and then; a call that only reads lets go of the event loop at once, if that
is what it waits for (`Call.hand_over`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from blobstore.errors import ClosedError, ConfigError

DEFAULT_LIMIT = 32
"""Calls of one store that run at once."""

BATCH = 256
"""Keys that are listed in one hop."""

T = TypeVar("T")


class Call:
    """One call from an event loop, as the worker thread sees it.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        Where it comes from.
    reads : bool
        Whether it changes nothing that matters, so that it may end in the middle.
    cancelled : bool
        Whether nobody waits for its result any more.
    """

    __slots__ = ("_handed_over", "cancelled", "loop", "reads")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, reads: bool) -> None:
        self.loop = loop
        self.reads = reads
        self.cancelled = False
        self._handed_over: set[asyncio.Task[Any]] = set()

    def cancel(self) -> None:
        """Take note that nobody waits any more; called on the loop."""
        self.cancelled = True
        for task in self._handed_over:
            task.cancel()

    async def hand_over(self, start: Callable[[], Awaitable[T]]) -> T:
        """Read something from a native store, on the loop, until the call is cancelled."""
        if self.cancelled:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._handed_over.add(task)
        try:
            return await start()
        finally:
            self._handed_over.discard(task)


_current: ContextVar[Call | None] = ContextVar("blobstore_call", default=None)


def current_call() -> Call | None:
    """The call that this thread works for, if it comes from an event loop."""
    return _current.get()


def stop_if_cancelled() -> None:
    """Raise `CancelledError` in a worker thread whose call was cancelled."""
    call = _current.get()
    if call is not None and call.cancelled:
        raise asyncio.CancelledError


class Threads:
    """Up to `limit` worker threads, made when they are needed; any event loop may use them.

    A forked child makes its own. They end with `close`, or when this object is forgotten.

    Parameters
    ----------
    limit : int

    Attributes
    ----------
    closed : bool
    tell_loop : tuple of callable
        Called with the event loop of each call, before it is done.

    Raises
    ------
    ConfigError
        `limit` is no number of threads.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        if type(limit) is not int or limit < 1:
            raise ConfigError(f"limit must be an int of at least 1, not {limit!r}")
        self.limit = limit
        self.closed = False
        self.tell_loop: tuple[Callable[[asyncio.AbstractEventLoop], None], ...] = ()
        # No lock: one that some thread holds at a fork would stay locked in the child for ever.
        self._pools: dict[int, ThreadPoolExecutor] = {}

    async def run(
        self,
        work: Callable[[], T],
        *,
        reads: bool = False,
        undo: Callable[[T], object] | None = None,
        last: bool = False,
    ) -> T:
        """Do `work` in a thread, and return its result or raise its error.

        Parameters
        ----------
        work : callable
        reads : bool
            Whether it may end in the middle when it is cancelled.
        undo : callable, optional
            Given the result of a call that was cancelled: a file to be closed, say.
        last : bool
            Whether this tidies up: it is done even if it is cancelled, and after `close`.

        Raises
        ------
        ClosedError
            `close` came first.
        asyncio.CancelledError
            Nothing of it runs any more.
        """
        call = Call(asyncio.get_running_loop(), reads=reads)
        for tell in self.tell_loop:
            tell(call.loop)
        context = copy_context()
        context.run(_current.set, call)
        pool, job = self._submit(lambda: context.run(work), last=last)
        try:
            await _end(job)
            return job.result()
        except asyncio.CancelledError as exc:
            if not last and job.cancel():
                raise
            call.cancel()
            await _certain_end(job)
            if undo is not None and job.exception() is None:
                await self._undo(partial(undo, job.result()), exc)
            raise
        finally:
            if isinstance(pool, _Lone):
                pool.shutdown(wait=job.done())  # by then its thread only has to end
            del job  # an error holds this frame: a circle, in which files would stay open

    async def _undo(self, work: Callable[[], object], cancelled: asyncio.CancelledError) -> None:
        try:
            await self.run(work, last=True)
        finally:
            raise cancelled  # whose context is the error, if there was one

    async def iterate(self, start: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Iterate in threads, a batch for each hop; closes the iterator if it is left halfway."""

        def begin() -> tuple[Iterator[T], list[T]]:
            iterator = start()
            try:
                return iterator, list(islice(iterator, BATCH))
            except BaseException:
                _close(iterator)
                raise

        iterator, batch = await self.run(begin, reads=True, undo=lambda begun: _close(begun[0]))
        try:
            while True:
                for item in batch:
                    yield item
                if len(batch) < BATCH:
                    break
                batch = await self.run(lambda: list(islice(iterator, BATCH)), reads=True)
        finally:
            if len(batch) == BATCH:
                await self.run(lambda: _close(iterator), last=True)

    async def close(self, work: Callable[[], T]) -> T:
        """Refuse further calls, do `work` in a thread, and end the threads."""
        self.closed = True

        def finish() -> T:
            try:
                return work()
            finally:
                self.end()

        return await self.run(finish, last=True)

    def end(self) -> None:
        """Refuse further calls, and wait until the threads of this process have ended."""
        self.closed = True
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.shutdown()

    def _submit(self, work: Callable[[], T], *, last: bool) -> tuple[ThreadPoolExecutor, Future[T]]:
        if not self.closed:
            pool = self._pool()
            try:
                return pool, pool.submit(work)
            except RuntimeError:
                if not self.closed:  # closed in another thread, just now
                    raise
        if not last:
            raise ClosedError("this async store was closed: make a new one")
        pool = _Lone(1, thread_name_prefix="blobstore-aio-own")
        return pool, pool.submit(work)

    def _pool(self) -> ThreadPoolExecutor:
        process = os.getpid()
        pool = self._pools.get(process)
        if pool is None:
            new = ThreadPoolExecutor(self.limit, thread_name_prefix="blobstore-aio")
            pool = self._pools.setdefault(process, new)
        return pool


async def run_alone(work: Callable[[], T]) -> T:
    """Do `work` in a thread of its own, and wait for its end even if that is cancelled."""
    threads = Threads()
    threads.closed = True
    return await threads.run(work, last=True)


class _Lone(ThreadPoolExecutor):
    """A thread for one call."""


async def _end(job: Future[Any]) -> None:
    """Wait until a job has ended in whatever way; being cancelled does nothing to the job."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def wake() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_: object) -> None:
        # The loop may be closed by now, if somebody did not care to wait.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(wake)

    job.add_done_callback(tell)
    await ended


async def _certain_end(job: Future[Any]) -> None:
    """Wait until a job has ended, though it was cancelled, and may be once more."""
    while not job.done():
        with contextlib.suppress(asyncio.CancelledError):  # the first one is raised afterwards
            await _end(job)


def _close(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
