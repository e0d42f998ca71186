"""Work that is spread over processes, which end with whoever started them. `metier eval routing` and `metier bench routing` compute so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

One = TypeVar("One")
Made = TypeVar("Made")
_given: dict[str, Callable[[Any], Any]] = {}
"""In each of the processes: its work."""


def spread(work: Callable[[One], Made], items: Sequence[One], workers: int) -> Iterator[Made]:
    """What `work` makes of each, in order; in this process where there is one worker. Each process gets `work` once, so that may be large, and an item may not.

    Where the rest is not wanted any more, as after Ctrl-C, the processes are ended. Raises what `work` raises.
    """
    if workers == 1:
        yield from map(work, items)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores already
    others = active_children()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_take, initargs=(work,)) as pool:
        try:
            with _deaf():
                made = [pool.submit(_do, one) for one in items]
            for one in made:
                yield one.result()
        except BaseException:
            for process in active_children():
                if process not in others:
                    process.terminate()
            raise


def _take(work: Callable[[Any], Any]) -> None:
    _given["work"] = work


def _do(item: object) -> Any:
    return _given["work"](item)


@contextmanager
def _deaf() -> Generator[None]:
    """Processes that are started in here never hear Ctrl-C, which a terminal tells them too; this one hears it once they are there."""
    handler, heard = signal.getsignal(signal.SIGINT), list[int]()
    if not callable(handler) or current_thread() is not main_thread():
        yield
        return

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, hear)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)
