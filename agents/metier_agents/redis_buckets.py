"""Token buckets in Redis, shared by all workers. `compose` opens it; nothing else names it.

A draw is one Lua script, so it is whole or not at all, by Redis's own clock. A bucket that is full again is forgotten.
"""

from __future__ import annotations

from typing import Protocol, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from metier_agents.buckets import Draw
from metier_infra.errors import BadSettings, RetryLater

ANSWERS_S = 2.0
"""How long Redis may take to answer; seconds."""
AGAIN_S = 1.0
"""After how long a request may ask again for its share when Redis is away; seconds."""
DRAW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local kept = redis.call('HMGET', KEYS[1], 'requests', 'tokens')
local ahead, wait = {}, 0
for i = 1, 2 do
    ahead[i] = math.max((tonumber(kept[i]) or now) + ARGV[i + 4] - now, tonumber(ARGV[7]))
    wait = math.max(wait, ahead[i] - ARGV[i + 2])
end
if wait <= 0 then
    local first, second = ahead[1] + ARGV[1], ahead[2] + ARGV[2]
    redis.call('HSET', KEYS[1], 'requests', string.format('%.6f', now + first), 'tokens', string.format('%.6f', now + second))
    redis.call('PEXPIRE', KEYS[1], math.ceil(math.max(first, second, 0) * 1000) + 1000)
end
return string.format('%.6f', wait)
"""


class _Script(Protocol):
    """What we use of a script of Redis's client."""

    async def __call__(self, *, keys: list[str], args: list[float]) -> object: ...


class RedisBuckets:
    """See `metier_agents.buckets.Buckets`. Connects when it is first drawn from. `namespace` comes before every name."""

    def __init__(self, redis_url: str, *, namespace: str = "metier") -> None:
        try:
            self._redis = redis.asyncio.Redis.from_url(
                redis_url, socket_timeout=ANSWERS_S, socket_connect_timeout=ANSWERS_S, retry=Retry(NoBackoff(), 1)
            )
        except ValueError as error:
            raise BadSettings(f"METIER_REDIS_URL is not a Redis URL, redis://host:port/db: {error}") from error
        self._namespace = namespace
        self._script = cast("_Script", self._redis.register_script(DRAW))

    async def draw(self, name: str, draw: Draw) -> float:
        """See `Buckets.draw`."""
        key = f"{self._namespace}:bucket:{name}"
        try:
            said = await self._script(keys=[key], args=[*draw.cost, *draw.room, *draw.owed, draw.away_s])
        except (redis.RedisError, OSError) as error:
            raise RetryLater(
                f"the Redis that keeps the rate limits does not answer: {error}", after_s=AGAIN_S
            ) from error
        return float(cast("bytes", said))

    async def close(self) -> None:
        """See `Buckets.close`."""
        await self._redis.aclose()
