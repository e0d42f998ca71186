"""Replies as they travel, and the desk that sends them: sealed, whole, to everybody who asked. Not here: Redis, Celery (`lanes`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from metier_infra.blobs import FolderBlobs
from metier_infra.errors import LaneGone, MetierError, ServerBroken, ToolCancelled
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools import grant
from metier_tools.builtin import BUILTIN
from metier_tools.execution import Execution
from metier_tools.relay import Desk, Order, RelayClient, RelayServer
from metier_tools.reply import Reply, call_digest, reply_to, result_of, seal, unseal
from metier_tools.runner import Runner
from metier_tools.sandbox import Outcome, Request, ScriptedSandbox
from metier_tools.tool import ToolCall, ToolResult
from metier_tools.vault import FixedVault

KEY = b"a key of the tests"


def travelled(reply: Reply) -> Reply:
    found = unseal(KEY, seal(KEY, reply))
    assert found is not None
    return found


def raising(error: Exception) -> Callable[[], ToolResult]:
    def answer() -> ToolResult:
        raise error

    return answer


def test_a_defect_of_the_runner_is_a_reply_that_says_so() -> None:
    reply = travelled(reply_to("t", "digest", raising(ZeroDivisionError("oh"))))
    with pytest.raises(LaneGone, match="the tool runner broke: ZeroDivisionError: oh"):
        result_of(reply)


@pytest.mark.parametrize("error", [ToolCancelled("no more"), ServerBroken("mute"), LaneGone("full")], ids=str)
def test_an_error_travels_as_itself(error: MetierError) -> None:
    with pytest.raises(type(error), match=str(error)):
        result_of(travelled(reply_to("t", "digest", raising(error))))


def test_results_travel_whole() -> None:
    result = ToolResult(
        status="oom", exit_code=-9, stdout="a\ufffd\n", truncated=True, container="abc", cold=True, wall_ms=1.5
    )
    assert result_of(travelled(reply_to("t", "digest", lambda: result))) == result
    assert not result.ok


REPLY = Reply(call_digest="t", result=ToolResult(status="ok", stdout="true"))
SEALED = seal(KEY, REPLY)


@pytest.mark.parametrize(
    "forged",
    [
        REPLY.model_dump_json().encode(),
        seal(b"guessed", REPLY),
        SEALED.replace(b"true", b"lies"),
        SEALED.replace(b'"t"', b'"u"'),
        SEALED[:-1],
        SEALED + b" ",
        b":" + SEALED.partition(b":")[2],
        b"",
        b"\xff" * 80,
    ],
    ids=["bare", "another key", "another text", "another call", "cut", "longer", "no signature", "nothing", "noise"],
)
def test_what_no_holder_of_the_key_sealed_is_not_a_reply(forged: bytes) -> None:
    assert unseal(KEY, SEALED) == REPLY
    assert unseal(KEY, forged) is None


class Counter:
    """A desk before a runner whose one program runs until it is let go, and all that was sent from it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Reply | None]] = []
        self.began, self.let_go = Event(), Event()
        execution = Execution(BUILTIN, ScriptedSandbox(self._script), FixedVault({}), FolderBlobs(Path("none"))).run
        self.desk = Desk(Runner(execution, KEY), KEY, self._push)

    def _script(self, request: Request) -> Outcome:
        self.began.set()
        self.let_go.wait(30)
        return Outcome("ok", 0, request.source)

    def _push(self, reply_list: str, sealed: bytes) -> None:
        self.sent.append((reply_list, unseal(KEY, sealed)))


def order(reply_list: str, *, key: bytes = KEY) -> bytes:
    deadline = time.time() + 30
    call = ToolCall(
        tool_call_id=ToolCallId("t"),
        run_id=RunId("r"),
        call_id=CallId("c"),
        tool="python",
        digest=BUILTIN.specs(["python"])[0].digest,
        arguments={"code": "1"},
        deadline=deadline,
        timeout_s=10,
        grant="",
    )
    call = grant.granted(key, call)
    return Order(call=call.model_dump_json(), reply_list=reply_list).model_dump_json().encode()


def digest_in(line: bytes) -> str:
    return call_digest(Order.model_validate_json(line).call)


def test_a_copy_is_told_at_once_that_its_call_is_in_hand_and_everybody_gets_the_answer() -> None:
    counter, line = Counter(), order("mine")
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(counter.desk.take, line)
        assert counter.began.wait(10)
        counter.desk.take(line.replace(b"mine", b"theirs"))
        assert counter.sent == [("theirs", Reply(call_digest=digest_in(line), in_hand=True))]
        assert not first.done()
        counter.let_go.set()
    answers = {to: reply.result.stdout for to, reply in counter.sent[1:] if reply and reply.result}
    assert answers == {"mine": "1", "theirs": "1"}
    counter.desk.take(line.replace(b"mine", b"late"))
    assert [(to, reply.in_hand) for to, reply in counter.sent[3:] if reply] == [("late", False)]


def test_a_forged_copy_gets_a_refusal_that_answers_no_other_call() -> None:
    counter, mine, theirs = Counter(), order("mine"), order("theirs", key=b"guessed")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(counter.desk.take, mine)
        assert counter.began.wait(10)
        counter.desk.take(theirs)
        counter.let_go.set()
    of = {to: reply for to, reply in counter.sent if reply}
    assert len(counter.sent) == 2
    assert of["mine"].result is not None
    assert of["theirs"].failure is not None
    assert of["theirs"].failure.code == "grant_refused"
    assert (of["mine"].call_digest, of["theirs"].call_digest) == (digest_in(mine), digest_in(theirs))


@pytest.mark.parametrize("line", [b"", b"{}", b'{"call":"{}","reply_list":"x"}', b"\xff"], ids=repr)
def test_what_is_not_a_call_is_dropped_and_frees_its_child(line: bytes) -> None:
    counter = Counter()
    counter.desk.take(line)
    assert counter.sent == []


def test_a_child_is_held_until_its_call_is_seen_through_and_hears_when_the_runner_is_gone() -> None:
    lines, readies = list[bytes](), list[int]()
    server = RelayServer(lines.append, lambda: readies.append(1))
    client = RelayClient(server.address)
    client.say_ready()
    client.bring(Order(call="{}", reply_list="x"))
    assert [Order.model_validate_json(line).reply_list for line in lines] == ["x"]
    assert readies == [1]
    client.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        RelayClient(server.address)
