"""kill -9 of any one role in the middle of a run, then a restart: the run ends once, with the right answer.

Not tested here: several roles dying at once, and brokers that die.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping

import pytest

from metier_infra.journal import Journal
from metier_infra.words import RunId
from metier_workflows.workflow import load_workflows

from .conftest import SLOW, Fleet, echo_agents, new_fleet, open_journal, until

ROLES = ("orchestrator", "echo", "tools")


@pytest.fixture(scope="module")
def up(services: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Generator[Fleet]:
    """A fleet whose runs are five calls, one after another, each of which runs half a second of code in a sandbox."""
    folder = tmp_path_factory.mktemp("fleet")
    with new_fleet(
        services, folder, METIER_AGENTS=str(echo_agents(folder, SLOW)), METIER_WORKFLOWS="metier.examples.five"
    ) as fleet:
        fleet.start_all("echo")
        yield fleet


@pytest.fixture
async def journal(up: Fleet) -> AsyncGenerator[Journal]:
    """The fleet's journal."""
    async with open_journal(up) as found:
        yield found


@pytest.mark.parametrize("role", ROLES)
async def test_a_killed_role_loses_and_doubles_nothing(up: Fleet, journal: Journal, role: str) -> None:
    # Given a run in the middle: its second call has a tool call in flight
    up.request("five", {"question": "?", "answers": []}, f"crash-{role}")
    until(lambda: in_flight(up, f"crash-{role}") >= 2, "a tool call in flight")
    # When the role dies and is started again
    up.roles[role].kill()
    up.roles[role].restart()
    # Then the run ends, well and once
    end = up.terminal(f"crash-{role}")
    assert end["result"] == {"question": "?", "answers": ["42"] * 5}
    up.roles[role].ready()
    assert up.ends(str(end["run_id"])) == [(b"io.metier.run.succeeded.v1", f"{end['run_id']}/ended".encode())]
    # and each call has one answer, each tool call one result, and each model turn was paid once
    run_id = RunId(str(end["run_id"]))
    calls, tools = await journal.calls.of_run(run_id), await journal.tools.of_run(run_id)
    assert [call.answer.text for call in calls if call.answer] == ["42"] * 5
    assert [(tool.result or {}).get("stdout") for tool in tools] == ["42\n"] * 5
    assert end["cost_usd"] == pytest.approx(5 * 0.003)


def in_flight(up: Fleet, event_id: str) -> int:
    """How many tool calls the run has made, when the last of them has no result yet."""
    from psycopg import connect

    with connect(up.environment["METIER_POSTGRES_URL"]) as connection:
        rows = connection.execute(
            "SELECT t.finished_at FROM tool_calls t JOIN runs r USING (run_id) WHERE r.event_id = %s ORDER BY t.requested_at",
            (event_id,),
        ).fetchall()
    return len(rows) if rows and rows[-1][0] is None else 0


def test_sigterm_drains(up: Fleet) -> None:
    # Given a run in the middle
    up.request("five", {"question": "?", "answers": []}, "drain")
    until(lambda: in_flight(up, "drain"), "a tool call in flight")
    # When each role in turn is told to end
    for name in ("tools", "echo", "orchestrator"):
        assert up.roles[name].end() == 0, up.roles[name].log.read_text()[-2000:]
        assert not up.roles[name].sign.exists()
        up.roles[name].restart()
        up.roles[name].ready()
    # Then it took its work to an end or handed it over
    assert up.terminal("drain")["type"] == "io.metier.run.succeeded.v1"


def test_the_workflow_is_what_the_bench_runs() -> None:
    assert load_workflows(["metier.examples.five"]).names == ["five"]
