"""The journal over SQLite and Postgres: every write may come twice and counts once; one owner, one holder, one answer, one end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence

import pytest

from metier_infra.calls import NOT_NEEDED
from metier_infra.database import Database
from metier_infra.errors import FencedOff
from metier_infra.journal import Journal
from metier_infra.rows import Call, Run, ToolCallRow
from metier_infra.words import (
    Answer,
    CallId,
    Candidate,
    Decision,
    Failure,
    RunId,
    Spent,
    Stamp,
    Task,
    ToolCallId,
    stable_id,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BAD = Failure(code="call_failed", message="no")


def run(event: str = "e", source: str = "/shop", **fields: object) -> Run:
    known: dict[str, object] = {
        "run_id": stable_id("run", source, event),
        "source": source,
        "event_id": event,
        "workflow": "w",
        "version": None,
        "status": "accepted",
        "input": {"q": ["6·7", None]},
        "traceparent": TRACE,
    }
    return Run.model_validate({**known, **fields})


async def accepted(journal: Journal, event: str = "e") -> RunId:
    stored, _ = await journal.runs.accept(run(event))
    return stored.run_id


async def leased(journal: Journal, event: str = "e", owner: str = "one") -> Run:
    found = await journal.runs.lease(await accepted(journal, event), owner)
    assert found is not None
    return found


async def asked(journal: Journal, run_id: RunId, n: int = 1) -> CallId:
    call_id = CallId(stable_id("call", run_id, n))
    call = Call(call_id=call_id, run_id=run_id, agent="coder", task=Task(text=f"q{n}"), deadline=2e9)
    await journal.calls.request(call)
    return call_id


def answer(text: str) -> Answer:
    return Answer(text=text, agent="coder", model="m", policy="autonomous")


@pytest.fixture
def brief(database: Database) -> Journal:
    """A journal whose leases are over at once."""
    return Journal(database, lease_s=-1)


async def test_a_run_is_kept_as_it_was_asked_for(journal: Journal) -> None:
    stored, new = await journal.runs.accept(run(version="v7"))
    assert new
    assert stored == await journal.runs.get(stored.run_id)
    assert stored == run(version="v7", accepted_at=stored.accepted_at)
    assert stored.accepted_at > 1.7e9


async def test_the_same_event_is_accepted_once_whatever_it_carries_the_second_time(journal: Journal) -> None:
    first, _ = await journal.runs.accept(run())
    again, new = await journal.runs.accept(run(input={"other": 1}, workflow="other"))
    assert (again, new) == (first, False)


async def test_of_ten_who_accept_one_event_at_the_same_time_one_is_first(journal: Journal) -> None:
    found = await asyncio.gather(*[journal.runs.accept(run()) for _ in range(10)])
    assert sum(new for _, new in found) == 1
    assert {stored.run_id for stored, _ in found} == {found[0][0].run_id}


async def test_events_of_different_sources_are_different(journal: Journal) -> None:
    _, first = await journal.runs.accept(run("e", "/one"))
    _, second = await journal.runs.accept(run("e", "/two"))
    assert first
    assert second


async def test_a_leased_run_has_one_owner_and_is_running(journal: Journal) -> None:
    held = await leased(journal)
    assert (held.status, held.epoch) == ("running", 1)
    assert held.started_at is not None
    assert await journal.runs.lease(held.run_id, "two") is None


async def test_of_ten_who_want_a_run_one_gets_it(journal: Journal) -> None:
    run_id = await accepted(journal)
    found = await asyncio.gather(*[journal.runs.lease(run_id, f"owner{n}") for n in range(10)])
    assert [held.epoch for held in found if held] == [1]


async def test_an_owner_that_comes_back_takes_its_run_under_a_new_epoch(journal: Journal) -> None:
    first = await leased(journal)
    again = await journal.runs.lease(first.run_id, "one")
    assert again is not None
    assert (again.epoch, again.started_at) == (2, first.started_at)


async def test_a_lease_that_ran_out_may_be_taken_over(brief: Journal) -> None:
    first = await leased(brief)
    taken = await brief.runs.lease(first.run_id, "two")
    assert taken is not None
    assert taken.epoch == 2


async def test_a_renewed_lease_holds(journal: Journal, brief: Journal) -> None:
    held = await leased(brief)
    await journal.runs.renew("one")
    assert await journal.runs.lease(held.run_id, "two") is None


async def test_renewing_does_not_take_back_what_another_took_over(journal: Journal, brief: Journal) -> None:
    first = await leased(brief)
    assert await brief.runs.lease(first.run_id, "two")
    await journal.runs.renew("one")
    assert await journal.runs.lease(first.run_id, "three") is not None


async def test_a_lease_that_was_taken_since_is_not_given_back(journal: Journal) -> None:
    # Given a lease that its owner takes again before it has given the former one back
    first = await leased(journal, "a")
    again = await journal.runs.lease(first.run_id, "one")
    assert again is not None

    await journal.runs.give_back(first.run_id, first.epoch)

    assert await journal.runs.held_by("one") == {first.run_id: again.epoch}
    assert await journal.runs.lease(first.run_id, "two") is None


async def test_released_runs_are_free_at_once(journal: Journal) -> None:
    one, two, other = await leased(journal, "a"), await leased(journal, "b"), await leased(journal, "c", "other")
    await journal.runs.give_back(one.run_id, one.epoch)
    assert await journal.runs.lease(one.run_id, "x")
    assert await journal.runs.lease(two.run_id, "x") is None
    await journal.runs.release("one")
    assert await journal.runs.lease(two.run_id, "x")
    assert await journal.runs.lease(other.run_id, "x") is None


async def test_a_version_is_pinned_once(journal: Journal) -> None:
    held = await leased(journal)
    await journal.runs.pin(held.run_id, held.epoch, "v1")
    await journal.runs.pin(held.run_id, held.epoch, "v2")
    found = await journal.runs.get(held.run_id)
    assert found is not None
    assert found.version == "v1"


async def test_who_lost_a_run_can_neither_pin_nor_finish_it(brief: Journal) -> None:
    lost = await leased(brief)
    taken = await brief.runs.lease(lost.run_id, "two")
    assert taken is not None
    with pytest.raises(FencedOff):
        await brief.runs.pin(lost.run_id, lost.epoch, "v")
    with pytest.raises(FencedOff):
        await brief.runs.finish(lost.run_id, lost.epoch, result={"by": "the loser"})
    ended = await brief.runs.finish(taken.run_id, taken.epoch, result={"by": "the winner"})
    assert ended.result == {"by": "the winner"}
    assert ended.version is None


async def test_a_run_ends_once(journal: Journal) -> None:
    held = await leased(journal)
    ended = await journal.runs.finish(held.run_id, held.epoch, result={"answer": 42})
    assert (ended.status, ended.result, ended.failure, ended.ended) == ("succeeded", {"answer": 42}, None, True)
    assert ended.finished_at is not None
    with pytest.raises(FencedOff):
        await journal.runs.finish(held.run_id, held.epoch, failure=BAD)
    assert await journal.runs.lease(held.run_id, "one") is None
    assert await journal.runs.get(held.run_id) == ended


async def test_a_failed_run_keeps_its_reason(journal: Journal) -> None:
    held = await leased(journal)
    ended = await journal.runs.finish(held.run_id, held.epoch, failure=BAD)
    assert (ended.status, ended.result, ended.failure) == ("failed", None, BAD)


async def test_a_runs_cost_is_the_sum_over_its_calls_and_no_others(journal: Journal) -> None:
    held, other = await leased(journal, "a"), await accepted(journal, "b")
    await journal.calls.answer(await asked(journal, held.run_id, 1), answer=answer("x"), took=Spent(usd=0.25))
    await journal.calls.answer(await asked(journal, held.run_id, 2), failure=BAD, took=Spent(usd=0.5))
    await journal.calls.answer(await asked(journal, other, 3), answer=answer("x"), took=Spent(usd=8.0))
    ended = await journal.runs.finish(held.run_id, held.epoch, result={})
    assert ended.cost_usd == 0.75


async def unattended(journal: Journal, quiet_s: float = -1.0) -> set[str]:
    return {found.event_id for found in await journal.runs.unattended(quiet_s)}


async def test_runs_that_need_somebody_are_found(journal: Journal, brief: Journal) -> None:
    await accepted(journal, "accepted")
    await leased(journal, "held")
    await leased(brief, "holder died")
    long_ago = Journal(journal.db, lease_s=-10_000)
    untold, told = await leased(long_ago, "end not told"), await leased(long_ago, "end told")
    telling, late = await leased(journal, "end being told"), await leased(brief, "end told a little late")
    for ended in (untold, told, telling, late):
        await journal.runs.finish(ended.run_id, ended.epoch, result={})
    await journal.runs.announced(told.run_id)
    assert await unattended(journal) == {"accepted", "holder died", "end not told"}


async def test_runs_that_were_accepted_just_now_are_left_alone_for_a_while(journal: Journal) -> None:
    await accepted(journal)
    assert await unattended(journal, quiet_s=600) == set()


async def test_a_run_is_found_by_the_beginning_of_its_id(journal: Journal) -> None:
    made = [await accepted(journal, f"e{n}") for n in range(20)]
    wanted = made[0]
    unique = next(wanted[:n] for n in range(1, 33) if sum(other.startswith(wanted[:n]) for other in made) == 1)
    for prefix in (unique, wanted):
        found = await journal.runs.get(prefix)
        assert found is not None
        assert found.run_id == wanted
    for nobody in ("", "zz", wanted + "0"):
        assert await journal.runs.get(nobody) is None


async def test_recent_runs_come_newest_first_and_filtered(journal: Journal) -> None:
    held = await leased(journal, "first")
    await journal.runs.accept(run("second", workflow="other"))
    await accepted(journal, "third")

    def names(runs: Sequence[Run]) -> list[str]:
        return [one.event_id for one in runs]

    assert names(await journal.runs.recent()) == ["third", "second", "first"]
    assert names(await journal.runs.recent(limit=1)) == ["third"]
    assert names(await journal.runs.recent(workflow="other")) == ["second"]
    assert names(await journal.runs.recent(status=held.status)) == ["first"]


async def test_a_call_is_recorded_once(journal: Journal) -> None:
    run_id = await accepted(journal)
    call_id = await asked(journal, run_id)
    first = await journal.calls.get(call_id)
    assert first is not None
    changed = first.model_copy(update={"deadline": 1.0, "agent": "other"})
    assert await journal.calls.request(changed) == first
    assert await journal.calls.get(CallId("unknown")) is None


async def test_a_call_has_one_holder_and_counts_its_attempts(journal: Journal, brief: Journal) -> None:
    call_id = await asked(journal, await accepted(journal))
    found = await asyncio.gather(*[journal.calls.claim(call_id, f"worker{n}") for n in range(10)])
    (held,) = [claim for claim in found if claim]
    assert held.attempt == 1
    assert held.holder is not None
    again = await brief.calls.claim(call_id, held.holder)
    assert again is not None
    assert (again.attempt, again.claimed_at) == (2, held.claimed_at)
    taken = await journal.calls.claim(call_id, "after it ran out")
    assert taken is not None
    assert taken.attempt == 3


async def test_claims_are_renewed_and_released(journal: Journal, brief: Journal) -> None:
    call_id = await asked(journal, await accepted(journal))
    assert await brief.calls.claim(call_id, "one")
    await journal.calls.renew("one")
    assert await journal.calls.claim(call_id, "two") is None
    await journal.calls.release("somebody else", call_id)
    assert await journal.calls.claim(call_id, "two") is None
    await journal.calls.release("one", call_id)
    assert await journal.calls.claim(call_id, "two")
    await journal.calls.release("two")
    assert await journal.calls.claim(call_id, "three")


async def test_of_ten_answers_at_the_same_time_one_wins_and_all_learn_which(journal: Journal) -> None:
    call_id = await asked(journal, await accepted(journal))
    stored = await asyncio.gather(
        *[journal.calls.answer(call_id, answer=answer(str(n)), took=Spent(usd=float(n))) for n in range(10)]
    )
    winner = stored[0].answer
    assert winner is not None
    assert all(one.answer == winner for one in stored)
    counted = await journal.calls.get(call_id)
    assert counted is not None
    assert counted.cost_usd == 9.0


async def test_a_late_answer_changes_nothing(journal: Journal) -> None:
    call_id = await asked(journal, await accepted(journal))
    failed = await journal.calls.answer(call_id, failure=BAD, took=Spent(usd=1.0))
    late = await journal.calls.answer(call_id, answer=answer("late"), took=Spent(usd=9.0))
    assert late == failed.model_copy(update={"cost_usd": 9.0}), "what it took counts all the same"
    assert await journal.calls.claim(call_id, "late") is None


async def test_the_calls_of_a_run_come_in_the_order_of_asking(journal: Journal) -> None:
    run_id, other = await accepted(journal, "a"), await accepted(journal, "b")
    made = [await asked(journal, run_id, n) for n in range(5)]
    await asked(journal, other, 9)
    found = await journal.calls.of_run(run_id)
    assert {call.call_id for call in found} == set(made)
    assert [call.requested_at for call in found] == sorted(call.requested_at for call in found)


async def test_steps_are_only_ever_added(journal: Journal) -> None:
    call_id = CallId("c")
    for n in (1, 0, 2):
        await journal.steps.append(call_id, n, {"n": n, "text": "ß"})
    await journal.steps.append(call_id, 1, {"n": "changed"})
    assert [(step.n, step.body) for step in await journal.steps.of_call(call_id)] == [
        (n, {"n": n, "text": "ß"}) for n in range(3)
    ]
    assert await journal.steps.of_call(CallId("other")) == []


async def test_a_step_of_an_attempt_that_is_over_is_not_recorded(journal: Journal, brief: Journal) -> None:
    call_id = await asked(journal, await accepted(journal))
    first = await brief.calls.claim(call_id, "one")
    assert first is not None
    await journal.steps.append(call_id, 0, {"by": "one"}, attempt=first.attempt)
    await journal.steps.append(call_id, 0, {"by": "one"}, attempt=first.attempt)
    second = await brief.calls.claim(call_id, "another")
    assert second is not None
    with pytest.raises(FencedOff):
        await journal.steps.append(call_id, 1, {"by": "one"}, attempt=first.attempt)
    await journal.steps.append(call_id, 1, {"by": "another"}, attempt=second.attempt)
    assert [step.body for step in await journal.steps.of_call(call_id)] == [{"by": "one"}, {"by": "another"}]


def used(n: int, tool: str = "python", run_id: str = "r") -> ToolCallRow:
    return ToolCallRow(
        tool_call_id=ToolCallId(f"t{n}"),
        run_id=RunId(run_id),
        call_id=CallId("c"),
        agent="coder",
        category="code",
        tool=tool,
        arguments={"code": "6*7"},
    )


async def test_a_tool_call_is_recorded_once_and_its_first_result_stays(journal: Journal) -> None:
    first = await journal.tools.request(used(1))
    assert await journal.tools.request(used(1, tool="other")) == first
    assert (first.result, first.ok) == (None, None)
    done = await journal.tools.finish(first.tool_call_id, {"stdout": "42"}, ok=True, wall_ms=3.0)
    again = await journal.tools.finish(first.tool_call_id, {"stdout": "43"}, ok=False, wall_ms=9.0)
    assert done == again
    assert (done.result, done.ok, done.wall_ms, done.arguments) == ({"stdout": "42"}, True, 3.0, {"code": "6*7"})
    assert await journal.tools.of_run(RunId("r")) == [done]


async def test_a_decision_is_kept_once(journal: Journal) -> None:
    decision = Decision(
        category="math",
        chosen=("a", "b"),
        topology="panel",
        reason="hard",
        router="r.v1",
        candidates=(Candidate(agent="a", score=0.5, propensity=1.0),),
    )
    run_id = RunId(secrets.token_hex(16))
    assert await journal.decisions.record("d1", run_id, decision) == decision
    assert await journal.decisions.record("d1", run_id, decision.model_copy(update={"reason": "other"})) == decision
    assert await journal.decisions.of_run(run_id) == [decision]


async def test_a_run_that_ended_tells_under_what_the_agents_acted_that_it_called(journal: Journal) -> None:
    held = await leased(journal)
    stamp = Stamp(agent="coder", digest="d", safety="b@1", safety_digest="s")
    for n in range(2):
        call = Call(
            call_id=CallId(f"c{n}"), run_id=held.run_id, agent="coder", task=Task(text="q"), deadline=2e9, stamp=stamp
        )
        await journal.calls.request(call)
    ended = await journal.runs.finish(held.run_id, held.epoch, result={})
    assert ended.end.agents == (stamp,)


async def test_a_call_that_is_not_needed_is_over_at_once_unless_somebody_has_it_in_hand_and_an_answer_stays(
    journal: Journal,
) -> None:
    run_id = await accepted(journal)
    free, held, answered = [await asked(journal, run_id, n) for n in (1, 2, 3)]
    assert await journal.calls.claim(held, "worker") is not None
    await journal.calls.answer(answered, answer=answer("done"))
    calls = {call.call_id: call for call in await journal.calls.of_run(run_id)}
    stood = {name: await journal.calls.withdraw(calls[name]) for name in (free, held, answered)}
    assert {name: (call.cancelled, call.answered_at is None) for name, call in stood.items()} == {
        free: (NOT_NEEDED, False),
        held: (NOT_NEEDED, True),
        answered: (None, False),
    }
    assert stood[free].failure == Failure(code="not_needed", message=NOT_NEEDED)
    assert stood[free].tokens == 0
    assert await journal.calls.claim(free, "worker") is None
    assert await journal.calls.given_up("worker") == {held: NOT_NEEDED}
    unrecorded = calls[free].model_copy(update={"call_id": CallId("new")})
    assert (await journal.calls.withdraw(unrecorded)).answered_at is not None
