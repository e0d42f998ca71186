"""A trusted function, called in this process, with its time kept.

`execution` calls it. A function cannot be killed: one that does not end in time goes on alone on its thread, and its result is dropped;
an `async` one is cancelled.
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
from typing import cast

from pydantic import JsonValue

from metier_tools.sandbox import Held, Outcome
from metier_tools.tool import ToolCall
from metier_tools.toolbox import Function

KEEP = 256 * 1024
"""What is kept of a function's result; bytes."""


def run(
    function: Function,
    call: ToolCall,
    arguments: Mapping[str, JsonValue],
    holding: Callable[[Held], AbstractContextManager[None]],
) -> Outcome:
    """Call the function with these arguments, those of the call and their defaults. Whatever it raises is a result."""
    began, ended = time.monotonic(), Future[Outcome]()
    timeout_s = max(0.001, min(call.timeout_s, call.deadline - time.time()))

    def work() -> None:
        outcome = _outcome(function, arguments, timeout_s)
        if not ended.done():
            ended.set_result(outcome)

    held = Held("", "", False, 0.0, 0.0, lambda _: Outcome("refused"), lambda: _stop(ended))
    with holding(held):
        threading.Thread(target=work, name=f"function-{call.tool}", daemon=True).start()
        try:
            outcome = ended.result(timeout_s)
        except TimeoutError:
            outcome = Outcome("timeout")
    return Outcome(
        outcome.status,
        None,
        outcome.stdout,
        outcome.stderr,
        outcome.truncated,
        round(1000 * (time.monotonic() - began), 3),
    )


def _stop(ended: Future[Outcome]) -> None:
    if not ended.done():
        ended.set_result(Outcome("died"))


def _outcome(function: Function, arguments: Mapping[str, JsonValue], timeout_s: float) -> Outcome:
    try:
        given = function.call(**arguments)
        if inspect.iscoroutine(given):
            given = asyncio.run(asyncio.wait_for(cast("Coroutine[object, object, object]", given), timeout_s))
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    except TimeoutError:
        return Outcome("timeout")
    except Exception as error:
        return Outcome("error", stderr=f"{type(error).__name__}: {error}")
    kept = text.encode("utf-8", "replace")[:KEEP].decode("utf-8", "ignore").replace("\0", "\ufffd")
    return Outcome("ok", stdout=kept, truncated=len(kept) < len(text))
