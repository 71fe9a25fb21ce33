"""The hop from a worker thread to an event loop: the thread waits until the loop has done a thing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from blobstore.aio.store import take
from blobstore.aio.threads import BATCH, Call, current_call
from blobstore.errors import ClosedError, ConfigError, InvalidInputError, UnavailableError

T = TypeVar("T")

_last_tasks: set[asyncio.Task[object]] = set()
"""Held here, as a loop holds its tasks weakly."""


class LoopHop:
    """Awaits things on the event loop of one asynchronous store, for threads that cannot await.

    Parameters
    ----------
    store : object
        Named in messages.
    loop : asyncio.AbstractEventLoop, optional
        By default that of the awaited call that the thread works for, else the last one known.
    """

    def __init__(self, store: object, loop: asyncio.AbstractEventLoop | None) -> None:
        self._store = store
        self._fixed_loop = loop
        self._last_loop: weakref.ref[asyncio.AbstractEventLoop] | None = None

    def remember(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use this loop where a call does not tell: in the threads that a wrapper starts."""
        self._last_loop = weakref.ref(loop)

    def wait(self, start: Callable[[], Awaitable[T]], *, reads: bool = False) -> T:
        """Await on the loop what `start` gives, while this thread waits.

        Parameters
        ----------
        start : callable
        reads : bool
            Whether it may end in the middle when the call that it is for is cancelled.

        Raises
        ------
        InvalidInputError
            This is the loop's own thread, or the loop does not run.
        ConfigError
            No loop is known.
        ClosedError
            The loop is closed.
        UnavailableError
            The loop ended before it was done.
        """
        call = current_call()
        loop = self._loop(call)
        if call is not None and reads and call.reads and call.loop is loop:
            work = call.hand_over(start)
        else:
            work = _await(start)
        try:
            job = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError as exc:
            work.close()
            raise self._loop_closed() from exc
        try:
            return job.result()
        except concurrent.futures.CancelledError as exc:
            if call is not None and call.cancelled:
                raise asyncio.CancelledError from exc
            raise UnavailableError(
                f"a call to {self._store!r} was cancelled with its event loop", outcome="unknown"
            ) from exc
        finally:
            job.cancel()  # in case this thread was interrupted; else it is done
            del job

    def dismiss(self, start: Callable[[], Awaitable[object]]) -> None:
        """Let go of something: wait for it, but not in the loop's own thread, nor for a dead loop.

        What is forgotten is closed by whichever thread happens to collect it.
        """
        loop = self._known_loop(current_call())
        if loop is None or not loop.is_running():
            return
        if loop is _running_loop():
            task = loop.create_task(_await(start))
            _last_tasks.add(task)
            task.add_done_callback(_last_tasks.discard)
            return
        with contextlib.suppress(ClosedError, UnavailableError):
            self.wait(start)

    def iterate(self, start: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
        """Iterate on the loop, a batch at a time; the first one now, so that errors come now."""

        async def begin() -> tuple[AsyncIterator[T], list[T]]:
            iterator = start()
            return iterator, await take(iterator, BATCH)

        return self._go_on(*self.wait(begin, reads=True))

    def _go_on(self, iterator: AsyncIterator[T], batch: list[T]) -> Iterator[T]:
        try:
            while True:
                yield from batch
                if len(batch) < BATCH:
                    break
                batch = self.wait(lambda: take(iterator, BATCH), reads=True)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None and len(batch) == BATCH:
                self.dismiss(close)

    def _loop(self, call: Call | None) -> asyncio.AbstractEventLoop:
        loop = self._known_loop(call)
        running = _running_loop()
        if running is not None and loop in (None, running):
            raise InvalidInputError(
                f"waiting for {self._store!r} in the thread of its own event loop would never end: "
                "await it, or to_async(...) of the store around it"
            )
        if loop is None:
            raise ConfigError(
                f"the event loop of {self._store!r} is not known: give it, to_sync(store, loop), "
                "or use it inside a store that is awaited"
            )
        if loop.is_closed():
            raise self._loop_closed()
        if not loop.is_running():
            raise InvalidInputError(f"the event loop of {self._store!r} does not run: start it")
        self.remember(loop)
        return loop

    def _known_loop(self, call: Call | None) -> asyncio.AbstractEventLoop | None:
        if self._fixed_loop is not None:
            return self._fixed_loop
        if call is not None:
            return call.loop
        return None if self._last_loop is None else self._last_loop()

    def _loop_closed(self) -> ClosedError:
        return ClosedError(f"the event loop of {self._store!r} was closed: make a new store")


async def _await(start: Callable[[], Awaitable[T]]) -> T:
    return await start()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
