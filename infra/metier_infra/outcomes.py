"""The journal's outcomes: what really came of runs, said by backends and people hours later, or read off what happened. `journal` puts them beside its other parts.

The orchestrator records what comes on `metier.outcomes` and what it reads off itself; `logged` joins them to decisions for whoever learns.

The rules. About one thing (a run, a decision of it, or an agent there) one kind of word of one speaker counts: the one with the latest event time, and of two of the
same time the one with the greater event id, in whatever order they come. Words of several speakers all stand; learning sees their mean by weight. A word about
something that is not there is kept as an orphan, and counts from the moment on that the thing is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from metier_infra.database import Database, Row, Statement
from metier_infra.decisions import Kept, kept_of
from metier_infra.words import Word, stable_id

Kind = Literal["explicit", "dissent", "retry", "edit"]

WEIGHTS: Mapping[Kind, float] = {"explicit": 1.0, "edit": 0.5, "dissent": 0.2, "retry": 0.2}
"""How much a word of each kind counts, against one of somebody who judged; its own weight is multiplied by it.

A label that is right with chance p is worth (2p - 1)^2 of one that is always right (what a flipped coin leaves of a difference, squared). Where two of three
agree and one dissents, the two are right in 73 of 100 cases (4,540 queries, 12 models), which makes 0.2. Of retries nothing better is known; an edit says where.
"""

_RECORD = (
    "INSERT INTO outcomes (outcome_id, run_id, decision_id, agent, kind, said_by, score, weight, note, event_id, said_at, at)"
    " VALUES (:outcome_id, :run_id, :decision_id, :agent, :kind, :by, :score, :weight, :note, :event_id, :said_at, :now)"
    " ON CONFLICT (outcome_id) DO UPDATE SET score = excluded.score, weight = excluded.weight, note = excluded.note,"
    " event_id = excluded.event_id, said_at = excluded.said_at, at = excluded.at WHERE excluded.said_at > outcomes.said_at"
    " OR (excluded.said_at = outcomes.said_at AND excluded.event_id > outcomes.event_id) RETURNING outcome_id"
)
_ORPHAN = (
    "CASE WHEN NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = outcomes.run_id)"
    " OR (decision_id <> '' AND NOT EXISTS (SELECT 1 FROM decisions WHERE decisions.decision_id = outcomes.decision_id"
    " AND decisions.run_id = outcomes.run_id))"
    " OR (agent <> '' AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.run_id = outcomes.run_id AND calls.agent = outcomes.agent))"
    " THEN 1 ELSE 0 END AS orphan"
)
_LIST = (
    "SELECT outcomes.*, ORPHAN FROM outcomes WHERE (:run_id = '' OR run_id = :run_id)"
    " ORDER BY at DESC, outcome_id LIMIT :limit"
).replace("ORPHAN", _ORPHAN)
_JUDGED = (
    "SELECT decisions.*, (SELECT count(*) FROM decisions AS other WHERE other.run_id = decisions.run_id) AS among FROM decisions"
    " JOIN runs ON runs.run_id = decisions.run_id WHERE (:tenant = '' OR runs.tenant = :tenant)"
    " AND (decisions.at > :at OR (decisions.at = :at AND decisions.decision_id > :decision_id))"
    " AND EXISTS (SELECT 1 FROM outcomes WHERE outcomes.run_id = decisions.run_id)"
    " ORDER BY decisions.at, decisions.decision_id LIMIT :limit"
)


class Outcome(Word):
    """One word about a run: of `score`, 0 to 1. `decision_id` and `agent` are empty where all of it is meant. `said_at` is seconds since the epoch.

    `orphan`: what it is about is not in the journal, so that it counts for nothing.
    """

    run_id: str
    score: float
    kind: Kind = "explicit"
    weight: float = 1.0
    decision_id: str = ""
    agent: str = ""
    by: str
    note: str = ""
    event_id: str
    said_at: float
    orphan: bool = False

    @property
    def outcome_id(self) -> str:
        """The same for whatever takes this one's place."""
        return stable_id("outcome", self.run_id, self.decision_id, self.agent, self.kind, self.by)

    @property
    def counts(self) -> float:
        """How much it counts, 0 to 1."""
        return self.weight * WEIGHTS[self.kind]


@dataclass(frozen=True)
class Logged:
    """What is known of how right one agent was in one decision: the mean of what was said, 0 to 1, and how much that counts, 0 to 1."""

    kept: Kept
    agent: str
    score: float
    weight: float

    @property
    def text(self) -> str:
        """The task; empty where a node decided itself."""
        return self.kept.wanted.task.text if self.kept.wanted else ""

    @property
    def category(self) -> str:
        """Of the task."""
        return self.kept.decision.category

    @property
    def propensity(self) -> float:
        """The chance with which this agent would have been chosen first."""
        return next((one.propensity for one in self.kept.decision.candidates if one.agent == self.agent), 0.0)


