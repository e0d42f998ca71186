"""Everything in one process: the demo, `metier dev` with its socket, a crash of it; and the same answers as over real services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from metier.compose import recordings_path
from metier_agents.recordings import read_recordings

from .conftest import SLOW, Process, echo_agents, new_fleet, until

QUERIES = ("--queries", "12", "--seed", "3", "--json")


@pytest.fixture
def alone(services: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment without Kafka, Postgres and Redis."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METIER_")}
    return {
        **inherited,
        "METIER_SANDBOX_IMAGE": services["METIER_SANDBOX_IMAGE"],
        "METIER_SQLITE_PATH": str(tmp_path / "journal.db"),
    }


def metier(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metier", *words]
    folder = Path(environment["METIER_SQLITE_PATH"]).parent
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def essence(document: dict[str, Any]) -> list[Any]:
    """What must not depend on how the system is run."""
    runs = [*document["runs"], *document["learned"]["runs"]]
    told = [[run[key] for key in ("query", "status", "answer", "tool_calls", "cost_usd")] for run in runs]
    return [*told, document["learned"]["router"], [one["chosen"] for one in document["learned"]["decisions"]]]


def test_embedded_and_distributed_give_the_same(
    services: Mapping[str, str], tmp_path: Path, alone: dict[str, str]
) -> None:
    # Given the demo in one process
    embedded = metier(alone, "demo", *QUERIES)
    assert embedded.returncode == 0, embedded.stderr
    # When the same demo runs over real Kafka, Postgres, Celery and separate roles
    with new_fleet(services, tmp_path) as fleet:
        fleet.start_all("reasoner", "coder", "careful")
        distributed = fleet.metier("demo", "--distributed", *QUERIES)
    assert distributed.returncode == 0, distributed.stderr
    # Then answers, tool calls and costs are the same
    one, other = json.loads(embedded.stdout), json.loads(distributed.stdout)
    assert (one["mode"], other["mode"]) == ("embedded", "distributed")
    assert essence(one) == essence(other)
    assert sum(bool(run["tool_calls"]) for run in one["runs"]) > 0
    # and the table is computed from what is shown
    scored = sum(run["right"] for run in one["runs"]) / 12
    assert one["scores"][0]["accuracy"] == pytest.approx(scored)
    assert one["scores"][0]["cost_usd"] == pytest.approx(sum(run["cost_usd"] for run in one["runs"]))


def test_the_demo_shows_a_table_decisions_and_one_trace(alone: dict[str, str]) -> None:
    done = metier(alone, "demo", "--queries", "8", "--seed", "3")
    assert done.returncode == 0, done.stderr
    for part in (
        "workflow specialists",
        "workflow routed",
        "Decisions by rules",
        "Decisions of a router that learned on",
        "Tool calls",
        "container",
        "agent coder",
        "event run.succeeded",
        "gpt-4o-mini-2024-07-18",
    ):
        assert part in done.stdout
    # and what it did can be looked at afterwards
    listed = json.loads(metier(alone, "runs", "list", "--json").stdout)
    assert len(listed) == 16
    # the second half of it decided by a router that was judged and promoted for these runs alone
    (router,) = json.loads(metier(alone, "routers", "list", "--json").stdout)
    assert router["stands"] == {"demo": "promoted"}
    assert router["report"]["verdict"] in {"better", "undecided"}
    # while a demo leaves nothing running
    assert metier(alone, "publish", "specialists", "{}").returncode == 2


@pytest.fixture
def dev(alone: dict[str, str], tmp_path: Path) -> Generator[Process]:
    """A `metier dev` whose one agent runs half a second of code in each of five calls."""
    environment = {
        **alone,
        "METIER_AGENTS": str(echo_agents(tmp_path, SLOW)),
        "METIER_WORKFLOWS": "metier.examples.five,metier.examples.specialists",
    }
    process = Process(["dev"], environment, tmp_path, "dev")
    process.ready()
    yield process
    process.end()


def test_dev_serves_the_other_commands_and_survives_kill_9(dev: Process) -> None:
    request = ("publish", "five", '{"question": "?", "answers": []}')
    # Given a run that was published to it, and is in the middle
    sent = json.loads(metier(dev.environment, *request, "--json", "--id", "one").stdout)
    until(lambda: "container" in metier(dev.environment, "trace", sent["run_id"]).stdout, "a tool call done")
    # When the process dies and is started again
    dev.kill()
    dev.restart()
    dev.ready()
    # Then the run goes on where it was and ends well
    watched = metier(dev.environment, "runs", "watch", sent["run_id"])
    assert "succeeded" in watched.stdout, dev.log.read_text()
    shown = json.loads(metier(dev.environment, "runs", "show", sent["run_id"], "--json").stdout)
    assert shown["result"]["answers"] == ["42"] * 5
    assert shown["cost_usd"] == pytest.approx(5 * 0.003)
    # and the same request again starts nothing
    metier(dev.environment, *request, "--id", "one")
    assert len(json.loads(metier(dev.environment, "runs", "list", "--json").stdout)) == 1
    # and a second one in the same folder is refused with a sentence
    second = metier(dev.environment, "dev")
    assert second.returncode == 2
    assert "in use by another" in second.stderr
    # and SIGTERM ends it cleanly
    assert dev.end() == 0
    assert not dev.sign.exists()


def test_only_recorded_questions_have_recorded_answers(alone: dict[str, str]) -> None:
    assert read_recordings(recordings_path()).find("never asked") is None
    assert metier(alone, "version", "--json").returncode == 0
