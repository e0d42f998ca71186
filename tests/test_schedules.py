"""Runs that start by the clock: each time starts one run, whoever looks and however often; none twice, none lost but what is declared so. With a given clock.

Not here: what an expression means; that is the library's, of which only the corners are looked at: hours that come twice, or not at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from metier import cli
from metier_infra.bus import MemoryBus
from metier_infra.database import Statement, migrate
from metier_infra.errors import BadSpec
from metier_infra.events import RunRequested
from metier_infra.journal import Journal
from metier_infra.schedules import Schedules
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import stable_id
from metier_workflows.accepting import Accepting, requested
from metier_workflows.schedules import LATE, Keeper, Schedule, due, load_schedules, times

NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def schedule(cron: str = "*/5 * * * *", **fields: Any) -> Schedule:
    return Schedule.model_validate({"name": "report", "cron": cron, "workflow": "w", **fields})


def local(text: str) -> datetime:
    return datetime.fromisoformat(text)


def clock(found: list[datetime]) -> list[str]:
    return [at.strftime("%d %H:%M") for at in found]


def test_what_came_due_since_it_was_looked_at_is_due_once() -> None:
    assert due(schedule(), NOON - timedelta(seconds=5), NOON) == [NOON]
    assert due(schedule(), NOON, NOON) == []
    assert due(schedule(), NOON, NOON + timedelta(minutes=4, seconds=59)) == []


def test_of_what_was_missed_the_last_alone_is_started_late_or_nothing() -> None:
    after = NOON + timedelta(minutes=2)
    assert due(schedule(), NOON - timedelta(days=3), after) == [NOON]
    assert due(schedule(missed="skip"), NOON - timedelta(days=3), after) == []


def test_what_is_due_now_stands_in_for_what_was_missed() -> None:
    assert due(schedule(), NOON - timedelta(days=3), NOON + LATE / 2) == [NOON]


@pytest.mark.parametrize(("cron", "back"), [("0 3 1 * *", 27), ("0 0 29 2 *", 1003), ("30 12 * * *", 1)])
def test_the_last_missed_is_found_however_long_ago_it_was(cron: str, back: int) -> None:
    (found,) = due(schedule(cron), NOON - timedelta(days=3000), NOON)
    assert (NOON - found).days in {back, back - 1}


def test_a_clock_that_was_set_back_makes_nothing_due_again() -> None:
    assert due(schedule(), NOON, NOON - timedelta(hours=1)) == []


def test_an_hour_that_does_not_come_is_made_up_for_and_one_that_comes_twice_counts_once() -> None:
    daily = schedule("30 2 * * *", timezone="Europe/Rome")
    spring = [at for _, at in zip(range(3), times(daily, local("2026-03-27T12:00+01:00")), strict=False)]
    autumn = [at for _, at in zip(range(3), times(daily, local("2026-10-24T12:00+02:00")), strict=False)]
    assert clock(spring) == ["28 01:30", "29 01:00", "30 00:30"]
    assert clock(autumn) == ["25 00:30", "26 01:30", "27 01:30"]


def test_what_runs_every_quarter_runs_on_through_both() -> None:
    often = schedule("*/15 * * * *", timezone="Europe/Rome")
    for start in ("2026-03-29T00:00+01:00", "2026-10-25T00:00+02:00"):
        found = [at for _, at in zip(range(20), times(often, local(start)), strict=False)]
        assert {after - before for before, after in pairwise(found)} == {timedelta(minutes=15)}


CRONS = st.sampled_from(
    ["* * * * *", "*/7 * * * *", "30 2 * * *", "15 1-4 * * *", "0 */3 * * 6,0", "0 12 29 2 *", "59 23 L * *"]
)
ZONES = st.sampled_from(["UTC", "Europe/Rome", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
STARTS = st.sampled_from(
    [
        local("2026-03-28T20:00Z"),
        local("2026-10-24T20:00Z"),
        local("2026-11-01T00:00Z"),
        local("2026-04-04T10:00Z"),
        NOON,
    ]
)


@settings(max_examples=60)
@given(CRONS, ZONES, STARTS, st.lists(st.integers(1, 55), min_size=1, max_size=60), st.sampled_from(["skip", "last"]))
def test_whoever_looks_often_enough_starts_each_time_exactly_once(
    cron: str, zone: str, start: datetime, steps: list[int], missed: str
) -> None:
    one, looked_at, started = schedule(cron, timezone=zone, missed=missed), start, list[datetime]()
    for step in steps:
        now = looked_at + timedelta(seconds=step)
        started += due(one, looked_at, now)
        looked_at = now
    wanted: list[datetime] = []
    for at in times(one, start):
        if at > looked_at:
            break
        wanted.append(at)
    assert started == wanted


@settings(max_examples=60)
@given(CRONS, ZONES, STARTS, st.lists(st.integers(0, 20_000), min_size=1, max_size=12))
def test_after_any_downtime_no_time_is_started_twice_and_the_last_one_is_never_lost(
    cron: str, zone: str, start: datetime, gaps: list[int]
) -> None:
    one, looked_at, started = schedule(cron, timezone=zone), start, list[datetime]()
    for gap in gaps:
        now = looked_at + timedelta(seconds=gap)
        found = due(one, looked_at, now)
        every = _between(one, looked_at, now)
        assert found == (every[-len(found) :] if found else [])
        assert bool(found) is bool(every)
        started += found
        looked_at = now
    assert len(set(started)) == len(started)


def _between(one: Schedule, after: datetime, until: datetime) -> list[datetime]:
    found: list[datetime] = []
    for at in times(one, after):
        if at > until:
            return found
        found.append(at)
    return found


class GivenClock(Schedules):
    """The journal's, but for what it says of the time."""

    now: datetime = NOON

    async def now_s(self) -> float:
        """What the test says."""
        return self.now.timestamp()


