"""What the journal says of all runs that have not ended: how many, and how long the one of each state waits that waits the longest."""

from __future__ import annotations

from metier_infra.database import Database, Statement
from metier_infra.journal import Journal
from metier_infra.open_runs import Open
from metier_infra.rows import Call, Run
from metier_infra.words import Answer, CallId, Failure, RunId, Task

SLACK_S = 150.0
"""How long the test itself may take, on a slow machine; seconds."""
HOUR_S = 3600.0
ANSWER = Answer(text="!", agent="a", model="m", policy="collaborative")
EARLIER = {
    "accepted": "UPDATE runs SET accepted_at = accepted_at - :by_s WHERE run_id = :run_id",
    "started": "UPDATE runs SET started_at = started_at - :by_s, accepted_at = accepted_at - :by_s WHERE run_id = :run_id",
    "parked": "UPDATE runs SET parked_at = parked_at - :by_s WHERE run_id = :run_id",
    "due": "UPDATE runs SET wake_at = :now - :by_s WHERE run_id = :run_id",
    "asked": "UPDATE calls SET requested_at = requested_at - :by_s WHERE run_id = :run_id",
    "answered": "UPDATE calls SET answered_at = answered_at - :by_s WHERE run_id = :run_id",
    "resumed": "UPDATE segments SET began_at = began_at - :by_s WHERE run_id = :run_id",
}


async def shift(database: Database, what: str, run: str, by_s: float = HOUR_S) -> None:
    """As if that had been so much earlier."""
    await database.write(Statement(EARLIER[what], {"by_s": by_s, "run_id": run}))


async def accepted(journal: Journal, name: str) -> None:
    run = Run(
        run_id=RunId(name), source="s", event_id=name, workflow="w", version=None, status="accepted", input={}, traceparent=""
    )  # fmt: skip
    await journal.runs.accept(run)


async def running(journal: Journal, name: str) -> int:
    await accepted(journal, name)
    run = await journal.runs.lease(RunId(name), "me")
    assert run is not None
    return run.epoch


async def asks(journal: Journal, run: str) -> CallId:
    call = Call(call_id=CallId(f"{run}-call"), run_id=RunId(run), agent="a", task=Task(text="?"), deadline=4e9)
    await journal.calls.request(call)
    return call.call_id


def about(seconds: float, wanted: float) -> bool:
    return wanted <= seconds < wanted + SLACK_S


async def test_runs_count_by_state_until_they_end(journal: Journal) -> None:
    assert await journal.open_runs.by_state() == {}
    for name in ("one", "two"):
        await accepted(journal, name)
    epoch = await running(journal, "three")
    found = await journal.open_runs.by_state()
    assert {state: one.runs for state, one in found.items()} == {"accepted": 2, "running": 1}
    await journal.runs.finish(RunId("three"), epoch, failure=Failure(code="c", message="m"))
    assert (await journal.open_runs.by_state()).keys() == {"accepted"}


async def test_an_accepted_run_waits_since_it_was_accepted(journal: Journal, database: Database) -> None:
    for name in ("old", "new"):
        await accepted(journal, name)
    await shift(database, "accepted", "old")
    found = (await journal.open_runs.by_state())["accepted"]
    assert about(found.age_s, HOUR_S)
    assert about(found.quiet_s, HOUR_S)


async def test_a_running_run_is_quiet_since_anything_last_happened_to_it(journal: Journal, database: Database) -> None:
    # Given a run that began long ago and has been silent since
    await running(journal, "r")
    await shift(database, "started", "r", 2 * HOUR_S)
    assert about((await journal.open_runs.by_state())["running"].quiet_s, 2 * HOUR_S)
    # When it asks, and an hour later that call is taken, goes a step, and is answered: each is a sign of life
    call = await asks(journal, "r")
    await shift(database, "asked", "r")
    assert about((await journal.open_runs.by_state())["running"].quiet_s, HOUR_S)
    await journal.calls.claim(call, "worker")
    assert about((await journal.open_runs.by_state())["running"].quiet_s, 0)
    await database.write(Statement("UPDATE calls SET taken_at = requested_at"))
    assert about((await journal.open_runs.by_state())["running"].quiet_s, HOUR_S)
    await journal.steps.append(call, 1, {})
    assert about((await journal.open_runs.by_state())["running"].quiet_s, 0)
    await journal.calls.answer(call, answer=ANSWER)
    await shift(database, "answered", "r", HOUR_S / 2)
    # Then it is quiet since the last of them, and old since it began
    found = (await journal.open_runs.by_state())["running"]
    assert about(found.quiet_s, HOUR_S / 2)
    assert about(found.age_s, 2 * HOUR_S)


async def test_a_run_that_was_taken_up_again_is_running_since_then(journal: Journal, database: Database) -> None:
    await running(journal, "r")
    await shift(database, "started", "r", 2 * HOUR_S)
    run = await journal.runs.lease(RunId("r"), "me")
    assert run is not None
    await journal.segments.began(run.run_id, run.epoch, woken_by="x", traceparent=None)
    await shift(database, "resumed", "r")
    found = (await journal.open_runs.by_state())["running"]
    assert about(found.age_s, HOUR_S)
    assert about(found.quiet_s, HOUR_S)


async def test_a_parked_run_is_quiet_only_once_it_should_be_up_again(journal: Journal, database: Database) -> None:
    # Given a run that has been parked for long, and what it waits for has not come
    epoch = await running(journal, "r")
    call = await asks(journal, "r")
    assert await journal.runs.park(RunId("r"), epoch, {call: "call"})
    await shift(database, "parked", "r")
    found = (await journal.open_runs.by_state())["parked"]
    assert about(found.age_s, HOUR_S)
    assert found.quiet_s == 0
    # When a time is over, or an answer is there, and nobody takes it up
    await shift(database, "due", "r", HOUR_S / 2)
    assert about((await journal.open_runs.by_state())["parked"].quiet_s, HOUR_S / 2)
    await journal.calls.answer(call, answer=ANSWER)
    await shift(database, "answered", "r")
    assert about((await journal.open_runs.by_state())["parked"].quiet_s, HOUR_S)


async def test_only_the_oldest_runs_are_looked_at_for_times_and_all_of_them_count(journal: Journal) -> None:
    for number in range(5):
        await accepted(journal, f"r{number}")
    found = await journal.open_runs.by_state(limit=0)
    assert found == {"accepted": Open(5, 0.0, 0.0)}
