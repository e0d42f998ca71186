"""What `metier prune` forgets, on both databases: old runs that ended, by age; and nothing that anybody may still need."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metier_infra import retention
from metier_infra.database import Database, Statement
from metier_infra.journal import Journal
from metier_infra.old_accounts import over
from metier_infra.outcomes import Outcome
from metier_infra.retention import DAY_S, Prunable, prunable, prune

TABLES = ("runs", "calls", "steps", "outcomes", "checkpoints", "channel_values", "channel_writes")


async def run(
    db: Database, name: str, *, ended_days: float | None, announced: int = 1, parent: str | None = None
) -> None:
    """A run with a call, a step and a checkpoint; it ended so many days ago, or is open."""
    await db.write(
        Statement(
            "INSERT INTO runs (run_id, source, event_id, workflow, status, input, traceparent, announced, parent, accepted_at, finished_at)"
            " VALUES (:run, '/s', :run, 'w', :status, '{}', '', :announced, :parent, :now, :now - :age)",
            {
                "run": name,
                "status": "running" if ended_days is None else "succeeded",
                "announced": announced,
                "parent": parent,
                "age": None if ended_days is None else ended_days * DAY_S,
            },
        ),
        Statement(
            "INSERT INTO calls (call_id, run_id, agent, task, deadline, requested_at) VALUES (:call, :run, 'a', '{}', 0, 0)",
            {"call": f"call of {name}", "run": name},
        ),
        Statement(
            "INSERT INTO outcomes (outcome_id, run_id, kind, said_by, score, weight, event_id, said_at, at)"
            " VALUES (:run, :run, 'explicit', 'ann', 1, 1, 'e', 0, :now)",
            {"run": name},
        ),
        Statement("INSERT INTO steps (call_id, n, body, at) VALUES (:call, 0, '{}', 0)", {"call": f"call of {name}"}),
        Statement(
            "INSERT INTO checkpoints (run_id, ns, checkpoint_id, kind, body, metadata) VALUES (:run, '', 'c', 'k', :b, '{}')",
            {"run": name, "b": b""},
        ),
        Statement(
            "INSERT INTO channel_values (run_id, ns, channel, version, kind, body) VALUES (:run, '', 'x', '1', 'k', :b)",
            {"run": name, "b": b""},
        ),
        Statement(
            "INSERT INTO channel_writes (run_id, ns, checkpoint_id, task_id, idx, path, channel, kind, body)"
            " VALUES (:run, '', 'c', 't', 0, '', 'x', 'k', :b)",
            {"run": name, "b": b""},
        ),
    )


async def names(db: Database, table: str) -> set[str]:
    column = "call_id" if table == "steps" else "run_id"
    rows = await db.read(f"SELECT {column} AS name FROM {table}")
    return {str(row["name"]).removeprefix("call of ") for row in rows}


async def test_checkpoints_go_before_runs_and_each_by_its_own_age(database: Database) -> None:
    for name, days in (("young", 1.0), ("older", 10.0), ("old", 100.0)):
        await run(database, name, ended_days=days)
    wanted = Prunable(checkpoints=2, runs=1)
    assert await prunable(database, checkpoints_days=7, runs_days=90) == wanted
    assert {table: len(await names(database, table)) for table in TABLES} == dict.fromkeys(TABLES, 3)
    assert await prune(database, checkpoints_days=7, runs_days=90) == wanted
    for table in ("checkpoints", "channel_values", "channel_writes"):
        assert await names(database, table) == {"young"}, table
    for table in ("runs", "calls", "steps", "outcomes"):
        assert await names(database, table) == {"young", "older"}, table
    assert await prune(database, checkpoints_days=7, runs_days=90) == Prunable(0, 0)


async def test_a_run_that_is_open_or_untold_or_under_an_open_one_stays_whole(database: Database) -> None:
    await run(database, "open", ended_days=None)
    await run(database, "untold", ended_days=100, announced=0)
    await run(database, "parent", ended_days=100)
    await run(database, "child", ended_days=None, announced=0, parent="parent")
    assert await prune(database, checkpoints_days=0, runs_days=0) == Prunable(0, 0)
    for table in TABLES:
        assert await names(database, table) == {"open", "untold", "parent", "child"}, table


async def test_a_run_whose_spend_is_not_added_up_stays_and_loses_only_its_checkpoints(database: Database) -> None:
    await run(database, "spent", ended_days=100)
    await database.write(
        Statement(
            "INSERT INTO reservations (account, call_id, usd, tokens, tool_calls) VALUES ('t', 'call of spent', 1, 1, 1)"
        )
    )
    assert await prune(database, checkpoints_days=1, runs_days=1) == Prunable(checkpoints=1, runs=0)
    assert await names(database, "runs") == {"spent"}


async def limited(db: Database, name: str, *, accounts: Sequence[str], known: bool = True) -> None:
    """The run's call took 3 of what was set aside for it in these accounts; or nobody knows what it took."""
    took = "UPDATE calls SET answered_at = :now - 9999, tokens = 30, cost_usd = 3, tool_calls = 0 WHERE run_id = :run"
    rows = [
        statement
        for account in accounts
        for statement in (
            Statement(
                "INSERT INTO accounts (account, usd_limit) VALUES (:account, 100) ON CONFLICT DO NOTHING",
                {"account": account},
            ),
            Statement(
                "INSERT INTO reservations (account, call_id, usd, tokens, tool_calls) VALUES (:account, :call, 9, 90, 0)",
                {"account": account, "call": f"call of {name}"},
            ),
        )
    ]
    await db.write(*rows, *([Statement(took, {"run": name})] if known else []))


