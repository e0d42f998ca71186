"""How `metier chaos` ends when it is told to. What it does otherwise, tests/chaos shows."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from metier.chaos.command import heeding_sigterm
from metier_infra.errors import Cancelled


async def test_a_second_sigterm_does_not_cut_short_the_ending_of_what_was_started() -> None:
    # Given work that has started something, and takes a while to end it
    working, ending, may_end, ended = (asyncio.Event() for _ in range(4))

    async def work() -> None:
        try:
            working.set()
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()
            ended.set()

    task = asyncio.create_task(heeding_sigterm(work()))
    await working.wait()
    # When it is told to end, and told again while it does
    os.kill(os.getpid(), signal.SIGTERM)
    await ending.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await told_twice()
    may_end.set()
    # Then it ends all of it first
    with pytest.raises(Cancelled, match="every process that was started has ended"):
        await task
    assert ended.is_set()


async def told_twice() -> None:
    """Wait until the loop has seen the second signal: it reads signals before what another thread calls after them."""
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    await loop.run_in_executor(None, loop.call_soon_threadsafe, seen.set)
    await seen.wait()
