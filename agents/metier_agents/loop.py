"""The loop of one call, on a page: assess, think, act, observe, over one message list.

The worker starts it for a claimed call and records what it returns. Every step is in the journal before the next model request, so
a loop that starts again replays its list and goes on: nothing recorded is asked again. `policy` decides, `hands` acts, `outcome` answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, assert_never

from metier_agents import appraisal, record, turns, wording
from metier_agents.citing import complaint, sources_message
from metier_agents.hands import Hands
from metier_agents.model import Model
from metier_agents.outcome import conclude
from metier_agents.patience import until
from metier_agents.policy import Answer, Assess, Offer, Stop, Think, ToolChoice, decide, guard
from metier_agents.retrieval import find_sources
from metier_agents.spec import AgentSpec
from metier_agents.turns import AssessmentWanted, Message, ModelTurn, Note, System, User
from metier_agents.view import View, see
from metier_infra import messages, telemetry
from metier_infra.journal import Journal
from metier_infra.rows import Call, ToolRecord
from metier_tools.tool import ToolSpec


@dataclass
class Loop:
    """One call in the making. `history` is the message list; its first `recorded` messages are in the journal, as `steps` steps."""

    call: Call
    spec: AgentSpec
    model: Model
    journal: Journal
    hands: Hands
    deadline: float
    history: list[Message] = field(default_factory=list[Message])
    recorded: int = 0
    steps: int = 0
    resumed: bool = False

    async def run(self) -> messages.Answer:
        """Work until the policy is content or a guard stops it. Raises a `FailRun` when there is no answer to give."""
        await self._replay()
        while True:
            if turns.open_uses(self.history):
                await self._act()
                continue
            view = await self._look()
            move = decide(self.spec.policy, view)
            match move:
                case Answer() if not guard(view) and (wrong := complaint(self.history, self.spec)):
                    await self._think(wrong)
                case Answer():
                    return conclude(self.history, self.spec)
                case Stop():
                    return conclude(self.history, self.spec, stopped=move.reason)
                case Think():
                    await self._think(move.note)
                case Offer():
                    await self._think(move.note, self.hands.toolbox.specs(move.tools), move.choice)
                case Assess():
                    await self._assess(self.hands.toolbox.specs(move.tools))
                case _:
                    assert_never(move)

    async def _replay(self) -> None:
        """Take up what earlier attempts recorded; a call with no recorded step begins with the task."""
        self.resumed = self.call.attempt > 1
        steps = await self.journal.steps.of_call(self.call.call_id) if self.resumed else ()
        self.history = [message for step in steps for message in turns.load(step.body)]
        self.recorded, self.steps = len(self.history), len(steps)
        if not self.history:
            await self._begin()

    async def _begin(self) -> None:
        """The task and its context; and the sources to answer from, recorded at once, so that no later attempt looks them up again."""
        task, retrieval = self.call.task, self.spec.retrieval
        self.history = [System(text=wording.INSTRUCTIONS), User(text=task.text)]
        self.history += [User(text=wording.context_text(task.context))] if task.context else []
        if retrieval is not None:
            search = partial(find_sources, retrieval, self.journal.db, task.text)
            block, word = sources_message(await until(self.deadline, "the search for sources", search))
            rules = wording.cite_text(retrieval.strategy, word)
            self.history[0] = System(text=f"{wording.INSTRUCTIONS}\n{rules}")
            await self._record(User(text=block))

    async def _look(self) -> View:
        return see(self.history, self.spec, self.call.task.category, await self._records())

    async def _records(self) -> Mapping[str, ToolRecord]:
        return await record.records(self.journal, self.spec, self.call.task.category)

    async def _think(self, note: str | None, tools: Sequence[ToolSpec] = (), choice: ToolChoice = "none") -> None:
        self.history += [Note(text=note)] if note else []
        await self._record(await self._ask("answer", tools, choice))

    async def _assess(self, tools: Sequence[ToolSpec]) -> None:
        names = tuple(tool.name for tool in tools)
        self.history.append(AssessmentWanted(tools=names, text=wording.assessment_text(tools)))
        turn = await self._ask("assessment", (), "none")
        judged = await record.judged(self.journal, self.spec.name, self.call.task.category)
        await self._record(turn, *appraisal.assess(self.spec.policy, turn, names, await self._records(), judged))

    async def _act(self) -> None:
        turn = turns.of_kind(self.history, ModelTurn)[-1]
        left = see(self.history, self.spec, self.call.task.category, {}).calls_left
        results = await self.hands.act(self.call, turn, self.steps - 1, left=left, deadline=self.deadline)
        worth = appraisal.realise(self.spec.policy, self.history, results, turn.cost_usd or 0.0)
        await self._record(*results, *worth)

    async def _record(self, *found: Message) -> None:
        self.history += found
        await self.journal.steps.append(self.call.call_id, self.steps, turns.dump(self.history[self.recorded :]))
        self.recorded, self.steps = len(self.history), self.steps + 1

    async def _ask(
        self, purpose: Literal["answer", "assessment"], tools: Sequence[ToolSpec], choice: ToolChoice
    ) -> ModelTurn:
        started = time.time()
        turn = await until(self.deadline, f"a request to {self.model.name}", lambda: self._request(tools, choice))
        again, self.resumed = self.resumed, False
        stamp = {"purpose": purpose, "offered": tuple(tool.name for tool in tools), "asked_again": again}
        return turn.model_copy(update={**stamp, "started_at": started, "ended_at": time.time()})

    async def _request(self, tools: Sequence[ToolSpec], choice: ToolChoice) -> ModelTurn:
        asked = {
            telemetry.OPERATION: "chat",
            telemetry.REQUEST_MODEL: self.spec.model.partition(":")[2] or self.spec.model,
            telemetry.PROVIDER: self.spec.model.partition(":")[0],
            telemetry.AGENT_NAME: self.spec.name,
        }
        with telemetry.span(telemetry.chat(self.model.name), "client", attributes=asked) as span:
            turn = await self.model.ask(self.history, tools=tools, tool_choice=choice, deadline=self.deadline)
            usage = turn.usage
            span.set(
                {
                    telemetry.COST_USD: turn.cost_usd,
                    telemetry.RULE_WRITTEN: turn.rule_written,
                    telemetry.INPUT_TOKENS: usage.input_tokens if usage else None,
                    telemetry.OUTPUT_TOKENS: usage.output_tokens if usage else None,
                }
            )
            return turn
