"""Redis as the runner's process has it: replies go out, and what callers say to every runner comes in.

`serve` opens it. A cancel is heard on a channel, and stands as a key for a while: for calls that are in a queue still, and for a runner
that did not listen just then.
"""

from __future__ import annotations

import contextlib
import hmac
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, cast

import redis
import structlog
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from metier_infra.errors import BadSettings, LaneGone
from metier_infra.retry import Backoff
from metier_tools.celery_app import Config, Note
from metier_tools.tool import ToolCall

log = structlog.get_logger()

REPLY_KEPT_S = 600
"""A reply that nobody reads is dropped after so long; seconds."""
LOOK_S = 1.0
"""When nothing was heard for so long, the keys are looked at: a connection may have died in silence; seconds."""
ANSWERS_S = 5.0
"""How long Redis may take to answer; seconds."""


def check_broker(redis_url: str) -> None:
    """Raise `LaneGone` unless Redis answers, and `BadSettings` for what is no address of one."""
    try:
        with contextlib.closing(connect(redis_url)) as client:
            client.ping()
    except ValueError as error:
        raise BadSettings(f"METIER_REDIS_URL is not a Redis URL: {error}") from error
    except (redis.RedisError, OSError) as error:
        raise LaneGone(
            f"no Redis answers where METIER_REDIS_URL says: {error}; start it, or correct the setting"
        ) from error


def connect(redis_url: str) -> redis.Redis:
    """A client whose commands fail soon: a connection that had died is replaced once, and no more is tried."""
    return redis.Redis.from_url(
        redis_url, socket_timeout=ANSWERS_S, socket_connect_timeout=ANSWERS_S, retry=Retry(NoBackoff(), 1)
    )


class Calls(Protocol):
    """What the line asks of the runner."""

    @property
    def in_hand(self) -> tuple[str, ...]:
        """The ids of the calls that are under way."""
        ...

    def cancel(self, tool_call_id: str, proof: str) -> bool:
        """End a call, if the proof holds."""
        ...

    def has(self, tool_call_id: str, proof: str) -> bool:
        """Whether this call is in hand, if the proof holds."""
        ...


class _Channel(Protocol):
    def subscribe(self, name: str) -> object: ...
    def get_message(self, *, timeout: float) -> object: ...
    def close(self) -> None: ...


class _Listens(Protocol):
    """What we use of Redis's client to listen."""

    def pubsub(self) -> _Channel: ...


class RedisLine:
    """What the runner's process asks of Redis, and tells it. For any number of threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._redis = connect(config.redis_url)

    def push(self, reply_list: str, reply: bytes) -> None:
        """Put a reply on its list; one that cannot be put there is lost, and its caller asks again."""
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

    def gave_up(self, call: ToolCall) -> bool:
        """Whether a key says that the call was given up, with its own grant as the proof."""
        try:
            found = self.given_up([call.tool_call_id])[0]
        except (redis.RedisError, OSError) as error:
            log.warning("Redis away", action="run", tool_call_id=call.tool_call_id, error=str(error))
            return False
        return hmac.compare_digest(found.encode(), call.grant.encode())

    def given_up(self, ids: Sequence[str]) -> list[str]:
        """The grants with which these calls were given up; empty for those that were not."""
        keys = [self._config.given_up(one) for one in ids]
        found = cast("list[bytes | None]", self._redis.mget(keys) if keys else [])
        return [(one or b"").decode(errors="replace") for one in found]

    @contextlib.contextmanager
    def notes(self) -> Generator[Callable[[], bytes | None]]:
        """Subscribed to what callers say: what was said, or None when it is silent, or was not heard because we just began to listen."""
        with contextlib.closing(cast("_Listens", self._redis).pubsub()) as channel:
            channel.subscribe(self._config.notes)

            def hear() -> bytes | None:
                message = channel.get_message(timeout=LOOK_S)
                heard = cast("dict[str, object]", message) if isinstance(message, dict) else {}
                return cast("bytes", heard["data"]) if heard.get("type") == "message" else None

            yield hear

    def close(self) -> None:
        """Hang up."""
        self._redis.close()


class Ears(threading.Thread):
    """Hears what callers give up, and who asks for what is in hand, from now until `close`."""

    def __init__(self, line: RedisLine, calls: Calls, say_in_hand: Callable[[str, str], None]) -> None:
        super().__init__(name="tool-notes", daemon=True)
        self._line, self._calls, self._say_in_hand = line, calls, say_in_hand
        self._closed = threading.Event()
        self.start()

    def run(self) -> None:
        """Listen until closed, through any number of lost connections."""
        failures = 0
        while not self._closed.is_set():
            try:
                with self._line.notes() as hear:
                    while not self._closed.is_set():
                        self._next(hear())
                        failures = 0
            except (redis.RedisError, OSError) as error:
                failures += 1
                pause = Backoff(first_s=0.05, ceiling_s=1.0).delay(failures) or 0.0
                log.warning("Redis away", action="reconnect", error=str(error), after_s=pause)
                self._closed.wait(pause)

    def _next(self, said: bytes | None) -> None:
        """Obey a note. After silence, and when we listen again, notes may have passed us by: look at the keys."""
        try:
            if said is None:
                self._look()
            else:
                obey(said, self._calls, self._say_in_hand)
        except (redis.RedisError, OSError):
            raise
        except Exception:  # a defect of ours: the next note is heard all the same
            log.exception("a note was not obeyed", action="listen_on")

    def _look(self) -> None:
        ids = self._calls.in_hand
        for one, grant in zip(ids, self._line.given_up(ids), strict=True):
            if grant:
                self._calls.cancel(one, grant)

    def close(self) -> None:
        """End, soon."""
        self._closed.set()
        self.join(2 * LOOK_S)


def obey(data: bytes, calls: Calls, say_in_hand: Callable[[str, str], None]) -> None:
    """Do what a caller's note says of a call that is in hand here, if it proves that it is the caller's."""
    try:
        note = Note.model_validate_json(data)
    except ValidationError:
        log.warning("not a note", action="drop")
        return
    if note.reply_list is None:
        done = calls.cancel(note.tool_call_id, note.grant)
        log.info("call given up", action="end" if done else "ignore", tool_call_id=note.tool_call_id)
    elif calls.has(note.tool_call_id, note.grant):
        say_in_hand(note.call_digest, note.reply_list)
