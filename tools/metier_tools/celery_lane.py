"""Celery as the tool lane, from the caller's side. `compose` opens `CeleryLane` in agents; `celery_worker` takes what it sends.

A call goes as a Celery message with all that matters in its arguments; its answer, signed, comes back on a Redis list that the caller
reads. The lane is not durable and need not be: the caller sends again under the same id, unless a runner says that it is at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import redis
import redis.asyncio
import structlog
from pydantic import ValidationError

from metier_infra.errors import DeadlineMissed, LaneGone
from metier_infra.retry import Backoff
from metier_tools.celery_app import TASK, Config, Note, make_app
from metier_tools.lane import Shared
from metier_tools.redis_line import connect
from metier_tools.reply import Reply, call_digest, result_of, unseal
from metier_tools.tool import ToolCall, ToolResult

log = structlog.get_logger()

READ_S = 15.0
"""A read that waits for replies begins anew after so long, so that a connection that died silently is noticed; seconds."""
ASK_S = 1.0
"""How long a runner may take to say that it has a call in hand; seconds."""
GIVEN_UP_KEPT_S = 60
"""How long beyond its deadline a call is known to be given up; seconds."""


@dataclass(frozen=True)
class _Copy:
    """A call, as it travels, to be put into its queue."""

    queue: str
    tool_call_id: str
    text: str
    reply_list: str


@dataclass(frozen=True)
class _Said:
    """A note to every runner. One that gives a call up is kept until `keep_until`, in seconds since the epoch."""

    note: Note
    keep_until: float


_Letter = _Copy | _Said


class _Publisher(threading.Thread):
    """Publishes off the event loop, since Celery blocks. A call that cannot be sent is dropped: its caller sends again.

    It has a connection of its own: kombu's pools are shared by the whole process.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(name="tool-publisher", daemon=True)
        self._letters: queue.SimpleQueue[_Letter | None] = queue.SimpleQueue()
        self._config, self._app = config, make_app(config)
        self._producer: Any = None
        self._redis = connect(config.redis_url)

    def post(self, letter: _Letter | None) -> None:
        """Hand over a message; None ends the thread."""
        self._letters.put(letter)

    def run(self) -> None:
        """Publish until told to end."""
        while letter := self._letters.get():
            try:
                self._publish(letter) if isinstance(letter, _Copy) else self._say(letter)
            except Exception as error:  # kombu lets many kinds through; all mean that the broker did not take it
                self._hang_up()
                self._failed(letter, error)
        self._hang_up()
        self._redis.close()

    def _publish(self, copy: _Copy) -> None:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self._app.connection_for_write())
        arguments = (copy.text, copy.reply_list)
        self._app.send_task(TASK, arguments, queue=copy.queue, producer=self._producer, retry=False, ignore_result=True)

    def _say(self, said: _Said) -> None:
        note = said.note
        with self._redis.pipeline() as both:
            if note.reply_list is None:
                kept_s = math.ceil(max(0.0, said.keep_until - time.time()))
                both.set(self._config.given_up(note.tool_call_id), note.grant, ex=kept_s + GIVEN_UP_KEPT_S)
            both.publish(self._config.notes, note.model_dump_json())
            both.execute()

    def _failed(self, letter: _Letter, error: Exception) -> None:
        """Nobody says again that a call is given up, so we do, as long as it matters."""
        if isinstance(letter, _Copy):
            log.warning("tool call not sent", action="send_again", tool_call_id=letter.tool_call_id, error=str(error))
        elif letter.note.reply_list is None and letter.keep_until > time.time():
            log.warning("cancel not sent", action="send_again", tool_call_id=letter.note.tool_call_id, error=str(error))
            time.sleep(0.2)
            self._letters.put(letter)

    def _hang_up(self) -> None:
        producer, self._producer = self._producer, None
        with contextlib.suppress(Exception):  # the connection may be broken already
            if producer is not None:
                producer.connection.close()


class _Replies(Protocol):
    """What we use of Redis's client."""

    async def blpop(self, keys: list[str], timeout: float) -> object: ...
    async def aclose(self) -> None: ...


@dataclass
class _Waiting:
    """What a call, `text` as it travels, waits for: its answer, and meanwhile that somebody is at it. `copies` were sent."""

    call: ToolCall
    text: str
    answer: asyncio.Future[ToolResult]
    in_hand: asyncio.Event = field(default_factory=asyncio.Event)
    copies: int = 0

    @cached_property
    def digest(self) -> str:
        """What a reply names it by."""
        return call_digest(self.text)


