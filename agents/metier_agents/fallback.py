"""A chain of fallbacks: models asked in order until one replies, with those that were passed over written into the reply.

`models` makes a `Chain` for an agent with fallbacks. The rule, for each model but the last:

1. Its circuit is open, or it says that it needs more than `patience.wait_s` or than the call has left: the next is asked at once.
2. It is busy in any other way: it is tried again after the delay that it wished, or a short one; after `patience.tries` the next is asked.
3. It fails for good (`ModelFailed`, `ContextTooLong`), or its key is refused (`AskOperator`): the next is asked at once.
4. It declines to answer: that is a reply, unless `options.next_on_refusal`; then the next is asked, and if no other replies, the refusal is the reply.

The last model is asked once. When it fails too, the error tells of all of them; one that can be tried again wins, and the caller's own patience
begins the chain anew. The chain itself never waits for more than `tries - 1` delays a model, and keeps nothing from one request to the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol, Unpack

import structlog

from metier_agents.model import PLAIN, Asking, Model
from metier_agents.model_table import Patience
from metier_agents.turns import History, ModelTurn, PassedOver
from metier_infra.errors import AskOperator, CircuitOpen, MetierError, ModelBusy, ModelFailed
from metier_infra.retry import Backoff

log = structlog.get_logger()

BACKOFF = Backoff(first_s=0.2, ceiling_s=2.0)
SENTENCE = 300
"""Characters of a model's error that are kept."""


class _Request(Protocol):
    async def __call__(self, model: Model) -> ModelTurn: ...


def pause(error: ModelBusy, tries: int, left_s: float, patience: Patience) -> float | None:
    """Seconds until a busy model is tried again, after so many tries; None: the next model is asked."""
    if isinstance(error, CircuitOpen) or tries >= patience.tries:
        return None
    wait_s = BACKOFF.delay(tries, error.after_s) or 0.0
    return wait_s if wait_s <= min(patience.wait_s, left_s) else None


def together(errors: Sequence[tuple[str, MetierError]]) -> MetierError:
    """What is raised when no model replied: one that can be tried again, after the shortest delay, if there is any; else as the last one."""
    told = "no model of the chain replied: " + "; ".join(f"{name}: {_short(error)}" for name, error in errors)
    busy = [error.after_s for _, error in errors if isinstance(error, ModelBusy)]
    if busy:
        after_s = None if None in busy else min(one for one in busy if one is not None)
        lost = any(isinstance(error, ModelBusy) and error.maybe_billed for _, error in errors)
        return ModelBusy(told, after_s=after_s, maybe_billed=lost)
    return type(errors[-1][1])(told)


def _short(error: MetierError) -> str:
    text = str(error)
    return text if len(text) <= SENTENCE else text[: SENTENCE - 1] + "…"


class Chain:
    """Several models as one. `name` is that of the first; a reply says which one it is from."""

    def __init__(self, models: Sequence[Model], patience: Patience) -> None:
        self.name = models[0].name
        self.models = tuple(models)
        self._patience = patience

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`."""

        async def request(model: Model) -> ModelTurn:
            return await model.ask(messages, **asked)

        passed: list[PassedOver] = []
        errors: list[tuple[str, MetierError]] = []
        refusal: ModelTurn | None = None
        for model in self.models:
            try:
                turn = await self._patiently(model, request, asked["deadline"])
            except (ModelBusy, ModelFailed, AskOperator) as error:
                errors.append((model.name, error))
                passed.append(_passed(model, error.code, _short(error)))
                continue
            if not (turn.refused and asked.get("options", PLAIN).next_on_refusal):
                return turn.model_copy(update={"passed_over": tuple(passed)})
            refusal = refusal or turn
            passed.append(_passed(model, "refused", "the model declined to answer"))
        if refusal is not None:
            others = tuple(one for one in passed if one.model != refusal.model)
            return refusal.model_copy(update={"passed_over": others})
        raise together(errors) from errors[-1][1]

    async def _patiently(self, model: Model, request: _Request, deadline: float) -> ModelTurn:
        """The model's reply, after as many tries as it is worth. The last model is tried once."""
        tries = 0
        while True:
            try:
                return await request(model)
            except ModelBusy as error:
                tries += 1
                wait_s = pause(error, tries, deadline - time.time(), self._patience)
                if wait_s is None or model is self.models[-1]:
                    raise
                log.info("model busy", action="try_again", model=model.name, after_s=wait_s, reason=error.code)
                await asyncio.sleep(wait_s)


def _passed(model: Model, code: str, message: str) -> PassedOver:
    log.warning("model passed over", action="ask_next", model=model.name, reason=code)
    return PassedOver(model=model.name, code=code, message=message)
