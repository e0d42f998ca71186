"""What was approved of a tool: drift of each part disables it, a damaged file is refused, and a stranger's schema cannot harm who reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from metier_infra.errors import BadSpec
from metier_tools import json_schema, pins
from metier_tools.builtin import BUILTIN, PYTHON
from metier_tools.declare import usual_risk
from metier_tools.json_schema import problem_of_schema, refusal_of
from metier_tools.pins import accept, approve, enable, judge, load_pins, server_tools, write_pins
from metier_tools.profile import STRICT, Profile
from metier_tools.tool import Kind, ToolSpec
from metier_tools.tool_kinds import ServerFile
from metier_tools.toolbox import ServerTool

SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"path": {"$ref": "#/$defs/Path"}, "depth": {"type": "integer", "default": 1}},
    "required": ["path"],
    "$defs": {"Path": {"type": "string", "pattern": "^/", "maxLength": 9}},
}
SPEC = ToolSpec(
    name="git__log",
    description="Show the log.",
    parameters=SCHEMA,
    kind="mcp",
    also={"annotations": {"readOnlyHint": True}},
)
SERVER = ServerFile.model_validate(
    {"kind": "mcp", "name": "git", "command": ["git-server"], "secrets": ["GIT_TOKEN"], "timeout_s": 20}
)


def spec(**changes: Any) -> ToolSpec:
    return SPEC.model_copy(update=changes)


def object_of(**properties: JsonValue) -> dict[str, JsonValue]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (SPEC, ""),
        (spec(timeout_s=99), ""),
        (spec(description="Show the log!"), "its description changed"),
        (spec(parameters={"type": "object"}), "its parameters changed"),
        (spec(parameters=json.loads(json.dumps(SCHEMA).replace('"default": 1', '"default": true'))), "its parameters"),
        (spec(also={}), "its output schema or hints (also) changed"),
        (spec(also={"annotations": {"readOnlyHint": 1}}), "its output schema or hints (also) changed"),
        (spec(kind="command"), "its kind changed"),
        (spec(risk="read"), "its risk class changed"),
        (spec(name="git__blame"), "its name changed"),
        (spec(description="x", parameters={}), "its description and parameters changed"),
    ],
)  # fmt: skip
def test_drift_of_each_part_is_named(now: ToolSpec, says: str) -> None:
    sentence = judge(now, approve({}, [SPEC], "git")["git__log"])
    assert sentence.startswith(says)
    assert bool(sentence) == bool(says)
    assert not says or sentence.endswith(
        f"since it was approved; look at `metier tools list`, then `metier tools approve {now.name}`"
    )


@pytest.mark.parametrize("kind", ["code", "command", "mcp", "function"])
def test_an_approval_from_before_there_were_risk_classes_means_the_usual_one(kind: Kind) -> None:
    now = spec(kind=kind, risk=usual_risk(kind))
    before = approve({}, [now])[now.name].model_copy(update={"risk": None})
    assert judge(now, before) == ""
    assert judge(spec(kind=kind, risk="read"), before).startswith("its risk class changed")


def test_what_a_server_file_says_of_risk_holds_once_it_is_approved_and_what_the_server_hints_never_does() -> None:
    mild = SERVER.model_copy(update={"risk": "write", "risks": {"log": "read"}})
    approved = approve({}, [SPEC, spec(name="git__blame")], "git")
    assert [tool.spec.risk for tool in server_tools(SERVER, approved, STRICT)] == ["destructive", "destructive"]
    assert not any(tool.disabled for tool in server_tools(SERVER, approved, STRICT))
    blame, log = server_tools(mild, approved, STRICT)
    assert (blame.spec.risk, log.spec.risk) == ("write", "read")
    assert blame.disabled.startswith("its risk class changed since it was approved")
    assert log.disabled.startswith("its risk class changed since it was approved")
    again = approve(approved, [spec(risk="read"), spec(name="git__blame", risk="write")], "git")
    assert not any(tool.disabled for tool in server_tools(mild, again, STRICT))
    assert all(tool.disabled for tool in server_tools(SERVER, again, STRICT))
    assert log.spec.digest == SPEC.digest


def test_what_was_never_approved_is_disabled_and_what_was_is_not() -> None:
    mine = approve({}, [PYTHON.spec])
    python, shell = enable(BUILTIN, mine)
    assert not python.disabled
    assert shell.disabled.startswith("it has not been approved yet: look at `metier tools list`")


def test_pins_come_back_as_they_were_written_and_the_file_does_not_depend_on_their_order(tmp_path: Path) -> None:
    assert load_pins(tmp_path) == {}
    both = approve(approve({}, [SPEC], "git"), [PYTHON.spec])
    write_pins(tmp_path, both)
    text = (tmp_path / pins.FILE).read_bytes()
    assert load_pins(tmp_path) == both
    write_pins(tmp_path, dict(reversed(both.items())))
    assert (tmp_path / pins.FILE).read_bytes() == text
    assert [path.name for path in tmp_path.iterdir()] == [pins.FILE]


def test_a_write_that_fails_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    approved = approve({}, [PYTHON.spec])
    (tmp_path / pins.FILE / "taken").mkdir(parents=True)
    with pytest.raises(BadSpec, match=r"approved.json: cannot be written: Is a directory"):
        write_pins(tmp_path, approved)
    assert [path.name for path in tmp_path.iterdir()] == [pins.FILE]
    with pytest.raises(BadSpec, match=r"approved.json: cannot be written: No such file"):
        write_pins(tmp_path / "no", approved)


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    plain = {name: one.model_dump(mode="json") for name, one in approve({}, [SPEC], "git").items()}
    change(plain)
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "approved.json: Input should be an object"),
        (b"\xff", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (edited(lambda plain: plain["git__log"].pop("digest")), "git__log: digest: Field required"),
        (edited(lambda plain: plain["git__log"].update(note="x")), "git__log: note: Extra inputs"),
        (edited(lambda plain: plain["git__log"].update(description="Obey.")), "git__log: what stands here is not what was approved"),
        (edited(lambda plain: plain["git__log"].update(parameters={})), "git__log: what stands here is not"),
        (edited(lambda plain: plain["git__log"].update(also={})), "git__log: what stands here is not"),
        (edited(lambda plain: plain.update(git__rm=plain.pop("git__log"))), "git__rm: what stands here is not"),
        (edited(lambda plain: plain["git__log"].update(server="hub")), "git__log: this is no name of a tool of the server hub"),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_or_edited_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / pins.FILE).write_bytes(content)
    with pytest.raises(BadSpec) as caught:
        load_pins(tmp_path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / pins.FILE))
    assert str(caught.value).endswith(
        "restore the file from version control, or delete it and approve your tools again"
    )


def test_the_tools_of_a_server_are_made_of_what_was_approved() -> None:
    profile = Profile.model_validate({"name": "wide"})
    approved = approve(approve({}, [SPEC, spec(name="git__blame")], "git"), [PYTHON.spec])
    approved = approve(approved, [spec(name="hub__log")], "hub")
    blame, log = server_tools(SERVER, approved, profile)
    assert log.spec == SPEC.model_copy(update={"timeout_s": 20.0})
    assert log.spec.digest == SPEC.digest
    assert log.action == ServerTool("git", ("git-server",), "log")
    assert (log.profile, log.secrets, log.disabled) == (profile, ("GIT_TOKEN",), "")
    assert blame.action == ServerTool("git", ("git-server",), "blame")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"path": "/a"}, None),
        ({"path": "/a", "depth": 2, "more": [1]}, None),
        ({}, "arguments: 'path' is a required property"),
        ({"path": 1}, "path: 1 is not of type 'string'"),
        ({"path": "a"}, "path: it does not match '^/'"),
        ({"path": "/" * 10}, "path: '//////////' is too long"),
        ({"path": "/a", "depth": "2"}, "depth: '2' is not of type 'integer'"),
        ({"path": "/a", "depth": "\ud800"}, "depth: '\\ud800' is not of type 'integer'"),
    ],
    ids=ascii,
)
def test_arguments_are_checked_against_the_servers_schema(arguments: dict[str, JsonValue], says: str | None) -> None:
    (log,) = server_tools(SERVER, approve({}, [SPEC], "git"), STRICT)
    assert log.problem(arguments) == says


def doublings(levels: int) -> dict[str, JsonValue]:
    """A small schema with 2 to the power of `levels` parts, once its references are followed."""
    definitions: dict[str, Any] = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(levels)
    }
    return {"type": "object", "allOf": [{"$ref": "#/$defs/d0"}], "$defs": {**definitions, f"d{levels}": {}}}


def chain(length: int) -> dict[str, JsonValue]:
    links: dict[str, JsonValue] = {f"c{one}": {"$ref": f"#/$defs/c{one + 1}"} for one in range(length)}
    return {"type": "object", "$defs": {**links, f"c{length}": {}}}


def nested(levels: int) -> JsonValue:
    inner: JsonValue = {"a": 1}
    for _ in range(levels):
        inner = {"not": inner}
    return inner


HOSTILE: dict[str, tuple[dict[str, JsonValue], str]] = {
    "no object": ({"type": "string"}, "not one of an object"),
    "nothing": ({}, "not one of an object"),
    "no schema": (object_of(a={"type": "text"}), "its schema is none"),
    "no schema of properties": ({"type": "object", "properties": []}, "its schema is none"),
    "remote": (object_of(a={"$ref": "http://127.0.0.1:1/x"}), "refers to 'http://127.0.0.1:1/x', outside itself"),
    "file": (object_of(a={"$ref": "file:///etc/passwd"}), "outside itself"),
    "metaschema": (object_of(a={"$ref": "https://json-schema.org/draft/2020-12/schema"}), "outside itself"),
    "nowhere": (object_of(a={"$ref": "#/$defs/a"}), "which is not in it"),
    "base": ({**object_of(), "$id": "http://127.0.0.1:1/"}, "uses $id"),
    "anchor": (object_of(a={"$anchor": "x"}), "uses $anchor"),
    "dynamic": (object_of(a={"$dynamicRef": "#x"}), "uses $dynamicRef"),
    "itself": ({**object_of(), "allOf": [{"$ref": "#"}]}, "refers to itself at '#'"),
    "circle": ({"type": "object", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "refers to itself"),
    "escaped circle": ({"type": "object", "$defs": {"a": {"$ref": "#/$defs/%61"}, "%61": {}}}, "refers to itself"),
    "doublings": (doublings(20), "more than 10000 parts"),
    "chain": (chain(40), "a chain of more than 32 references"),
    "deep": ({"type": "object", "x": nested(20)}, "deeper than 16 levels"),
    "very deep": ({"type": "object", "x": nested(50_000)}, "deeper than 16 levels"),
    "large": (object_of(a={"description": "x" * 33_000}), "larger than 32768 bytes"),
    "back-reference": (object_of(a={"pattern": r"(a)\1"}), "cannot be used: backreferences are not supported"),
    "look-ahead": (object_of(a={"pattern": "(?=a)a"}), "cannot be used: look-around, including look-ahead and look-behind, is not"),
    "large pattern": (object_of(a={"pattern": "(a{1000}){1000}"}), "cannot be used: Compiled regex exceeds size limit of 10485760 bytes"),
    "broken pattern": (object_of(a={"pattern": "("}), "cannot be used: unclosed group"),
    "long pattern": (object_of(a={"pattern": "a" * 257}), "a pattern of more than 256 characters"),
    "patterns of names": ({"type": "object", "patternProperties": {"(a+)+$": {}}}, "uses patternProperties"),
    "costly": ({"type": "object", "unevaluatedProperties": False}, "uses unevaluatedProperties"),
    "another dialect": ({"type": "object", "$schema": "http://example.com/x"}, "a dialect that is not supported"),
    "no dialect": ({"type": "object", "$schema": {"2020-12": 1}}, "a dialect that is not supported"),
    "another dialect inside": (object_of(a={"$schema": "http://json-schema.org/draft-07/schema#"}), "uses $schema"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_schema_is_refused_when_it_is_approved_and_lets_no_call_pass(case: str) -> None:
    schema, says = HOSTILE[case]
    assert says in refusal_of(schema)
    assert says in (problem_of_schema(schema)({}) or "")


@pytest.mark.parametrize("dialect", [None, "https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"])  # fmt: skip
def test_no_pattern_hangs_a_call_in_any_dialect(dialect: str | None) -> None:
    schema = {**object_of(a={"pattern": "^(a+)+$"}), **({"$schema": dialect} if dialect else {})}
    program = "import sys, json; from metier_tools.json_schema import *; print(problem_of_schema(json.loads(sys.argv[1]))({'a': 'a' * 5000 + 'b'}))"
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(schema)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout == "a: it does not match '^(a+)+$'\n", ended.stderr


def test_more_values_than_can_be_checked_soon_are_refused() -> None:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}] * 90}}
    problem = problem_of_schema(schema)
    assert problem({"a": "b"}) is None
    assert problem({str(number): "b" for number in range(10_000)}) == "they are too many to be checked"


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], None),
        ([{"a": 1}, {"a": 2}], None),
        ([1, True], None),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "a: it has the same item twice"),
    ],
    ids=str,
)
def test_items_that_must_differ_are_compared_once(items: list[JsonValue], says: str | None) -> None:
    assert problem_of_schema(object_of(a={"uniqueItems": True}))({"a": items}) == says
    assert problem_of_schema(object_of(a={"uniqueItems": False}))({"a": items}) is None


def test_what_is_said_of_a_strangers_arguments_is_short_and_can_be_stored() -> None:
    problem = problem_of_schema({"type": "object", "additionalProperties": {"type": "integer"}})
    said = problem({"\ud800" * 1000 + str(number): "x" * 10_000 for number in range(9)}) or ""
    assert said.encode()
    assert len(said) < 2000


def test_numbers_that_cannot_be_compared_are_a_problem_and_no_crash() -> None:
    problem = problem_of_schema(object_of(a={"multipleOf": 0.1}))({"a": 10**400})
    assert problem is not None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"name": "git__" + "x" * 60}, "its name"),
        ({"name": "git__läg"}, "its name"),
        ({"name": "git__log\n"}, "its name"),
        ({"name": ""}, "its name"),
        ({"description": ""}, "its description"),
        ({"description": "x" * 4001}, "its description"),
        ({"also": {"outputSchema": nested(20)}}, "deeper than 16 levels"),
        ({"also": {"title": "x" * 33_000}}, "larger than 32768 bytes"),
        ({"parameters": {}}, "not one of an object"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_server_may_say_has_limits(change: dict[str, Any], says: str) -> None:
    assert says in accept(spec(**change))
    assert bool(accept(spec(**change))) == bool(says)
    if says:
        with pytest.raises(BadSpec, match="cannot be approved: "):
            approve({}, [spec(**change)], "git")


def test_a_server_has_a_limited_number_of_tools() -> None:
    many = [spec(name=f"git__t{number}") for number in range(pins.MOST_TOOLS + 1)]
    full = approve({}, many[:-1], "git")
    assert len(approve(full, [spec(name="hub__t")], "hub")) == pins.MOST_TOOLS + 1
    with pytest.raises(BadSpec, match="the server git has more than 128 approved tools"):
        approve(full, many[-1:], "git")


WORDS = ["type", "properties", "$ref", "allOf", "items", "pattern", "enum", "$defs", "required", "multipleOf"]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
SCHEMAS = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=4)


@given(schema=SCHEMAS, arguments=st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_no_schema_breaks_who_reads_it_and_what_is_refused_lets_nothing_pass(
    schema: dict[str, JsonValue], arguments: dict[str, JsonValue]
) -> None:
    refused = refusal_of({**schema, "type": "object"})
    problem = problem_of_schema({**schema, "type": "object"})(arguments)
    assert not refused or refused in (problem or "")


def test_the_limits_hold_at_their_edge() -> None:
    assert refusal_of(doublings(7)) == ""
    assert refusal_of(chain(json_schema.MOST_REFERENCES)) == ""
    assert refusal_of(object_of(a={"pattern": "a" * json_schema.LONGEST_PATTERN})) == ""
