"""A call from its claim to its answer: one line of thought, or several and a choice among what they found.

The worker calls `answer`. Each exploration is a loop with a lane of the call's steps for itself; the choice has the lane after theirs. All
of them spend from the one purse of the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metier_agents import wording
from metier_agents.attempt import Attempt
from metier_agents.loop import Loop
from metier_agents.purse import Exhausted
from metier_agents.reasoning import CHOICE, VERDICT, groups, read_choice, read_verdict, surest
from metier_agents.spec import Parallel
from metier_agents.trail import Trail
from metier_agents.turns import ModelTurn, Note, System, User, of_kind, spent
from metier_infra.errors import FailRun
from metier_infra.words import Answer


async def answer(attempt: Attempt) -> Answer:
    """The answer of a call. Raises as `Loop.run` does."""
    reasoning = attempt.spec.reasoning
    if isinstance(reasoning, Parallel):
        return await Explorations(attempt, reasoning).run()
    return await line(attempt).run()


def line(attempt: Attempt, lane: int = 0) -> Loop:
    """A line of thought: of a graph, where the agent's model is one."""
    if not attempt.spec.model.startswith("langgraph:"):
        return Loop(attempt, lane)
    from metier_agents.graph_agent import GraphLoop

    return GraphLoop(attempt, lane)


@dataclass
class Explorations:
    """Several independent lines of thought about one task."""

    attempt: Attempt
    reasoning: Parallel

    async def run(self) -> Answer:
        """Explore, then choose. An exploration that fails is left out; the first failure is raised when none succeeds."""
        loops = [line(self.attempt, lane) for lane in range(self.reasoning.k)]
        found = await asyncio.gather(*(loop.run() for loop in loops), return_exceptions=True)
        answers = _answers(found)
        trail = Trail(self.attempt, self.reasoning.k)
        chosen, by = await self._chosen(answers, trail)
        return self._whole(answers, chosen, by, [*loops, trail])

    async def _chosen(self, answers: Sequence[Answer], trail: Trail) -> tuple[int, str]:
        """The place of the chosen answer, and what chose it. What cannot choose, or may not any more, leaves it to the vote."""
        ranked = groups(answers)
        voted = surest(answers, ranked[0])
        if len(ranked) == 1 or self.reasoning.select == "vote":
            return voted, "vote"
        best = [surest(answers, group) for group in ranked]
        try:
            await trail.replay()
            place = await (self._judged if self.reasoning.select == "judge" else self._verified)(answers, best, trail)
        except Exhausted as limit:
            return voted, f"vote: {limit.reason}"
        return (voted, "vote: the choice could not be read") if place is None else (place, self.reasoning.select)

    async def _judged(self, answers: Sequence[Answer], best: Sequence[int], trail: Trail) -> int | None:
        listed = wording.judge_text([answers[place].text for place in best])
        choice = read_choice(await self._asked(trail, 0, listed, CHOICE), len(best))
        return None if choice is None else best[choice]

    async def _verified(self, answers: Sequence[Answer], best: Sequence[int], trail: Trail) -> int | None:
        """The candidate that a check finds likeliest right; of equals the one that more explorations gave."""
        verdicts = [
            read_verdict(await self._asked(trail, n, wording.verify_text(answers[place].text), VERDICT))
            for n, place in enumerate(best)
        ]
        read = [(verdict, -n) for n, verdict in enumerate(verdicts) if verdict is not None]
        return best[-max(read)[1]] if read else None

    async def _asked(self, trail: Trail, n: int, text: str, form: Mapping[str, Any]) -> str:
        """The reply to selection request number `n`, each a conversation of its own; from the record where it was made before."""
        replies = of_kind(trail.history, ModelTurn)
        if n < len(replies):
            return replies[n].text
        task = self.attempt.call.task
        ahead = [User(text=wording.context_text(task.context))] if task.context else []
        shown = Trail(
            self.attempt, trail.lane, [System(text=wording.SELECT), User(text=task.text), *ahead, Note(text=text)]
        )
        shown.steps, shown.resumed, trail.resumed = trail.steps, trail.resumed, False
        turn = await shown.ask("selection", form=form)
        await trail.record(*shown.history, turn)
        return turn.text

    def _whole(self, answers: Sequence[Answer], chosen: int, by: str, trails: Sequence[Loop | Trail]) -> Answer:
        """The chosen answer, with what all lines of thought came to."""
        histories = [trail.history for trail in trails]
        costs = [spent(history) for history in histories]
        agreeing = next(group for group in groups(answers) if chosen in group)
        return answers[chosen].model_copy(
            update={
                "model_turns": sum(len(of_kind(history, ModelTurn)) for history in histories),
                "tool_calls": self.attempt.purse.tool_calls,
                "cost_usd": sum(cost for cost, _ in costs),
                "cost_known": all(known for _, known in costs),
                "explorations": self.reasoning.k,
                "agreement": len(agreeing) / self.reasoning.k,
                "selected_by": by,
            }
        )


def _answers(found: Sequence[Answer | BaseException]) -> list[Answer]:
    """The answers. What is no failure of one exploration alone is raised, and so is the first failure when there is no answer."""
    errors = [one for one in found if isinstance(one, BaseException)]
    for error in errors:
        if not isinstance(error, FailRun):
            raise error
    answers = [one for one in found if isinstance(one, Answer)]
    if not answers:
        raise errors[0]
    return answers
