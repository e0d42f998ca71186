"""How several agents are asked, durably: all at once until enough agree, or in waves. `choosers` calls it with a decision.

Every call ends with one result in the journal: an answer, a failure, or that it was given up, whichever was there first. So a node that runs again after a crash finds
the same answers, and makes the same of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metier_infra.errors import CallFailed, DeadlineMissed, FailRun, LimitReached
from metier_infra.words import Answer, Decision
from metier_workflows.node import NotNeeded
from metier_workflows.panel import Camp, Key, agree, backing, camps, next_wave

Ask = Callable[[str], Coroutine[Any, Any, Answer]]
"""Asks the agent of this name."""
NOT_NEEDED = "not_needed"


@dataclass(frozen=True)
class Votes:
    """Who answered what, who failed and why, and what each of those who were chosen weighs."""

    weights: Mapping[str, float]
    key: Key
    answers: Mapping[str, Answer] = field(default_factory=dict[str, Answer])
    failures: Mapping[str, FailRun] = field(default_factory=dict[str, FailRun])

    @property
    def camps(self) -> list[Camp]:
        """The strongest first."""
        return camps([*self.answers.values()], self.weights, self.key)

    @property
    def failed(self) -> dict[str, str]:
        """The code of each failure, by agent; those that were given up did not fail."""
        codes = {name: code_of(error) for name, error in self.failures.items()}
        return {name: code for name, code in sorted(codes.items()) if code != NOT_NEEDED}

    @property
    def missed(self) -> FailRun | None:
        """The failure that says most about why nobody answered: a limit, else that of whoever was to be asked first."""
        found = [self.failures[name] for name in self.weights if name in self.failures]
        return next((one for one in found if isinstance(one, LimitReached)), found[0] if found else None)

    def backing(self, at: int = 0) -> float:
        """The share of all the weight that stands behind a camp."""
        return backing(self.camps, self.weights, at)

    def agree(self, enough: float) -> bool:
        """Whether so much of it stands behind one."""
        return agree([*self.answers.values()], self.weights, enough, self.key)


def code_of(error: FailRun) -> str:
    """Why a call failed, as its agent said, where that is known."""
    return error.reason if isinstance(error, CallFailed) else error.code


def weights_of(decision: Decision) -> dict[str, float]:
    """What each of those who were chosen weighs, in their order; the same, where that is nothing."""
    given = dict(zip(decision.chosen, decision.weights, strict=False))
    weights = {name: given.get(name, 1.0) for name in decision.chosen}
    return weights if any(weights.values()) else dict.fromkeys(decision.chosen, 1.0)


async def collect(decision: Decision, ask: Ask, key: Key) -> Votes:
    """Ask as the decision says, until enough agree or everybody has been asked. Raises what is no failure of an agent's."""
    votes = Votes(weights_of(decision), key)
    left = list(decision.chosen)
    while left and not votes.agree(decision.enough):
        wave = tuple(left)
        if decision.topology == "cascade":
            wave = next_wave(left, [*votes.answers.values()], votes.weights, decision.enough, key)
        left = left[len(wave) :]
        votes = await _wave(wave, ask, votes, decision.enough)
    return votes


async def _wave(names: Sequence[str], ask: Ask, votes: Votes, enough: float) -> Votes:
    """Ask these at once; who has not answered when enough agree is given up."""
    tasks = {asyncio.create_task(ask(name)): name for name in names}
    try:
        pending = {*tasks}
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            votes = _with(votes, {tasks[task]: task for task in done})
            if pending and votes.agree(enough):
                for task in pending:
                    task.cancel(NotNeeded())
                done, pending = await asyncio.wait(pending)
                votes = _with(votes, {tasks[task]: task for task in done})
        return votes
    finally:
        await _end([*tasks])


async def _end(tasks: Sequence[asyncio.Task[Answer]]) -> None:
    """Stop waiting, without giving anything up; whatever else broke in the meantime is known by the first that did."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def _with(votes: Votes, done: Mapping[str, asyncio.Task[Answer]]) -> Votes:
    """The votes with what came of these calls."""
    answers, failures = dict(votes.answers), dict(votes.failures)
    for name, task in done.items():
        if task.cancelled():  # its own deadline came as it was given up, and was there first
            failures[name] = DeadlineMissed(f"the agent {name!r} gave no answer in time")
            continue
        try:
            answers[name] = task.result()
        except (CallFailed, DeadlineMissed, LimitReached) as error:
            failures[name] = error
    return replace(votes, answers=answers, failures=failures)
