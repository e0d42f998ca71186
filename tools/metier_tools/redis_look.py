"""What a Redis is, and whether the runner behind it holds the same key: what is written there is gone again soon. `metier.doctor` asks, and judges."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import redis
from pydantic import JsonValue

from metier_infra.errors import BadSettings, LaneGone
from metier_tools import grant
from metier_tools.celery_app import TASK, Config, make_app
from metier_tools.redis_line import connect
from metier_tools.reply import unseal
from metier_tools.tool import ToolCall

PIECE_S = 1


@dataclass(frozen=True)
class RedisSeen:
    """A Redis, or what speaks its protocol.

    Attributes:
        version: of the protocol and commands that it has.
        product: who it says that it is.
        role: `master`, or `slave` for one that takes no writes.
        policy: what it does where memory is short.
        limit_bytes: how much memory it may take; 0: any.
        used_bytes: how much it takes.
        log: whether each write is written to a log (AOF).
        snapshots: whether it is written whole now and then (RDB); None: it does not tell.
        failing: what it says of its last attempt to keep its data; empty: all is well.
        unwritten: why a key could not be written; empty: it could.
        skew_s: how much its clock is ahead of ours; seconds.
        unsure_s: by how much that may be wrong; seconds.
    """

    version: str
    product: str
    role: str
    policy: str
    limit_bytes: int
    used_bytes: int
    log: bool
    snapshots: bool | None
    failing: str
    unwritten: str
    skew_s: float
    unsure_s: float


def look(redis_url: str, namespace: str, *, clock: Callable[[], float] = time.time) -> RedisSeen:
    """Ask it. Raises `LaneGone`, and `BadSettings` for what is no address of one."""
    with _asking(redis_url) as client:
        told = cast("Mapping[str, Any]", client.info())
        skew_s, unsure_s = _skew(client, clock)
        return RedisSeen(
            version=str(told.get("redis_version", "0")),
            product=str(told.get("server_name", "redis")),
            role=str(told.get("role", "")),
            policy=str(told.get("maxmemory_policy", "")),
            limit_bytes=int(told.get("maxmemory", 0)),
            used_bytes=int(told.get("used_memory", 0)),
            log=bool(told.get("aof_enabled")),
            snapshots=_snapshots(client),
            failing=_failing(told),
            unwritten=_unwritten(client, namespace),
            skew_s=skew_s,
            unsure_s=unsure_s,
        )


@contextlib.contextmanager
def _asking(redis_url: str) -> Generator[redis.Redis]:
    try:
        client = connect(redis_url)
    except ValueError as error:
        raise BadSettings(f"METIER_REDIS_URL is not a Redis URL: {error}") from error
    try:
        with contextlib.closing(client):
            yield client
    except (redis.RedisError, OSError) as error:
        raise LaneGone(f"no Redis answers where METIER_REDIS_URL says: {error}") from error


def _snapshots(client: redis.Redis) -> bool | None:
    try:
        return bool(cast("Mapping[str, str]", client.config_get("save")).get("save"))
    except redis.ResponseError:
        return None


def _failing(told: Mapping[str, Any]) -> str:
    watched = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    return ", ".join(f"{name} {told[name]}" for name in watched if told.get(name, "ok") != "ok")


def _skew(client: redis.Redis, clock: Callable[[], float]) -> tuple[float, float]:
    """Its clock against the middle of the round trip; half of that may be wrong."""
    before = clock()
    seconds, micros = client.time()
    after = clock()
    return seconds + micros / 1e6 - (before + after) / 2, (after - before) / 2


def _unwritten(client: redis.Redis, namespace: str) -> str:
    try:
        client.set(f"{namespace}:doctor:{uuid4().hex}", "1", px=1)
    except redis.ResponseError as error:
        return str(error)
    return ""


def same_key(redis_url: str, namespace: str, key: bytes, *, wait_s: float) -> bool | None:
    """Whether a tool runner holds this key; None: none answered within `wait_s` seconds.

    It is sent a call whose time is over. A runner looks at the grant first, then at the time: it runs nothing, and its answer is sealed
    with its own key. Raises `LaneGone` and `BadSettings`.
    """
    config = Config(redis_url=redis_url, namespace=namespace)
    reply_list = config.replies(f"doctor-{uuid4().hex}")
    with _asking(redis_url) as client:
        client.ping()
        _send(config, _late(key), reply_list, wait_s)
        sealed = _popped(client, reply_list, wait_s)
    return None if sealed is None else unseal(key, sealed) is not None


def _popped(client: redis.Redis, reply_list: str, wait_s: float) -> bytes | None:
    """Waited for in pieces: a connection that is silent for longer is taken for dead."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if found := cast("tuple[bytes, bytes] | None", client.blpop([reply_list], timeout=PIECE_S)):
            return found[1]
    return None


def _late(key: bytes) -> ToolCall:
    ids = {name: f"doctor-{uuid4().hex}" for name in ("tool_call_id", "run_id", "call_id")}
    told: dict[str, JsonValue] = {
        "tool": "python",
        "digest": "",
        "arguments": {},
        "deadline": 0.0,
        "timeout_s": 1.0,
        "grant": "",
    }
    return grant.granted(key, ToolCall.model_validate({**ids, **told}))


def _send(config: Config, call: ToolCall, reply_list: str, wait_s: float) -> None:
    app = make_app(config)
    try:
        with app.connection_for_write() as connection:
            arguments = (call.model_dump_json(), reply_list)
            app.send_task(
                TASK, arguments, queue=config.queue("code"), connection=connection, retry=False, expires=wait_s
            )
    except Exception as error:  # kombu lets many kinds through; all mean that the broker did not take it
        raise LaneGone(f"Redis did not take a tool call: {error}") from error
