"""Metrics: what is declared is emitted, under its declared labels and no others, and nothing that could grow without bound becomes a label.

Not here: that a collector takes them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from metier import client, compose, compose_tools, configuration, roles
from metier.chaos.proxy import HOST, proxy
from metier.configuration import System
from metier_agents import measuring as agents
from metier_agents.recordings import read_recordings
from metier_agents.turns import ModelTurn, Usage
from metier_infra import backlog, metrics
from metier_infra.backlog import Left, Stills
from metier_infra.bus import Bus, Consumption, MemoryBus
from metier_infra.errors import BusGone
from metier_infra.events import DEAD_LETTERS, RUNS
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Delivery, Record
from metier_infra.metered import MeteredBus
from metier_infra.retry import Backoff, persist
from metier_infra.rows import Run
from metier_infra.service import serve
from metier_infra.settings import KafkaSettings
from metier_infra.words import Limits, RunId
from metier_tools import measuring as tools
from metier_tools.sandbox import Held, Outcome, Request
from metier_workflows import measuring as workflows

HUNG = 40
CODE = next(one for one in read_recordings(compose.recordings_path()).queries if one.category == "code_reasoning")
IN_A_RUN = {
    *(metrics.OPERATION_DURATION, metrics.WORKFLOW_DURATION, metrics.AGENT_DURATION),
    *(metrics.INFERENCE_CALLS, metrics.TOOL_CALLS, metrics.TOOL_DURATION, metrics.SENT, metrics.CONSUMED),
    *(metrics.PROCESS_DURATION, metrics.OLDEST_EVENT, metrics.RUN_COST, metrics.MODEL_COST, metrics.RUNS),
    *(metrics.TIME_IN_STATE, metrics.CHECKPOINT_DURATION, metrics.SANDBOX_WAIT, metrics.DECISIONS),
    *(metrics.LAG, metrics.COMMIT_AGE, metrics.FIRST_STEP, metrics.RUNS_ENDED, metrics.OLDEST_RUN, metrics.QUIET),
    *(metrics.DEAD_LETTERS, metrics.LEASES_EXPIRED, metrics.FENCED, metrics.ROUTERS_BROKEN, metrics.DRIFT_ALARMS),
}
"""What one run shows; each of the others has a test of its own below."""
ELSEWHERE = {
    *(metrics.RETRIES, metrics.DUPLICATES, metrics.SANDBOX_BOOT, metrics.TOKEN_USAGE, metrics.SANDBOX_KILLS),
    *(metrics.SELFTEST, metrics.FIRST_CHUNK, metrics.BUDGET_STOPS, metrics.OUTCOMES, metrics.DRIFT),
    *(metrics.ROLE_STATE, metrics.BUILD),
}
"""The last two: see `test_health`."""


class Read:
    """What was counted, by name: the points, each with its labels."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    @property
    def points(self) -> Mapping[str, list[Any]]:
        data = self._reader.get_metrics_data()
        found: dict[str, list[Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for one in scope.metrics:
                    found.setdefault(one.name, []).extend(one.data.data_points)
        return found

    def value(self, metric: metrics.Metric, **labels: object) -> float:
        """The sum over the points that have these labels, by the last part of a label's name."""
        wanted = labels.items()
        points = self.points.get(metric.name, [])
        named = [({name.rpartition(".")[2]: value for name, value in one.attributes.items()}, one) for one in points]
        return sum(getattr(one, "value", getattr(one, "count", 0)) for short, one in named if wanted <= short.items())


@pytest.fixture
def read() -> Iterator[Read]:
    """Everything that is counted in the test."""
    reader = InMemoryMetricReader()
    metrics.stop()
    metrics.start("tests", "one", reader)
    yield Read(reader)
    metrics.stop()


def run_it(request: Request) -> Outcome:
    said = f"{CODE.gold}\n" if "print(repr(" in request.source else ""
    return Outcome("ok" if said else "error", 0 if said else 1, said, wall_ms=3.0)


@pytest.fixture
async def system(read: Read) -> AsyncGenerator[System]:
    """Every role in this process, counted from its start."""
    del read
    lane = compose_tools.scripted_lane(run_it)
    async with roles.embedded(configuration.configure(), journal=":memory:", lane=lane) as found:
        yield found


async def ask(system: System, workflow: str = "specialists") -> client.Ended:
    return await client.publish_and_wait(system.bus, workflow, {"question": CODE.text}, event_id=None, timeout_s=HUNG)


async def test_a_run_shows_in_every_metric_that_it_concerns_under_declared_labels_alone(
    system: System, read: Read
) -> None:
    end = await ask(system)
    points = read.points
    assert {one.name for one in IN_A_RUN} - points.keys() == set()
    declared = {one.name: set(one.labels) for one in metrics.METRICS}
    for name, found in points.items():
        assert {label for point in found for label in point.attributes} <= declared[name], name
    values = {str(value) for found in points.values() for point in found for value in point.attributes.values()}
    assert end.run_id not in values
    assert not [one for one in values if re.search(r"[0-9a-f]{12}|\s", one) or len(one) > 60]


async def test_what_a_run_took_is_what_the_metrics_say(system: System, read: Read) -> None:
    end = await ask(system)
    run = await system.journal.runs.get(end.run_id)
    assert run is not None
    made = await system.journal.tools.of_run(run.run_id)
    assert read.value(metrics.MODEL_COST) == pytest.approx(end.cost_usd)
    assert read.value(metrics.TOOL_DURATION, name="python") == len(made)
    assert read.value(metrics.WORKFLOW_DURATION, name="specialists") == 1
    assert read.value(metrics.RUN_COST, state="succeeded") == 1
    ended = {
        one.attributes["metier.run.state"]: one.value
        for one in read.points["metier.runs.ended"]
        if one.attributes["gen_ai.workflow.name"] == "specialists"
    }
    assert ended == {"succeeded": 1, "failed": 0, "cancelled": 0}
    (began,) = read.points["metier.run.first_step"]
    assert (began.count, began.sum) == (1, pytest.approx((run.started_at or 0) - run.accepted_at))
    assert read.value(metrics.DECISIONS) == 2
    (asked,) = [one for one in read.points["metier.runs"] if one.attributes["metier.run.state"] == "accepted"]
    assert asked.value in {0, 1}  # as it was when the orchestrator last looked: before the run, or in it


async def test_a_workflow_that_nobody_serves_makes_no_series_of_its_own(system: System, read: Read) -> None:
    await ask(system, "made up by a stranger")
    assert read.value(metrics.WORKFLOW_DURATION, name=metrics.OTHER) == 1
    assert read.value(metrics.RUNS_ENDED, name=metrics.OTHER, state="failed", reason="unknown_workflow") == 1
    assert read.value(metrics.FIRST_STEP) == 0
    assert read.value(metrics.WORKFLOW_DURATION) == 1


def test_every_declared_metric_is_in_a_test_and_named_once() -> None:
    assert set(metrics.METRICS) == IN_A_RUN | ELSEWHERE
    assert len({one.name for one in metrics.METRICS}) == len(metrics.METRICS)
    assert all(one.buckets for one in metrics.METRICS if one.kind == "histogram")


async def test_a_try_again_is_counted_by_its_reason(read: Read) -> None:
    left = [BusGone("away"), BusGone("away")]

    async def work() -> None:
        if left:
            raise left.pop()

    await persist("work", work, Backoff(first_s=0.001))
    assert read.value(metrics.RETRIES, reason="bus_gone") == 2


async def test_a_dead_letter_is_counted_by_where_it_lay_and_why(read: Read) -> None:
    bus, stop = MeteredBus(MemoryBus()), asyncio.Event()
    await bus.publish(Record(RUNS, b"k", b"no event"))
    serving = asyncio.create_task(serve(bus, Consumption([RUNS], "g"), {}, stop))
    buried = asyncio.Event()

    async def see(delivery: Delivery) -> None:
        del delivery
        buried.set()

    seeing = asyncio.create_task(bus.consume(Consumption([DEAD_LETTERS], None), see, stop))
    async with asyncio.timeout(HUNG):
        await buried.wait()
        stop.set()
        await asyncio.gather(serving, seeing)
    assert read.value(metrics.DEAD_LETTERS, name=RUNS, reason="undecodable") == 1
    assert read.value(metrics.SENT, name=DEAD_LETTERS) == 1
    assert read.value(metrics.CONSUMED, name="g") == 1


async def shows(read: Read, metric: metrics.Metric, wanted: Callable[[float], bool]) -> None:
    """Wait until a gauge of the topic shows it: the adapters look a few times a second."""
    async with asyncio.timeout(HUNG):
        while True:
            if wanted(read.value(metric, name=RUNS)):
                return
            await asyncio.sleep(0.02)


@pytest.fixture(params=["memory", "kafka"])
async def a_bus(request: pytest.FixtureRequest) -> AsyncGenerator[Bus]:
    if request.param == "memory":
        bus: Bus = MemoryBus()
    else:
        bus = KafkaBus(request.getfixturevalue("topics"), client="metier-tests")
    yield bus
    await bus.close()


async def test_what_a_group_has_not_handled_counts_read_or_not_and_ages_until_it_is(a_bus: Bus, read: Read) -> None:
    stop, let = asyncio.Event(), asyncio.Semaphore(0)

    async def handle(delivery: Delivery) -> None:
        del delivery
        await let.acquire()

    await a_bus.publish(*(Record(RUNS, b"k", b"%d" % number) for number in range(5)))
    consuming = asyncio.create_task(a_bus.consume(Consumption([RUNS], "g", concurrency=1), handle, stop))
    await shows(read, metrics.LAG, lambda left: left == 5)
    ages = {metric: read.value(metric, name=RUNS) for metric in (metrics.OLDEST_EVENT, metrics.COMMIT_AGE)}
    for metric, age in ages.items():
        await shows(read, metric, lambda now, before=age: now > before)
    # what comes while so much is in hand that nothing more is read counts too
    await a_bus.publish(*(Record(RUNS, b"k", b"%d" % number) for number in range(3)))
    await shows(read, metrics.LAG, lambda left: left == 8)
    let.release()
    await shows(read, metrics.LAG, lambda left: left == 7)
    for _ in range(7):
        let.release()
    for metric in (metrics.LAG, metrics.OLDEST_EVENT, metrics.COMMIT_AGE):
        await shows(read, metric, lambda left: left == 0)
    stop.set()
    async with asyncio.timeout(HUNG):
        await consuming


async def test_what_was_left_when_the_broker_went_shows_until_it_is_back(topics: KafkaSettings, read: Read) -> None:
    async with proxy(int(str(topics.bootstrap).rpartition(":")[2]), kafka=True) as between:
        bus = KafkaBus(topics.model_copy(update={"bootstrap": f"{HOST}:{between.port}"}), client="metier-tests")
        let, stop = asyncio.Event(), asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            del delivery
            await let.wait()

        # Given records that wait, and a consumer that ends with them in hand
        await bus.publish(*(Record(RUNS, b"k", b"%d" % number) for number in range(3)))
        consuming = asyncio.create_task(bus.consume(Consumption([RUNS], "g"), handle, stop))
        await shows(read, metrics.LAG, lambda left: left == 3)
        consuming.cancel()
        await asyncio.wait({consuming})
        # When the broker is away as the next one begins
        between.reject()
        with pytest.raises(BusGone):
            await bus.consume(Consumption([RUNS], "g"), handle, stop)
        # Then they still show, and no longer once they are handled
        assert read.value(metrics.LAG, name=RUNS) == 3
        between.mend()
        let.set()
        consuming = asyncio.create_task(bus.consume(Consumption([RUNS], "g"), handle, stop))
        await shows(read, metrics.LAG, lambda left: left == 0)
        stop.set()
        async with asyncio.timeout(HUNG):
            await consuming
        await bus.close()


def test_of_several_partitions_the_one_that_waits_longest_is_told(read: Read) -> None:
    now = time.time()
    parts = [Left(RUNS, 1, now - 5, now - 5), Left(RUNS, 1, now - 500, now - 500), Left(RUNS, 0, None, None)]
    backlog.show([RUNS], "g", lambda: parts)

    assert read.value(metrics.OLDEST_EVENT, name=RUNS) >= 500
    assert read.value(metrics.COMMIT_AGE, name=RUNS) >= 500


def test_a_partition_stands_still_from_the_first_record_that_waits_until_it_gets_on() -> None:
    stills = Stills()
    assert stills.since("p", 5, 0, 1.0) is None
    assert [stills.since("p", 5, left, now) for left, now in ((1, 2.0), (9, 3.0))] == [2.0, 2.0]
    assert stills.since("p", 6, 8, 4.0) == 4.0
    assert stills.since("p", 6, 0, 5.0) is None
    assert stills.since("p", 6, 1, 6.0) == 6.0


def test_the_start_of_a_container_is_timed_where_a_call_waited_for_it_and_not_from_the_pool(read: Read) -> None:
    def held(*, cold: bool, boot_ms: float) -> Held:
        return Held("c", "i", cold, 5.0, boot_ms, lambda _: Outcome("ok", 0), lambda: None)

    tools.held(held(cold=True, boot_ms=120.0))
    tools.held(held(cold=False, boot_ms=0.0))
    (booted,) = read.points[metrics.SANDBOX_BOOT.name]
    assert (booted.count, booted.sum) == (1, pytest.approx(0.12))
    assert read.value(metrics.SANDBOX_WAIT) == 2


async def test_a_run_that_a_limit_ends_is_counted_as_a_stop_by_its_budget(system: System, read: Read) -> None:
    asked, stopped = {"question": CODE.text}, Limits(usd=0.000_000_001)
    for limits in (stopped, None):
        await client.publish_and_wait(system.bus, "specialists", asked, event_id=None, timeout_s=HUNG, limits=limits)
    assert read.value(metrics.BUDGET_STOPS, reason="limit_reached") == 1
    assert read.value(metrics.BUDGET_STOPS) == 1


async def test_a_duplicate_request_is_counted(system: System, read: Read) -> None:
    for _ in range(2):
        await client.publish(system.bus, "specialists", {"question": CODE.text}, event_id="same")
    await ask(system)
    assert read.value(metrics.DUPLICATES, reason="request") == 1


def test_the_ends_of_programs_and_the_self_test_are_counted(read: Read) -> None:
    for status in ("ok", "timeout", "oom"):
        tools.ran(Outcome(status, None))
    tools.tested(0)
    assert read.value(metrics.SELFTEST) == 1
    tools.tested(2)
    assert read.value(metrics.SELFTEST) == 0
    assert read.value(metrics.SANDBOX_KILLS) == 2
    assert read.value(metrics.SANDBOX_KILLS, cause="oom") == 1


def test_only_a_run_that_was_running_had_a_lease_that_expired(read: Read) -> None:
    run = Run(
        run_id=RunId("r"), source="s", event_id="e", workflow="w", version=None, status="accepted", input={}, traceparent=""
    )  # fmt: skip
    workflows.woken(run)
    workflows.woken(run.model_copy(update={"status": "running"}))
    assert read.value(metrics.LEASES_EXPIRED) == 1


def test_the_first_words_of_a_model_are_timed_once_and_what_was_counted_of_a_reply_is_taken(read: Read) -> None:
    from metier_agents.spec import load_agents

    spec = next(iter(load_agents(compose.agents_folder(configuration.configure())).values()))
    heard: list[str] = []
    with agents.request(spec) as measured:
        hear = measured.first_text(heard.append)
        assert hear is not None
        hear("Once ")
        hear("upon")
        assert measured.first_text(None) is None
        measured.replied("a", ModelTurn(usage=Usage(input_tokens=100, output_tokens=7), cost_usd=0.5))
        measured.replied("a", ModelTurn(usage=Usage(input_tokens=900, output_tokens=0, estimated=True)))
    assert heard == ["Once ", "upon"]
    taken = {one.attributes["gen_ai.token.type"]: one.sum for one in read.points["gen_ai.client.token.usage"]}
    assert taken == {"input": 100, "output": 7}
    assert read.value(metrics.MODEL_COST, name="a") == 0.5
    assert read.value(metrics.FIRST_CHUNK) == 1


def test_where_nothing_is_exported_counting_does_nothing() -> None:
    metrics.stop()
    metrics.start("tests", "one")
    assert not metrics.on()
    metrics.add(metrics.FENCED)
    metrics.record(metrics.RUN_COST, 1)
    metrics.level(metrics.SELFTEST, 1)
