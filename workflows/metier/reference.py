"""The reference pages, written from the code: `python -m metier.reference docs/reference`.

People run it after they changed a setting, event, error, command, field of a file or span; a test compares its output with the committed
pages. Each page is a pure function of the modules that it describes; nothing of this machine enters it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from metier.reference_cli import cli_page
from metier.reference_safety import safety_page
from metier.reference_tables import default_of, described, table, type_name, with_bounds
from metier.reference_tools import tool_page
from metier_agents import spec
from metier_infra import errors, event_types, messages, metrics, prometheus, service, settings, telemetry, words

MADE = "<!-- Made by `python -m metier.reference docs/reference`; change the code, not this page. -->\n\n"
WORDS = (
    words.Task,
    words.Answer,
    words.Claim,
    words.Conflict,
    words.Failure,
    words.Stamp,
    words.Decision,
    words.Candidate,
    words.Limits,
)
PARTS = (
    spec.AgentSpec,
    spec.Autonomous,
    spec.Collaborative,
    spec.MetaReasoned,
    spec.ToolRef,
    spec.Retrieval,
    spec.Files,
    spec.Postgres,
    spec.LangChain,
    spec.Limits,
)
SPANS: Sequence[tuple[str, str, str]] = (
    (telemetry.send("{topic}"), "producer", "an event is published"),
    (telemetry.process("{topic}"), "consumer", "an event is handled; linked to the span that sent it"),
    (telemetry.invoke_workflow("{workflow}"), "internal", "one segment of a run, from lease to end"),
    (telemetry.invoke_agent("{agent}"), "client; internal", "one call: as the run waits for it, and as the agent works on it"),
    (telemetry.chat("{model}"), "client", "one request to a model"),
    (telemetry.execute_tool("{tool}"), "internal", "one tool call, on both sides of the lane"),
    (telemetry.settle("{tool}"), "internal", "a person decided, or nobody did in time: the call goes on"),
    (telemetry.SANDBOX_LEASE, "internal", "the wait for the run's container"),
    (telemetry.SANDBOX_EXEC, "internal", "the program in the container"),
    (telemetry.EGRESS, "an event of `sandbox.exec`", "the program used the network, or tried to"),
)  # fmt: skip
ATTRIBUTES: Mapping[str, str] = {
    telemetry.RUN_ID: "the run",
    telemetry.CALL_ID: "the call to an agent",
    telemetry.ATTEMPT: "how often the call was claimed",
    telemetry.POLICY: "autonomous, collaborative or meta_reasoned",
    telemetry.SAFETY: "the safety bundle under which the agent acts, NAME@VERSION",
    telemetry.SAFETY_DIGEST: "changes with anything in the bundle",
    telemetry.PASSED_OVER: "models of the chain of fallbacks that were passed over before one replied",
    telemetry.INPUT_MESSAGES: "the prompt, as JSON, where the agent's safety bundle says `capture`",
    telemetry.OUTPUT_MESSAGES: "the reply, as JSON, where the agent's safety bundle says `capture`",
    telemetry.RESPONSE_MODEL: "the model that replied",
    telemetry.CACHED_TOKENS: "tokens of the prompt that were read from the provider's cache",
    telemetry.REASONING_TOKENS: "tokens of the reply that were thought and not said",
    telemetry.RUN_STATE: "succeeded, failed or parked",
    telemetry.COST_USD: "known cost, in USD",
    telemetry.RULE_WRITTEN: "the turn was written by a fixed rule of a recorded model",
    telemetry.OPERATION: "what the span does: invoke_workflow, invoke_agent, chat or execute_tool",
    telemetry.WORKFLOW_NAME: "the workflow",
    telemetry.AGENT_NAME: "the agent",
    telemetry.AGENT_DIGEST: "changes with the agent's behaviour",
    telemetry.CONVERSATION_ID: "the run's id, under the name that LLM tooling looks for",
    telemetry.REQUEST_MODEL: "the model that was asked",
    telemetry.PROVIDER: "who serves the model; `recorded` for recorded models",
    telemetry.INPUT_TOKENS: "tokens in, where the provider says",
    telemetry.OUTPUT_TOKENS: "tokens out, where the provider says",
    telemetry.TOOL_NAME: "the tool",
    telemetry.TOOL_CALL_ID: "the tool call",
    telemetry.TOOL_TYPE: "the tool's kind",
    telemetry.ERROR_TYPE: "why the span failed: a code of the error tree, or a tool's status",
    telemetry.PARTITION: "where the record lay",
    telemetry.OFFSET: "where the record lay",
    telemetry.MESSAGE_KEY: "the record's key",
    telemetry.BATCH: "events that were published together",
    telemetry.GROUP: "the consumer group",
    telemetry.MESSAGE_CONVERSATION_ID: "the run's id, where the event concerns one",
    telemetry.SANDBOX_CONTAINER: "the container's short id",
    telemetry.SANDBOX_IMAGE: "the image's content digest",
    telemetry.SANDBOX_WAIT_MS: "wait for the container, in milliseconds",
    telemetry.SANDBOX_COLD: "whether the container was booted for this call",
    telemetry.SANDBOX_EXIT_CODE: "the program's exit code",
    telemetry.SANDBOX_STATUS: "ok, error, timeout, oom, output_cut, refused or died",
    telemetry.SERVER_ADDRESS: "the host that a program wanted to reach",
    telemetry.SERVER_PORT: "the port there",
    telemetry.EGRESS_VERDICT: "`allowed`, or why not",
    telemetry.EGRESS_BYTES: "bytes that went both ways, together",
}


def settings_page() -> str:
    """Every environment variable that Métier reads."""
    parts = ["# Settings\n", _SETTINGS_HEAD]
    for kind in settings.SETTINGS:
        prefix = str(kind.model_config.get("env_prefix", ""))
        rows = [
            (
                f"`{(prefix + name).upper()}`",
                with_bounds(field),
                _setting_default(name, field),
                field.description or "",
            )
            for name, field in kind.model_fields.items()
        ]
        parts += [f"## {kind.__name__.removesuffix('Settings')}\n", described(kind) + "\n"]
        parts.append(table(("name", "type", "default", "meaning"), rows))
    return "\n".join([*parts, _SETTINGS_TAIL])


def _setting_default(name: str, field: FieldInfo) -> str:
    return "made from host name and process id" if name == "instance" else default_of(field)


_SETTINGS_HEAD = """Métier is configured by environment variables, read once when a process starts. A variable that begins with `METIER_` and is not on
this page is refused, with the nearest name that is. Secrets are never printed or logged.
"""
_SETTINGS_TAIL = """## Also read

