"""Celery as the tool lane: the one module that names it, and Redis. Untyped, and fenced here: what comes in is checked.

`compose` opens `CeleryLane` in agents; `serve` starts `work` as a process of its own. A call goes as a Celery message with all that matters
in its arguments, and its answer comes back on a Redis list that the caller reads. The lane is not durable and need not be: the caller
sends again under the same id. No result back-end, no events, no remote control.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import redis
import redis.asyncio
import structlog
from celery import Celery, signals
from celery.exceptions import Reject
from pydantic import ValidationError

from metier_infra.errors import DeadlineMissed, LaneGone, MissingService
from metier_infra.messages import Word
from metier_infra.retry import Backoff
from metier_tools.relay import RelayClient, Reply, result_of
from metier_tools.tool import ToolCall, ToolResult

log = structlog.get_logger()

TASK = "metier.tool_call"
HARD_LIMIT_S = 420
"""Celery kills a child that took longer than any call may: the backstop behind the sandbox's own limits. Seconds."""
VISIBILITY_S = 900
"""Redis gives a message that nobody acknowledged to another worker after so long; callers send again far earlier. Seconds."""
REPLY_KEPT_S = 600
"""A reply that nobody reads is dropped after so long; seconds."""
READ_S = 15.0
"""A read that waits for replies begins anew after so long, so that a connection that died silently is noticed; seconds."""
_PR_SET_PDEATHSIG = 1


class Config(Word):
    """What both ends must agree on. `namespace` begins every key and queue, so that several systems can share one Redis."""

    redis_url: str
    namespace: str = "metier"

    def queue(self, kind: str) -> str:
        """The queue of one class of tools."""
        return f"tools.{kind}"

    def replies(self, client: str) -> str:
        """The list that one client reads its replies from."""
        return f"{self.namespace}:replies:{client}"


class WorkerConfig(Word):
    """What the worker process is told on its standard input: nothing secret stands in its arguments or environment."""

    lane: Config
    relay: str
    concurrency: int
    kinds: tuple[str, ...]
    parent: int


def make_app(config: Config) -> Any:
    """The Celery application of both ends."""
    app = Celery("metier-tools", broker=config.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=HARD_LIMIT_S,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": VISIBILITY_S, "global_keyprefix": f"{config.namespace}:"},
        task_create_missing_queues=True,
    )
    return app


def check_broker(redis_url: str) -> None:
    """Raise `MissingService` unless Redis answers."""
    try:
        with contextlib.closing(redis.Redis.from_url(redis_url, socket_connect_timeout=3)) as client:
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise MissingService(
            f"no Redis answers where METIER_REDIS_URL says: {error}; start it, or correct the setting"
        ) from error


# --- the caller's side ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Letter:
    queue: str
    call: ToolCall
    reply_list: str


class _Publisher(threading.Thread):
    """Publishes off the event loop, since Celery blocks. A message that cannot be sent is dropped: its caller sends again.

    It has a connection of its own: kombu's pools are shared by the whole process.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(name="tool-publisher", daemon=True)
        self._letters: queue.SimpleQueue[_Letter | None] = queue.SimpleQueue()
        self._app = make_app(config)
        self._producer: Any = None

    def post(self, letter: _Letter | None) -> None:
        """Hand over a message; None ends the thread."""
        self._letters.put(letter)

    def run(self) -> None:
        """Publish until told to end."""
        while letter := self._letters.get():
            try:
                self._publish(letter)
            except Exception as error:  # kombu lets many kinds through; all mean that the broker did not take it
                self._hang_up()
                log.warning(
                    "tool call not sent", action="send_again", tool_call_id=letter.call.tool_call_id, error=str(error)
                )
        self._hang_up()

    def _publish(self, letter: _Letter) -> None:
        if self._producer is None:
            self._producer = self._app.amqp.Producer(self._app.connection_for_write())
        arguments = (letter.call.model_dump_json(), letter.reply_list)
        self._app.send_task(
            TASK, arguments, queue=letter.queue, producer=self._producer, retry=False, ignore_result=True
        )

    def _hang_up(self) -> None:
        producer, self._producer = self._producer, None
        with contextlib.suppress(Exception):  # the connection may be broken already
            if producer is not None:
                producer.connection.close()


def pauses(first_s: float, left_s: float) -> Generator[float]:
    """How long to wait for an answer before each sending again: doubled each time, until nothing of `left_s` is left."""
    pause = first_s
    while left_s > 0:
        yield min(pause, left_s)
        left_s -= pause
        pause *= 2


class _Replies(Protocol):
    """What we use of Redis's client."""

    async def blpop(self, keys: list[str], timeout: float) -> object: ...
    async def aclose(self) -> None: ...


