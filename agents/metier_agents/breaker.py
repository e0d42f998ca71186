"""A circuit breaker: a model that is away is not asked for a while.

`models` puts `Guarded` round each model that is asked over the network. A circuit is known to this process alone: another worker finds out
by itself, which costs it a few failed requests and spares every request a look at a shared store.

    closed      requests pass; `failures` in a row that found the model busy or away open it
    open        none pass, for `cool_down_s` or as long as the provider said
    half-open   one request tries the model, others are turned away: a reply closes the circuit, a busy model opens it again

After M. Nygard, Release It! (2007), "Circuit Breaker".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Unpack

import structlog

from metier_agents.model import Asking, Model
from metier_agents.model_table import Breaker
from metier_agents.turns import History, ModelTurn
from metier_infra.errors import AskOperator, CircuitOpen, ModelBusy, ModelFailed

log = structlog.get_logger()

Outcome = Literal["replied", "busy", "refused", "given_up"]
"""Of a request. `refused`: the model is there and would not take it, so the fault is ours. `given_up`: nobody knows."""
PROBE_S = 1.0
"""While one request tries the model, others may come again after so long; seconds."""


@dataclass(frozen=True)
class Circuit:
    """`failures` in a row; `opens_at` None: closed; else the time from which one request may try the model, and whether one is at it."""

    failures: int = 0
    opens_at: float | None = None
    probing: bool = False


CLOSED = Circuit()


def admit(circuit: Circuit, now: float) -> tuple[Circuit, float]:
    """The circuit with a request let through and 0; or as it was, and the seconds after which one may pass."""
    if circuit.opens_at is None:
        return circuit, 0.0
    if now < circuit.opens_at:
        return circuit, circuit.opens_at - now
    if circuit.probing:
        return circuit, PROBE_S
    return replace(circuit, probing=True), 0.0


def judge(
    circuit: Circuit, outcome: Outcome, now: float, rule: Breaker, *, probe: bool, after_s: float | None = None
) -> Circuit:
    """The circuit after a request. `probe`: it was let through to try the model. `after_s`: when the provider will be back, if it said so."""
    if circuit.opens_at is not None and not probe:
        return circuit  # a request from before it opened says nothing new
    if outcome == "replied" or (probe and outcome == "refused"):
        return CLOSED
    if outcome != "busy":
        return replace(circuit, probing=False)
    failures = circuit.failures + 1
    if failures < rule.failures:
        return replace(circuit, failures=failures)
    return Circuit(failures, now + max(rule.cool_down_s, after_s or 0.0))


class Fuse:
    """The circuit of one model in this process. `clock` gives seconds."""

    def __init__(self, rule: Breaker, clock: Callable[[], float] = time.monotonic) -> None:
        self.circuit = CLOSED
        self._rule, self._clock = rule, clock

    def admit(self, model: str) -> bool:
        """Let a request through; whether it tries the model for all others. Raises `CircuitOpen`."""
        self.circuit, wait_s = admit(self.circuit, self._clock())
        if wait_s > 0:
            raise CircuitOpen(
                f"{model} was away {self.circuit.failures} times in a row and is not asked for {wait_s:.1f} s",
                after_s=wait_s,
            )
        return self.circuit.probing

    def judge(self, model: str, outcome: Outcome, *, probe: bool, after_s: float | None = None) -> None:
        """Take in what came of a request."""
        before = self.circuit
        self.circuit = judge(before, outcome, self._clock(), self._rule, probe=probe, after_s=after_s)
        if (before.opens_at is None) != (self.circuit.opens_at is None):
            action = "ask_again" if self.circuit.opens_at is None else "ask_no_more"
            log.warning("model away" if self.circuit.opens_at else "model back", action=action, model=model)


class Guarded:
    """A layer round a model that asks it only while its circuit lets requests through."""

    def __init__(self, inner: Model, fuse: Fuse) -> None:
        self.name = inner.name
        self.inner = inner
        self._fuse = fuse

    async def ask(self, messages: History, **asked: Unpack[Asking]) -> ModelTurn:
        """See `Model.ask`. Raises `CircuitOpen` at once while the model is away."""
        probe = self._fuse.admit(self.name)
        outcome: Outcome = "given_up"
        after_s: float | None = None
        try:
            turn = await self.inner.ask(messages, **asked)
            outcome = "replied"
        except ModelBusy as error:
            outcome, after_s = "busy", error.after_s
            raise
        except (ModelFailed, AskOperator):
            outcome = "refused"
            raise
        finally:
            self._fuse.judge(self.name, outcome, probe=probe, after_s=after_s)
        return turn
