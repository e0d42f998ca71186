"""The contract: valid for AsyncAPI's own parser, true of what is sent, the same wherever it is made, and kept from one version to the next.

Not here: a program that uses it over the real broker (`test_other_language`).
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from metier import cli, cli_contracts, contracts
from metier.contract_changes import changes
from metier_infra.blobs import digest
from metier_infra.errors import BadSpec, MissingBlob, TooLarge
from metier_infra.event_types import EVENTS
from metier_infra.events import Event
from metier_infra.messages import Delivery, Envelope, decode, encode

GOLDEN = Path(__file__).parents[1] / "contracts/asyncapi.json"
DOCUMENT = contracts.document()
KINDS = pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.__name__)
PARSE = """
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";
for (const file of process.argv.slice(2)) {
  const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"));
  console.log(JSON.stringify({ messages: document?.messages().length ?? 0, found: diagnostics.map((one) => [one.severity, one.code]) }));
}
"""
TELLS = {"asyncapi-latest-version"}
"""What the parser may say that is no fault: 3.0.0 is what the issue asks for, and what tools read."""


def fits(part: str, kind: type[Event], value: Any) -> list[str]:
    """What of it does not fit the document."""
    schema = {**DOCUMENT, "$ref": f"#/components/messages/{kind.__name__}/{part}"}
    return [error.message for error in Draft202012Validator(schema).iter_errors(value)]


def the_example(kind: type[Event]) -> dict[str, Any]:
    (found,) = DOCUMENT["components"]["messages"][kind.__name__]["examples"]
    return found


def test_the_code_keeps_what_was_promised_and_the_promise_is_up_to_date() -> None:
    promised = json.loads(GOLDEN.read_text(encoding="utf-8"))
    broken = [one for one in changes(promised, DOCUMENT) if one.breaking]
    assert broken == [], "this breaks who relies on it: make a new event type that ends in .v2"
    assert GOLDEN.read_text(encoding="utf-8") == contracts.written(DOCUMENT), (
        "nothing breaks, and it is out of date: run `metier contracts asyncapi --out contracts/asyncapi.json`"
    )


def test_asyncapis_own_parser_finds_no_fault_and_would_find_one(
    contract_tools: tuple[str, Path], tmp_path: Path
) -> None:
    node, packages = contract_tools
    (tmp_path / "node_modules").symlink_to(packages)
    (tmp_path / "parse.mjs").write_text(PARSE)
    lost, wrong = copy.deepcopy(DOCUMENT), copy.deepcopy(DOCUMENT)
    del lost["components"]["messages"]["RunFailed"]
    wrong["operations"]["send.events"]["action"] = "publish"
    documents = {"whole": DOCUMENT, "public": contracts.document(public=True), "lost": lost, "wrong": wrong}
    for name, made in documents.items():
        (tmp_path / name).write_text(contracts.written(made))
    said = subprocess.run([node, "parse.mjs", *documents], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)  # fmt: skip
    whole, public, *others = map(json.loads, said.stdout.splitlines())
    assert [code for _, code in whole["found"] + public["found"] if code not in TELLS] == []
    assert whole["messages"] == len(EVENTS) > public["messages"] > 0
    assert [any(severity <= 1 for severity, _ in one["found"]) for one in others] == [True, True]


@KINDS
def test_an_example_fits_the_document_and_is_read_by_metier(kind: type[Event]) -> None:
    shown = the_example(kind)
    assert [*fits("headers", kind, shown["headers"]), *fits("payload", kind, shown["payload"])] == []
    headers = tuple((name, value.encode()) for name, value in shown["headers"].items())
    read = decode(Delivery(kind.TOPIC, 0, 0, b"k", json.dumps(shown["payload"]).encode(), headers))
    assert read.data == kind.model_validate(shown["payload"])


@KINDS
def test_what_is_sent_fits_the_document(kind: type[Event]) -> None:
    data = kind.model_validate(the_example(kind)["payload"])
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    record = encode(kind.TOPIC, Envelope(data, "1", "/s", "k", "subject", trace))
    headers = {name: value.decode() for name, value in record.headers}
    assert headers.keys() <= DOCUMENT["components"]["schemas"]["Headers"]["properties"].keys()
    assert [*fits("headers", kind, headers), *fits("payload", kind, json.loads(record.value))] == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"workflow": "w"}, "'input' is a required property"),
        ({"workflow": "", "input": {}}, "'' should be non-empty"),
        ({"workflow": "w", "input": []}, "[] is not of type 'object'"),
        ({"workflow": "w", "input": {}, "priority": 10}, "10 is greater than the maximum of 9"),
        ({"workflow": "w", "input": {}, "limits": {"usd": -1}}, "is not valid under any of the given schemas"),
        ({"workflow": "w", "input": {}, "colour": "red"}, ""),
    ],
)
def test_the_document_refuses_what_metier_refuses_and_no_more(data: dict[str, Any], says: str) -> None:
    kind = EVENTS["io.metier.run.requested.v1"]
    found = fits("payload", kind, data)
    assert (says in found[0]) if says else found == []
    valid = True
    try:
        kind.model_validate(data)
    except ValueError:
        valid = False
    assert valid == (not found)


def test_a_record_of_another_type_or_without_its_context_does_not_fit() -> None:
    kind = EVENTS["io.metier.run.requested.v1"]
    headers = the_example(kind)["headers"]
    assert fits("headers", kind, {**headers, "ce_type": "io.metier.run.failed.v1"})
    assert all(fits("headers", kind, {k: v for k, v in headers.items() if k != name}) for name in headers)
    assert fits("headers", kind, {**headers, "ce_dataref": "file:///etc/passwd"})
    assert not fits("headers", kind, {**headers, "ce_dataref": "sha256:" + "0" * 64, "mine": "too"})


def references(value: Mapping[str, Any]) -> set[str]:
    return set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(value)))


@pytest.mark.parametrize("public", [False, True])
def test_every_reference_leads_somewhere_and_every_schema_is_used(public: bool) -> None:
    made = contracts.document(public=public)
    found = references(made)
    for reference in found:
        at: Any = made
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]
    assert {f"#/components/schemas/{name}" for name in made["components"]["schemas"]} <= found
    assert {f"#/components/messages/{name}" for name in made["components"]["messages"]} <= found


def test_the_public_document_has_what_others_use_and_nothing_else() -> None:
    made = contracts.document(public=True)
    assert {one["address"] for one in made["channels"].values()} == {
        *("metier.requests", "metier.events", "metier.outcomes")
    }
    assert "x-internal" not in json.dumps(made)
    assert {(one["action"], one["channel"]["$ref"]) for one in made["operations"].values()} == {
        ("receive", "#/channels/requests"),
        ("receive", "#/channels/outcomes"),
        ("send", "#/channels/events"),
    }
    inside = {name for name, one in DOCUMENT["channels"].items() if one.get("x-internal")}
    assert inside == {"runs", "agents.tasks"}


def test_the_document_is_the_same_wherever_it_is_made() -> None:
    elsewhere = {
        "METIER_KAFKA_PARTITIONS": "99",
        "METIER_KAFKA_PREFIX": "x.",
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
    }
    made = subprocess.run([sys.executable, "-m", "metier", "contracts", "asyncapi"], env={**os.environ, **elsewhere}, capture_output=True, check=True)  # fmt: skip
    assert made.stdout.decode() == contracts.written(DOCUMENT)


def one_event(schema: Mapping[str, Any], *actions: str, topic: str = "t", name: str = "e") -> dict[str, Any]:
    """A document with one event type."""
    reference = [{"$ref": "#/channels/c/messages/M"}]
    return {
        "channels": {"c": {"address": topic, "messages": {"M": {}}}},
        "operations": {action: {"action": action, "messages": reference} for action in actions},
        "components": {
            "messages": {
                "M": {"name": name, "headers": {"type": "object"}, "payload": {"$ref": "#/components/schemas/S"}}
            },
            "schemas": {"S": schema, "T": {"type": "object", "properties": {"n": {"type": "integer"}}}},
        },
    }


def data(field: Mapping[str, Any] | None, *required: str, **more: Any) -> dict[str, Any]:
    """The schema of data that may have a field `f`."""
    return {"type": "object", "properties": {} if field is None else {"f": field}, "required": list(required), **more}


TEXT = {"type": "string"}
NULLABLE = {"anyOf": [TEXT, {"type": "null"}]}
NOTHING: dict[str, Any] = {}
INNER = {"$ref": "#/components/schemas/T"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    # what changes: old, new, what that is where Métier receives it, what that is where it sends it
    "nothing": (data(TEXT), data(TEXT), "", ""),
    "words for people": (data(TEXT), data({**TEXT, "description": "x", "title": "y"}, title="z"), "", ""),
    "a new field with a default": (data(None), data({**TEXT, "default": ""}), "fits", "fits"),
    "a new field that is required": (data(None), data(TEXT, "f"), "breaks", "fits"),
    "a field gone": (data(TEXT), data(None), "breaks", "breaks"),
    "a field renamed": (data(TEXT), {"type": "object", "properties": {"g": TEXT}}, "breaks", "breaks"),
    "a field that becomes required": (data(TEXT), data(TEXT, "f"), "breaks", "fits"),
    "a field that may be absent": (data(TEXT, "f"), data(TEXT), "fits", "breaks"),
    "another type": (data(TEXT), data({"type": "boolean"}), "breaks", "breaks"),
    "null as well": (data(TEXT), data(NULLABLE), "fits", "breaks"),
    "null no more": (data(NULLABLE), data(TEXT), "breaks", "fits"),
    "a list of types": (data(TEXT), data({"type": ["string", "null"]}), "fits", "breaks"),
    "whole numbers only": (data({"type": "number"}), data({"type": "integer"}), "breaks", "fits"),
    "all numbers": (data({"type": "integer"}), data({"type": "number"}), "fits", "breaks"),
    "anything": (data(TEXT), data(NOTHING), "fits", "breaks"),
    "anything in place of an object": (data(INNER), data(NOTHING), "fits", "breaks"),
    "not anything any more": (data(NOTHING), data(TEXT), "breaks", "fits"),
    "a value more": (data({**TEXT, "enum": ["a"]}), data({**TEXT, "enum": ["a", "b"]}), "fits", "breaks"),
    "a value less": (data({**TEXT, "enum": ["a", "b"]}), data({**TEXT, "enum": ["a"]}), "breaks", "fits"),
    "listed values": (data(TEXT), data({**TEXT, "enum": ["a"]}), "breaks", "fits"),
    "another constant": (data({"const": "a"}), data({"const": "b"}), "breaks", "breaks"),
    "a constant of two": (data({**TEXT, "enum": ["a", "b"]}), data({"const": "a"}), "breaks", "fits"),
    "a lower maximum": (data({"type": "integer", "maximum": 9}), data({"type": "integer", "maximum": 5}), "breaks", "fits"),
    "a higher minimum": (data({"type": "integer", "minimum": 0}), data({"type": "integer", "minimum": 1}), "breaks", "fits"),
    "a first bound": (data({"type": "number"}), data({"type": "number", "exclusiveMinimum": 0}), "breaks", "fits"),
    "a bound gone": (data({**TEXT, "maxLength": 9}), data(TEXT), "fits", "breaks"),
    "a longer text": (data({**TEXT, "maxLength": 9}), data({**TEXT, "maxLength": 10}), "fits", "breaks"),
    "fewer items": (data({"type": "array", "minItems": 1}), data({"type": "array", "minItems": 2}), "breaks", "fits"),
    "another pattern": (data({**TEXT, "pattern": "a"}), data({**TEXT, "pattern": "b"}), "breaks", "breaks"),
    "a pattern gone": (data({**TEXT, "pattern": "a"}), data(TEXT), "fits", "breaks"),
    "a format": (data(TEXT), data({**TEXT, "format": "date-time"}), "breaks", "fits"),
    "other items": (data({"type": "array", "items": TEXT}), data({"type": "array", "items": {"type": "null"}}), "breaks", "breaks"),
    "items of any kind": (data({"type": "array", "items": TEXT}), data({"type": "array"}), "fits", "breaks"),
    "other values by key": (data({"type": "object", "additionalProperties": TEXT}), data({"type": "object", "additionalProperties": {"type": "null"}}), "breaks", "breaks"),
    "no keys any more": (data(TEXT, additionalProperties=True), data(TEXT, additionalProperties=False), "breaks", "fits"),
    "deep inside": (data({"anyOf": [INNER, {"type": "null"}]}), data({"anyOf": [data(None), {"type": "null"}]}), "breaks", "breaks"),
    "what a field inside may be": (data(INNER), data({"type": "object", "properties": {"n": {"type": "number"}}}), "fits", "breaks"),
    "a name of a schema": (data(INNER), data({"type": "object", "properties": {"n": {"type": "integer"}}}), "", ""),
    "another default": (data({**TEXT, "default": "a"}), data({**TEXT, "default": "b"}), "breaks", ""),
    "what is not known here": (data(TEXT), data({**TEXT, "if": {}}), "breaks", "fits"),
}  # fmt: skip


def judged(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    found = changes(old, new)
    return "breaks" if any(one.breaking for one in found) else "fits" if found else ""


@pytest.mark.parametrize("case", CASES)
def test_what_is_received_may_become_wider_and_what_is_sent_narrower(case: str) -> None:
    old, new, received, sent = CASES[case]
    assert judged(one_event(old, "receive"), one_event(new, "receive")) == received
    assert judged(one_event(old, "send"), one_event(new, "send")) == sent
    both = "breaks" if "breaks" in {received, sent} else received or sent
    assert judged(one_event(old, "send", "receive"), one_event(new, "receive", "send")) == both


def test_an_event_type_may_come_and_must_not_go_or_move() -> None:
    one, two = one_event(data(TEXT), "send"), one_event(data(TEXT), "send", name="e.v2")
    assert judged(one, two) == "breaks"
    two["components"]["messages"]["Old"] = one["components"]["messages"]["M"]
    two["channels"]["c"]["messages"]["Old"] = {}
    two["operations"]["send"]["messages"].append({"$ref": "#/channels/c/messages/Old"})
    assert judged(one, two) == "fits"
    assert judged(one, one_event(data(TEXT), "send", topic="elsewhere")) == "breaks"
    assert judged(one, one_event(data(TEXT), "send", "receive")) == "fits"
    assert judged(one_event(data(TEXT), "send", "receive"), one) == "breaks"


def test_a_header_is_held_as_a_field_is() -> None:
    old, new = one_event(data(TEXT), "receive"), one_event(data(TEXT), "receive")
    new["components"]["messages"]["M"]["headers"] = data(TEXT, "f")
    (found,) = [one for one in changes(old, new) if one.breaking]
    assert (found.place, found.what) == ("e: headers.f", "its absence is not taken any more")


def test_a_schema_that_holds_itself_is_compared_to_an_end() -> None:
    def tree(leaf: Mapping[str, Any]) -> dict[str, Any]:
        branches = {"type": "array", "items": {"$ref": "#/components/schemas/S"}}
        return {"type": "object", "properties": {"leaf": leaf, "branches": branches}}

    assert judged(one_event(tree(TEXT), "send"), one_event(tree(TEXT), "send")) == ""
    assert judged(one_event(tree(TEXT), "send"), one_event(tree(NULLABLE), "send")) == "breaks"


def metier(*words: str, stdin: bytes = b"") -> tuple[int, str]:
    """What a command gives: an error of ours is raised, as `main` gets it."""
    done = CliRunner().invoke(cli.app, words, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def altered(tmp_path: Path, **fields: Any) -> str:
    """A document that was promised with other fields in a request than the code has."""
    promised = copy.deepcopy(DOCUMENT)
    schema = promised["components"]["schemas"]["RunRequested"]
    schema["properties"] = {name: one for name, one in {**schema["properties"], **fields}.items() if one is not None}
    (tmp_path / "promised.json").write_text(contracts.written(promised))
    return str(tmp_path / "promised.json")


def test_the_check_fails_where_the_code_breaks_the_promise_and_not_where_it_gives_more(tmp_path: Path) -> None:
    assert metier("contracts", "check", altered(tmp_path)) == (0, "nothing differs\n")
    code, said = metier("contracts", "check", altered(tmp_path, colour=TEXT), "--json")
    place = "io.metier.run.requested.v1: data.colour"
    assert (code, json.loads(said)) == (1, {"broken": True, "changes": [{"place": place, "what": "the field is gone", "breaking": True}]})  # fmt: skip
    code, said = metier("contracts", "check", altered(tmp_path, priority=None))
    assert (code, "fits" in said, "a new field" in said) == (0, True, True)


def test_a_document_is_not_overwritten_by_one_that_breaks_it(tmp_path: Path) -> None:
    promised = altered(tmp_path, colour=TEXT)
    before = Path(promised).read_text()
    with pytest.raises(BadSpec, match=r"data\.colour: the field is gone; make a new event type that ends in \.v2"):
        metier("contracts", "asyncapi", "--out", promised)
    assert Path(promised).read_text() == before
    assert metier("contracts", "asyncapi", "--out", altered(tmp_path, priority=None)) == (0, "")
    assert Path(promised).read_text() == contracts.written(DOCUMENT)
    assert metier("contracts", "asyncapi", "--public", "--out", str(tmp_path / "new" / "a.json")) == (0, "")
    assert (tmp_path / "new" / "a.json").read_text() == contracts.written(contracts.document(public=True))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"components": 1}', '{"components": {"messages": {"M": {}}}}', "\ud800"]
)
def test_a_file_that_is_no_contract_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BadSpec, match=r"a\.json: is no document of a contract"):
        metier("contracts", "check", str(tmp_path / "a.json"))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="cannot be read: No such file"):
        metier("contracts", "check", str(tmp_path / "none.json"))


def test_data_is_put_and_got_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METIER_KAFKA_BOOTSTRAP", raising=False)
    (tmp_path / "request.json").write_bytes(b'{"workflow": "w"}')
    sha256 = digest(b'{"workflow": "w"}')
    assert metier("blobs", "put", "request.json") == (0, f"sha256:{sha256}\n")
    code, said = metier("blobs", "put", "-", "--json", stdin=b'{"workflow": "w"}')
    assert (code, json.loads(said)) == (0, {"dataref": f"sha256:{sha256}", "datasize": 17})
    assert metier("blobs", "get", f"sha256:{sha256}") == metier("blobs", "get", sha256) == (0, '{"workflow": "w"}')
    assert metier("blobs", "get", sha256, "--out", "got.json") == (0, "")
    assert (tmp_path / "got.json").read_bytes() == b'{"workflow": "w"}'
    assert metier("blobs", "prune", "--days", "1", "--json") == (0, '{"pruned": 0}\n')
    old = tmp_path / ".metier/blobs" / sha256[:2] / sha256[2:]
    then = time.time() - 86_460
    os.utime(old, (then, then))
    assert metier("blobs", "prune", "--days", "1") == (0, "1 pruned\n")
    for claim in (sha256, "sha256:../../request.json"):
        with pytest.raises(MissingBlob):
            metier("blobs", "get", claim)
    monkeypatch.setattr(cli_contracts, "LARGEST_VALUE", 17)
    assert metier("blobs", "put", "request.json")[0] == 0
    with pytest.raises(TooLarge, match="18 bytes; an event takes 17 at the most"):
        metier("blobs", "put", "-", stdin=b"x" * 18)
    with pytest.raises(BadSpec, match="cannot be read"):
        metier("blobs", "put", "none.json")