async def held(db: Database) -> dict[str, float]:
    """What is taken of each account there is."""
    return {str(row["account"]): float(row["usd"]) for row in await db.read("SELECT account, usd FROM balances")}


async def test_the_account_of_a_run_goes_with_it_and_what_it_took_stays_in_those_that_are_in_use(
    database: Database,
) -> None:
    await run(database, "above", ended_days=None)
    await run(database, "old", ended_days=100, parent="above")
    await run(database, "young", ended_days=1)
    now = await database.read("SELECT :now AS now")
    month = datetime.fromtimestamp(float(now[0]["now"]), UTC).strftime("%Y-%m")
    shared = ["run:above", f"tenant:acme/{month}"]
    await limited(database, "old", accounts=["run:old", *shared])
    await limited(database, "young", accounts=["run:young", *shared])
    before = await held(database)
    assert before == {"run:old": 3, "run:young": 3, "run:above": 6, f"tenant:acme/{month}": 6}
    assert await prunable(database, checkpoints_days=7, runs_days=60) == Prunable(checkpoints=1, runs=1)
    assert await held(database) == before
    assert await prune(database, checkpoints_days=7, runs_days=60) == Prunable(checkpoints=1, runs=1)
    del before["run:old"]
    assert await held(database) == before
    assert await names(database, "runs") == {"above", "young"}


async def test_periods_that_are_over_go_with_what_nobody_will_ever_know(database: Database) -> None:
    await run(database, "old", ended_days=400)
    await limited(
        database,
        "old",
        accounts=["tenant:a/b/2001-01", "tenant:a/b/2001-01-31", "tenant:a/b/2001-01-31T23"],
        known=False,
    )
    await limited(database, "old", accounts=["tenant:a/b/9999-01", "decision:none", "run:none"])
    assert await prune(database, checkpoints_days=7, runs_days=90) == Prunable(checkpoints=1, runs=1)
    assert await held(database) == {"tenant:a/b/9999-01": 3}
    assert await database.read("SELECT * FROM reservations") == []


async def test_what_an_open_run_takes_from_stays_though_it_stands_in_the_account_of_one_that_ended(
    database: Database,
) -> None:
    await run(database, "above", ended_days=100)
    await run(database, "below", ended_days=None, announced=0, parent="above")
    await limited(database, "below", accounts=["run:above"])
    await prune(database, checkpoints_days=7, runs_days=60)
    assert await held(database) == {"run:above": 3}


async def test_an_account_stays_as_long_as_its_run_or_its_decisions_run(database: Database) -> None:
    for name, days in (("open", None), ("young", 1.0), ("old", 100.0)):
        await run(database, name, ended_days=days)
        await database.write(
            Statement(
                "INSERT INTO decisions (decision_id, run_id, body, at) VALUES (:run, :run, '{}', 0)", {"run": name}
            )
        )
        await limited(database, name, accounts=[f"run:{name}", f"decision:{name}"], known=name != "old")
    await prune(database, checkpoints_days=7, runs_days=90)
    assert await names(database, "runs") == {"open", "young"}
    assert set(await held(database)) == {"run:open", "decision:open", "run:young", "decision:young"}


@pytest.mark.parametrize(
    ("account", "gone"),
    [
        ("tenant:a/2026-09", True),
        ("tenant:a/2026-10", False),
        ("tenant:a/2026-10-09", True),
        ("tenant:a/2026-10-10", False),
        ("tenant:a/2026-10-10T11", True),
        ("tenant:a/2026-10-10T12", False),
        ("tenant:a/no period", False),
    ],
)
def test_a_period_is_over_when_the_next_has_begun(account: str, gone: bool) -> None:
    assert over(account, datetime(2026, 10, 10, 12, 30, tzinfo=UTC).timestamp()) is gone


async def test_more_runs_than_one_transaction_takes_are_all_forgotten(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    for number in range(5):
        await run(database, f"run {number}", ended_days=100)
    assert await prune(database, checkpoints_days=1, runs_days=1) == Prunable(5, 5)
    assert await names(database, "runs") == set()


def test_the_command_counts_and_forgets_nothing_unless_told_to(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "metier", "prune", "--json"]
    environment = {"METIER_SQLITE_PATH": str(tmp_path / "journal.db"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120, env=environment, cwd=tmp_path)
    assert json.loads(done.stdout) == {"checkpoints": 0, "runs": 0, "done": False}


async def test_words_about_runs_that_never_came_go_when_they_are_as_old(database: Database) -> None:
    for name, days in (("fresh", 1.0), ("stale", 100.0)):
        said = Outcome(run_id=name, score=1, by="ann", event_id="e", said_at=0)
        await Journal(database).outcomes.record(said)
        aged = "UPDATE outcomes SET at = :now - :age WHERE run_id = :run"
        await database.write(Statement(aged, {"age": days * DAY_S, "run": name}))
    await prune(database, checkpoints_days=7, runs_days=90)
    assert await names(database, "outcomes") == {"fresh"}