@pytest.fixture
async def journal() -> AsyncGenerator[Journal]:
    """In memory, by a clock that stands until it is moved; all schedules were looked at a moment before noon."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    made = Journal(db, lease_s=600)
    made.schedules = GivenClock(db)
    yield made
    await db.close()


async def seen_at(journal: Journal, one: Schedule, at: datetime) -> None:
    await journal.schedules.looked_at([one.name])
    set_back = "UPDATE schedules SET looked_at = :at WHERE name = :name"
    await journal.db.write(Statement(set_back, {"at": at.timestamp(), "name": one.name}))


def keeper(journal: Journal, *schedules: Schedule) -> Keeper:
    return Keeper(journal, Accepting(MemoryBus(), journal), schedules)


async def test_two_replicas_that_look_often_start_one_run_with_all_that_was_declared(journal: Journal) -> None:
    one = schedule(input={"day": "today"}, tenant="shop", priority=8, limits={"usd": 1.5})
    await seen_at(journal, one, NOON - timedelta(seconds=3))
    first, second = keeper(journal, one), keeper(journal, one)
    for _ in range(2):
        assert await first.look() == 300
        assert await second.look() == 300
    (run,) = await journal.runs.recent()
    assert (run.source, run.event_id) == ("/metier/schedules/report", "2026-11-28T12:00:00+00:00")
    assert run.run_id == stable_id("run", run.source, run.event_id)
    assert (run.workflow, run.input, run.tenant, run.priority) == ("w", {"day": "today"}, "shop", 8)
    assert run.limits is not None
    assert run.limits.usd == 1.5
    assert await journal.schedules.last_run(one.source) == run


async def test_who_dies_before_it_was_noted_starts_it_again_and_nothing_comes_twice(journal: Journal) -> None:
    one = schedule()
    await seen_at(journal, one, NOON - timedelta(seconds=3))
    await keeper(journal, one).look()
    await seen_at(journal, one, NOON - timedelta(seconds=3))
    await keeper(journal, one).look()
    assert len(await journal.runs.recent()) == 1


async def test_a_new_schedule_owes_nothing_for_the_time_before(journal: Journal) -> None:
    await journal.schedules.looked_at(["report"])
    before = await journal.schedules.looked_at(["report"])
    assert before["report"] > NOON.timestamp() - 86_400 * 365
    assert await journal.runs.recent() == []


async def test_time_goes_on_and_so_do_the_runs(journal: Journal) -> None:
    one = schedule()
    await seen_at(journal, one, NOON - timedelta(seconds=3))
    clock_of = journal.schedules
    assert isinstance(clock_of, GivenClock)
    at_work = keeper(journal, one)
    for minutes in range(31):
        clock_of.now = NOON + timedelta(minutes=minutes)
        await at_work.look()
    assert sorted(run.event_id[11:16] for run in await journal.runs.recent()) == [
        "12:00",
        "12:05",
        "12:10",
        "12:15",
        "12:20",
        "12:25",
        "12:30",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: a, cron: '* * * *', workflow: w}", "cron: value error, five fields: minute, hour"),
        ("{name: a, cron: '61 * * * *', workflow: w}", "cron: value error, Bad minute: not an expression of cron"),
        ("{name: a, cron: '0 0 31 2 *', workflow: w}", "cron: value error, Bad day-of-month"),
        (
            "{name: a, cron: '* * * * *', workflow: w, timezone: Rome}",
            "timezone: value error, no time zone is called 'Rome'",
        ),
        (
            "{name: a, cron: '* * * * *', workflow: w, timezone: ../../etc/passwd}",
            "timezone: value error, no time zone",
        ),
        ("{name: a b, cron: '* * * * *', workflow: w}", "name: string should match pattern"),
        ("{name: a, cron: '* * * * *', workflow: w, missed: all}", "missed: input should be 'skip' or 'last'"),
        (
            "{name: a, cron: '* * * * *', workflow: w, priority: 10}",
            "priority: input should be less than or equal to 9",
        ),
        ("{name: a, cron: '* * * * *', workflow: w, tenent: x}", "tenent: unknown field; did you mean tenant?"),
        (
            "{name: a, cron: '* * * * *', workflow: w}\n- {name: a, cron: '* * * * *', workflow: w}",
            "schedules: value error, two schedules are called 'a'",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "schedules.yaml"
    path.write_text("schedules:\n- " + text + "\n")
    with pytest.raises(BadSpec) as refused:
        load_schedules(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"{path}:")


async def test_the_command_shows_the_next_times_and_the_last_run(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schedules.yaml"
    path.write_text("schedules: [{name: report, cron: '0 12 * * *', workflow: w}]")
    db = SqliteDatabase(tmp_path / "journal.db")
    await migrate(db)
    real = Journal(db)
    await Accepting(MemoryBus(), real).take(requested(RunRequested(workflow="w", input={}), "/metier/schedules/report", NOON.isoformat(), "t"))  # fmt: skip
    await db.close()
    monkeypatch.setenv("METIER_SCHEDULES", str(path))
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    monkeypatch.delenv("METIER_KAFKA_BOOTSTRAP", raising=False)
    monkeypatch.delenv("METIER_POSTGRES_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    done = await asyncio.to_thread(CliRunner().invoke, cli.app, ["schedules", "list", "--json"])
    (shown,) = json.loads(done.stdout)
    assert [at[10:] for at in shown["next"]] == ["T12:00:00+00:00"] * 3
    assert shown["last_run"] == {"run_id": stable_id("run", "/metier/schedules/report", NOON.isoformat()), "event_id": NOON.isoformat(), "status": "accepted"}  # fmt: skip


def test_in_the_hour_that_comes_twice_nothing_that_is_over_is_due() -> None:
    daily = schedule("30 2 * * *", timezone="Europe/Rome")
    second = local("2026-10-25T01:15+00:00")  # 02:15 by the wall, for the second time
    assert clock([next(times(daily, second))]) == ["26 01:30"]
    assert due(daily, second, second + timedelta(minutes=30)) == []


async def test_what_was_looked_at_stays_so_when_the_clock_is_set_back(journal: Journal) -> None:
    await seen_at(journal, schedule(), NOON)
    await journal.schedules.look("report", NOON.timestamp() - 3600)
    assert await journal.schedules.looked_at(["report"]) == {"report": NOON.timestamp()}
