"""A trusted function, called in this process, with its time kept.

`execution` calls it. A function cannot be killed: one that does not end in time goes on alone on its thread, and its result is dropped;
an `async` one is cancelled. There may be only so many that go on alone.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import cast

from pydantic import JsonValue

from metier_tools.kept import kept
from metier_tools.sandbox import Held, Outcome
from metier_tools.tool import ToolCall
from metier_tools.toolbox import Function, Refusal

KEEP = 256 * 1024
"""What is kept of a function's result, or of what it raised; bytes."""
MOST_STRAGGLERS = 32
"""How many functions may go on alone in this process before no other is called."""


class Stragglers:
    """The threads of functions whose calls are over. For any number of threads."""

    def __init__(self) -> None:
        self._lock, self._threads = threading.Lock(), set[threading.Thread]()

    def add(self, thread: threading.Thread) -> None:
        """A call is over, and this thread may still be at it."""
        with self._lock:
            self._threads.add(thread)

    def count(self) -> int:
        """How many are still at it."""
        with self._lock:
            self._threads = {thread for thread in self._threads if thread.is_alive()}
            return len(self._threads)


STRAGGLERS = Stragglers()
"""Those of this process."""


def run(
    function: Function,
    call: ToolCall,
    arguments: Mapping[str, JsonValue],
    holding: Callable[[Held], AbstractContextManager[None]],
) -> Outcome | Refusal:
    """Call the function with these arguments, those of the call and their defaults. Whatever it raises is a result."""
    if STRAGGLERS.count() >= MOST_STRAGGLERS:
        return Refusal(
            f"{MOST_STRAGGLERS} functions did not end in their time and go on in this tool runner; none is called until one ends"
        )
    began, ended = time.monotonic(), Future[Outcome]()
    timeout_s = max(0.001, min(call.timeout_s, call.deadline - time.time()))

    def work() -> None:
        outcome = _outcome(function, arguments, timeout_s)
        if not ended.done():
            ended.set_result(outcome)

    held = Held("", "", False, 0.0, 0.0, lambda _: Outcome("refused"), lambda: _stop(ended))
    thread = threading.Thread(target=work, name=f"function-{call.tool}", daemon=True)
    with holding(held):
        thread.start()
        try:
            outcome = ended.result(timeout_s)
        except TimeoutError:
            outcome = Outcome("timeout")
    if outcome.status in {"timeout", "died"}:
        STRAGGLERS.add(thread)
    return replace(outcome, wall_ms=round(1000 * (time.monotonic() - began), 3))


def _stop(ended: Future[Outcome]) -> None:
    if not ended.done():
        ended.set_result(Outcome("died"))


def _outcome(function: Function, arguments: Mapping[str, JsonValue], timeout_s: float) -> Outcome:
    try:
        given = function.call(**arguments)
        if inspect.iscoroutine(given):
            given = asyncio.run(asyncio.wait_for(cast("Coroutine[object, object, object]", given), timeout_s))
        text = given if isinstance(given, str) else _json(given)
    except TimeoutError:
        return Outcome("timeout")
    except (Exception, SystemExit) as error:
        said, cut = kept(f"{type(error).__name__}: {error}", KEEP)
        return Outcome("error", stderr=said, truncated=cut)
    said, cut = kept(text, KEEP)
    return Outcome("ok", stdout=said, truncated=cut)


def _json(given: object) -> str:
    """What a function returned, as text. Raises `ValueError` for what JSON has no word for, such as NaN."""
    try:
        return json.dumps(given, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"what it returned cannot be written as JSON: {error}") from error
