"""What `metier prune` forgets, on both databases: old runs that ended, by age; and nothing that anybody may still need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from metier_infra import retention
from metier_infra.database import Database, Statement
from metier_infra.retention import DAY_S, Prunable, prunable, prune

TABLES = ("runs", "calls", "steps", "checkpoints", "channel_values", "channel_writes")


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
    for table in ("runs", "calls", "steps"):
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
