"""Outcomes in the journal, over SQLite and Postgres: which word counts, what is joined to which decision, what of it learning sees; and the commands. Not here: the topic (`waits/test_reported`)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

from metier_infra.database import Statement
from metier_infra.decisions import Kept
from metier_infra.journal import Journal
from metier_infra.outcomes import WEIGHTS, Outcome, answered, judged
from metier_infra.rows import Call, Run
from metier_infra.words import CallId, Candidate, Decision, RunId, Task, Wanted, stable_id

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DECISION = Decision(
    category="math", chosen=("a", "b", "c"), topology="panel", reason="r", router="v1",
    candidates=tuple(Candidate(agent=name, score=0.5, propensity=chance) for name, chance in {"a": 0.6, "b": 0.3, "c": 0.1}.items()),
)  # fmt: skip
WANTED = Wanted(task=Task(text="2 + 2?", category="math"))


def word(score: float, *, at: float = 1.0, event: str = "e", run: str = "r", **more: Any) -> Outcome:
    return Outcome.model_validate(
        {"run_id": run, "score": score, "by": "ann", "event_id": event, "said_at": at, **more}
    )


async def run_with(journal: Journal, name: str, decisions: int = 1, tenant: str = "default") -> RunId:
    """A run that decided so many times and asked a, b and c."""
    run_id = RunId(name)
    run = Run(run_id=run_id, source="/s", event_id=name, workflow="w", version=None, status="accepted", input={}, traceparent=TRACE, tenant=tenant)  # fmt: skip
    await journal.runs.accept(run)
    for n in range(decisions):
        await journal.decisions.record(f"{name}-d{n}", run_id, DECISION, ("t", "w", n), WANTED)
    for agent in DECISION.chosen:
        call_id = CallId(stable_id("call", name, agent))
        await journal.calls.request(Call(call_id=call_id, run_id=run_id, agent=agent, task=WANTED.task, deadline=2e9))
    return run_id


async def test_of_one_speakers_words_about_one_thing_the_latest_counts_in_whatever_order_they_come(
    journal: Journal,
) -> None:
    words = [word(0.1, at=1), word(0.9, at=3, event="f"), word(0.5, at=3, event="g"), word(0.3, at=2)]
    for n, order in enumerate(itertools.permutations(words)):
        for one in (*order, *order):
            await journal.outcomes.record(one.model_copy(update={"run_id": f"r{n}"}))
    kept = await journal.outcomes.listed(limit=100)
    assert len(kept) == 24
    assert {(one.score, one.event_id) for one in kept} == {(0.5, "g")}


async def test_the_same_word_twice_is_one_and_is_told_to_be_no_news(journal: Journal) -> None:
    assert await journal.outcomes.record(word(0.5))
    assert not await journal.outcomes.record(word(0.5))
    assert await journal.outcomes.record(word(0.5), word(0.5, by="bob"))
    assert len(await journal.outcomes.listed("r")) == 2


async def test_words_of_others_of_other_kinds_or_about_other_things_stand_beside(journal: Journal) -> None:
    await journal.outcomes.record(
        word(1), word(0, by="bob"), word(1, kind="edit"), word(1, agent="a"), word(1, decision_id="d"), word(1, run="q")
    )
    assert len(await journal.outcomes.listed("r")) == 5


async def test_what_is_about_nothing_is_an_orphan_until_that_is_there(journal: Journal) -> None:
    await journal.outcomes.record(word(1), word(1, agent="a"), word(1, agent="nobody"), word(1, decision_id="r-d0"), word(1, decision_id="q-d0"))  # fmt: skip
    assert all(one.orphan for one in await journal.outcomes.listed())
    assert (await journal.outcomes.logged()).rows == []
    await run_with(journal, "r")
    await run_with(journal, "q")
    assert {(one.agent, one.decision_id) for one in await journal.outcomes.listed() if one.orphan} == {("nobody", ""), ("", "q-d0")}  # fmt: skip
    (of_a,) = (await journal.outcomes.logged()).rows
    assert (of_a.agent, of_a.kept.decision_id, of_a.score) == ("a", "r-d0", 1.0)


async def test_learning_sees_the_task_the_agent_the_mean_score_and_the_chance_with_which_it_was_chosen(
    journal: Journal,
) -> None:
    await run_with(journal, "r")
    await journal.outcomes.record(word(1, agent="b"), word(0, agent="b", by="bob", weight=0.5))
    (row,) = (await journal.outcomes.logged()).rows
    assert (row.text, row.category, row.agent, row.propensity) == ("2 + 2?", "math", "b", 0.3)
    assert row.score == pytest.approx(1 / 1.5)
    assert row.weight == 1.0
    assert (row.kept.decision, row.kept.wanted) == (DECISION, WANTED)


async def test_pages_hold_every_judged_decision_once_in_order_and_of_a_tenant_its_own(journal: Journal) -> None:
    names = [f"r{n}" for n in range(7)]
    for n, name in enumerate(names):
        await run_with(journal, name, decisions=2, tenant="shop" if n < 3 else "other")
        await journal.outcomes.record(*([word(1, run=name, agent="a")] if n != 5 else []))
    await journal.db.write(Statement("UPDATE decisions SET at = 5 WHERE run_id <> 'r6'"))
    seen: list[str] = []
    after: tuple[float, str] | None = (0.0, "")
    while after is not None:
        page = await journal.outcomes.logged(after=after, limit=5)
        seen += [one.kept.decision_id for one in page.rows]
        after = page.after
    assert sorted(seen) == sorted(f"{name}-d{n}" for name in names if name != "r5" for n in (0, 1))
    assert len({one.kept.run_id for one in (await journal.outcomes.logged(tenant="shop")).rows}) == 3


def kept(*chosen: str) -> Kept:
    chosen = chosen or DECISION.chosen
    return Kept("d", RunId("r"), DECISION.model_copy(update={"chosen": chosen}), WANTED, 1.0)


def votes(**said: float) -> list[Outcome]:
    return [word(vote, kind="dissent", decision_id="d", agent=agent, by="/metier") for agent, vote in said.items()]


def found(said: Sequence[Outcome], one: Kept | None = None, among: int = 1) -> dict[str, tuple[float, float]]:
    return {row.agent: (round(row.score, 6), round(row.weight, 6)) for row in judged(one or kept(), said, among)}


@pytest.mark.parametrize(
    ("said", "of"),
    [
        ([word(0, agent="b")], {"b": (0.0, 1.0)}),
        ([word(1)], {"a": (1.0, 1.0)}),
        ([word(1, decision_id="other")], {}),
        ([word(1, agent="stranger")], {}),
        (votes(a=1, b=1, c=0), {"a": (1.0, 0.2), "b": (1.0, 0.2), "c": (0.0, 0.2)}),
        ([word(0), *votes(a=1, b=1, c=0)], {"a": (0.166667, 1.0), "b": (0.166667, 1.0), "c": (0.0, 0.2)}),
        ([word(1, decision_id="d"), *votes(a=0, b=1, c=1)], {"a": (0.0, 0.2), "b": (1.0, 1.0), "c": (1.0, 1.0)}),
        ([word(1), word(1, kind="dissent", decision_id="other", agent="c", by="/metier")], {"a": (1.0, 1.0)}),
        ([word(0.5, kind="edit", weight=0.4)], {"a": (0.5, 0.2)}),
        ([word(0, kind="retry")], {"a": (0.0, 0.2)}),
    ],
    ids=["an agent", "the run, of who was asked first", "another decision", "nobody's", "votes", "the run, of who agreed", "the decision", "votes of another decision", "an edit", "a retry"],
)  # fmt: skip
def test_a_word_goes_to_the_agent_it_names_or_to_those_behind_the_answer(
    said: Sequence[Outcome], of: dict[str, tuple[float, float]]
) -> None:
    assert found(said) == of


def test_what_is_said_of_a_run_counts_for_its_decisions_in_equal_parts() -> None:
    assert found([word(1)], among=4) == {"a": (1.0, 0.25)}
    assert found([word(1, decision_id="d")], among=4) == {"a": (1.0, 1.0)}
    assert found([word(1)], kept("c")) == {"c": (1.0, 1.0)}


def test_in_whatever_order_words_stand_learning_sees_the_same() -> None:
    said = [word(0), word(1, by="bob"), word(0.3, agent="a", kind="edit"), *votes(a=1, b=1, c=0)]
    wanted = found(said)
    for seed in range(20):
        random.Random(seed).shuffle(said)
        assert found(said) == wanted


def test_weak_labels_count_less_than_somebody_who_judged() -> None:
    assert set(WEIGHTS) == {"explicit", "edit", "dissent", "retry"}
    assert all(0 < weight < WEIGHTS["explicit"] == 1.0 for kind, weight in WEIGHTS.items() if kind != "explicit")


# ---- the answer of a whole decision


def answer(said: Sequence[Outcome], one: Kept | None = None, among: int = 1) -> tuple[float, float] | None:
    told = answered(one or kept(), said, among)
    return told and (round(told.score, 6), round(told.weight, 6))


def test_a_word_about_a_run_or_a_decision_is_of_its_answer_whoever_gave_it() -> None:
    several = kept("a", "b")
    said = [word(1), word(0, decision_id="d", by="bob")]
    assert answer(said) == answer(said, several) == (0.5, 1.0)
    assert answer([word(1)], several, among=4) == (1.0, 0.25)
    assert answer([word(1, decision_id="another")], several) is None


def test_a_word_about_an_agent_is_of_the_answer_where_nobody_else_was_asked() -> None:
    assert answer([word(1, agent="a")], kept("a")) == (1.0, 1.0)
    assert answer([word(1, agent="a")], kept("a", "b")) is None
    assert answer([word(1, agent="b")], kept("a")) is None


def test_how_a_panel_voted_says_nothing_of_its_answer() -> None:
    assert answer(votes(a=1.0, b=1.0), kept("a", "b")) is None
    assert answer([*votes(a=1.0, b=0.0), word(0)], kept("a", "b")) == (0.0, 1.0)
    assert answer([word(1, kind="dissent", decision_id="d")], kept("a", "b")) is None


def test_a_word_that_counts_less_than_a_number_can_tell_counts_for_nothing() -> None:
    faint = word(1, kind="retry", weight=5e-324)
    assert faint.counts == 0.0
    assert (answer([faint]), found([faint])) == (None, {})
    assert answer([faint, word(0.5)]) == (0.5, 1.0)
