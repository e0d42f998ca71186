"""A message list and its record: what is asked and what came of it is in the journal before the next model request.

The loop walks along one, `explorations` along one for each line of thought. A trail that is taken up again replays what was recorded and
goes on, so nothing that was answered is asked twice. Round each request to the model it sets its price aside, tells what is written as it
comes, and opens a span.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from metier_agents import measuring, turns
from metier_agents.attempt import Attempt
from metier_agents.model import Options
from metier_agents.patience import until
from metier_agents.policy import ToolChoice
from metier_agents.purse import Need
from metier_agents.review import next_on_refusal
from metier_agents.turns import Message, ModelTurn, Usage
from metier_infra import telemetry
from metier_infra.errors import ModelBusy
from metier_infra.failpoints import failpoint
from metier_tools.tool import ToolSpec

LANE = 10_000
"""Steps of one line of thought: line number n of a call has the numbers from n times this."""
LONGEST_CAPTURE = 32_000
"""Characters of a prompt or reply on a span."""
Purpose = Literal["answer", "assessment", "selection"]


@dataclass
class Trail:
    """One line of thought of a call; `lane` numbers it. `history` is its message list, of which `recorded` messages are in `steps` steps."""

    attempt: Attempt
    lane: int = 0
    history: list[Message] = field(default_factory=list[Message])
    recorded: int = 0
    steps: int = 0
    resumed: bool = False

    async def replay(self) -> bool:
        """Take up what earlier attempts recorded; whether there was anything."""
        call, first = self.attempt.call, self.lane * LANE
        found = await self.attempt.journal.steps.of_call(call.call_id) if call.attempt > 1 else ()
        mine = [step for step in found if first <= step.n < first + LANE]
        self.history = [message for step in mine for message in turns.load(step.body)]
        self.recorded, self.steps = len(self.history), len(mine)
        self.resumed = call.attempt > 1 and not turns.open_uses(self.history)
        self.attempt.purse.replay(self.history)
        return bool(mine)

    @property
    def step(self) -> int:
        """The number of the next step in the journal."""
        return self.lane * LANE + self.steps

    def add(self, *messages: Message) -> None:
        """Messages that are recorded with the next step."""
        self.history += messages

    async def record(self, *found: Message) -> None:
        """The next step: these messages and those that were added before. Raises `FencedOff` where another worker has taken the call over."""
        self.history += found
        body, call = turns.dump(self.history[self.recorded :]), self.attempt.call
        await self.attempt.journal.steps.append(call.call_id, self.step, body, attempt=call.attempt)
        failpoint("step.recorded")
        self.recorded, self.steps = len(self.history), self.steps + 1

    async def ask(
        self,
        purpose: Purpose,
        tools: Sequence[ToolSpec] = (),
        choice: ToolChoice = "none",
        form: Mapping[str, Any] | None = None,
    ) -> ModelTurn:
        """The model's next turn, not yet recorded. Raises `Exhausted` when it might cost more than is left."""
        attempt, limits, started = self.attempt, self.attempt.spec.limits, time.time()
        need = attempt.estimate(self.history, tools, limits.output_tokens)

        async def request() -> ModelTurn:
            with attempt.purse.reserved(need):
                try:
                    return await self._request(purpose, tools, choice, form)
                except ModelBusy as error:
                    self.resumed = self.resumed or error.maybe_billed
                    attempt.purse.lose(need if error.maybe_billed else Need(0))
                    raise
                except asyncio.CancelledError:  # it is out of our hands, and may be billed
                    attempt.purse.lose(need)
                    raise

        lost = self.resumed
        try:
            turn = await until(attempt.deadline, f"a request to {attempt.model.name}", request)
        except BaseException:
            if lost:  # what the attempt before asked for may be billed, and no turn will say so
                attempt.purse.lose(need)
            raise
        failpoint("model.answered")
        again, self.resumed = self.resumed, False
        if turn.usage is None and need.tokens:
            turn = turn.model_copy(update={"usage": Usage(input_tokens=need.tokens, output_tokens=0, estimated=True)})
        stamp = {"purpose": purpose, "offered": tuple(tool.name for tool in tools), "asked_again": again}
        turn = turn.model_copy(update={**stamp, "started_at": started, "ended_at": time.time()})
        attempt.purse.settle(turn)
        return turn

    async def _request(
        self, purpose: Purpose, tools: Sequence[ToolSpec], choice: ToolChoice, form: Mapping[str, Any] | None
    ) -> ModelTurn:
        """One try, in its span and its time, with what is written told as it comes."""
        attempt, model = self.attempt, self.attempt.model
        with (
            telemetry.span(telemetry.chat(model.name), "client", attributes=_asked(attempt)) as span,
            measuring.request(attempt.spec) as measured,
        ):
            async with self._telling(purpose) as on_text:
                options = Options(
                    output_tokens=attempt.spec.limits.output_tokens,
                    effort=attempt.spec.reasoning.effort,
                    form=form,
                    next_on_refusal=next_on_refusal(self.history, attempt.hands.bundle),
                    on_text=measured.first_text(on_text),
                )
                turn = await model.ask(
                    self.history, tools=tools, tool_choice=choice, deadline=attempt.deadline, options=options
                )
            span.set(_answered(turn))
            measured.replied(attempt.spec.name, turn)
            if attempt.hands.bundle is not None and attempt.hands.bundle.capture:
                span.set(_captured(self.history, turn))
            return turn

    def _telling(self, purpose: Purpose) -> AbstractAsyncContextManager[Callable[[str], None] | None]:
        teller = self.attempt.teller if purpose == "answer" else None
        return teller.telling(self.step) if teller else nullcontext()


def _asked(attempt: Attempt) -> Mapping[str, telemetry.Value | None]:
    provider, _, model = attempt.spec.model.partition(":")
    return {
        telemetry.OPERATION: "chat",
        telemetry.REQUEST_MODEL: model or attempt.spec.model,
        telemetry.PROVIDER: provider,
        telemetry.AGENT_NAME: attempt.spec.name,
        **telemetry.stamped(attempt.stamp),
    }


def _answered(turn: ModelTurn) -> Mapping[str, telemetry.Value | None]:
    usage = turn.usage
    return {
        telemetry.RESPONSE_MODEL: turn.model,
        telemetry.COST_USD: turn.cost_usd,
        telemetry.RULE_WRITTEN: turn.rule_written,
        telemetry.INPUT_TOKENS: usage.input_tokens if usage else None,
        telemetry.OUTPUT_TOKENS: usage.output_tokens if usage else None,
        telemetry.CACHED_TOKENS: usage.cached_tokens if usage else None,
        telemetry.REASONING_TOKENS: usage.reasoning_tokens if usage else None,
        telemetry.PASSED_OVER: len(turn.passed_over) or None,
    }


def _captured(history: Sequence[Message], turn: ModelTurn) -> Mapping[str, telemetry.Value | None]:
    """The content of a request, each side cut at what a span can hold."""
    said = (json.dumps(turns.dump(messages)["messages"])[:LONGEST_CAPTURE] for messages in (history, [turn]))
    return dict(zip((telemetry.INPUT_MESSAGES, telemetry.OUTPUT_MESSAGES), said, strict=True))