class CeleryLane:
    """See `metier_tools.lane.ToolLane`. `key` is the one that grants are signed with: replies are too, by runners that hold it.

    `kinds` maps a tool to its class, and so to its queue; others are `code`. When nobody has answered for `resend_s` seconds, and no
    runner says that it is at it, a call is sent again; then after twice as long, and so on to its deadline.
    """

    def __init__(
        self,
        redis_url: str,
        key: bytes,
        *,
        namespace: str = "metier",
        resend_s: float = 5.0,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self._config = Config(redis_url=redis_url, namespace=namespace)
        self._key, self._resend_s, self._kinds = key, resend_s, kinds or {}
        self.reply_list = self._config.replies(uuid.uuid4().hex)
        self._shared = Shared()
        self._waiting: dict[str, _Waiting] = {}
        self._publisher: _Publisher | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`."""
        return await self._shared.result(call.tool_call_id, lambda: self._carried(call))

    async def _carried(self, call: ToolCall) -> ToolResult:
        if self._closed:
            raise LaneGone("the tool lane is closed")
        if call.deadline <= time.time():
            raise DeadlineMissed(f"the deadline of tool call {call.tool_call_id} had passed before it could start")
        waiting = _Waiting(call, call.model_dump_json(), asyncio.get_running_loop().create_future())
        self._waiting[waiting.digest] = waiting
        try:
            return await self._answer(waiting, self._started())
        finally:
            self._end(waiting)

    async def _answer(self, waiting: _Waiting, publisher: _Publisher) -> ToolResult:
        call, pause = waiting.call, self._resend_s
        copy = _Copy(
            self._config.queue(self._kinds.get(call.tool, "code")), call.tool_call_id, waiting.text, self.reply_list
        )
        while not waiting.answer.done() and call.deadline > time.time():
            publisher.post(copy)
            waiting.copies += 1
            pause = await self._silence(waiting, publisher, pause)
        if not waiting.answer.done():
            raise LaneGone(f"no tool runner answered tool call {call.tool_call_id} before its deadline")
        return waiting.answer.result()

    async def _silence(self, waiting: _Waiting, publisher: _Publisher, pause: float) -> float:
        """Wait for the answer, as long as somebody is at it. After how much silence to send again the time after."""
        longer = 2 * pause
        while not await _done(waiting, pause) and await self._in_hand(waiting, publisher, pause):
            pause = longer = self._resend_s
        if not waiting.answer.done():
            log.warning("nobody is at a tool call", action="send_again", tool_call_id=waiting.call.tool_call_id)
        return longer

    async def _in_hand(self, waiting: _Waiting, publisher: _Publisher, pause: float) -> bool:
        """Whether a runner says that it has the call in hand."""
        call = waiting.call
        ask = Note(
            tool_call_id=call.tool_call_id, grant=call.grant, reply_list=self.reply_list, call_digest=waiting.digest
        )
        waiting.in_hand.clear()
        publisher.post(_Said(ask, 0.0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waiting.in_hand.wait(), min(ASK_S, pause, _left(call)))
        return waiting.in_hand.is_set() and _left(call) > 0

    def _end(self, waiting: _Waiting) -> None:
        """No copy of a call that has its answer, or is wanted no more, need start or go on."""
        call, answered = waiting.call, waiting.answer.done()
        if answered:
            waiting.answer.exception()  # it may have come too late for anybody to see it
        if self._waiting.get(waiting.digest) is waiting:
            del self._waiting[waiting.digest]
        if self._publisher is not None and (not answered or waiting.copies > 1):
            self._publisher.post(_Said(Note(tool_call_id=call.tool_call_id, grant=call.grant), call.deadline))

    def _started(self) -> _Publisher:
        if self._publisher is None:
            self._publisher = _Publisher(self._config)
            self._publisher.start()
            self._reader = asyncio.create_task(self._read(), name="tool-replies")
        return self._publisher

    async def _read(self) -> None:
        """Hand every reply to who waits for it, through any number of lost connections."""
        failures = 0
        client = cast("_Replies", redis.asyncio.Redis.from_url(self._config.redis_url, socket_timeout=2 * READ_S))
        try:
            while True:
                try:
                    item = await client.blpop([self.reply_list], timeout=READ_S)
                    failures = 0
                except (redis.RedisError, OSError) as error:
                    failures += 1
                    await self._lost(error, failures)
                else:
                    if item:  # an empty answer is a wait that ran out
                        self._deliver(_second(item))
        finally:
            await client.aclose()

    async def _lost(self, error: Exception, failures: int) -> None:
        pause = Backoff(first_s=0.1, ceiling_s=2.0).delay(failures) or 0.0
        log.warning("Redis away", action="reconnect", error=str(error), after_s=pause)
        await asyncio.sleep(pause)

    def _deliver(self, sealed: bytes) -> None:
        try:
            reply = unseal(self._key, sealed)
        except ValidationError as error:
            log.warning("not a reply", action="drop", error=error.errors(include_url=False)[0]["msg"])
            return
        if reply is None:
            log.warning("a reply that no runner signed", action="drop")
            return
        waiting = self._waiting.get(reply.call_digest)
        if waiting is not None and not waiting.answer.done():
            _tell(waiting, reply)

    async def close(self) -> None:
        """See `ToolLane.close`."""
        self._closed = True
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(LaneGone("the tool lane was closed under the call"))
        if self._publisher is not None:
            self._publisher.post(None)
            await asyncio.to_thread(self._publisher.join, 5.0)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})


def _left(call: ToolCall) -> float:
    return max(0.0, call.deadline - time.time())


async def _done(waiting: _Waiting, pause: float) -> bool:
    """Whether the answer came within `pause`, or the deadline: then nobody waits for more."""
    await asyncio.wait({waiting.answer}, timeout=min(pause, _left(waiting.call)))
    return waiting.answer.done()


def _tell(waiting: _Waiting, reply: Reply) -> None:
    waiting.in_hand.set()
    if reply.in_hand:
        return
    try:
        waiting.answer.set_result(result_of(reply))
    except Exception as error:
        waiting.answer.set_exception(error)


def _second(item: object) -> bytes:
    """The value of what BLPOP returned, (list, value); nothing of anything else."""
    value = cast("tuple[object, ...]", item)[-1] if isinstance(item, tuple | list) and item else b""
    return value if isinstance(value, bytes) else b""
