"""A tool call's grant: what it lets through, and every way in which one is not for this call."""

from __future__ import annotations

import pytest

from metier_infra.errors import GrantRefused
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools import grant
from metier_tools.tool import FileRef, Hold, ToolCall

KEY = b"the key that agents and runners share"
NOW = 1_000_000.0
FILE = FileRef(sha256="a1", size=3, inline="YWJj")
OTHER = FileRef(sha256="b2", size=3, inline="YWJj")


def signed(*, key: bytes = KEY) -> ToolCall:
    call = ToolCall(
        tool_call_id=ToolCallId("tool-call"),
        run_id=RunId("run"),
        call_id=CallId("call"),
        tool="python",
        digest="of the spec",
        arguments={"n": [1, 2.5, None], "code": "print(1)"},
        files={"in.csv": FILE},
        take=("out.csv", "log"),
        hold=Hold(profile="strict@1", egress=("a.test",)),
        deadline=NOW + 30,
        timeout_s=5,
        grant="",
    )
    return grant.granted(key, call)


def test_a_grant_lets_its_own_call_through_also_after_it_travelled() -> None:
    call = signed()
    grant.verify(KEY, call)
    grant.verify(KEY, ToolCall.model_validate_json(call.model_dump_json()))


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"code": "print(2)", "n": [1, 2.5, None]}},
        {"arguments": {}},
        {"run_id": "another"},
        {"call_id": "another"},
        {"tool_call_id": "another"},
        {"tool": "shell"},
        {"digest": "of another spec"},
        {"files": {}},
        {"files": {"in.csv": OTHER}},
        {"files": {"in.csv": FILE.model_copy(update={"inline": "eHh4"})}},
        {"timeout_s": 400},
        {"deadline": 1.0},
        {"deadline": NOW + 31},
        {"files": {"other.csv": FILE}},
        {"files": {"in.csv": FILE, "more.csv": FILE}},
        {"take": ()},
        {"take": ("log", "out.csv")},
        {"take": ("out.csv", "log", "key")},
        {"hold": None},
        {"hold": Hold(egress=("a.test",))},
        {"hold": Hold(profile="strict@2", egress=("a.test",))},
        {"hold": Hold(profile="strict@1")},
        {"hold": Hold(profile="strict@1", egress=("a.test", "b.test"))},
        {"hold": Hold(profile="strict@1", egress=("a.test",), functions=True)},
        {"grant": ""},
        {"grant": "v4"},
        {"grant": "v3:00"},
        {"grant": "v4:00"},
        {"grant": "v4:ü"},
        {"nonce": "another"},
    ],
    ids=str,
)
def test_a_grant_for_anything_else_is_refused(change: dict[str, object]) -> None:
    call = signed().model_copy(update=change)
    with pytest.raises(GrantRefused, match="not for this call"):
        grant.verify(KEY, call)


def test_another_key_signs_nothing() -> None:
    with pytest.raises(GrantRefused, match="another key"):
        grant.verify(KEY, signed(key=b"guessed"))


def test_each_sending_of_a_call_has_a_grant_of_its_own() -> None:
    call = signed()
    again = grant.granted(KEY, call)
    grant.verify(KEY, again)
    assert again.grant != call.grant
