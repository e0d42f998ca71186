"""The tool lane's Redis. It carries calls that are sent again when they are lost, and what is left of models' rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metier.doctor import clock
from metier.doctor.case import Case
from metier.doctor.examination import Part
from metier.doctor.finding import Finding, error, ok, warning

if TYPE_CHECKING:
    from metier_tools.redis_look import RedisSeen

NEEDED = (6, 0)
"""What is used began with it: BLPOP with a timeout that may have a fraction, and users with a name (ACL). The rest is older: scripts that write after TIME (5.0), HSET of several fields (4.0)."""
TESTED = (7, 0)
"""Older ones are not tried: `make test` runs on the Redis of Debian 12 or a Valkey, which says that it is like Redis 7.2."""
FULL = 0.8
"""More of the memory than that is taken: a burst of calls may not find room."""
IDS = (
    "redis.reachable",
    "redis.version",
    "redis.writable",
    "redis.eviction",
    "redis.persistence",
    "redis.memory",
    "redis.clock",
)


def examine(case: Case) -> list[Finding]:
    """See `Part`."""
    from metier_tools.redis_look import look

    lane = case.config.lane
    seen = look(lane.redis_url.get_secret_value() if lane.redis_url else "", lane.lane_namespace, clock=case.clock)
    return findings(seen, limits_here=case.config.models.limits_in == "redis")


def findings(seen: RedisSeen, *, limits_here: bool) -> list[Finding]:
    """What to think of it. `limits_here`: models' rate limits are kept there."""
    return [
        ok("redis.reachable", "it lets us in"),
        _version(seen),
        _writable(seen),
        _eviction(seen),
        _persistence(seen, limits_here=limits_here),
        _memory(seen),
        clock.skew("redis.clock", seen.skew_s, seen.unsure_s, "Redis"),
    ]


def _version(seen: RedisSeen) -> Finding:
    has = f"{seen.product}, like Redis {seen.version}"
    version = tuple(int(part) for part in seen.version.split(".")[:2] if part.isdigit())
    if version and version < NEEDED:
        why = "tool calls wait by BLPOP with fractions of a second, which began with it"
        return error("redis.version", has, f"upgrade it to {NEEDED[0]}.{NEEDED[1]} or newer: {why}")
    if version < TESTED:
        return warning("redis.version", has, f"nothing older than {TESTED[0]}.{TESTED[1]} is tested: upgrade it")
    return ok("redis.version", has)


def _writable(seen: RedisSeen) -> Finding:
    if seen.role == "slave":
        return error("redis.writable", "it follows another server", "name the primary in METIER_REDIS_URL")
    if seen.unwritten:
        return error("redis.writable", seen.unwritten, "let this user write, or give Redis room, as it says")
    return ok("redis.writable", "a key was written")


def _eviction(seen: RedisSeen) -> Finding:
    if seen.policy == "noeviction":
        return ok("redis.eviction", "maxmemory-policy noeviction")
    return error(
        "redis.eviction",
        f"maxmemory-policy {seen.policy or 'is not told'}: where memory is short, it throws away tool calls and replies",
        "set maxmemory-policy noeviction, and use this Redis for no cache",
    )


def _persistence(seen: RedisSeen, *, limits_here: bool) -> Finding:
    name = "redis.persistence"
    if seen.failing:
        return error(
            name, f"it could not keep its data: {seen.failing}", "see its log and its disk: it may refuse writes"
        )
    kept = " and ".join(word for word, on in (("a log (AOF)", seen.log), ("snapshots (RDB)", seen.snapshots)) if on)
    if kept:
        return ok(name, f"it keeps {kept}; nothing that lies there is needed")
    if seen.snapshots is None:
        return ok(name, "it keeps no log, and does not tell of snapshots; tool calls that it loses are sent again")
    if not limits_here:
        return ok(name, "it keeps nothing over a restart; tool calls that it loses are sent again")
    return warning(
        name,
        "it keeps nothing over a restart: tool calls are sent again, and models' rate limits begin anew",
        "set appendonly yes, or METIER_LIMITS_IN=journal, where a provider's limit must hold over a restart of Redis",
    )


def _memory(seen: RedisSeen) -> Finding:
    used = f"{seen.used_bytes / 2**20:,.0f} MiB"
    if not seen.limit_bytes:
        return ok("redis.memory", f"{used} are used, without a limit (maxmemory 0)")
    share = seen.used_bytes / seen.limit_bytes
    has = f"{used} of {seen.limit_bytes / 2**20:,.0f} MiB are used ({share:.0%})"
    if share >= 1:
        return error("redis.memory", f"{has}: it takes no tool call", "raise maxmemory")
    return (
        warning("redis.memory", has, "raise maxmemory, or see what fills it")
        if share > FULL
        else ok("redis.memory", has)
    )


def unneeded(case: Case) -> str:
    """Where nobody is asked."""
    if case.config.lane.redis_url is not None:
        return ""
    return "METIER_REDIS_URL is not set: see settings.needed" if case.distributed else "everything runs in one process"


PART = Part(
    "redis",
    IDS,
    examine,
    frozenset({"agent", "tools"}),
    unneeded=unneeded,
    mend="start it, or correct METIER_REDIS_URL: redis://user:password@host:port/db",
)
