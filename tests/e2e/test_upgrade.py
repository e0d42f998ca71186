"""From one version to the next and back, under load: nothing is lost, nothing done twice, though both versions run at the same time.

The next version is this one with one more migration, whose column it writes. Not here: more than one step at a time, which no version promises.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from metier_infra.database import MIGRATIONS, migrations

from .conftest import Fleet, Process, echo_agents, new_fleet, until

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("workflows", "agents", "tools", "infra")
WRITES = " finished_at = :now,"
ROLES = ("tools", "echo-a", "echo-b", "orchestrator-a", "orchestrator-b")
LOOK_S = 0.05
AT_A_TIME = 4


@dataclass
class Publisher:
    """Asks for a run whenever fewer than so many are under way, until it is told to stop, and knows what it asked for."""

    fleet: Fleet
    asked: list[str] = field(default_factory=list[str])
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.wait(LOOK_S):
            if len(self.asked) - ended(self.fleet) >= AT_A_TIME:
                continue
            name = f"up-{len(self.asked)}"
            self.fleet.request("five", {"question": "?", "answers": []}, name)
            self.asked.append(name)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def more(self, number: int = 3) -> None:
        """Wait until so many more were asked for: what happens next happens under load."""
        goal = len(self.asked) + number
        until(lambda: len(self.asked) >= goal, f"{goal} requests")


def next_version(folder: Path) -> str:
    """The source roots of a version that has one more migration and needs it; for PYTHONPATH."""
    for root in SOURCES:
        skip = shutil.ignore_patterns("__pycache__", "local", "images")
        shutil.copytree(REPOSITORY / root, folder / root, ignore=skip)
    number = max(migrations()) + 1
    name = f"{number:04}_next.sql"
    (folder / "infra/metier_infra" / MIGRATIONS.name / name).write_text(
        f"-- oldest: {number - 1}\nALTER TABLE runs ADD COLUMN next_note text;\nCREATE TABLE next_things (id bigint PRIMARY KEY)"
    )
    runs = folder / "infra/metier_infra/runs.py"
    assert runs.read_text().count(WRITES) == 1
    runs.write_text(runs.read_text().replace(WRITES, f"{WRITES} next_note = 'next',"))
    return ":".join(str(folder / root) for root in SOURCES)


@pytest.fixture
def up(services: Mapping[str, str], tmp_path: Path) -> Generator[Fleet]:
    """Two orchestrators, two workers and a tool runner of this version."""
    more = {"METIER_AGENTS": str(echo_agents(tmp_path, "print(6 * 7)")), "METIER_WORKFLOWS": "metier.examples.five"}
    with new_fleet(services, tmp_path, **more) as fleet:
        fleet.metier("topics")
        for name in ROLES:
            fleet.start(name, *words_of(name))
        for role in fleet.roles.values():
            role.ready()
        yield fleet


def words_of(name: str) -> Sequence[str]:
    role = name.partition("-")[0]
    return ("agent", role) if role == "echo" else (role,)


def roll(role: Process, path: str | None) -> None:
    """End a role as a rolling update does, and start it from other sources; None: from this version's."""
    assert role.end() == 0, role.log.read_text()[-3000:]
    role.environment["PYTHONPATH"] = path or os.environ.get("PYTHONPATH", "")
    role.restart()
    role.ready()


def rows(fleet: Fleet, sql: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(fleet.environment["METIER_POSTGRES_URL"]) as connection:
        return connection.execute(sql).fetchall()


@pytest.mark.timeout(400)
def test_an_upgrade_and_a_rollback_under_load_lose_and_double_nothing(up: Fleet, tmp_path: Path) -> None:
    path = next_version(tmp_path / "next")
    publisher = Publisher(up)
    publisher.start()
    try:
        # Given this version at work, and a schema that the next one has brought up to date
        publisher.more()
        refused = up.metier("migrate", "--check", PYTHONPATH=path)
        assert (refused.returncode, "run `metier migrate`" in refused.stderr) == (2, True), refused
        assert up.metier("migrate", PYTHONPATH=path).returncode == 0
        # When one of its processes dies then, and is started again before it is its turn
        up.roles["orchestrator-b"].kill()
        up.roles["orchestrator-b"].restart()
        up.roles["orchestrator-b"].ready()
        publisher.more()
        # And each role becomes the next version, one after the other
        for name in ROLES:
            roll(up.roles[name], path)
            publisher.more()
        # And some of them this one again, on the schema of the next
        for name in ("orchestrator-a", "echo-a", "tools"):
            roll(up.roles[name], None)
            publisher.more()
    finally:
        publisher.stop()
    # Then every request has ended once, with the right answer and price
    until(lambda: ended(up) == len(publisher.asked), "all runs ended", 120)
    found = rows(up, "SELECT event_id, status, result, cost_usd, next_note FROM runs")
    assert sorted(event_id for event_id, *_ in found) == sorted(publisher.asked)
    assert {(status, result) for _, status, result, *_ in found} == {
        ("succeeded", json.dumps({"question": "?", "answers": ["42"] * 5}))
    }
    assert {round(cost, 6) for *_, cost, _ in found} == {0.015}
    assert rows(up, "SELECT count(*) FROM calls") == [(5 * len(found),)]
    assert told(up) == {f"{run_id}/ended" for (run_id,) in rows(up, "SELECT run_id FROM runs")}
    # And each version had ended some
    assert {note for *_, note in found} == {None, "next"}


def ended(fleet: Fleet) -> int:
    return int(rows(fleet, "SELECT count(*) FROM runs WHERE announced = 1")[0][0])


def counted(fleet: Fleet) -> int:
    return int(rows(fleet, "SELECT count(*) FROM runs")[0][0])


def told(fleet: Fleet) -> set[str]:
    """The ids of all terminal events on the topic."""
    wanted = counted(fleet)
    seen: set[str] = set()

    def enough(records: Sequence[Any]) -> bool:
        seen.update(dict(record.headers)["ce_id"].decode() for record in records)
        return sum(one.endswith("/ended") for one in seen) >= wanted

    fleet.records("metier.events", enough)
    return {one for one in seen if one.endswith("/ended")}
