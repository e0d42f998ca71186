"""Metrics, declared in one place: names, units and labels by the GenAI and messaging conventions where they have one, and `metier.*` where they have none.

Whoever does the thing counts it: `add` for counters, `record` for histograms, `level` and `watch` for gauges. `start` opens what reads it; before that, and where nobody
reads it, counting does nothing. No label ever holds a run's or call's id, a prompt or a file's name: only what an operator declared, and classes of outcomes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from metier_infra import telemetry

Kind = Literal["counter", "histogram", "gauge"]
Labels = Mapping[str, str | bool | None]

OPERATION = telemetry.OPERATION
PROVIDER = telemetry.PROVIDER
REQUEST_MODEL = telemetry.REQUEST_MODEL
AGENT_NAME = telemetry.AGENT_NAME
TOOL_NAME = telemetry.TOOL_NAME
WORKFLOW_NAME = telemetry.WORKFLOW_NAME
ERROR_TYPE = telemetry.ERROR_TYPE
USAGE_TYPE = "gen_ai.token.type"
TOPIC = "messaging.destination.name"
GROUP = telemetry.GROUP
STATE = telemetry.RUN_STATE
REASON = "metier.reason"
CAUSE = "metier.cause"
COLD = telemetry.SANDBOX_COLD
TOPOLOGY = "metier.decision.topology"
CATEGORY = "metier.category"
WAY = "metier.drift.way"
ROLE = "metier.role"
ROLE_STANDING = "metier.role.state"
VERSION = "metier.version"

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
DOLLARS = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 50, 100)
COUNTS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55)


@dataclass(frozen=True)
class Metric:
    """A metric as it is exported: `labels` are all that it may have, `buckets` are those of a histogram."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


def _times(name: str, labels: tuple[str, ...], meaning: str) -> Metric:
    return Metric(name, "histogram", "s", labels, meaning, SECONDS)


def _count(name: str, unit: str, labels: tuple[str, ...], meaning: str) -> Metric:
    return Metric(name, "counter", unit, labels, meaning)


_MODEL = (OPERATION, PROVIDER, REQUEST_MODEL)
_HOP = ("messaging.system", "messaging.operation.name", TOPIC)

