"""OpenTelemetry, fenced: span names, attributes, context across a hop, and the exporter.

Names follow the GenAI and messaging semantic conventions (v1.44, in development); this module is the only place that spells them.
`compose` calls `start`; the bus adapters, orchestrator, worker and tool runner open spans. Where nothing is exported no span is made, and
a hop carries on the context that it came with. Content is recorded only where a safety bundle says `capture`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, Token
from functools import lru_cache
from threading import Event
from types import TracebackType
from typing import Literal, Protocol, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from metier_infra.words import Stamp

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
Kind = Literal["internal", "client", "producer", "consumer"]
Value = str | int | float | bool

RUN_ID = "metier.run.id"
CALL_ID = "metier.call.id"
ATTEMPT = "metier.call.attempt"
POLICY = "metier.agent.policy"
SAFETY = "metier.safety.bundle"
SAFETY_DIGEST = "metier.safety.digest"
PASSED_OVER = "metier.model.passed_over"
RUN_STATE = "metier.run.state"
COST_USD = "metier.cost_usd"
RULE_WRITTEN = "metier.model.rule_written"
OPERATION = "gen_ai.operation.name"
WORKFLOW_NAME = "gen_ai.workflow.name"
AGENT_NAME = "gen_ai.agent.name"
AGENT_DIGEST = "gen_ai.agent.version"
CONVERSATION_ID = "gen_ai.conversation.id"
REQUEST_MODEL = "gen_ai.request.model"
PROVIDER = "gen_ai.provider.name"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
RESPONSE_MODEL = "gen_ai.response.model"
TOOL_NAME = "gen_ai.tool.name"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TOOL_TYPE = "gen_ai.tool.type"
ERROR_TYPE = "error.type"
PARTITION = "messaging.destination.partition.id"
OFFSET = "messaging.kafka.offset"
MESSAGE_KEY = "messaging.kafka.message.key"
BATCH = "messaging.batch.message_count"
GROUP = "messaging.consumer.group.name"
MESSAGE_CONVERSATION_ID = "messaging.message.conversation_id"
SANDBOX_CONTAINER = "metier.sandbox.container.id"
SANDBOX_IMAGE = "metier.sandbox.image.digest"
SANDBOX_WAIT_MS = "metier.sandbox.wait_ms"
SANDBOX_COLD = "metier.sandbox.cold"
SANDBOX_EXIT_CODE = "metier.sandbox.exit_code"
SANDBOX_STATUS = "metier.sandbox.status"

ROOT = "root"
"""In place of a parent: the span begins a new trace."""

_propagator = TraceContextTextMapPropagator()
_kinds = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_provider: list[TracerProvider] = []
_exporting = Event()


def stamped(stamp: Stamp | None) -> Mapping[str, Value | None]:
    """What every span of an agent says of it: under what it acts. None: nobody said."""
    if stamp is None:
        return {}
    return {
        AGENT_DIGEST: stamp.digest,
        SAFETY: stamp.safety or None,
        SAFETY_DIGEST: stamp.safety_digest or None,
    }


def invoke_workflow(name: str) -> str:
    """The span of one segment of a run."""
    return f"invoke_workflow {name}"


def invoke_agent(name: str) -> str:
    """The span of one call, on both sides of the hop."""
    return f"invoke_agent {name}"


def chat(model: str) -> str:
    """The span of one model request."""
    return f"chat {model}"


def execute_tool(name: str) -> str:
    """The span of one tool call, on both sides of the lane."""
    return f"execute_tool {name}"


def settle(tool: str) -> str:
    """The span of what follows from a decision about a tool call that waited."""
    return f"settle_approval {tool}"


def send(topic: str) -> str:
    """The producer's span of a hop."""
    return f"send {topic}"


def schedule(name: str) -> str:
    """The span of a run's start by the clock."""
    return f"schedule {name}"


def process(topic: str) -> str:
    """The consumer's span of a hop."""
    return f"process {topic}"


