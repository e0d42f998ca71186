"""One W3C trace over Kafka, Celery and the sandbox, as an OTLP receiver sees it. Not tested here: the tree from the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

from metier.compose import recordings_path
from metier_agents.recordings import read_recordings

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from .conftest import Fleet, Receiver

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BACKEND = "the backend's own span"
PARENTS = {
    "process metier.requests": {BACKEND},
    "send metier.runs": {
        "process metier.requests",
        "process metier.agents.coder.tasks",
        "process metier.agents.reasoner.tasks",
    },
    "process metier.runs": {"process metier.requests"},
    "invoke_workflow specialists": {"process metier.runs"},
    "send metier.events": {"process metier.requests", "invoke_agent coder", "invoke_agent reasoner"},
    "send metier.agents.coder.tasks": {"invoke_agent coder"},
    "send metier.agents.reasoner.tasks": {"invoke_agent reasoner"},
    "process metier.agents.coder.tasks": {"send metier.agents.coder.tasks"},
    "process metier.agents.reasoner.tasks": {"send metier.agents.reasoner.tasks"},
    "invoke_agent coder": {"invoke_workflow specialists", "process metier.agents.coder.tasks"},
    "invoke_agent reasoner": {"invoke_workflow specialists", "process metier.agents.reasoner.tasks"},
    "chat recorded:gemini-1.5-flash": {"invoke_agent coder"},
    "chat recorded:gpt-4o-mini-2024-07-18": {"invoke_agent reasoner"},
    "execute_tool python": {"invoke_agent coder", "invoke_agent reasoner", "execute_tool python"},
    "sandbox.lease": {"execute_tool python"},
    "sandbox.exec": {"execute_tool python"},
}
"""Under which spans each span of a code run may lie. A name that is not here is a name nobody agreed on."""


def short_code_question() -> str:
    return next(
        query.text for query in read_recordings(recordings_path()).queries if "def f(text, value)" in query.text
    )


@pytest.fixture
def spans(fleet: Fleet, receiver: Receiver, wait_until: Callable[..., None]) -> list[tuple[str, Span]]:
    """Given a fleet that exports to us, when a backend with a trace of its own asks for a run that runs code: the spans."""
    fleet.start_all("coder", "reasoner", "careful", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url)
    fleet.request("specialists", {"question": short_code_question()}, "traced", traceparent=f"00-{TRACE}-{SPAN}-01")
    assert fleet.terminal("traced")["type"] == "io.metier.run.succeeded.v1"
    expected = {
        "sandbox.exec": 2,
        "invoke_workflow specialists": 1,
        "process metier.runs": 3,
        "send metier.events": 3,
        "invoke_agent coder": 2,
    }
    wait_until(lambda: Counter(span.name for _, span in receiver.spans) >= Counter(expected), f"spans {expected}")
    for role in fleet.roles.values():
        role.end()
    return receiver.spans


def named(spans: Iterable[tuple[str, Span]], name: str) -> list[tuple[str, Span]]:
    return [(service, span) for service, span in spans if span.name == name]


def test_one_trace_joins_every_hop(spans: list[tuple[str, Span]]) -> None:
    # Then there is one trace, the backend's
    assert {span.trace_id.hex() for _, span in spans} == {TRACE}
    # and no orphan: every parent is among the spans, under the name that it should have
    by_id = {span.span_id.hex(): span.name for _, span in spans} | {SPAN: BACKEND}
    wrong = [(span.name, by_id.get(span.parent_span_id.hex())) for _, span in spans]
    assert {pair for pair in wrong if pair[1] not in PARENTS.get(pair[0], set())} == set()
    # and each consumer's span is linked to the send that it answers to
    for _, span in spans:
        if span.name.startswith("process "):
            sender = {by_id.get(link.span_id.hex()) for link in span.links}
            assert sender == {BACKEND if span.name.endswith("requests") else span.name.replace("process", "send")}
    # and each part ran in the role that it belongs to
    assert {service for service, _ in named(spans, "sandbox.exec")} == {"metier-tools"}
    assert {service for service, _ in named(spans, "chat recorded:gemini-1.5-flash")} == {"metier-agent"}
    assert {service for service, _ in named(spans, "invoke_workflow specialists")} == {"metier-orchestrator"}
    # and the spans say what the conventions ask, and never what was said
    text = str(spans)
    assert all(
        attribute in text
        for attribute in ("gen_ai.agent.name", "messaging.kafka.offset", "metier.sandbox.container.id")
    )
    assert "bcksrut" not in text