@dataclass(frozen=True)
class Answered:
    """What is known of how right the answer of a whole decision was, whoever gave it: the mean of what was said, 0 to 1, and how much that counts, 0 to 1."""

    kept: Kept
    score: float
    weight: float


@dataclass(frozen=True)
class Page:
    """Some decisions that outcomes are about, by agent and as a whole, and where the next page begins; None: there is no more."""

    rows: Sequence[Logged]
    answers: Sequence[Answered]
    after: tuple[float, str] | None


class Outcomes:
    """What was said about runs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, *outcomes: Outcome) -> bool:
        """Keep what is said, by the rules above; whether any of it was new."""
        rows = await self._db.write(*[Statement(_RECORD, _params(one)) for one in outcomes])
        return any(rows)

    async def listed(self, run_id: str = "", *, limit: int = 100) -> Sequence[Outcome]:
        """The newest first; about one run, or all."""
        rows = await self._db.read(_LIST, {"run_id": run_id, "limit": limit})
        return [outcome_of(row) for row in rows]

    async def logged(self, *, tenant: str = "", after: tuple[float, str] = (0.0, ""), limit: int = 500) -> Page:
        """A page of at most `limit` decisions with what outcomes say of the agents in them, oldest first; of one tenant, or all."""
        at = {"tenant": tenant, "at": after[0], "decision_id": after[1], "limit": limit}
        decided = await self._db.read(_JUDGED, at)
        said = await self._of_runs({row["run_id"] for row in decided})
        every = [(kept_of(row), said.get(row["run_id"], ()), int(row["among"])) for row in decided]
        rows = [one for about in every for one in judged(*about)]
        answers = [one for about in every if (one := answered(*about))]
        last = (float(decided[-1]["at"]), str(decided[-1]["decision_id"])) if len(decided) == limit else None
        return Page(rows, answers, last)

    async def _of_runs(self, run_ids: Iterable[str]) -> Mapping[str, Sequence[Outcome]]:
        names = {f"run{n}": run_id for n, run_id in enumerate(sorted(run_ids))}
        if not names:
            return {}
        listed = ", ".join(f":{name}" for name in names)
        sql = "SELECT * FROM outcomes WHERE run_id IN (THESE) ORDER BY outcome_id".replace("THESE", listed)
        found: dict[str, list[Outcome]] = {}
        for row in await self._db.read(sql, names):
            found.setdefault(row["run_id"], []).append(outcome_of(row))
        return found


def judged(kept: Kept, said: Sequence[Outcome], among: int = 1) -> list[Logged]:
    """What words about its run say of the agents in a decision, which is one of `among` in its run.

    A word about an agent is of that agent. One about the decision, or the run, is of those who stand behind the answer: of a panel those who agreed, else the one
    that was asked; what is said of a whole run counts for its decisions in equal parts. Those who dissented get nothing of it: that an answer is wrong makes no other right.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for one in said:
        if one.decision_id in {"", kept.decision_id} and (counts := _counts(one, among)):
            for agent in [one.agent] if one.agent else _behind(kept, said):
                found.setdefault(agent, []).append((one.score, counts))
    chosen = kept.decision.chosen
    return [Logged(kept, agent, *_mean(words)) for agent, words in sorted(found.items()) if agent in chosen]


def answered(kept: Kept, said: Sequence[Outcome], among: int = 1) -> Answered | None:
    """What words about its run say of a decision's answer, where the decision is one of `among` in its run; None where they say nothing.

    What is said of an agent is said of the answer if nobody else was asked. How a panel voted is not: that many agree makes no answer right.
    """
    own = {"", *kept.decision.chosen} if len(kept.decision.chosen) == 1 else {""}
    words = [
        (one.score, counts)
        for one in said
        if one.kind != "dissent" and one.decision_id in {"", kept.decision_id} and one.agent in own
        if (counts := _counts(one, among))
    ]
    return Answered(kept, *_mean(words)) if words else None


def _counts(one: Outcome, among: int) -> float:
    """How much a word counts for each of so many decisions of its run; what is too little for a number is nothing."""
    return one.counts / (1 if one.decision_id else max(1, among))


def _behind(kept: Kept, said: Sequence[Outcome]) -> Iterator[str]:
    """Who stands behind the answer of a decision, as its panel's votes say."""
    votes = [one for one in said if one.kind == "dissent" and one.decision_id == kept.decision_id]
    if not votes:
        yield from kept.decision.chosen[:1]
    for one in votes:
        if one.score > 0:
            yield one.agent


def _mean(words: Sequence[tuple[float, float]]) -> tuple[float, float]:
    weight = sum(weight for _, weight in words)
    return sum(score * weight for score, weight in words) / weight, min(1.0, weight)


def _params(one: Outcome) -> Mapping[str, object]:
    return {**one.model_dump(exclude={"orphan"}), "outcome_id": one.outcome_id}


def outcome_of(row: Row) -> Outcome:
    """The outcome in a row of the table."""
    return Outcome.model_validate({**row, "by": row["said_by"], "orphan": bool(row.get("orphan", 0))})