TOKEN_USAGE = Metric(
    "gen_ai.client.token.usage", "histogram", "{token}", (*_MODEL, USAGE_TYPE), "billable tokens of a model request, in and out", TOKENS
)  # fmt: skip
OPERATION_DURATION = _times(
    "gen_ai.client.operation.duration", (*_MODEL, ERROR_TYPE), "a request to a model, as the agent waits for it"
)
FIRST_CHUNK = _times(
    "gen_ai.client.operation.time_to_first_chunk", _MODEL, "until a model wrote its first words, of agents that stream"
)
WORKFLOW_DURATION = _times(
    "gen_ai.invoke_workflow.duration", (WORKFLOW_NAME, ERROR_TYPE), "a run from its acceptance to its end, less the time that it was parked"
)  # fmt: skip
AGENT_DURATION = _times("gen_ai.invoke_agent.duration", (AGENT_NAME, ERROR_TYPE), "one attempt of an agent at a call")
INFERENCE_CALLS = Metric(
    "gen_ai.invoke_agent.inference_calls", "histogram", "{call}", (AGENT_NAME,), "model turns of an answer", COUNTS
)
TOOL_CALLS = Metric(
    "gen_ai.invoke_agent.tool_calls", "histogram", "{call}", (AGENT_NAME,), "tool calls of an answer", COUNTS
)
TOOL_DURATION = _times(
    "gen_ai.execute_tool.duration", (TOOL_NAME, ERROR_TYPE), "a tool call, as the agent waits for it"
)
SENT = _count("messaging.client.sent.messages", "{message}", _HOP, "records that a topic took")
CONSUMED = _count(
    "messaging.client.consumed.messages", "{message}", (*_HOP, GROUP), "records that were handed to a handler"
)
PROCESS_DURATION = _times("messaging.process.duration", (*_HOP, GROUP, ERROR_TYPE), "handling a record")
OLDEST_EVENT = Metric(
    "metier.event.oldest_age",
    "gauge",
    "s",
    (TOPIC, GROUP),
    "since when the oldest record has lain on its topic that this consumer has read and not handled; 0: there is none",
)
LAG = Metric(
    "metier.consumer.lag",
    "gauge",
    "{record}",
    (TOPIC, GROUP),
    "records that are not handled yet, of the partitions that this consumer holds",
)
COMMIT_AGE = Metric(
    "metier.consumer.commit_age",
    "gauge",
    "s",
    (TOPIC, GROUP),
    "how long ago this consumer last got on in a partition of the topic where records wait; 0: none waits",
)
RUN_COST = Metric(
    "metier.run.cost", "histogram", "USD", (WORKFLOW_NAME, STATE), "known cost of a run that ended", DOLLARS
)
MODEL_COST = _count("metier.model.cost", "USD", (AGENT_NAME, REQUEST_MODEL), "known cost of model requests")
RUNS = Metric(
    "metier.runs",
    "gauge",
    "{run}",
    (STATE,),
    "runs that have not ended, by state, as the journal has them: the same from each orchestrator",
)
TIME_IN_STATE = _times(
    "metier.run.time_in_state", (STATE,), "how long a run that ended was accepted, running, and parked"
)
FIRST_STEP = _times(
    "metier.run.first_step", (WORKFLOW_NAME,), "from a run's acceptance until its graph begins; told when it begins"
)
RUNS_ENDED = _count(
    "metier.runs.ended",
    "{run}",
    (WORKFLOW_NAME, STATE, REASON),
    "runs that ended, by how: `succeeded`, `failed` or `cancelled`; and the code of what failed",
)
OLDEST_RUN = Metric(
    "metier.run.oldest_age",
    "gauge",
    "s",
    (STATE,),
    "how long the run that has been in this state the longest is in it; 0: none is: the same from each orchestrator",
)
QUIET = Metric(
    "metier.run.quiet",
    "gauge",
    "s",
    (STATE,),
    "how long nothing has happened to the run of this state that waits the longest: `accepted`, since it was; `running`, since its last segment began or"
    " a call of it was sent, taken or answered; `parked`, since it should have been woken: the same from each orchestrator",
)
RETRIES = _count("metier.retries", "{retry}", (REASON,), "tries again after something was away or busy")
DUPLICATES = _count(
    "metier.duplicates",
    "{duplicate}",
    (REASON,),
    "what came twice and was done once: `request`, `call`, `answer` or `tool_call`",
)
BUDGET_STOPS = _count("metier.budget.stops", "{stop}", (REASON,), "runs and calls that a limit ended")
DEAD_LETTERS = _count("metier.dead_letters", "{record}", (TOPIC, REASON), "records that went to the dead letters")
LEASES_EXPIRED = _count(
    "metier.lease.expired", "{lease}", (), "runs whose holder fell silent, and that were woken for another"
)
FENCED = _count("metier.fenced", "{write}", (), "segments that were fenced off: another replica had taken their run")
CHECKPOINT_DURATION = _times(
    "metier.checkpoint.write.duration", (ERROR_TYPE,), "storing a checkpoint or what a node wrote"
)
SANDBOX_WAIT = _times("metier.sandbox.lease.wait", (COLD,), "a tool call's wait for a container")
SANDBOX_BOOT = _times("metier.sandbox.boot", (), "a container's start, where a call waited for it")
SANDBOX_KILLS = _count(
    "metier.sandbox.kills", "{kill}", (CAUSE,), "programs that were ended: `timeout`, `oom`, `output_cut` or `died`"
)
SELFTEST = Metric(
    "metier.engine.selftest",
    "gauge",
    "1",
    (),
    "1: the container engine keeps every limit; 0: it does not, and this runner serves no container",
)
DECISIONS = _count("metier.decisions", "{decision}", (AGENT_NAME, TOPOLOGY), "how often a routing choice took an agent")
OUTCOMES = _count(
    "metier.outcomes",
    "{outcome}",
    (REASON,),
    "what came on the outcomes topic: `kept`, `orphan` (kept, and its run is not here) or `passed_over` (said before, or since)",
)
ROUTERS_BROKEN = _count(
    "metier.routers.broken",
    "{router}",
    (),
    "router versions that stand and could not be loaded: others decide without them",
)
DRIFT = Metric(
    "metier.drift",
    "gauge",
    "1",
    (AGENT_NAME, CATEGORY),
    "how far an agent's outcomes in a category are on the way to an alarm that it changed, 0 to 1: the same from each orchestrator",
)
ROLE_STATE = Metric(
    "metier.role.state",
    "gauge",
    "1",
    (ROLE, ROLE_STANDING),
    "1 for what the process is, 0 for what it is not: `starting`, `ready` or `draining`",
)
BUILD = Metric("metier.build", "gauge", "1", (ROLE, VERSION), "always 1: which Métier this is")
DRIFT_ALARMS = _count(
    "metier.drift.alarms",
    "{alarm}",
    (AGENT_NAME, CATEGORY, WAY),
    "that an agent is `worse` or `better` in a category than it was measured",
)

