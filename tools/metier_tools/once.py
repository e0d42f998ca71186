"""One id, one work: who comes later waits for the first and finds its result, and who gives up ends it.

The runner keeps its calls here. Nothing in it knows what a work does; it stops one by the container that the work holds.
"""

from __future__ import annotations

import hmac
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager

from metier_infra.errors import ToolCancelled
from metier_tools.sandbox import Held
from metier_tools.tool import ToolResult

REMEMBERED = 256
"""Finished results that are kept for a call sent again."""
REMEMBERED_CHARS = 32 * 1024 * 1024
"""And how much text they may hold together."""
GIVEN_UP = 4096
"""Grants whose calls were given up, and are not started when a copy of them still comes."""


class Work:
    """The work of one id. `answer` is what comes of it; it is wanted as long as one of the grants that asked for it stands."""

    def __init__(self, key: str, grant: str) -> None:
        self.key = key
        self.answer: Future[ToolResult] = Future()
        self._wanted = {grant}
        self._held: Held | None = None
        self._ended = False
        self.given_up = False
        self._lock = threading.Lock()

    def join(self, grant: str) -> bool:
        """Want it too, unless it was given up."""
        with self._lock:
            self._wanted.add(grant)
            return not self.given_up

    def in_hand(self, grant: str) -> bool:
        """Whether it has not ended yet, and this grant asked for it."""
        with self._lock:
            asked = any(hmac.compare_digest(grant.encode(), one.encode()) for one in self._wanted)
            return asked and not self._ended

    def give_up(self, grant: str) -> bool:
        """Want it no more; whether that ended it, and its container, since nobody else wants it."""
        with self._lock:
            self._wanted.discard(grant)
            if self._ended or self._wanted:
                return False
            self._ended = self.given_up = True
            if self._held is not None:
                self._held.stop()
            return True

    @contextmanager
    def holding(self, held: Held) -> Generator[None]:
        """The work runs in this container, until the block ends: after that it may be another call's, and is not ended any more.

        Raises `ToolCancelled` when the work was given up, before or within.
        """
        self._hold(held)
        try:
            yield
        finally:
            with self._lock:
                self._held = None
        if self.given_up:
            raise _cancelled(self.key)

    def _hold(self, held: Held) -> None:
        with self._lock:
            if self.given_up:
                raise _cancelled(self.key)
            self._held = held

    def end(self) -> bool:
        """Whether it is still open how this work ends; it is not any more."""
        with self._lock:
            was_open, self._ended = not self._ended, True
            return was_open


def _cancelled(key: str) -> ToolCancelled:
    return ToolCancelled(f"tool call {key} was cancelled by its caller")


class Once:
    """The works that are in hand or known. Results are kept for a while, errors are not."""

    def __init__(self, most: int = REMEMBERED, most_chars: int = REMEMBERED_CHARS) -> None:
        self._most, self._most_chars, self._chars = most, most_chars, 0
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Work] = OrderedDict()
        self._given_up: OrderedDict[str, None] = OrderedDict()

    def take(self, key: str, grant: str) -> tuple[Work, bool]:
        """The work of this id, and whether the taker is to `settle` it. Raises `ToolCancelled` for a grant that was given up."""
        with self._lock:
            if grant in self._given_up:
                raise _cancelled(key)
            known = self._known.get(key)
            if known is not None and known.join(grant):
                return known, False
            made = self._known[key] = Work(key, grant)
            return made, True

    def settle(self, work: Work, do: Callable[[], ToolResult]) -> None:
        """Do the work, and let what comes of it be its answer; unless it was given up, before or meanwhile."""
        if work.given_up:
            return
        try:
            result = do()
        except BaseException as error:
            if work.end():
                self._forget(work)
                work.answer.set_exception(error)
        else:
            if work.end():
                self._finish(work, result)

    def give_up(self, key: str, grant: str) -> bool:
        """Whoever has this grant wants the work no more; whether it was in hand for them.

        When nobody else wants it, its container is ended, and its answer is `ToolCancelled`.
        """
        work = self._work(key)
        if work is None or not work.in_hand(grant):
            return False
        self._remember(grant)
        if work.give_up(grant):
            self._forget(work)
            work.answer.set_exception(_cancelled(key))
        return True

    def _remember(self, grant: str) -> None:
        with self._lock:
            self._given_up[grant] = None
            if len(self._given_up) > GIVEN_UP:
                self._given_up.popitem(last=False)

    def in_hand(self, key: str, grant: str) -> bool:
        """Whether this work is under way, and the grant is one that asked for it."""
        work = self._work(key)
        return work is not None and work.in_hand(grant)

    def keys(self) -> tuple[str, ...]:
        """The ids in hand."""
        with self._lock:
            return tuple(key for key, work in self._known.items() if not work.answer.done())

    def _work(self, key: str) -> Work | None:
        with self._lock:
            return self._known.get(key)

    def _forget(self, work: Work) -> None:
        with self._lock:
            if self._known.get(work.key) is work:
                del self._known[work.key]

    def _finish(self, work: Work, result: ToolResult) -> None:
        with self._lock:
            self._chars += _size(result)
        work.answer.set_result(result)
        with self._lock:
            self._shrink()

    def _shrink(self) -> None:
        """Forget the oldest finished results; what is under way is never forgotten."""
        for key, known in list(self._known.items()):
            if len(self._known) <= self._most and self._chars <= self._most_chars:
                return
            if known.answer.done():
                self._chars -= _size(known.answer.result())
                del self._known[key]


def _size(result: ToolResult) -> int:
    inline = sum(len(file.inline or "") for file in result.files.values())
    return len(result.stdout) + len(result.stderr) + inline
