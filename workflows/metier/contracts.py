"""What others may rely on, as one document: AsyncAPI 3.0, made from the event types and nothing else.

`metier contracts asyncapi` writes it, `contract_changes` compares two of them; `contracts/asyncapi.json` is the one that was promised.
The application that it describes is Métier: what Métier receives, others send. One code gives one document, whatever the settings are.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import yaml
from pydantic import JsonValue
from pydantic.json_schema import models_json_schema

from metier_infra.event_types import EVENTS
from metier_infra.events import EVENTS_TOPIC, OUTCOMES, REQUESTS, RUNS, TASKS, Event
from metier_infra.messages import DATAREF, DATASIZE
from metier_infra.settings import KafkaSettings

Document = dict[str, Any]
VERSION = "1.0.0"
SCHEMAS = "#/components/schemas/"
PUBLIC: Mapping[str, str] = {REQUESTS: "receive", OUTCOMES: "receive", EVENTS_TOPIC: "send"}
"""The topics that others use, and what Métier does there. On the others Métier talks to itself, in both directions."""

_INFO = """Ask for runs of workflows, and learn what became of them. Every record is a CloudEvent 1.0 in Kafka's binary mode: its context stands in headers, its data as JSON in the value.

Ignore fields that you do not know: new ones may come, and they have defaults. A change that would break whoever relies on this document is a new event type, which ends in `.v2`. An event may come more than once, always under the same `ce_source` and `ce_id`.

Where `METIER_KAFKA_PREFIX` is set, it stands before every topic's name."""
_INSIDE = """

Channels and operations with `x-internal` are how Métier talks to itself: they may be read, and must not be written."""
_CHANNELS: Mapping[str, tuple[str, str]] = {
    REQUESTS: ("What is asked of Métier.", "orders requests: the run's id where one is concerned, else the request's"),
    OUTCOMES: ("What really came of runs, told whenever it is known.", "the run's id"),
    EVENTS_TOPIC: ("What Métier tells.", "the run's id: what concerns one run comes in order"),
    RUNS: ("What concerns a run, for the orchestrator that has it.", "the run's id"),
    TASKS: ("Calls to one agent.", "the call's id"),
}
_HEADERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ce_specversion": ("the version of CloudEvents", {"const": "1.0"}),
    "ce_id": ("with `ce_source` it names the event: a second one with the same pair is a duplicate", {"minLength": 1, "maxLength": 1000}),
    "ce_source": ("who says it", {"minLength": 1, "maxLength": 1000}),
    "ce_type": ("the event type", {}),
    "content-type": ("the form of the value", {"const": "application/json"}),
    "ce_subject": ("on terminal events and rejections: the id of the request", {}),
    "ce_time": ("when it was said", {"format": "date-time"}),
    "ce_partitionkey": ("the record's key", {}),
    DATAREF: ("claim check: the data is not in the value, which is empty, but in the blob store under this SHA-256", {"pattern": "^sha256:[0-9a-f]{64}$"}),
    DATASIZE: ("the length of the data in the blob store, in bytes", {"pattern": "^[0-9]+$"}),
    "traceparent": ("W3C Trace Context; a run goes on with the trace of its request", {"pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"}),
}  # fmt: skip
_NEEDED = ["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type"]
_KNOWN: Mapping[str, Any] = {
    "run_id": "9dc627bfd670f64b81ce123c584066a2",
    "call_id": "1f6ad0c3aa4be8a1b3a0f4b1d9f51c0e",
    "tool_call_id": "c2b8a1d0e5f64798a1b2c3d4e5f60718",
    "approval_id": "c2b8a1d0e5f64798a1b2c3d4e5f60718",
    "request_id": "order-7",
    "request_source": "/shop/checkout",
    "request_type": "io.metier.run.requested.v1",
    "workflow": "specialists",
    "version": "3f0a9c1d",
    "input": {"question": "How old is Geb?"},
    "result": {"answer": "3.0"},
    "agent": "reasoner",
    "tool": "python",
    "arguments": {"code": "print(6 * 7)"},
    "by": "ann@example.org",
    "code": "unknown_workflow",
    "message": "no workflow is called 'specialist'",
}
"""What stands in examples under these names; elsewhere the least that fits."""


def document(*, public: bool = False) -> Document:
    """The document, or as much of it as concerns others."""
    kinds = [kind for kind in EVENTS.values() if not public or kind.TOPIC in PUBLIC]
    schemas = _schemas(kinds)
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Métier", "version": VERSION, "description": _INFO + ("" if public else _INSIDE)},
        "defaultContentType": "application/json",
        "channels": {_channel_id(topic): _channel(topic, kinds) for topic in _topics(kinds)},
        "operations": dict(_operations(kinds)),
        "components": {
            "messages": {kind.__name__: _message(kind, schemas) for kind in kinds},
            "schemas": {**schemas, "Headers": _headers()},
        },
    }


def written(asked: Document) -> str:
    """The document as it is kept in a file."""
    return json.dumps(asked, indent=2, ensure_ascii=False) + "\n"


def _topics(kinds: Sequence[type[Event]]) -> list[str]:
    return list(dict.fromkeys(kind.TOPIC for kind in kinds))