METRICS: tuple[Metric, ...] = (
    *(TOKEN_USAGE, OPERATION_DURATION, FIRST_CHUNK, WORKFLOW_DURATION, AGENT_DURATION, INFERENCE_CALLS, TOOL_CALLS, TOOL_DURATION),
    *(SENT, CONSUMED, PROCESS_DURATION, OLDEST_EVENT, RUN_COST, MODEL_COST, RUNS, TIME_IN_STATE, RETRIES, DUPLICATES, BUDGET_STOPS),
    *(DEAD_LETTERS, LEASES_EXPIRED, FENCED, CHECKPOINT_DURATION, SANDBOX_WAIT, SANDBOX_BOOT, SANDBOX_KILLS, SELFTEST, DECISIONS),
    *(OUTCOMES, ROUTERS_BROKEN, DRIFT, DRIFT_ALARMS, FIRST_STEP, RUNS_ENDED, OLDEST_RUN, QUIET, LAG, COMMIT_AGE, ROLE_STATE, BUILD),
)  # fmt: skip
OTHER = "_OTHER"
"""Stands for a name that others chose, so that nobody can make more series than were declared."""


class _Meter:
    """The instruments of this process."""

    def __init__(self, provider: MeterProvider) -> None:
        self.provider = provider
        meter = provider.get_meter("metier", schema_url=telemetry.SCHEMA_URL)
        self.counters: dict[str, Counter] = {}
        self.histograms: dict[str, Histogram] = {}
        self.gauges: dict[str, _Gauge] = {}
        for one in METRICS:
            if one.kind == "counter":
                self.counters[one.name] = meter.create_counter(one.name, one.unit, one.meaning)
            elif one.kind == "histogram":
                self.histograms[one.name] = meter.create_histogram(one.name, one.unit, one.meaning)
            else:
                gauge = self.gauges[one.name] = _Gauge({})
                meter.create_observable_gauge(one.name, [gauge], one.unit, one.meaning)


@dataclass(frozen=True)
class _Gauge:
    """What a gauge shows whenever it is exported, by its labels."""

    shown: dict[tuple[tuple[str, str | bool], ...], Callable[[], float]]

    def __call__(self, _: CallbackOptions) -> list[Observation]:
        return [Observation(value(), dict(labels)) for labels, value in list(self.shown.items())]


_meters: list[_Meter] = []


def start(role: str, instance: str, *readers: MetricReader) -> None:
    """Open the meters of this process, once, if anybody reads them: `readers`, and by OTLP over HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set."""
    everybody = [*readers, *_exporters()]
    if _meters or not everybody:
        return
    resource = Resource.create(
        {"service.name": telemetry.service(role), "service.instance.id": instance}, telemetry.SCHEMA_URL
    )
    views = [
        View(instrument_name=one.name, aggregation=ExplicitBucketHistogramAggregation(one.buckets))
        for one in METRICS
        if one.buckets
    ]
    _meters.append(_Meter(MeterProvider(everybody, resource, views=views)))


def _exporters() -> list[MetricReader]:
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")):
        return []
    from metier_infra.collector import Metrics

    return [PeriodicExportingMetricReader(Metrics())]


def stop() -> None:
    """Export what is left and end the exporter."""
    while _meters:
        _meters.pop().provider.shutdown()


def on() -> bool:
    """Whether anything is counted at all."""
    return bool(_meters)


def add(metric: Metric, value: float = 1, labels: Labels | None = None) -> None:
    """Count so much more."""
    if _meters:
        _meters[0].counters[metric.name].add(value, _known(labels))


def record(metric: Metric, value: float, labels: Labels | None = None) -> None:
    """Take a measured value into a histogram."""
    if _meters:
        _meters[0].histograms[metric.name].record(value, _known(labels))


@contextmanager
def timed(metric: Metric) -> Generator[None]:
    """Record how long something takes, and the error that ends it."""
    began, failed = time.perf_counter(), None
    try:
        yield
    except BaseException as error:
        failed = str(getattr(error, "code", type(error).__name__))
        raise
    finally:
        record(metric, time.perf_counter() - began, {ERROR_TYPE: failed})


def level(metric: Metric, value: float, labels: Labels | None = None) -> None:
    """Set what a gauge shows from now on."""
    watch(metric, lambda: value, labels)


def watch(metric: Metric, value: Callable[[], float], labels: Labels | None = None) -> None:
    """Let a gauge show what `value` gives whenever it is exported."""
    if _meters:
        _meters[0].gauges[metric.name].shown[tuple(sorted(_known(labels).items()))] = value


def _known(labels: Labels | None) -> dict[str, str | bool]:
    return {name: value for name, value in (labels or {}).items() if value is not None}