| name | meaning |
| --- | --- |
| `METIER_MODEL_<AGENT>` | replaces the model of one agent; upper case, `_` for `-` |
| `DOCKER_HOST`, `DOCKER_TLS_VERIFY`, `DOCKER_CERT_PATH` | where the Docker engine listens, as for every Docker client |
| `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` | where spans and metrics go, OTLP over HTTP; not set: nowhere |
| `METIER_LOCAL_…` | the scripts under `infra/local` |

Keys of model providers stand in the variables that their LangChain packages read, such as `OPENAI_API_KEY`.
"""


def events_page() -> str:
    """Topics, event types, and what travels in them."""
    parts = ["# Events and topics\n", _EVENTS_HEAD, "## Topics\n", _topics()]
    parts += [_CONTEXT, "## Event types\n"]
    for kind in event_types.EVENTS.values():
        parts += [f"### `{kind.TYPE}`\n", f"On `{kind.TOPIC}`. {described(kind)}\n", _fields(kind)]
    parts.append("## Values inside\n")
    for word in WORDS:
        parts += [f"### {word.__name__}\n", described(word) + "\n", _fields(word)]
    return "\n".join([*parts, "## Dead letters\n", _DEAD_HEAD, _dead_headers()])


def _topics() -> str:
    text = (resources.files("metier_infra") / "topics.yaml").read_text(encoding="utf-8")
    rows = [
        (
            f"`{topic['name']}`",
            str(topic["partitions"] or "`METIER_KAFKA_PARTITIONS`"),
            f"{topic['retention_days']} days" if topic.get("retention_days") else "the broker's",
        )
        for topic in yaml.safe_load(text)["topics"]
    ]
    return table(("topic", "partitions", "retention"), rows)


def _fields(model: type[BaseModel]) -> str:
    rows = [(f"`{name}`", type_name(field.annotation), default_of(field)) for name, field in model.model_fields.items()]
    return table(("field", "type", "default"), rows)


def _dead_headers() -> str:
    delivery = messages.Delivery("t", 0, 0, None, b"")
    record = service.dead_letter(delivery, errors.Undecodable("why"))
    meanings = (
        "the code of the error",
        "a sentence",
        *["where it lay"] * 3,
        "when it was buried; seconds since the epoch",
    )
    return table(
        ("header", "meaning"), [(f"`{name}`", told) for (name, _), told in zip(record.headers, meanings, strict=True)]
    )


_EVENTS_HEAD = """Every record is a CloudEvent 1.0 in Kafka's binary mode: the context in headers, the data as JSON in the value. Consumers ignore fields
that they do not know; a breaking change is a new type that ends in `.v2`.
"""
_CONTEXT = """Where `METIER_KAFKA_PREFIX` is set, it stands before every name.

