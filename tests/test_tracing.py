"""One trace for a run over all its hops; a run that is taken up again goes on in it, and after the window in a new one that is linked with it both ways.

The whole system runs in this process; a crash is the sudden end of all of it. Single hops are in `test_telemetry.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_trace_id

from metier import client, compose, compose_tools, configuration, roles
from metier.configuration import Config
from metier_agents.recordings import read_recordings
from metier_infra.events import Event, RunSucceeded
from metier_infra.messages import Envelope
from metier_infra.rows import Run
from metier_infra.segments import Segment
from metier_infra.words import RunId
from metier_tools.sandbox import Outcome, Request
from metier_workflows.tracing import newest

HUNG = 40
CODE = next(one for one in read_recordings(compose.recordings_path()).queries if one.category == "code_reasoning")


class Died(Exception):
    """The system ends in the middle."""


def run_it(request: Request) -> Outcome:
    said = f"{CODE.gold}\n" if "print(repr(" in request.source else ""
    return Outcome("ok" if said else "error", 0 if said else 1, said, wall_ms=3.0)


async def run_until(config: Config, journal: Path, enough: Callable[[Event], bool], *, die: bool = False) -> RunId:
    """Run the system until it tells something of the one run; where it shall `die`, all of it ends there."""
    there, run_id = asyncio.Event(), client.run_id_of(client.SOURCE, "e")

    def seen(event: Envelope[Event]) -> None:
        if enough(event.data):
            there.set()

    try:
        async with (
            roles.embedded(config, journal=journal, lane=compose_tools.scripted_lane(run_it)) as system,
            client.following(system.bus, seen),
            asyncio.timeout(HUNG),
        ):
            if await system.journal.runs.get(run_id) is None:
                await client.publish(system.bus, "specialists", {"question": CODE.text}, event_id="e")
            await there.wait()
            if die:
                raise Died
    except* Died:
        assert die
    return run_id


def ended(event: Event) -> bool:
    return isinstance(event, RunSucceeded)


def decided(event: Event) -> bool:
    return event.TYPE == "io.metier.decision.made.v1"


def traces(spans: Sequence[ReadableSpan]) -> set[str]:
    return {format_trace_id(one.context.trace_id) for one in spans if one.context}


def of_run(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """The spans of the run's trip, without those of the follower and of what came before it was accepted."""
    return [one for one in spans.get_finished_spans() if not one.name.startswith("process metier.events")]


async def test_one_trace_goes_over_every_hop_and_no_span_holds_content(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    await run_until(configuration.configure(), tmp_path / "j.db", ended)
    found = of_run(spans)
    assert len(traces(found)) == 1
    names = {one.name.split()[0] for one in found}
    assert names >= {"invoke_workflow", "invoke_agent", "chat", "execute_tool", "send", "process", "sandbox.exec"}
    kinds = {one.name.split()[0]: one.kind for one in found}
    assert (kinds["send"], kinds["process"]) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert all(one.links for one in found if one.name.startswith("process"))
    said = [str(value) for one in found for value in (one.attributes or {}).values()]
    assert not [one for one in said if "print(" in one or CODE.text[:40] in one]


@pytest.mark.parametrize(("window_s", "of_segments"), [(600.0, 1), (1e-6, 2)])
async def test_a_run_that_is_taken_up_again_goes_on_in_its_trace_until_the_window_is_over(
    tmp_path: Path, spans: InMemorySpanExporter, window_s: float, of_segments: int
) -> None:
    # Given a run whose replica died, and a window within which its trace may grow
    config = configuration.configure()
    config = replace(config, role=config.role.model_copy(update={"trace_window_s": window_s}))
    run_id = await run_until(config, tmp_path / "j.db", decided, die=True)
    # When another replica takes it up
    await run_until(config, tmp_path / "j.db", ended)
    # Then its segments are in so many traces, all of which bear its id
    segments = [one for one in of_run(spans) if one.name.startswith("invoke_workflow")]
    assert len(traces(segments)) == of_segments
    assert {str((one.attributes or {})["metier.run.id"]) for one in segments} == {run_id}
    if of_segments == 1:
        return
    # and two of them lead to each other
    bridges = [one for one in segments if one.links]
    assert len(bridges) == 2
    assert {format_trace_id(one.links[0].context.trace_id) for one in bridges} == traces(bridges) == traces(segments)
    for one in bridges:
        assert one.context is not None
        assert one.links[0].context.trace_id != one.context.trace_id


RUN = Run(
    run_id=RunId("r"),
    source="s",
    event_id="e",
    workflow="w",
    version=None,
    status="running",
    input={},
    traceparent="first",
    accepted_at=1.0,
)


def test_the_newest_trace_is_the_last_that_began() -> None:
    second = Segment(epoch=2, traceparent="second", began_at=5.0)
    assert newest(RUN, []) == ("first", 1.0)
    assert newest(RUN, [Segment(epoch=1, parked_at=3.0)]) == ("first", 1.0)
    assert newest(RUN, [second, Segment(epoch=3, began_at=9.0)]) == ("second", 5.0)
