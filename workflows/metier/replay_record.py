"""What is recorded of a run, and what answers from it: a journal, a tool lane and a model for `replay`. Nothing here runs a tool or writes to the journal of the run.

LangGraph gives the nodes of a new run new ids, so what was asked is found by what it was (agent and task, tool and arguments), each recorded answer once and in
its order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from metier_agents.policy import ToolChoice
from metier_agents.turns import History, ModelTurn
from metier_infra.budgets import Account, Budgets
from metier_infra.calls import Calls
from metier_infra.database import Database
from metier_infra.decisions import Decisions, Kept
from metier_infra.errors import MissingRun, NotRecorded
from metier_infra.journal import Journal
from metier_infra.rows import Call, Run, Signal, ToolCallRow, Wait
from metier_infra.waits import Waits
from metier_infra.words import CallId, Decision, RunId, Slot, Wanted
from metier_tools.tool import ToolCall, ToolResult, ToolSpec, digest_of

if TYPE_CHECKING:
    from metier_agents.model import Options

MOST_RUNS = 1000
"""A run with more runs below it is not replayed."""
Rule = Callable[[Decision, Wanted | None, Decision | None], Decision]
"""From a decision as it is made now, what was wanted, and the one that is recorded (None: none is) to the one that counts."""


@dataclass(frozen=True)
class Record:
    """A run and those below it, with all that was asked and answered. `signals` are the run's own."""

    run: Run
    calls: Sequence[Call]
    tools: Sequence[ToolCallRow]
    decisions: Sequence[Kept]
    signals: Sequence[Signal]


@dataclass
class Unknown:
    """What a replay could not know, each once, in the order in which it came to it."""

    told: dict[str, None] = field(default_factory=dict[str, None])

    def say(self, sentence: str) -> None:
        """Add a sentence."""
        self.told[sentence] = None


async def record_of(journal: Journal, run: Run) -> Record:
    """Read what is recorded. Raises `MissingRun` where too many runs stand below it."""
    runs, at = [run], 0
    while at < len(runs):
        runs += await journal.runs.children(runs[at].run_id)
        at += 1
        if len(runs) > MOST_RUNS:
            raise MissingRun(f"more than {MOST_RUNS} runs stand below run {run.run_id}; such a run is not replayed")
    ids = [RunId(one.run_id) for one in runs]
    return Record(
        run=run,
        calls=[call for one in ids for call in await journal.calls.of_run(one)],
        tools=[row for one in ids for row in await journal.tools.of_run(one)],
        decisions=[kept for one in ids for kept in await journal.decisions.kept(one)],
        signals=await journal.signals.of_run(run.run_id),
    )


class Answers:
    """Recorded answers to calls. Those of agents that `stays` are given, each once; the others are asked again. `given` are the calls whose answers were."""

    def __init__(self, record: Record, stays: Callable[[str], bool]) -> None:
        self.given: set[CallId] = set()
        self._left: defaultdict[str, deque[Call]] = defaultdict(deque)
        for call in record.calls:
            if stays(call.agent) and (call.answer or (call.failure and call.failure.code != "not_needed")):
                self._left[_asked(call)].append(call)

    async def give(self, calls: Calls, call: Call) -> Call:
        """The call with its recorded answer, if there is one left; else as it is."""
        left = self._left.get(_asked(call))
        if call.answered_at is not None or not left:
            return call
        found = left.popleft()
        self.given.add(found.call_id)
        return await calls.answer(call.call_id, answer=found.answer, failure=found.failure)


def _asked(call: Call) -> str:
    return f"{call.agent}\n{call.task.model_dump_json()}"


class RecordedCalls(Calls):
    """Calls that are answered when they are requested, where an answer is recorded."""

    def __init__(self, db: Database, lease_s: float, answers: Answers) -> None:
        super().__init__(db, lease_s)
        self._answers = answers

    async def request(self, call: Call) -> Call:
        """See `Calls.request`."""
        return await self._answers.give(self, await super().request(call))


