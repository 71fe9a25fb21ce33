"""What several of these modules need."""

from __future__ import annotations

import asyncio
import threading

import pytest


@pytest.fixture(scope="module")
def running_loop():
    """An event loop that runs in a thread of its own."""
    loops: list[asyncio.AbstractEventLoop] = []
    started = threading.Event()
    ended = asyncio.Event()

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        started.set()
        await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    started.wait()
    (loop,) = loops
    yield loop
    loop.call_soon_threadsafe(ended.set)
    thread.join()


@pytest.fixture(scope="class")
def background_loop(request, running_loop):
    """Gives a suite the `loop` that its stores hop to."""
    request.cls.loop = running_loop
