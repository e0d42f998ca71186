"""An evaluation under way: asks each pair of sample and agent that has no result yet, scores what comes, and writes it down.

`cli_eval` opens the system, embedded or running, and calls `Evaluation.run`. Each pair is a run of the workflow `metier.eval` under an id that follows from
the evaluation, the sample and the agent: whoever goes on after a crash finds the answers that were there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from metier import client
from metier.configuration import System
from metier.eval_scoring import Scoring
from metier_infra.errors import BadSettings, DeadlineMissed, MetierError
from metier_infra.events import Event, RequestRejected
from metier_infra.messages import Envelope
from metier_infra.rows import Call, Run
from metier_infra.words import AgentCard, Failure, RunId, stable_id
from metier_workflows.evaluating import judging, results
from metier_workflows.evaluating.asking import NAME, Asked, Pair
from metier_workflows.evaluating.budget import Purse
from metier_workflows.evaluating.results import Result
from metier_workflows.evaluating.samples import Sample
from metier_workflows.evaluating.scorers import Judged, Score, comparable

LOOK_S = 5.0
"""How often a pair looks into the journal for its end, should the event be missed; seconds."""
QUIET_S = 120.0
"""Beyond the time of its calls, so long may a run take; and so long may a running system let one lie untouched. Seconds."""
CALLS = 8
"""Calls one after the other that a pair comes to at the most: three tries of the agent and three of its judges, and the waits between."""


@dataclass(frozen=True)
class Todo:
    """A pair to be asked, for the `attempt`-th time."""

    sample: Sample
    agent: str
    attempt: int = 1


def todos(
    samples: Sequence[Sample], agents: Sequence[str], done: Iterable[Result], *, failed_again: bool = False
) -> list[Todo]:
    """The pairs without a result: sample by sample, so that agents that are stopped early have answered the same ones.

    `failed_again`: those too that got no answer, or no score.
    """
    had = {one.pair: one for one in results.newest(done, samples)}
    wanted: list[Todo] = []
    for sample in samples:
        for agent in agents:
            before = had.get((sample.id, agent))
            if before is None:
                wanted.append(Todo(sample, agent))
            elif failed_again and (before.failure is not None or before.score is None):
                wanted.append(Todo(sample, agent, before.attempt + 1))
    return wanted


@dataclass
class Evaluation:
    """One evaluation of one folder.

    Attributes:
        system: where the pairs are run.
        folder: where the results lie.
        evaluation: its id, which is in those of its runs.
        scoring: scores answers.
        purse: what may be spent.
        parallel: pairs under way at one time.
        timeout_s: of each call, in seconds.
        told: called with each result once it is written.
    """

    system: System
    folder: Path
    evaluation: str
    scoring: Scoring
    purse: Purse
    parallel: int
    timeout_s: float
    told: Callable[[Result], None]
    _ends: dict[RunId, asyncio.Future[MetierError | None]] = field(
        default_factory=dict[RunId, asyncio.Future[MetierError | None]]
    )
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self, wanted: Sequence[Todo]) -> list[Todo]:
        """Ask these pairs; those that the budget left over. Raises `BadSettings`, `DeadlineMissed`."""
        waiting = deque(wanted)
        results.cut_torn(self.folder / results.RESULTS)
        async with self._listening(), asyncio.TaskGroup() as group:
            for _ in range(min(self.parallel, len(waiting))):
                group.create_task(self._work(waiting))
        return list(waiting)

    @asynccontextmanager
    async def _listening(self) -> AsyncGenerator[None]:
        def seen(event: Envelope[Event]) -> None:
            if isinstance(event.data, client.Ended):
                self._over(event.data.run_id)
            elif isinstance(event.data, RequestRejected):
                run_id = client.run_id_of(event.data.request_source, event.data.request_id)
                self._over(
                    run_id, BadSettings(f"a request was rejected: {event.data.failure.message}; --resume goes on")
                )

        async with client.following(self.system.bus, seen):
            yield

    def _over(self, run_id: RunId, error: MetierError | None = None) -> None:
        """A run that is waited for ended, or never begins."""
        ended = self._ends.get(run_id)
        if ended is not None and not ended.done():
            ended.set_result(error)

    async def _work(self, waiting: deque[Todo]) -> None:
        while (todo := await self._next(waiting)) is not None:
            try:
                result = await self._result(todo)
                results.append(self.folder / results.RESULTS, result)
                self.purse.spend(
                    todo.agent, result.cost_usd + result.judging_usd, result.tokens + result.judging_tokens
                )
            finally:
                await self._ended(todo.agent)
            self.told(result)

    async def _next(self, waiting: deque[Todo]) -> Todo | None:
        """The next pair, once the purse lets it go; None when there is none, or nothing is left to spend."""
        async with self._changed:
            while waiting and not self.purse.empty:
                if self.purse.may_start(waiting[0].agent):
                    self.purse.start(waiting[0].agent)
                    return waiting.popleft()
                await self._changed.wait()
        return None

    async def _ended(self, agent: str) -> None:
        async with self._changed:
            self.purse.gave_up(agent)
            self._changed.notify_all()

    async def _result(self, todo: Todo) -> Result:
        run = await self._asked(todo)
        if run.status != "succeeded":
            why = run.failure.message if run.failure else "it was cancelled"
            raise BadSettings(
                f"{todo.agent} on {todo.sample.id}: the run {run.run_id[:12]} did not come to its end: {why}; --resume goes on"
            )
        asked = Asked.model_validate(run.result)
        score = await self._score(todo.sample, asked)
        return result_of(todo, run, await self.system.journal.calls.of_run(run.run_id), asked, score)

    async def _score(self, sample: Sample, asked: Asked) -> Score:
        if asked.failure is not None:
            return Score(value=0.0, reason=f"no answer: {asked.failure.code}: {asked.failure.message}"[:500])
        if asked.answer is None or not asked.answer.text.strip():
            return Score(value=0.0, reason="there is no answer")
        if isinstance(sample.scorer, Judged):
            return judging.verdict(asked.votes, sample.scorer.by)
        return await self.scoring.score(sample, asked.answer.text)

    async def _asked(self, todo: Todo) -> Run:
        """The run of this pair, ended; it is started unless it was before."""
        event_id, run = await self._found(todo)
        if run is not None and run.ended:
            return run
        run_id = client.run_id_of(client.SOURCE, event_id)
        ended = self._ends[run_id] = asyncio.get_running_loop().create_future()
        try:
            if run is None:
                request = {"pair": pair_of(todo, self.timeout_s).model_dump(mode="json")}
                await client.publish(self.system.bus, NAME, request, event_id=event_id)
            async with asyncio.timeout(self.timeout_s * CALLS + QUIET_S):
                return await self._end(run_id, ended)
        except TimeoutError as error:
            raise DeadlineMissed(
                f"the run {run_id} did not end; it may wait for a person (`metier runs show {run_id[:12]}`); --resume goes on"
            ) from error
        finally:
            del self._ends[run_id]

    async def _found(self, todo: Todo) -> tuple[str, Run | None]:
        """The id of the request for this pair, and its run if there is one. A run that failed says nothing of the agent, so another takes its place."""
        sample = todo.sample
        for again in count():
            event_id = stable_id("eval", self.evaluation, sample.id, sample.digest, todo.agent, todo.attempt, again)
            run = await self.system.journal.runs.get(client.run_id_of(client.SOURCE, event_id))
            if run is None or not run.ended or run.status == "succeeded":
                return event_id, run
        raise AssertionError("there is always another number")

    async def _end(self, run_id: RunId, ended: asyncio.Future[MetierError | None]) -> Run:
        """The run, once it has ended. The journal is looked at now and then too: an event may be missed, and who does not take a run up tells nothing."""
        begun = time.monotonic()
        while True:
            await asyncio.wait([ended], timeout=LOOK_S)
            run = await self.system.journal.runs.get(run_id)
            if run is not None and run.ended:
                return run
            if ended.done() and (error := ended.result()):
                raise error
            if run is None and time.monotonic() - begun > QUIET_S:
                raise DeadlineMissed(
                    f"no orchestrator took the run {run_id} up within {QUIET_S:.0f} s; --resume goes on"
                )


def pair_of(todo: Todo, timeout_s: float) -> Pair:
    """The input of a pair's run."""
    sample = todo.sample
    return Pair(
        agent=todo.agent,
        text=sample.text,
        category=sample.category,
        context=sample.context,
        expected=sample.expected,
        judged=sample.scorer if isinstance(sample.scorer, Judged) else None,
        timeout_s=timeout_s,
    )