class RecordedBudgets(Budgets):
    """The same for calls for which something is set aside."""

    def __init__(self, db: Database, calls: Calls, answers: Answers) -> None:
        super().__init__(db)
        self._calls = calls
        self._answers = answers

    async def reserve(self, call: Call, accounts: Sequence[Account]) -> Call | None:
        """See `Budgets.reserve`."""
        stored = await super().reserve(call, accounts)
        return await self._answers.give(self._calls, stored) if stored else None


class RecordedDecisions(Decisions):
    """Decisions that count as `rule` says, from what is made now and what is recorded."""

    def __init__(self, db: Database, record: Record, rule: Rule) -> None:
        super().__init__(db)
        self._rule = rule
        self._left: defaultdict[str, deque[Decision]] = defaultdict(deque)
        for one in record.decisions:
            self._left[_wanted(one.decision, one.wanted)].append(one.decision)

    async def record(
        self,
        decision_id: str,
        run_id: RunId,
        decision: Decision,
        slot: Slot | None = None,
        wanted: Wanted | None = None,
    ) -> Decision:
        """See `Decisions.record`."""
        if kept := await self.get(decision_id):
            return kept
        left = self._left.get(_wanted(decision, wanted))
        counts = self._rule(decision, wanted, left.popleft() if left else None)
        return await super().record(decision_id, run_id, counts, slot, wanted)


def _wanted(decision: Decision, wanted: Wanted | None) -> str:
    return wanted.model_dump_json() if wanted else f"by the workflow: {decision.category}"


class RecordedWaits(Waits):
    """Waits that are over at once: for a time, and for a signal that is not there and came too late then."""

    async def ask(self, wait: Wait, after_s: float | None = None) -> Wait:
        """See `Waits.ask`."""
        forever = wait.name is not None and wait.due is None and after_s is None
        return await super().ask(wait if forever else wait.model_copy(update={"due": 0.0}))


def recorded_journal(db: Database, record: Record, answers: Answers, rule: Rule) -> Journal:
    """A journal of its own for a replay, on a database of its own."""
    journal = Journal(db)
    journal.calls = RecordedCalls(db, journal.lease_s, answers)
    journal.budgets = RecordedBudgets(db, journal.calls, answers)
    journal.decisions = RecordedDecisions(db, record, rule)
    journal.waits = RecordedWaits(db)
    return journal


class RecordedLane:
    """A tool lane that gives recorded results and runs nothing."""

    def __init__(self, record: Record, unknown: Unknown) -> None:
        self._results: defaultdict[tuple[str, str], deque[ToolResult]] = defaultdict(deque)
        for row in record.tools:
            if row.result is not None:
                self._results[row.tool, digest_of(row.arguments)].append(ToolResult.model_validate(row.result))
        self._unknown = unknown

    async def call(self, call: ToolCall) -> ToolResult:
        """See `ToolLane.call`: of several results of the same arguments each in its order, and then the last one. Raises `NotRecorded`."""
        found = self._results.get((call.tool, digest_of(call.arguments)))
        if not found:
            self._unknown.say(f"what {call.tool} gives for other arguments than were recorded")
            raise NotRecorded(f"no result of {call.tool} is recorded for these arguments, and a replay runs no tool")
        return found.popleft() if len(found) > 1 else found[0]

    async def close(self) -> None:
        """See `ToolLane.close`."""


class Unasked:
    """In place of a model that a replay may not ask."""

    def __init__(self, name: str, unknown: Unknown) -> None:
        self._name = name
        self._unknown = unknown

    @property
    def name(self) -> str:
        """See `Model.name`."""
        return self._name

    async def ask(
        self,
        messages: History,
        *,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        deadline: float,
        options: Options | None = None,
    ) -> ModelTurn:
        """See `Model.ask`. Raises `NotRecorded`."""
        del messages, tools, tool_choice, deadline, options
        self._unknown.say(
            f"what {self._name} answers: it was not asked then, and is not asked now (--ask-models asks it)"
        )
        raise NotRecorded(f"no answer of {self._name} is recorded for this, and the replay may not ask it")
