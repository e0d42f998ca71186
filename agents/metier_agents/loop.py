"""The loop of one line of thought, on a page: assess, think, act, observe, over one message list.

`explorations` starts it for a claimed call. Every step is in the journal before the next model request, so a loop that starts again replays
its trail and goes on: nothing recorded is asked again. `policy` decides, `trail` asks, `hands` acts, `review` doubts, `outcome` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import assert_never

from metier_agents import appraisal, record, turns, wording
from metier_agents.attempt import Attempt
from metier_agents.citing import sources_message
from metier_agents.patience import until
from metier_agents.policy import Answer, Assess, Offer, Stop, Think, ToolChoice, decide, guard
from metier_agents.purse import Exhausted
from metier_agents.retrieval import find_sources
from metier_agents.review import released, wanted
from metier_agents.trail import Trail
from metier_agents.turns import Assessed, AssessmentWanted, Compared, Message, ModelTurn, Note, System, User
from metier_agents.view import View, see
from metier_infra import words
from metier_infra.rows import ToolRecord
from metier_tools.tool import ToolSpec


class Loop:
    """One line of thought of a call; `lane` numbers it."""

    def __init__(self, attempt: Attempt, lane: int = 0) -> None:
        self.attempt, self.spec, self.call, self.bundle = attempt, attempt.spec, attempt.call, attempt.hands.bundle
        self.trail = Trail(attempt, lane)

    @property
    def history(self) -> list[Message]:
        """The message list."""
        return self.trail.history

    async def run(self) -> words.Answer:
        """Work until the policy is content or a guard stops it. Raises a `FailRun` when there is no answer to give."""
        try:
            return await self._run()
        except Exhausted as limit:
            return self._end(limit.reason)

    async def _run(self) -> words.Answer:
        if not await self.trail.replay():
            await self._begin()
        while True:
            if turns.open_uses(self.history):
                await self._act()
                continue
            view = await self._look()
            move = decide(self.spec.policy, view)
            match move:
                case Answer() if not guard(view) and (doubt := wanted(self.history, self.spec, self.bundle)):
                    await self._think(doubt)
                case Answer():
                    return self._end()
                case Stop():
                    return self._end(move.reason)
                case Think():
                    await self._think(move.note)
                case Offer():
                    await self._think(move.note, self._specs(move.tools), move.choice)
                case Assess():
                    await self._assess(self._specs(move.tools))
                case _:
                    assert_never(move)

    def _end(self, stopped: str = "answered") -> words.Answer:
        return released(self.history, self.spec, self.bundle, stopped=stopped)

    async def _begin(self) -> None:
        """The task and its context; and the sources to answer from, recorded at once, so that no later attempt looks them up again."""
        task, retrieval, attempt = self.call.task, self.spec.retrieval, self.attempt
        rules, begins = wording.INSTRUCTIONS, [User(text=task.text)]
        begins += [User(text=wording.context_text(task.context))] if task.context else []
        if retrieval is None:
            self.trail.add(System(text=rules), *begins)
            return
        search = partial(find_sources, retrieval, attempt.journal.db, task.text)
        block, word = sources_message(await until(attempt.deadline, "the search for sources", search))
        rules = f"{rules}\n{wording.cite_text(retrieval.strategy, word)}"
        await self.trail.record(System(text=rules), *begins, User(text=block))

    async def _look(self) -> View:
        await self._settle()
        return see(self.history, self.spec, self.call.task.category, await self._records(), self.attempt.purse.left)

    async def _settle(self) -> None:
        """Once there is an answer: what its tool calls were worth, and for their record, whether it is what the model would have said alone."""
        told = appraisal.settle(self.spec, self.history)
        compared, assessed = turns.of_kind(told, Compared), turns.of_kind(self.history, Assessed)
        if compared and (sure := assessed[-1].own_confidence) is not None:
            ids = [words.ToolCallId(str(turn.tool_call_id)) for turn in appraisal.worked(self.history)]
            await self.attempt.journal.tools.compare(ids, agreed=compared[0].agreed, own_confidence=sure)
        if told:
            await self.trail.record(*told)

    async def _records(self) -> Mapping[str, ToolRecord]:
        return await record.records(self.attempt.journal, self.spec, self.call.task.category)

    def _specs(self, names: Sequence[str]) -> Sequence[ToolSpec]:
        return self.attempt.hands.toolbox.specs(names)

    async def _think(self, note: str | None, tools: Sequence[ToolSpec] = (), choice: ToolChoice = "none") -> None:
        self.trail.add(*([Note(text=note)] if note else []))
        await self.trail.record(await self.trail.ask("answer", tools, choice))

    async def _assess(self, tools: Sequence[ToolSpec]) -> None:
        names = tuple(tool.name for tool in tools)
        self.trail.add(AssessmentWanted(tools=names, text=wording.assessment_text(tools)))
        turn = await self.trail.ask("assessment")
        judged = await record.judged(self.attempt.journal, self.spec.name, self.call.task.category)
        found = await self._records(), judged, self.call.call_id
        await self.trail.record(turn, *appraisal.assess(self.spec.policy, turn, names, *found))

    async def _act(self) -> None:
        turn, attempt = turns.of_kind(self.history, ModelTurn)[-1], self.attempt
        with attempt.purse.calling(len(turn.uses)) as left:
            results = await attempt.hands.act(
                self.call, turn, self.trail.step - 1, left=left, deadline=attempt.deadline
            )
        attempt.purse.settle_calls(results)
        await self.trail.record(*results)