def result_of(todo: Todo, run: Run, calls: Sequence[Call], asked: Asked, score: Score) -> Result:
    """The line of a pair: what the agent took, and apart from it what its judges took."""
    own = [call for call in calls if call.agent == todo.agent and call.task.category != judging.CATEGORY]
    judges = [call for call in calls if call.task.category == judging.CATEGORY]
    answer, sample = asked.answer, todo.sample
    return Result(
        sample=sample.id,
        digest=sample.digest,
        agent=todo.agent,
        category=sample.category,
        tags=sample.tags,
        scorer=sample.scorer.name,
        score=score.value,
        reason=score.reason,
        answer=comparable(sample.scorer, answer.text) if answer else "",
        failure=_short(asked.failure),
        cost_usd=sum(call.spent.usd for call in own),
        cost_known=answer.cost_known if answer else True,
        judging_usd=sum(call.spent.usd for call in judges),
        judging_tokens=sum(call.spent.tokens for call in judges),
        tokens=sum(call.spent.tokens for call in own),
        seconds=sum(call.spent.time_s for call in own),
        votes=asked.votes,
        stamp=next((call.stamp.digest for call in reversed(own) if call.stamp), ""),
        attempt=todo.attempt,
        run_id=run.run_id,
    )


def _short(failure: Failure | None) -> Failure | None:
    return failure and Failure(code=failure.code, message=failure.message[:1000])