def _on(topic: str, kinds: Sequence[type[Event]]) -> list[type[Event]]:
    return [kind for kind in kinds if topic == kind.TOPIC]


def _channel_id(topic: str) -> str:
    return topic.removeprefix("metier.").replace(".{agent}", "")


def _internal(topic: str) -> Document:
    return {} if topic in PUBLIC else {"x-internal": True}


def _channel(topic: str, kinds: Sequence[type[Event]]) -> Document:
    named = {"parameters": {"agent": {"description": "the agent's name"}}} if "{agent}" in topic else {}
    return {
        "address": topic,
        "description": _CHANNELS[topic][0],
        **named,
        "messages": {kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"} for kind in _on(topic, kinds)},
        "bindings": {"kafka": _kafka(topic)},
        **_internal(topic),
    }


def _kafka(topic: str) -> Document:
    """What the topic is made with, where no setting says otherwise."""
    declared = yaml.safe_load((resources.files("metier_infra") / "topics.yaml").read_text(encoding="utf-8"))["topics"]
    (entry,) = (one for one in declared if one["name"] == topic)
    kept = {"retention.ms": entry["retention_days"] * 86_400_000} if "retention_days" in entry else {}
    return {
        "topic": topic,
        "partitions": entry["partitions"] or KafkaSettings.model_fields["partitions"].default,
        "topicConfiguration": {**kept, "max.message.bytes": entry["max_message_bytes"]},
        "bindingVersion": "0.5.0",
    }


def _operations(kinds: Sequence[type[Event]]) -> Iterable[tuple[str, Document]]:
    for topic in _topics(kinds):
        name = _channel_id(topic)
        for action in [PUBLIC[topic]] if topic in PUBLIC else ["send", "receive"]:
            messages = [{"$ref": f"#/channels/{name}/messages/{kind.__name__}"} for kind in _on(topic, kinds)]
            yield (
                f"{action}.{name}",
                {"action": action, "channel": {"$ref": f"#/channels/{name}"}, "messages": messages, **_internal(topic)},
            )


def _message(kind: type[Event], schemas: Mapping[str, Any]) -> Document:
    return {
        "name": kind.TYPE,
        "title": kind.__name__,
        **_told(kind),
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "allOf": [{"$ref": f"{SCHEMAS}Headers"}],
            "properties": {"ce_type": {"const": kind.TYPE}},
        },
        "payload": {"$ref": f"{SCHEMAS}{kind.__name__}"},
        "bindings": {
            "kafka": {"key": {"type": "string", "description": _CHANNELS[kind.TOPIC][1]}, "bindingVersion": "0.5.0"}
        },
        "examples": [example(kind, schemas)],
    }


def _told(kind: type[Event]) -> Document:
    """The docstring: its first paragraph, and the rest where there is more."""
    summary, _, rest = (inspect.getdoc(kind) or "").partition("\n\n")
    return {"summary": summary, **({"description": rest} if rest else {})}


def _headers() -> Document:
    """The headers of every record: strings in UTF-8."""
    told = {name: {"type": "string", "description": what, **more} for name, (what, more) in _HEADERS.items()}
    return {"type": "object", "required": _NEEDED, "properties": told, "additionalProperties": True}


def _schemas(kinds: Sequence[type[Event]]) -> dict[str, Any]:
    """The JSON Schema of every event's data, and of what stands in it, by name. Fields that are not in it are ignored, and that is said."""
    _, made = models_json_schema([(kind, "validation") for kind in kinds], ref_template=SCHEMAS + "{model}")
    return {
        name: {**schema, "additionalProperties": True} if "properties" in schema else schema
        for name, schema in sorted(made["$defs"].items())
    }


def example(kind: type[Event], schemas: Mapping[str, Any]) -> Document:
    """A record of this type: what must be said of a request, and all that is told of an event."""
    received = PUBLIC.get(kind.TOPIC) == "receive"
    data = _sample(schemas[kind.__name__], schemas)
    return {
        "name": "least" if received else "whole",
        "headers": {
            "ce_specversion": "1.0",
            "ce_id": "order-7" if received else f"{_KNOWN['run_id']}/1",
            "ce_source": "/shop/checkout" if received else "/metier/orchestrator",
            "ce_type": kind.TYPE,
            "content-type": "application/json",
        },
        "payload": data if received else kind.model_validate(data).model_dump(mode="json"),
    }


def _sample(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> JsonValue:
    """A value that fits."""
    if "$ref" in schema:
        return _sample(schemas[schema["$ref"].removeprefix(SCHEMAS)], schemas)
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], schemas)
    if "enum" in schema:
        return str(schema["enum"][0])
    if schema.get("type") == "object":
        fields = {name: schema["properties"][name] for name in schema.get("required", ())}
        return {name: _KNOWN[name] if name in _KNOWN else _sample(one, schemas) for name, one in fields.items()}
    least: float = schema.get("minimum", 1)
    plain: dict[str, JsonValue] = {"string": "…", "integer": least, "number": least, "boolean": True, "array": []}
    return plain.get(schema.get("type", ""))
