"""Rate limits: a request waits for its share of what a provider allows, or is told how long that would take.

`models` puts `Limited` round a model that falls under a declared limit. All models of this process that share a bucket share one `Gate` to
it, where requests stand in line; between processes whoever asks first when there is enough is served, so that a very large request may be
overtaken by small ones of other workers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from dataclasses import replace
from functools import partial
from typing import Unpack

import structlog

from metier_agents.buckets import Buckets, Draw, Pair, emptied, given_back, settled, share
from metier_agents.model import PLAIN, Asking, Model
from metier_agents.model_table import Limit
from metier_agents.prices import estimate
from metier_agents.turns import History, ModelTurn, Usage
from metier_infra.errors import CircuitOpen, ModelBusy, RetryLater

log = structlog.get_logger()

OUTPUT_TOKENS = 4096
"""What a reply is taken for when nobody bounds it."""
TELL_S = 0.1
"""What a request took in the end is told to the bucket after so long, unless another request that draws does it sooner; seconds."""
TOLD_S = 2.0
"""How long that may take; seconds."""
FIRST_LOOK_S = 0.001
"""A waiter looks again no sooner; seconds."""


def bucket_name(limit: Limit, provider: str, key: str) -> str:
    """The name under which workers share the bucket: a digest, keyed with the provider's key, which it does not tell."""
    return hmac.new(key.encode(), f"{provider}\n{limit.model}".encode(), hashlib.sha256).hexdigest()[:32]


class Gate:
    """This process's way to one bucket, first come first served. What is owed to the bucket is told with the next draw, or by itself soon."""

    def __init__(self, buckets: Buckets, name: str, limit: Limit) -> None:
        self.limit = limit
        self._buckets, self._name = buckets, name
        self._turn = asyncio.Lock()
        self._queued_s = 0.0
        self._moves_at = 0.0
        self._owed: Pair = (0.0, 0.0)
        self._telling: asyncio.Task[None] | None = None

    async def enter(self, tokens: int, patience_s: float) -> Draw:
        """Wait for one request of so many tokens; what was drawn for it. A waiter that is cancelled has drawn nothing.

        Raises:
            ModelBusy: at once where it is known to take longer than `patience_s`; and when the store of the bucket is away.
        """
        wanted = share(self.limit, tokens)
        ahead_s = max(0.0, self._moves_at - time.monotonic()) + self._queued_s
        if self._turn.locked() and ahead_s > patience_s:
            raise self._full(ahead_s)
        self._queued_s += max(wanted.cost)
        try:
            async with asyncio.timeout(max(0.0, patience_s)), self._turn:
                await self._wait(wanted, time.monotonic() + patience_s)
        except TimeoutError as error:
            raise self._full(ahead_s) from error
        finally:
            self._queued_s -= max(wanted.cost)
        return wanted

    def _full(self, after_s: float) -> ModelBusy:
        return ModelBusy(f"the rate limit of {self.limit.model} has no room for {after_s:.1f} s", after_s=after_s)

    async def _wait(self, wanted: Draw, until: float) -> None:
        while (wait_s := await self._wholly(wanted)) > 0:
            self._moves_at = time.monotonic() + wait_s
            if self._moves_at > until:
                raise self._full(wait_s)
            await asyncio.sleep(max(wait_s, FIRST_LOOK_S))

    async def _wholly(self, wanted: Draw) -> float:
        """Draw; whoever is cancelled while the store is at it gives back what it did not learn to have got."""
        drawing = asyncio.ensure_future(self._draw(wanted))
        try:
            return await asyncio.shield(drawing)
        except asyncio.CancelledError:
            drawing.add_done_callback(partial(self._unwanted, wanted))
            raise
        except RetryLater as error:
            why = f"the rate limit of {self.limit.model} cannot be kept: {error}"
            raise ModelBusy(why, after_s=error.after_s) from error

    def _unwanted(self, wanted: Draw, drawing: asyncio.Future[float]) -> None:
        if not drawing.cancelled() and drawing.exception() is None and drawing.result() == 0:
            self.owe(given_back(wanted))

    async def _draw(self, draw: Draw) -> float:
        owed, self._owed = self._owed, (0.0, 0.0)
        wait_s = await self._buckets.draw(self._name, replace(draw, owed=owed))
        if wait_s > 0:
            self._owed = _sum(self._owed, owed)
        return wait_s

    def owe(self, owed: Pair) -> None:
        """More, or less than 0: fewer, seconds of requests and tokens than were drawn."""
        self._owed = _sum(self._owed, owed)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        await asyncio.sleep(TELL_S)
        if self._owed != (0.0, 0.0):
            await self.tell(Draw())

    async def tell(self, draw: Draw) -> None:
        """Draw what is drawn whatever the bucket holds. Where that cannot be done it is left: what came of the request is worth more."""
        try:
            async with asyncio.timeout(TOLD_S):
                await self._draw(draw)
        except (RetryLater, TimeoutError) as error:
            log.warning("rate limit not settled", action="go_on", limit=self.limit.model, error=str(error))


def _sum(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


class Limited:
    """A layer round a model: its requests pass a gate. `longest_s` is the most that one waits there; None: to its deadline."""

    def __init__(self, inner: Model, gate: Gate, *, longest_s: float | None = None) -> None:
        self.name = inner.name
        self.inner = inner
        self._gate = gate
        self._longest_s = longest_s

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`. Tokens are drawn as `estimate` has them, and settled by what the provider counted."""
        written = asked.get("options", PLAIN).output_tokens or OUTPUT_TOKENS
        need, left_s = estimate((), messages, asked["tools"], written), asked["deadline"] - time.time()
        drawn = await self._gate.enter(need.tokens, left_s if self._longest_s is None else min(left_s, self._longest_s))
        try:
            turn = await self.inner.ask(messages, **asked)
        except CircuitOpen:
            self._gate.owe(given_back(drawn))
            raise
        except ModelBusy as error:
            if error.after_s:
                await self._gate.tell(emptied(self._gate.limit, error.after_s))
            raise
        self._settle(turn.usage, need.tokens)
        return turn

    def _settle(self, usage: Usage | None, drawn: int) -> None:
        if usage is not None and self._gate.limit.tokens_per_minute is not None:
            self._gate.owe(settled(self._gate.limit, usage.input_tokens + usage.output_tokens - drawn))