def with_judges(placed: Mapping[str, Sample], judges: tuple[str, ...], agents: Sequence[str]) -> dict[str, Sample]:
    """The samples by their places, those to be judged with these judges where they name none. Raises `BadSettings` where an agent's answer would have no judge."""
    given = {place: _judged_by(one, judges) for place, one in placed.items()}
    check_judges(given, agents, {})
    return given


def check_judges(placed: Mapping[str, Sample], agents: Sequence[str], cards: Mapping[str, AgentCard]) -> None:
    """Raise `BadSettings` where an agent's answer would have no judge: it would be asked, and paid for, and have no score. `cards` tell models, as far as they are known."""
    for place, one in placed.items():
        for agent in agents:
            if isinstance(one.scorer, Judged) and not judging.panel(one.scorer, agent, cards):
                raise BadSettings(f"{place}: nobody is there to judge {agent}: {_unjudged(one.scorer, agent, cards)}")


def _unjudged(scorer: Judged, agent: str, cards: Mapping[str, AgentCard]) -> str:
    others = [name for name in scorer.judges if name != agent]
    if others and agent in cards:
        return f"whoever else is named ({', '.join(others)}) has its model, {cards[agent].model}; name a judge of another model, or set `own` to true"
    return "name judges with --judges, or in the sample (an agent does not judge itself unless `own` is true)"


def _judged_by(sample: Sample, judges: tuple[str, ...]) -> Sample:
    scorer = sample.scorer
    if not isinstance(scorer, Judged) or scorer.judges:
        return sample
    return sample.model_copy(update={"scorer": scorer.model_copy(update={"judges": judges})})


def asked_agents(samples: Iterable[Sample], agents: Sequence[str]) -> frozenset[str]:
    """The agents that an evaluation asks, judges among them."""
    judges = (name for one in samples if isinstance(one.scorer, Judged) for name in one.scorer.judges)
    return frozenset([*agents, *judges])
