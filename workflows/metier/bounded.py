"""Work that may hang, in a thread of its own: whoever waits for it can stop, and the process ends without it.

`awaiting` looks at services by it, `doctor` examines them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def started(name: str, work: Callable[[], T]) -> Future[T]:
    """What will come of `work`, which has begun."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:  # whoever asks for the answer gets it
            answer.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return answer
