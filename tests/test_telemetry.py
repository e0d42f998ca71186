"""Spans: one trace over a hop, with the right parents and links, names by convention, and no content in them."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from metier_infra import telemetry
from metier_infra.bus import Consumption, MemoryBus
from metier_infra.errors import CallFailed
from metier_infra.events import RUNS, Event, RunAccepted
from metier_infra.messages import Delivery, Envelope, decode
from metier_infra.service import processing, send, serve
from metier_infra.words import RunId

FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else format_span_id(span.parent.span_id)


def ended(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


async def hop(bus: MemoryBus) -> tuple[Envelope[Event], Delivery]:
    """The one record that a bus holds."""
    found: list[Delivery] = []
    stop = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        found.append(delivery)
        stop.set()

    await bus.consume(Consumption([RUNS], None), keep, stop)
    return decode(found[0]), found[0]


async def sent(bus: MemoryBus) -> None:
    event = RunAccepted(run_id=RunId("the run"), workflow="w")
    await send(bus, RUNS, Envelope(event, "id", "/test", "the key"))


async def test_a_hop_is_a_producer_span_and_a_consumer_span_under_it(spans: InMemorySpanExporter) -> None:
    bus = MemoryBus()
    with telemetry.span("outer"):
        await sent(bus)
    envelope, delivery = await hop(bus)
    with processing(envelope, delivery):
        pass
    found = ended(spans)
    outer, produced, consumed = found["outer"], found[f"send {RUNS}"], found[f"process {RUNS}"]
    assert (produced.kind, consumed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent(outer) is None
    assert parent(produced) == traceparent(outer).split("-")[2]
    assert parent(consumed) == traceparent(produced).split("-")[2]
    assert envelope.traceparent == traceparent(produced)
    assert {traceparent(span).split("-")[1] for span in found.values()} == {telemetry.trace_id(traceparent(outer))}


async def test_the_hop_is_described_by_the_messaging_conventions(spans: InMemorySpanExporter) -> None:
    bus = MemoryBus()
    await sent(bus)
    with processing(*await hop(bus)):
        pass
    found = ended(spans)
    assert found[f"send {RUNS}"].attributes == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": RUNS,
        "messaging.kafka.message.key": "the key",
        "messaging.message.conversation_id": "the run",
    }
    attributes = dict(found[f"process {RUNS}"].attributes or {})
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.kafka.offset"] == 0
    assert attributes["messaging.kafka.message.key"] == "the key"
    assert attributes["messaging.message.conversation_id"] == "the run"


async def test_a_span_of_a_group_names_it(spans: InMemorySpanExporter) -> None:
    bus, stop = MemoryBus(), asyncio.Event()
    await sent(bus)

    async def handle(envelope: Envelope[RunAccepted], delivery: Delivery) -> None:
        with processing(envelope, delivery):
            stop.set()

    await serve(bus, Consumption([RUNS], "the group"), {RunAccepted: handle}, stop)
    assert dict(ended(spans)[f"process {RUNS}"].attributes or {})["messaging.consumer.group.name"] == "the group"


def test_a_root_begins_a_trace_of_its_own_within_another_span(spans: InMemorySpanExporter) -> None:
    with telemetry.span("outer") as outer, telemetry.span("fresh", parent=telemetry.ROOT) as fresh:
        assert telemetry.trace_id(fresh.traceparent) != telemetry.trace_id(outer.traceparent)
    assert ended(spans)["fresh"].parent is None


async def test_a_runs_segment_hangs_under_the_root_of_its_run_and_is_linked_to_what_woke_it(
    spans: InMemorySpanExporter,
) -> None:
    bus = MemoryBus()
    await sent(bus)
    envelope, delivery = await hop(bus)
    with processing(envelope, delivery, parent=FOREIGN):
        pass
    consumed = ended(spans)[f"process {RUNS}"]
    assert parent(consumed) == FOREIGN.split("-")[2]
    assert traceparent(consumed).split("-")[1] == telemetry.trace_id(FOREIGN)
    (link,) = consumed.links
    assert envelope.traceparent is not None
    assert format_span_id(link.context.span_id) == envelope.traceparent.split("-")[2]


async def test_what_raises_inside_a_span_marks_it_and_goes_on(spans: InMemorySpanExporter) -> None:
    raised: list[Exception] = [CallFailed("with a secret", reason="x"), ValueError("with a secret")]
    for error in raised:
        with pytest.raises(type(error)), telemetry.span("work"):
            raise error
    kinds = [dict(span.attributes or {})["error.type"] for span in spans.get_finished_spans()]
    assert kinds == ["call_failed", "ValueError"]
    for span in spans.get_finished_spans():
        assert span.status.status_code is StatusCode.ERROR
        assert not span.events
        assert "secret" not in span.to_json()


async def test_a_cancelled_span_ends_and_says_so(spans: InMemorySpanExporter) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        with telemetry.span("work"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dict(ended(spans)["work"].attributes or {})["error.type"] == "CancelledError"


def test_attributes_that_are_not_known_are_left_out(spans: InMemorySpanExporter) -> None:
    with telemetry.span("work", attributes={"a": 1, "b": None}) as span:
        span.set({"c": None, "d": "x"})
    assert ended(spans)["work"].attributes == {"a": 1, "d": "x"}


def test_a_broken_traceparent_from_outside_starts_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    for broken in ("", "nonsense", "00-0-0-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        with telemetry.span("work", parent=broken, links=[broken, None]) as span:
            assert len(telemetry.trace_id(span.traceparent)) == 32
    for found in spans.get_finished_spans():
        assert found.parent is None
        assert not found.links


def test_the_current_span_is_known_inside_and_nothing_outside(spans: InMemorySpanExporter) -> None:
    assert telemetry.current() is None
    with telemetry.span("work") as span:
        assert telemetry.current() == span.traceparent
    assert telemetry.current() is None


def test_the_process_says_who_it_is(spans: InMemorySpanExporter) -> None:
    telemetry.start("second", "ignored")
    with telemetry.span("work"):
        pass
    attributes = ended(spans)["work"].resource.attributes
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("metier-tests", "one")


def test_spans_without_an_exporter_cost_no_configuration() -> None:
    telemetry.stop()
    with telemetry.span("work") as span:
        assert span.traceparent.startswith("00-")
    telemetry.stop()


def test_where_nothing_is_exported_a_hop_carries_on_the_context_that_it_came_with() -> None:
    telemetry.stop()
    with telemetry.span("hop", "consumer", parent=FOREIGN, links=[FOREIGN], attributes={"a": 1}) as span:
        assert span.traceparent == telemetry.current() == FOREIGN
        with telemetry.span("within") as inner:
            inner.set({"b": 2})
            inner.event("something", {})
            inner.fail("broken")
            assert inner.traceparent == FOREIGN
    assert telemetry.current() is None


def test_where_nothing_is_exported_a_trace_that_begins_here_has_an_id_of_its_own() -> None:
    telemetry.stop()
    with telemetry.span("one") as one, telemetry.span("within"):
        assert telemetry.current() == one.traceparent
    with telemetry.span("two") as two:
        pass
    assert telemetry.trace_id(one.traceparent) != telemetry.trace_id(two.traceparent)


@pytest.mark.parametrize(
    "hostile",
    ["", "garbage", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01", FOREIGN + "-more", FOREIGN.upper()],
)
def test_where_nothing_is_exported_a_context_that_is_none_is_not_carried_on(hostile: str) -> None:
    telemetry.stop()
    with telemetry.span("hop", parent=hostile) as span:
        assert span.traceparent != hostile
        assert len(span.traceparent) == len(FOREIGN)
