"""Tools as data: schemas from types, digests that pin them, arguments that fit or are refused in a sentence a model can act on."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from metier_infra.errors import BadSpec
from metier_infra.messages import CallId, RunId, ToolCallId
from metier_tools.builtin import BUILTIN, PYTHON, SCRIPT_BYTES
from metier_tools.relay import Reply, reply_to, result_of
from metier_tools.tool import ToolCall, ToolResult, ToolSpec
from metier_tools.toolbox import Arguments, Refusal, Toolbox, declare


def test_the_schema_comes_from_the_types() -> None:
    python = BUILTIN.spec("python")
    assert python is not None
    assert python.parameters["required"] == ["code"]
    assert python.parameters["additionalProperties"] is False
    assert "title" not in str(python.parameters)
    assert BUILTIN.names == ("python", "shell")


@pytest.mark.parametrize(
    "change", [{"name": "x"}, {"description": "x"}, {"parameters": {}}, {"kind": "function"}], ids=str
)
def test_the_digest_changes_with_all_that_a_model_is_told(change: dict[str, object]) -> None:
    spec = PYTHON.spec
    assert spec.model_copy(update=change).digest != spec.digest
    assert spec.model_copy(update={"timeout_s": 99}).digest == spec.digest
    assert ToolSpec.model_validate_json(spec.model_dump_json()).digest == spec.digest


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("perl", {"code": "1"}, "no tool 'perl'; there are python, shell"),
        ("python", {}, "code: Field required"),
        ("python", {"code": 7}, "code: Input should be a valid string"),
        ("python", {"code": ""}, "code: String should have at least 1 character"),
        ("python", {"code": "1", "timeout": 3}, "timeout: Extra inputs are not permitted"),
        ("python", {"code": "\ud800"}, "code: Input should be a valid string"),
        ("python", {"code": "x" * 200_001}, "code: String should have at most 200000"),
        ("shell", {"script": "a\0b"}, "none of them NUL"),
        ("shell", {"script": "é" * (SCRIPT_BYTES // 2 + 1)}, "at most 120000 bytes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(tool: str, arguments: dict[str, JsonValue], says: str) -> None:
    refusal = BUILTIN.check(tool, arguments)
    assert isinstance(refusal, Refusal)
    assert says in refusal.sentence


def test_arguments_that_fit_give_the_spec() -> None:
    assert BUILTIN.check("shell", {"script": "true"}) == BUILTIN.spec("shell")


def test_a_toolbox_takes_no_two_tools_of_one_name_and_gives_only_what_it_has() -> None:
    with pytest.raises(BadSpec, match="two tools"):
        Toolbox([PYTHON, declare("python", "another", Arguments)])
    with pytest.raises(BadSpec, match="no tool 'perl'"):
        BUILTIN.specs(["python", "perl"])


def call() -> ToolCall:
    return ToolCall(
        tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), tool="python", arguments={}, deadline=0, timeout_s=1, grant=""
    )  # fmt: skip


def test_a_defect_of_the_runner_is_a_reply_that_says_so() -> None:
    def broken(_: ToolCall) -> ToolResult:
        raise ZeroDivisionError("oh")

    reply = Reply.model_validate_json(reply_to(call(), broken).model_dump_json())
    with pytest.raises(Exception, match="the tool runner broke: ZeroDivisionError: oh") as caught:
        result_of(reply)
    assert getattr(caught.value, "code", "") == "lane_gone"


def test_results_travel_whole() -> None:
    result = ToolResult(
        status="oom", exit_code=-9, stdout="a\ufffd\n", truncated=True, container="abc", cold=True, wall_ms=1.5
    )
    reply = Reply.model_validate_json(reply_to(call(), lambda _: result).model_dump_json())
    assert result_of(reply) == result
    assert not result.ok