def messaging(topic: str, operation: Literal["send", "process"]) -> dict[str, Value]:
    """The attributes that every span of a hop has."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }


EGRESS = "sandbox.egress"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
EGRESS_VERDICT = "metier.egress.verdict"
EGRESS_BYTES = "metier.egress.bytes"
SANDBOX_LEASE = "sandbox.lease"
SANDBOX_EXEC = "sandbox.exec"


class Span(Protocol):
    """The open span, for those who add what they learn."""

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Add attributes; those that are None are left out."""
        ...

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Add something that happened within."""
        ...

    def fail(self, kind: str, message: str = "") -> None:
        """Mark the span failed with an `error.type`."""
        ...

    @property
    def traceparent(self) -> str:
        """The W3C `traceparent` of this span, to carry over a hop."""
        ...


class _Recorded:
    """A span that is exported."""

    def __init__(self, inner: trace.Span) -> None:
        self._inner = inner

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """See `Span`."""
        self._inner.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """See `Span`."""
        self._inner.add_event(name, attributes)

    def fail(self, kind: str, message: str = "") -> None:
        """See `Span`."""
        self._inner.set_attribute(ERROR_TYPE, kind)
        self._inner.set_status(Status(StatusCode.ERROR, message or kind))

    @property
    def traceparent(self) -> str:
        """See `Span`."""
        return _format(self._inner.get_span_context())


_CONTEXT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_carried: ContextVar[str | None] = ContextVar("traceparent", default=None)


class _Carried:
    """In place of a span where nothing is exported: the context of the nearest span that somebody recorded goes on, or a new one begins."""

    def __init__(self, parent: str | None) -> None:
        known = parent if parent and _CONTEXT.fullmatch(parent) else None if parent == ROOT else current()
        self.traceparent = known or f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        self._before: Token[str | None] | None = None

    def __enter__(self) -> Self:
        self._before = _carried.set(self.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            _carried.reset(self._before)

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """See `Span`."""

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """See `Span`."""

    def fail(self, kind: str, message: str = "") -> None:
        """See `Span`."""


def service(role: str) -> str:
    """The name under which this process reports: what OTEL_SERVICE_NAME says, as everywhere; else its role's."""
    return os.environ.get("OTEL_SERVICE_NAME") or f"metier-{role}"


def start(role: str, instance: str, exporter: SpanExporter | None = None) -> None:
    """Install the tracer of this process, once. Spans are exported by OTLP over HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    `exporter` gets each span when it ends, whatever the environment says: for tests, and for programs that embed Métier.
    """
    if _provider:
        return
    provider = TracerProvider(
        resource=Resource.create({"service.name": service(role), "service.instance.id": instance}, SCHEMA_URL)
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        _exporting.set()
    elif os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        from metier_infra.collector import Spans

        provider.add_span_processor(BatchSpanProcessor(Spans(), schedule_delay_millis=500))
        _exporting.set()
    _provider.append(provider)


def stop() -> None:
    """Export what is left and end the exporter; called when the role ends."""
    _exporting.clear()
    while _provider:
        _provider.pop().shutdown()


def span(
    name: str,
    kind: Kind = "internal",
    *,
    parent: str | None = None,
    links: Sequence[str | None] = (),
    attributes: Mapping[str, Value | None] | None = None,
) -> AbstractContextManager[Span]:
    """Open a span under `parent` (a `traceparent`; none: the current span; `ROOT`: none at all), linked to other `traceparent`s.

    An exception that passes through marks it failed with `error.type` and goes on.
    """
    return _recorded(name, kind, parent, links, attributes or {}) if _exporting.is_set() else _Carried(parent)


@lru_cache(maxsize=1)
def _tracer(provider: TracerProvider) -> trace.Tracer:
    return provider.get_tracer("metier", schema_url=SCHEMA_URL)


@contextmanager
def _recorded(
    name: str, kind: Kind, parent: str | None, links: Sequence[str | None], attributes: Mapping[str, Value | None]
) -> Generator[Span]:
    remote = _parse(parent) if parent else None
    context = trace.set_span_in_context(NonRecordingSpan(remote)) if remote else Context() if parent == ROOT else None
    linked = [Link(found) for link in links if link and (found := _parse(link))]
    known = {name: value for name, value in attributes.items() if value is not None}
    with _tracer(_provider[0]).start_as_current_span(
        name, context, _kinds[kind], known, linked, record_exception=False, set_status_on_exception=False
    ) as inner:
        opened = _Recorded(inner)
        try:
            yield opened
        except BaseException as error:
            opened.fail(str(getattr(error, "code", type(error).__name__)))
            raise


def current() -> str | None:
    """The `traceparent` of the current span, or None outside any."""
    if (carried := _carried.get()) is not None:
        return carried
    context = trace.get_current_span().get_span_context()
    return _format(context) if context.is_valid else None


def trace_id(traceparent: str) -> str:
    """The 32 hex characters that name the whole trace."""
    return traceparent.split("-")[1]


def _format(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else ""


def _parse(traceparent: str) -> SpanContext | None:
    if _CONTEXT.fullmatch(traceparent):  # as all of ours are: a fifth of the propagator's time
        _, of, by, flags = traceparent.split("-")
        return SpanContext(int(of, 16), int(by, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))
    context = trace.get_current_span(_propagator.extract({"traceparent": traceparent})).get_span_context()
    return context if context.is_valid else None