## Headers

| header | meaning |
| --- | --- |
| `ce_specversion` | `1.0` |
| `ce_type` | one of the types below |
| `ce_id`, `ce_source` | together they name the event: a second one with the same pair is a duplicate. Ours never change for the same work |
| `ce_subject` | on terminal events: the id of the request |
| `ce_time` | when it was made; optional |
| `content-type` | `application/json` |
| `ce_dataref` | claim check: the value is empty, and the data in the blob store under this `sha256:…`; see [Publish from another language](../how-to/publish-from-another-language.md#large-data) |
| `ce_datasize` | the length of that data, in bytes |
| `traceparent` | W3C Trace Context; optional |
"""
_DEAD_HEAD = """A record that can never be handled goes to `metier.dead-letters` with its key, value and headers as they were, and with these headers more.
"""


def errors_page() -> str:
    """The error tree, with codes, a section for each branch."""
    parts = ["# Errors\n", _ERRORS_HEAD]
    for branch in _children(errors.MetierError):
        parts += [f"## `{branch.__name__}`\n", (branch.__doc__ or "").strip() + "\n"]
        rows = [(f"`{kind.__name__}`", _code(kind), (kind.__doc__ or "").strip()) for kind in _children(branch)]
        parts += [table(("error", "code", "meaning"), rows)] if rows else []
    return "\n".join(parts)


def _children(kind: type[errors.MetierError]) -> list[type[errors.MetierError]]:
    return [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]


def _code(kind: type[errors.MetierError]) -> str:
    return f"`{kind.__new__(kind).code}`"


_ERRORS_HEAD = """The branch says what happens next; the code stands in failure events, dead letters, log lines and spans. A command that meets an
`AskOperator` prints its sentence and ends with exit code 2; with any other it ends with exit code 1. One code is not of this tree:
`agent_broken`, when an agent's own code raised something unforeseen.
"""


def agent_page() -> str:
    """The fields of an agent file."""
    parts = ["# Agent files\n", _AGENT_HEAD]
    for part in PARTS:
        rows = [
            (
                f"`{field.alias or name}`",
                with_bounds(field),
                _agent_default(name, field),
                field.description or _AGENT_WORDS[name],
            )
            for name, field in part.model_fields.items()
        ]
        parts += [f"## {_AGENT_TITLES[part]}\n", described(part) + "\n"]
        parts.append(table(("field", "type", "default", "meaning"), rows))
    return "\n".join([*parts, _AGENT_TAIL])


def _agent_default(name: str, field: FieldInfo) -> str:
    return {"limits": "the defaults below", "skills": "none", "reasoning": "kind `plain`"}.get(name, default_of(field))


_AGENT_TITLES: Mapping[type[BaseModel], str] = {
    spec.AgentSpec: "The file",
    spec.Autonomous: "`policy` of kind `autonomous`",
    spec.Collaborative: "`policy` of kind `collaborative`",
    spec.MetaReasoned: "`policy` of kind `meta_reasoned`",
    spec.ToolRef: "An entry of `tools`",
    spec.Plain: "`reasoning` of kind `plain`",
    spec.Deep: "`reasoning` of kind `deep`",
    spec.Parallel: "`reasoning` of kind `parallel`",
    spec.Retrieval: "`retrieval`",
    spec.Files: "`from` of kind `files`",
    spec.Postgres: "`from` of kind `postgres`",
    spec.LangChain: "`from` of kind `langchain`",
    spec.Limits: "`limits`",
}
_AGENT_WORDS: Mapping[str, str] = {
    "policy": "how tools are used",
    "tools": "the tools that it may be offered: `python`, `shell`, and those of [tool files](tool-file.md)",
    "skills": "by category, 0 to 1: how good it says it is; the router reads it",
    "limits": "where one call ends at the latest",
    "reasoning": "how it thinks: one line of thought, a deeper one, or several",
    "description": "for people; does not change the agent's digest",
    "kind": "which of its kinds it is",
    "name": "the tool's name",
    "fits": "the categories that it is good for; empty: all",
}
_AGENT_HEAD = """One YAML file declares one agent. `METIER_AGENTS` names the folder; without it, the three that ship are used. A field that is not on this page is
refused, with file, line and the nearest name.
"""
_AGENT_TAIL = """## Models

| id | what it is |
| --- | --- |
| `recorded:<model>` | a real model's recorded answers; see [Recorded models](../explanation/recorded-models.md) |
| `scripted:<file>` | turns from a YAML file, for tests |
| `langgraph:<module>:<function>` | a LangGraph agent of yours; see [Bring a LangGraph agent](../how-to/bring-a-langgraph-agent.md) |
| `openai-responses:<model>` | OpenAI by its Responses interface |
| `<provider>:<model>` | any id that LangChain's `init_chat_model` takes; needs the provider's package and key |
"""


def spans_page() -> str:
    """Span names and attributes."""
    spans = table(("span", "kind", "when"), [(f"`{name}`", kind, when) for name, kind, when in SPANS])
    hop = [(f"`{name}`", "on both spans of a hop") for name in telemetry.messaging("t", "send")]
    rows = [*((f"`{name}`", meaning) for name, meaning in ATTRIBUTES.items()), *hop]
    return "\n".join(["# Spans\n", _SPANS_HEAD, spans, "## Attributes\n", table(("attribute", "meaning"), rows)])


_SPANS_HEAD = f"""Spans are exported by OTLP over HTTP when `OTEL_EXPORTER_OTLP_ENDPOINT` is set. Names follow the semantic conventions for generative AI and
messaging ({telemetry.SCHEMA_URL.rpartition("/")[2]}). Prompts and answers are recorded only for agents whose safety bundle says `capture: true`, tool arguments never.
"""


def metrics_page() -> str:
    """Every metric, with its unit and labels."""
    rows = [
        (
            f"`{one.name}`",
            f"`{prometheus.name_of(one)}`",
            one.kind,
            one.unit,
            ", ".join(f"`{label}`" for label in one.labels) or "none",
            one.meaning,
        )
        for one in metrics.METRICS
    ]
    head = ("metric", "in Prometheus", "kind", "unit", "labels", "meaning")
    return "\n".join(["# Metrics\n", _METRICS_HEAD, table(head, rows)])


_METRICS_HEAD = """Where `METIER_HTTP_PORT` is set, each role shows its metrics at `/metrics` for Prometheus. They are exported by OTLP over HTTP, too or instead, when
`OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` is set, every 60 s or as `OTEL_METRIC_EXPORT_INTERVAL` says. In Prometheus a label has `_` where it has a
dot here, and a histogram has `_bucket`, `_sum` and `_count` after its name. Names of `gen_ai.*` and `messaging.*` are those of the semantic conventions; `metier.*` is what these have no name for. A label never holds the
id of a run or call, a prompt or a file's name; a workflow that nobody serves is counted as `_OTHER`. Where nobody takes them, nothing is counted.
"""

PAGES: Mapping[str, Callable[[], str]] = {
    "agent-file.md": agent_page,
    "cli.md": cli_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "metrics.md": metrics_page,
    "safety-file.md": safety_page,
    "settings.md": settings_page,
    "spans.md": spans_page,
    "tool-file.md": tool_page,
}


def pages() -> dict[str, str]:
    """Every page's text, by file name."""
    return {name: MADE + page().rstrip() + "\n" for name, page in PAGES.items()}


def main(folder: Path) -> None:
    """Write the pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
