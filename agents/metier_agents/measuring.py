"""What an agent's work is measured by: a layer round each request, tool call and attempt. The names are in `metier_infra.metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from metier_agents.spec import AgentSpec
from metier_agents.turns import ModelTurn
from metier_infra import metrics
from metier_infra.metrics import Metric
from metier_infra.words import Answer


@dataclass
class Measured:
    """Something under way; `failed` says how it ended, where it did not go well."""

    labels: metrics.Labels
    began: float
    failed: str | None = None

    def answered(self, answer: Answer) -> None:
        """An attempt at a call gave an answer."""
        metrics.record(metrics.INFERENCE_CALLS, answer.model_turns, self.labels)
        metrics.record(metrics.TOOL_CALLS, answer.tool_calls, self.labels)


class MeasuredRequest(Measured):
    """A request to a model."""

    def first_text(self, on_text: Callable[[str], None] | None) -> Callable[[str], None] | None:
        """The same listener, and the time of the first words that it hears."""
        if on_text is None:
            return None
        heard = False

        def hear(text: str) -> None:
            nonlocal heard
            if not heard:
                heard = True
                metrics.record(metrics.FIRST_CHUNK, time.perf_counter() - self.began, self.labels)
            on_text(text)

        return hear

    def replied(self, agent: str, turn: ModelTurn) -> None:
        """What the reply took. Tokens that were only set aside, and never counted, are left out."""
        model = {metrics.AGENT_NAME: agent, metrics.REQUEST_MODEL: self.labels[metrics.REQUEST_MODEL]}
        if turn.cost_usd:
            metrics.add(metrics.MODEL_COST, turn.cost_usd, model)
        if turn.usage is None or turn.usage.estimated:
            return
        for kind, tokens in (("input", turn.usage.input_tokens), ("output", turn.usage.output_tokens)):
            metrics.record(metrics.TOKEN_USAGE, tokens, {**self.labels, metrics.USAGE_TYPE: kind})


@contextmanager
def request(spec: AgentSpec) -> Generator[MeasuredRequest]:
    """A request to the agent's model."""
    provider, _, model = spec.model.partition(":")
    labels = {metrics.OPERATION: "chat", metrics.PROVIDER: provider, metrics.REQUEST_MODEL: model or spec.model}
    measured = MeasuredRequest(labels, time.perf_counter())
    with _timed(metrics.OPERATION_DURATION, measured):
        yield measured


@contextmanager
def tool(name: str) -> Generator[Measured]:
    """A tool call, until its result is recorded."""
    measured = Measured({metrics.TOOL_NAME: name}, time.perf_counter())
    with _timed(metrics.TOOL_DURATION, measured):
        yield measured


@contextmanager
def attempt(agent: str) -> Generator[Measured]:
    """An attempt of an agent at a call."""
    measured = Measured({metrics.AGENT_NAME: agent}, time.perf_counter())
    with _timed(metrics.AGENT_DURATION, measured):
        yield measured


@contextmanager
def _timed(metric: Metric, measured: Measured) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        measured.failed = str(getattr(error, "code", type(error).__name__))
        raise
    finally:
        labels = {**measured.labels, metrics.ERROR_TYPE: measured.failed}
        metrics.record(metric, time.perf_counter() - measured.began, labels)
