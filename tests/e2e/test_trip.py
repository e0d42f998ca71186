"""One event's trip over real services, started and read by a plain kafka-python client that imports nothing of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from metier.compose import recordings_path
from metier_agents.recordings import read_recordings
from metier_infra.words import RunId

from .conftest import PATIENCE_S, new_fleet, open_journal

if TYPE_CHECKING:
    from kafka import ConsumerRecord

    from metier_infra.journal import Journal
    from metier_infra.rows import Run

    from .conftest import Fleet

AGENTS = ("coder", "reasoner", "careful")


@pytest.fixture(scope="module")
def up(services: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Generator[Fleet]:
    """A fleet that serves the example workflow to every test here."""
    with new_fleet(services, tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.start_all(*AGENTS)
        yield fleet


@pytest.fixture
async def journal(up: Fleet) -> AsyncGenerator[Journal]:
    """The fleet's journal."""
    async with open_journal(up) as found:
        yield found


def headers(record: ConsumerRecord) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in record.headers or ()}


async def announced(journal: Journal, run_id: str) -> Run:
    """The run, once it is noted that its end was told."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            run = await journal.runs.get(RunId(run_id))
            if run is not None and run.announced:
                return run
            await asyncio.sleep(0.05)


async def test_a_request_travels_the_whole_system(up: Fleet, journal: Journal) -> None:
    # Given a code question whose answer is known
    query = next(q for q in read_recordings(recordings_path()).queries if q.category == "code_reasoning")
    # When a backend asks
    up.request("specialists", {"question": query.text}, "trip")
    end = up.terminal("trip")
    # Then the terminal event carries the answer that running the code gives, and what it cost
    assert end["type"] == "io.metier.run.succeeded.v1"
    result = end["result"]
    assert isinstance(result, dict)
    assert result["answer"] == query.gold
    assert end["cost_usd"] != 0
    # and the journal knows the same: run, decision, calls, tool calls in one strict container
    run = await announced(journal, str(end["run_id"]))
    assert (run.status, run.result) == ("succeeded", result)
    assert len(await journal.decisions.of_run(run.run_id)) == 1
    calls, tools = await journal.calls.of_run(run.run_id), await journal.tools.of_run(run.run_id)
    assert [call.attempt for call in calls] == [1, 1]
    assert len({str((tool.result or {})["container"]) for tool in tools}) == 1
    assert {str((tool.result or {})["status"]) for tool in tools} == {"ok"}


async def test_a_duplicate_request_starts_nothing(up: Fleet, journal: Journal) -> None:
    question = {"question": read_recordings(recordings_path()).queries[0].text}
    # When the same request comes twice before and once after the end, and then another
    up.request("specialists", question, "same")
    up.request("specialists", question, "same")
    up.terminal("same")
    up.request("specialists", question, "same")
    up.request("specialists", question, "other")
    up.terminal("other")
    # Then there are two runs, with one call and one terminal event each
    runs = [run for run in await journal.runs.recent() if run.event_id in {"same", "other"}]
    assert sorted(run.event_id for run in runs) == ["other", "same"]
    assert [len(await journal.calls.of_run(run.run_id)) for run in runs] == [1, 1]
    for run in runs:
        assert len(up.ends(run.run_id)) == 1


def test_what_cannot_be_read_lies_in_the_dead_letters(up: Fleet) -> None:
    about = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/b", "content-type": "application/json"}
    ours = {**about, "ce_type": "io.metier.run.requested.v1"}
    broken: list[tuple[bytes, dict[str, str], str]] = [
        (b"\xff\xfe no text", ours, "undecodable"),
        (b'{"workflow": 7}', ours, "undecodable"),
        (b"[1, 2]", ours, "undecodable"),
        (b"{}", {}, "undecodable"),
        (b"{}", {**about, "ce_type": "com.example.other"}, "unknown_event"),
    ]
    # When records that no one can read come before one that is well
    for value, heads, _ in broken:
        up.produce(value, heads)
    up.request("specialists", {"question": read_recordings(recordings_path()).queries[0].text}, "after")
    # Then the partition goes on, and each lies in the dead letters with its bytes and the reason
    assert up.terminal("after")["type"] == "io.metier.run.succeeded.v1"
    dead = up.records("metier.dead-letters", lambda found: len(found) >= len(broken))
    by_value = {record.value: headers(record) for record in dead}
    for value, heads, reason in broken[:3] + broken[4:]:
        assert heads.items() <= by_value[value].items()
        assert by_value[value]["metier-dead-reason"] == reason
        assert by_value[value]["metier-dead-topic"] == "metier.requests"
    assert {record.key for record in dead} == {b"tenant"}


@pytest.mark.parametrize(
    ("workflow", "value", "code", "says"),
    [
        ("no-such-workflow", {}, "unknown_workflow", "specialists"),
        ("specialists", {"query": "?"}, "bad_input", "question"),
        ("specialists", {"question": "a question that no model was recorded on"}, "call_failed", "recorded"),
    ],
)
def test_a_run_that_cannot_go_well_ends_typed(
    up: Fleet, workflow: str, value: dict[str, str], code: str, says: str
) -> None:
    up.request(workflow, value, f"bad-{code}")
    end = up.terminal(f"bad-{code}")
    assert end["type"] == "io.metier.run.failed.v1"
    failure = end["failure"]
    assert isinstance(failure, dict)
    assert failure["code"] == code
    assert says in failure["message"]


def test_the_commands_of_users_see_the_same(up: Fleet) -> None:
    question = json.dumps({"question": read_recordings(recordings_path()).queries[0].text})
    # When a person publishes and waits
    done = up.metier("publish", "specialists", question, "--wait", "--json", "--id", "by-hand")
    end = json.loads(done.stdout)
    # Then list, show, watch and trace agree on what happened
    assert done.returncode == 0, done.stderr
    listed = json.loads(up.metier("runs", "list", "--json").stdout)
    shown = json.loads(up.metier("runs", "show", end["run_id"][:8], "--json").stdout)
    watched = up.metier("runs", "watch", end["run_id"])
    traced = json.loads(up.metier("trace", end["run_id"], "--json").stdout)
    assert listed[0]["run_id"] == end["run_id"] == shown["run_id"]
    assert "succeeded" in watched.stdout
    assert [child["kind"] for child in traced["children"]] == ["workflow", "event"]
    assert "agent" in up.metier("trace", end["run_id"]).stdout
    # and publishing it again waits for nothing new
    again = up.metier("publish", "specialists", question, "--json", "--id", "by-hand")
    assert json.loads(again.stdout)["run_id"] == end["run_id"]
    waited = up.metier("publish", "specialists", question, "--wait", "--json", "--id", "by-hand", "--timeout", "30")
    assert json.loads(waited.stdout) == end
    # and a run that is not there is a sentence
    absent = up.metier("runs", "show", "ffff")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    # and a failed run fails the command
    failed = up.metier("publish", "nothing", "{}", "--wait")
    assert failed.returncode == 1
    assert "unknown_workflow" in failed.stderr
    # and a list with a failure in it is still a list
    lines = up.metier("runs", "list").stdout
    assert end["run_id"][:12] in lines
    assert "unknown_workflow" in lines
    refused = up.metier("runs", "list", "--status", "done")
    assert (refused.returncode, "succeeded" in refused.stderr) == (2, True)


def test_no_process_but_the_runner_itself_has_the_key_that_signs_tool_calls(up: Fleet) -> None:
    # Given the tool runner and everything that it started
    runner = up.roles["tools"].process.pid
    parents = {
        int(stat.parent.name): int(stat.read_text().rpartition(")")[2].split()[1])
        for stat in Path("/proc").glob("[0-9]*/stat")
    }
    family = {runner}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    # Then Celery's processes, which parse what the broker gives them, cannot read it
    children = family - {runner}
    assert len(children) > 1
    assert all(b"METIER_" not in Path(f"/proc/{pid}/environ").read_bytes() for pid in children)
