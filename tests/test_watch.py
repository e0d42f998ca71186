"""A run that is watched: what happened before, each thing once, text as it is written, and nothing that does more to a terminal than be shown.

The system runs in this process; that the command finds a `metier dev` and a broker is in the end-to-end tests.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from metier import client, compose, compose_tools, configuration, roles
from metier.cli_watch import LONGEST, Screen, line_of
from metier.configuration import System
from metier.past import past
from metier_agents.recordings import read_recordings
from metier_infra.events import EVENTS_TOPIC, Event, RunFailed, RunRequested, RunSucceeded
from metier_infra.messages import Envelope
from metier_infra.progress_events import AgentAsked, NodeStarted, TextWritten, ToolAnswered
from metier_infra.service import send
from metier_infra.words import CallId, Failure, RunId, ToolCallId
from metier_tools.lane import ToolLane
from metier_tools.sandbox import Outcome, Request
from metier_tools.tool import ToolCall, ToolResult

HUNG = 40
CODE = next(one for one in read_recordings(compose.recordings_path()).queries if one.category == "code_reasoning")
RUN = RunId("r" * 32)


@dataclass(frozen=True)
class Gated:
    """A lane whose calls wait until they are let."""

    inner: ToolLane
    let: asyncio.Event

    async def call(self, call: ToolCall) -> ToolResult:
        await self.let.wait()
        return await self.inner.call(call)

    async def close(self) -> None:
        await self.inner.close()


class Gate:
    """Stands in for the sandbox: its programs wait until they are let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def lane(self, config: configuration.Config) -> ToolLane:
        return Gated(await compose_tools.scripted_lane(self._run)(config), self.open)

    def _run(self, request: Request) -> Outcome:
        return (
            Outcome("ok", 0, f"{CODE.gold}\n", wall_ms=3.0) if "print(repr(" in request.source else Outcome("error", 1)
        )


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def system(gate: Gate) -> AsyncGenerator[System]:
    """Every role in this process, and no container."""
    async with roles.embedded(configuration.configure(), journal=":memory:", lane=gate.lane) as found:
        yield found


async def test_whoever_comes_late_sees_what_happened_before_and_each_thing_once(system: System, gate: Gate) -> None:
    # Given a run that is in the middle of a tool call
    gate.open.clear()
    heard: list[Envelope[Event]] = []
    calling = asyncio.Event()

    def hear(event: Envelope[Event]) -> None:
        heard.append(event)
        if event.data.TYPE == "io.metier.tool.called.v1":
            calling.set()

    async with client.following(system.bus, hear):
        sent = await client.publish(system.bus, "specialists", {"question": CODE.text})
        run_id = client.run_id_of(sent.source, sent.id)
        async with asyncio.timeout(HUNG):
            await calling.wait()
        # When somebody watches it from here on, and it goes on once they have seen the past
        seen: list[Envelope[Event]] = []
        again: list[asyncio.Task[None]] = []

        def see(event: Envelope[Event]) -> None:
            if not seen:  # the first comes once more, as after a crash
                again.append(asyncio.create_task(send(system.bus, EVENTS_TOPIC, event)))
            seen.append(event)
            gate.open.set()

        async with asyncio.timeout(HUNG):
            await client.watch(system, run_id, see)
    # Then they saw all that the journal keeps, under the ids under which it was told, and the end last
    assert len({one.id for one in seen}) == len(seen)
    kept = {one.id for one in heard if one.data.TYPE.split(".")[2] != "node"}
    assert {one.id for one in seen} >= kept
    assert isinstance(seen[-1].data, RunSucceeded)
    told = {one.id: one.data for one in heard}
    assert all(told[one.id] == one.data for one in seen)


async def test_a_run_that_ended_shows_its_past_and_its_end_at_once(system: System) -> None:
    end = await client.publish_and_wait(
        system.bus, "specialists", {"question": CODE.text}, event_id=None, timeout_s=HUNG
    )
    seen: list[Envelope[Event]] = []
    async with asyncio.timeout(HUNG):
        await client.watch(system, end.run_id, seen.append)
    assert seen[-1].data == end
    run = await system.journal.runs.get(end.run_id)
    assert run is not None
    assert [one.id for one in seen] == [one.id for one in await past(system.journal, run)]
    times = [one.time for one in seen]
    assert times == sorted(times)
    assert {type(one.data).__name__ for one in seen} == {
        *("RunStarted", "DecisionMade", "AgentAsked", "AgentAnswered", "ToolCalled", "ToolAnswered", "RunSucceeded")
    }


def written(text: str, piece: int = 0, agent: str = "a", attempt: int = 1) -> Envelope[Event]:
    data = TextWritten(run_id=RUN, call_id=CallId(agent), agent=agent, step=0, attempt=attempt, piece=piece, text=text)
    return Envelope(data, "id", "/test", RUN)


def told(data: Event) -> Envelope[Event]:
    return Envelope(data, "id", "/test", RUN)


def screened(*events: Envelope[Event]) -> str:
    out = io.StringIO()
    screen = Screen(out)
    for event in events:
        screen.show(event)
    return out.getvalue()


def test_text_grows_in_place_and_another_ones_begins_a_line() -> None:
    shown = screened(written("Once "), written("upon"), written("Hello", agent="b"), written(" a time", piece=-1))
    assert shown == "          a: Once upon\n          b: Hello\n          a:  a time\n"


def test_a_line_never_lands_in_the_middle_of_text() -> None:
    shown = screened(written("Once "), told(NodeStarted(run_id=RUN, task="t", node="n")), written("", piece=-1))
    first, second = shown.splitlines()
    assert first == "          a: Once "
    assert second.endswith("  node started     n")


def test_nothing_of_others_reaches_a_terminal_but_what_can_be_shown() -> None:
    evil = "\x1b[2J\x07\u202e\r"
    answered = ToolAnswered(
        run_id=RUN, call_id=CallId("c"), tool_call_id=ToolCallId("t"), agent=evil, tool=evil, ok=False, status=evil
    )
    failed = RunFailed(
        run_id=RUN, request_id="e", workflow="w", failure=Failure(code="x", message=evil * 200), cost_usd=0
    )
    shown = screened(written(evil + "\n", agent=evil), told(answered), told(failed))
    assert all(one.isprintable() for one in shown.replace("\n", ""))
    assert "\\x1b[2J" in shown
    assert max(map(len, shown.splitlines())) <= LONGEST + 20


def test_a_line_says_who_did_what() -> None:
    asked = AgentAsked(run_id=RUN, call_id=CallId("c"), agent="a", node="n")
    assert line_of(asked) == "agent asked      a by n"
    assert not line_of(RunRequested(workflow="w", input={}))