class CeleryLane:
    """See `metier_tools.lane.ToolLane`. `kinds` maps a tool to its class, and so to its queue; others are `code`.

    Without an answer a call is sent again after `resend_s` seconds, then after twice as long, and so on to its deadline.
    """

    def __init__(
        self, redis_url: str, *, namespace: str = "metier", resend_s: float = 5.0, kinds: dict[str, str] | None = None
    ) -> None:
        self._config = Config(redis_url=redis_url, namespace=namespace)
        self._resend_s, self._kinds = resend_s, kinds or {}
        self._list = self._config.replies(uuid.uuid4().hex)
        self._waiting: dict[str, asyncio.Future[ToolResult]] = {}
        self._publisher: _Publisher | None = None
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`."""
        if self._closed:
            raise LaneGone("the tool lane is closed")
        if call.deadline <= time.time():
            raise DeadlineMissed(f"the deadline of tool call {call.tool_call_id} had passed before it could start")
        known = self._waiting.get(call.tool_call_id)
        if known is not None:
            return await asyncio.shield(known)
        return await self._first(call, self._started())

    async def _first(self, call: ToolCall, publisher: _Publisher) -> ToolResult:
        answer: asyncio.Future[ToolResult] = asyncio.get_running_loop().create_future()
        self._waiting[call.tool_call_id] = answer
        try:
            return await self._sent(call, publisher, answer)
        except BaseException as error:
            if not answer.done():
                answer.set_exception(error if isinstance(error, LaneGone) else LaneGone("the first caller gave up"))
            answer.exception()
            raise
        finally:
            del self._waiting[call.tool_call_id]

    async def _sent(self, call: ToolCall, publisher: _Publisher, answer: asyncio.Future[ToolResult]) -> ToolResult:
        letter = _Letter(self._config.queue(self._kinds.get(call.tool, "code")), call, self._list)
        for pause in pauses(self._resend_s, call.deadline - time.time()):
            publisher.post(letter)
            await asyncio.wait({answer}, timeout=pause)
            if answer.done():
                return answer.result()
            log.warning("no answer to a tool call", action="send_again", tool_call_id=call.tool_call_id, waited_s=pause)
        raise LaneGone(f"no tool runner answered tool call {call.tool_call_id} before its deadline")

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
                    item = await client.blpop([self._list], timeout=READ_S)
                    failures = 0
                except (redis.RedisError, OSError) as error:
                    failures += 1
                    await self._lost(error, failures)
                else:
                    if item:  # an empty answer is a wait that ran out
                        self._deliver(item)
        finally:
            await client.aclose()

    async def _lost(self, error: Exception, failures: int) -> None:
        pause = Backoff(first_s=0.1, ceiling_s=2.0).delay(failures) or 0.0
        log.warning("Redis away", action="reconnect", error=str(error), after_s=pause)
        await asyncio.sleep(pause)

    def _deliver(self, item: object) -> None:
        try:
            reply = Reply.model_validate_json(_second(item))
        except ValidationError as error:
            log.warning("not a reply", action="drop", error=str(error))
            return
        answer = self._waiting.get(reply.tool_call_id)
        if answer is None or answer.done():
            return
        try:
            answer.set_result(result_of(reply))
        except Exception as error:
            answer.set_exception(error)

    async def close(self) -> None:
        """See `ToolLane.close`."""
        self._closed = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LaneGone("the tool lane was closed under the call"))
        if self._publisher is not None:
            self._publisher.post(None)
            await asyncio.to_thread(self._publisher.join, 5.0)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait({self._reader})


def _second(item: object) -> bytes:
    """The value of what BLPOP returned, (list, value); nothing of anything else."""
    value = cast("tuple[object, ...]", item)[-1] if isinstance(item, tuple | list) and item else b""
    return value if isinstance(value, bytes) else b""


# --- the worker's side: a process of its own, started by `serve` -----------------------------------------------------------------------


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """The kernel sends us this signal when our parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


class _Child:
    """What each forked child of the worker holds: its line to the runner, and to Redis."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._relay: RelayClient | None = None
        self._redis = redis.Redis.from_url(config.lane.redis_url)

    def handle(self, call: str, reply_list: str) -> None:
        """Carry a call to the runner and its reply to the caller. A call that cannot be carried goes back to its queue."""
        try:
            self._relay = self._relay or RelayClient(self._config.relay)
            reply = self._relay.ask(call.encode())
        except (OSError, LaneGone) as error:
            self._relay = None
            raise Reject(str(error), requeue=True) from error
        self._push(reply_list, reply)

    def _push(self, reply_list: str, reply: bytes) -> None:
        for pause in (0.1, 0.5, 2.0, None):
            try:
                with self._redis.pipeline() as both:
                    both.rpush(reply_list, reply)
                    both.expire(reply_list, REPLY_KEPT_S)
                    both.execute()
            except redis.RedisError as error:
                if pause is None:
                    log.warning("reply lost", action="await_resend", error=str(error))
                    return
                time.sleep(pause)
            else:
                return


def work() -> None:
    """The worker process: reads its `WorkerConfig` from standard input, consumes until SIGTERM, then ends what it has."""
    config = WorkerConfig.model_validate_json(sys.stdin.buffer.read())
    die_with_parent(signal.SIGKILL, config.parent)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )
    # Celery warns of root because of pickle and of tasks' own code; here it carries JSON, and runs nothing.
    warnings.filterwarnings("ignore", message=".*superuser privileges", category=UserWarning)
    worker(config).start()


def worker(config: WorkerConfig) -> Any:
    """The Celery worker, wired to the runner's process."""
    app, own_pid, children = make_app(config.lane), os.getpid(), dict[int, _Child]()

    def carry(call: object, reply_list: object) -> None:
        if isinstance(call, str) and isinstance(reply_list, str):
            pid = os.getpid()
            children[pid] = children.get(pid) or _Child(config)
            children[pid].handle(call, reply_list)
        else:
            log.warning("not a tool call", action="drop")

    def ready(**_: object) -> None:
        RelayClient(config.relay).say_ready()

    def forked(**_: object) -> None:
        die_with_parent(signal.SIGKILL, own_pid)

    app.task(name=TASK)(carry)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(forked, weak=False)
    signals.setup_logging.connect(_own_logging, weak=False)
    return app.Worker(
        pool="prefork",
        concurrency=config.concurrency,
        queues=[config.lane.queue(kind) for kind in config.kinds],
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )


def _own_logging(**_: object) -> None:
    """Logging is set up by `work`; Celery must not do it again."""
