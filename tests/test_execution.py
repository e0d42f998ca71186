"""One call by the kind of its tool: what the container is asked, what is refused before anything starts, and what comes back.

The sandbox is scripted, so that every request is seen; real containers are in test_tool_kinds.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from metier_infra.blobs import FolderBlobs
from metier_infra.errors import MissingBlob
from metier_infra.words import CallId, RunId, ToolCallId
from metier_tools import function_call
from metier_tools.builtin import BUILTIN
from metier_tools.declare import Arguments, from_model
from metier_tools.declare import tool as declared
from metier_tools.execution import INLINE, Execution
from metier_tools.profile import Profile
from metier_tools.sandbox import Held, Outcome, Request, ScriptedSandbox
from metier_tools.tool import FileRef, ToolCall, ToolResult
from metier_tools.toolbox import Action, Command, Fixed, Function, ServerTool, Tool, Toolbox, Written
from metier_tools.vault import FixedVault

TOKEN = "t0p-s3cret-value"


class Text(Arguments):
    text: str
    times: int = 2


def tool(action: Action, name: str = "mine", **more: Any) -> Tool:
    return from_model(name, "What it does.", Text, action, **more)


@dataclass
class Bench:
    """An execution over a sandbox that remembers what it was asked."""

    folder: Path
    answer: Callable[[Request], Outcome] = lambda _: Outcome("ok", 0, "done")
    asked: list[Request] = field(default_factory=list[Request])

    def run(self, made: Tool, arguments: Mapping[str, JsonValue] | None = None, **change: Any) -> ToolResult:
        def script(request: Request) -> Outcome:
            self.asked.append(request)
            return self.answer(request)

        execution = Execution(
            Toolbox([made]), ScriptedSandbox(script), FixedVault({"TOKEN": TOKEN}), FolderBlobs(self.folder)
        )
        call = ToolCall(
            tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), tool=made.spec.name, digest=made.spec.digest,
            arguments=dict(arguments if arguments is not None else {"text": "hi"}), deadline=time.time() + 20, timeout_s=5, grant="",
        )  # fmt: skip
        return execution.run(call.model_copy(update=change), lambda held: nullcontext())

    @property
    def only(self) -> Request:
        (request,) = self.asked
        return request


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_program_that_the_model_wrote_is_run(bench: Bench) -> None:
    bench.run(tool(Written("python", "text")), {"text": "print(1)"})
    assert (bench.only.runs, bench.only.source, bench.only.stdin) == ("python", "print(1)", b"")


def test_an_authors_program_gets_the_arguments_and_their_defaults_as_json(bench: Bench) -> None:
    bench.run(tool(Fixed("shell", "cat")), {"text": "é"})
    assert (bench.only.runs, bench.only.source) == ("shell", "cat")
    assert bench.only.stdin.decode() == '{"times": 2, "text": "é"}'


def test_a_command_gets_its_words(bench: Bench) -> None:
    bench.run(tool(Command(("grep", "-c", "--", "{text}"), "{times}")), {"text": "-x; rm"})
    assert (bench.only.runs, bench.only.argv, bench.only.stdin) == ("command", ("grep", "-c", "--", "-x; rm"), b"2")


def test_a_value_that_would_be_an_option_starts_nothing(bench: Bench) -> None:
    result = bench.run(tool(Command(("grep", "{text}"))), {"text": "--file=/etc/passwd"})
    assert (result.status, "would be taken for an option" in result.stderr, bench.asked) == ("refused", True, [])


def test_a_servers_tool_is_called_by_its_own_name_with_the_digest_that_was_approved(bench: Bench) -> None:
    made = tool(ServerTool("calc", ("calc-server",), "add"), "calc__add", secrets=("TOKEN",))
    bench.run(made)
    assert (bench.only.runs, bench.only.source, bench.only.digest) == ("mcp", "add", made.spec.digest)
    assert bench.only.environment == {}


def test_secrets_go_into_the_calls_frame_and_never_come_out(bench: Bench) -> None:
    bench.answer = lambda request: Outcome(
        "error", 1, f"key={request.environment['TOKEN']}", base64.b64encode(TOKEN.encode()).decode(), files={"f": TOKEN.encode()}
    )  # fmt: skip
    result = bench.run(tool(Written("python", "text"), secrets=("TOKEN",), take=("f",)))
    assert bench.only.environment == {"TOKEN": TOKEN}
    assert (result.stdout, result.stderr) == ("key=[secret]", "[secret]")
    assert base64.b64decode(result.files["f"].inline or "") == b"[secret]"
    assert TOKEN not in repr(bench.only) + result.model_dump_json()


def test_a_secret_that_is_not_there_starts_nothing(bench: Bench) -> None:
    result = bench.run(tool(Written("python", "text"), secrets=("OTHER",)))
    assert (result.status, "needs the secret OTHER" in result.stderr, bench.asked) == ("refused", True, [])
    assert "METIER_TOOL_SECRETS" in result.stderr


def test_a_tool_that_is_not_the_one_that_was_offered_starts_nothing(bench: Bench) -> None:
    result = bench.run(tool(Written("python", "text")), digest="0" * 64)
    assert (result.status, "is not the same here as where it was offered" in result.stderr, bench.asked) == (
        "refused",
        True,
        [],
    )


def test_a_disabled_tool_starts_nothing(bench: Bench) -> None:
    made = Tool(BUILTIN_PYTHON.spec, BUILTIN_PYTHON.action, BUILTIN_PYTHON.problem, disabled="its description changed")
    result = bench.run(made, {"code": "1"})
    assert (result.status, result.stderr, bench.asked) == (
        "refused",
        "the tool python is disabled: its description changed",
        [],
    )


BUILTIN_PYTHON = next(one for one in BUILTIN if one.spec.name == "python")


def test_small_files_travel_inside_and_large_ones_by_claim(bench: Bench) -> None:
    large = bytes(INLINE + 1)
    bench.answer = lambda request: Outcome(
        "ok", 0, files={"small": b"s", "large": large}, left_out={"gone": "it is not there"}
    )
    claim = FolderBlobs(bench.folder).put(large)
    given = {"in/a": FileRef.holding(b"a"), "in/b": FileRef(sha256=claim, size=len(large))}
    result = bench.run(tool(Written("python", "text")), files=given, take=("small", "large", "gone"))
    assert bench.only.files == {"in/a": b"a", "in/b": large}
    assert bench.only.take == ("small", "large", "gone")
    assert result.files["small"] == FileRef.holding(b"s")
    assert (result.files["large"].inline, FolderBlobs(bench.folder).get(result.files["large"].sha256)) == (None, large)
    assert result.left_out == {"gone": "it is not there"}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/etc/passwd", "relative to the scratch folder"),
        ("../x", "relative to the scratch folder"),
        ("a/../../x", "relative to the scratch folder"),
        ("a//b", "relative to the scratch folder"),
        (".", "relative to the scratch folder"),
        ("", "it is empty"),
        ("a\0b", "NUL"),
        ("a\nb", "a line end"),
        ("a\x1b[2J", "cannot be printed"),
        ("x" * 256, "longer than 255 bytes"),
    ],
)
def test_a_path_that_leads_elsewhere_starts_nothing(bench: Bench, path: str, says: str) -> None:
    made = tool(Written("python", "text"))
    for result in (bench.run(made, files={path: FileRef.holding(b"")}), bench.run(made, take=(path,))):
        assert (result.status, says in result.stderr, bench.asked) == ("refused", True, [])


def test_files_beyond_the_profile_or_of_another_size_start_nothing(bench: Bench) -> None:
    small = Profile(name="small", put_bytes=10)
    result = bench.run(tool(Written("python", "text"), profile=small), files={"f": FileRef.holding(b"x" * 11)})
    assert (result.status, "more than 10 bytes" in result.stderr) == ("refused", True)
    lying = FileRef.holding(b"x" * 11).model_copy(update={"size": 1})
    result = bench.run(tool(Written("python", "text"), profile=small), files={"f": lying})
    assert (result.status, "not the size that was said" in result.stderr, bench.asked) == ("refused", True, [])


def test_standard_input_counts_with_the_files(bench: Bench) -> None:
    small = Profile(name="small", put_bytes=40)
    command = tool(Command(("cat",), "{text}"), profile=small)
    given = {"f": FileRef.holding(b"x" * 30)}
    assert bench.run(command, {"text": "x" * 10}, files=given).status == "ok"
    bench.asked.clear()
    program = tool(Fixed("python", "1"), profile=small)
    large = [
        bench.run(command, {"text": "x" * 11}, files=given),
        bench.run(command, {"text": "é" * 21}),
        bench.run(program, {"text": "x" * 20}),
    ]
    for result in large:
        assert (result.status, "standard input of this call take more than 40 bytes" in result.stderr, bench.asked) == (
            "refused",
            True,
            [],
        )


@pytest.mark.parametrize("action", [Function(len), ServerTool("calc", ("calc-server",), "add")])
def test_files_where_no_program_runs_are_refused(bench: Bench, action: Action) -> None:
    made = tool(action, "calc__add")
    changes: list[dict[str, Any]] = [{"files": {"a": FileRef.holding(b"")}}, {"take": ("a",)}]
    for change in changes:
        result = bench.run(made, **change)
        assert (result.status, "can bring no files" in result.stderr, bench.asked) == ("refused", True, [])


def test_a_call_has_at_most_64_files_each_way(bench: Bench) -> None:
    made = tool(Written("python", "text"))
    names = [f"f{n}" for n in range(65)]
    changes: list[dict[str, Any]] = [{"files": dict.fromkeys(names, FileRef.holding(b""))}, {"take": tuple(names)}]
    for change in changes:
        result = bench.run(made, **change)
        assert (result.status, "at most 64 files" in result.stderr, bench.asked) == ("refused", True, [])
    assert bench.run(made, take=tuple(names[:64])).status == "ok"


def test_a_claim_on_nothing_is_an_error(bench: Bench) -> None:
    with pytest.raises(MissingBlob):
        bench.run(tool(Written("python", "text")), files={"f": FileRef(sha256="0" * 64, size=1)})


def test_the_result_says_under_which_limits_it_came_to_be(bench: Bench) -> None:
    result = bench.run(tool(Written("python", "text"), profile=Profile(name="wide", version=3)))
    assert (result.profile, result.container, result.image) == ("wide@3", "scripted-r", ScriptedSandbox.IMAGE)


# --- trusted functions ---


def said(text: str, times: int) -> dict[str, list[str]]:
    return {"said": [text] * times}


async def twice(text: str, times: int = 2) -> str:
    await asyncio.sleep(0)
    return text * times


def broken(text: str, times: int) -> str:
    raise KeyError(text * times)


def unshowable(text: str, times: int) -> set[str]:
    return {text * times}


def loud(text: str, times: int) -> str:
    raise ValueError("x" * 5_000_000)


def unfit_to_keep(text: str, times: int) -> str:
    if text == "raises":
        raise ValueError("a\0b\ud800c")
    return "a\0b\ud800c"


def leaves(text: str, times: int) -> str:
    raise SystemExit(text)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets the endless functions of a test end; it waits until they have."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "function-mine":
            thread.join(10)
    assert function_call.STRAGGLERS.count() == 0


def of_no_json(number: float, text: str, times: int) -> list[float]:
    return [number] * len(text) * times


def endless(release: threading.Event) -> Tool:
    def wait(text: str, times: int) -> str:
        release.wait(30)
        return text * times

    return tool(Function(wait))


def test_a_function_is_called_with_the_arguments_and_their_defaults_and_its_result_is_text(bench: Bench) -> None:
    result = bench.run(tool(Function(said)), {"text": "é"})
    assert (result.status, result.stdout, bench.asked) == ("ok", '{"said": ["é", "é"]}', [])


def test_an_async_function_is_awaited(bench: Bench) -> None:
    assert bench.run(tool(Function(twice)), {"text": "ab"}).stdout == "abab"


def test_what_a_function_raises_or_cannot_be_shown_is_a_result(bench: Bench) -> None:
    result = bench.run(tool(Function(broken)))
    assert (result.status, result.stderr) == ("error", "KeyError: 'hihi'")
    assert "not JSON serializable" in bench.run(tool(Function(unshowable))).stderr
    for number in (float("nan"), float("-inf")):
        none = bench.run(tool(Function(partial(of_no_json, number))))
        assert (none.status, none.stdout) == ("error", "")
        assert "what it returned cannot be written as JSON" in none.stderr
    assert bench.run(tool(Function(leaves))).stderr == "SystemExit: hi"


def test_what_a_function_says_is_cut_and_can_be_kept(bench: Bench) -> None:
    result = bench.run(tool(Function(loud)))
    assert (result.status, len(result.stderr), result.truncated) == ("error", function_call.KEEP, True)
    assert bench.run(tool(Function(unfit_to_keep))).stdout == "a\ufffdb\ufffdc"
    assert bench.run(tool(Function(unfit_to_keep)), {"text": "raises"}).stderr == "ValueError: a\ufffdb\ufffdc"


def test_an_async_function_is_cancelled_at_its_time(bench: Bench) -> None:
    cancelled = threading.Event()

    @declared(name="mine", kind="function", timeout_s=0.1)
    async def waits(text: str) -> str:
        """Wait for ever."""
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return text

    assert bench.run(waits, timeout_s=0.1).status == "timeout"
    assert cancelled.wait(10)


def test_a_function_that_does_not_end_is_left_alone_at_its_time(bench: Bench, release: threading.Event) -> None:
    assert bench.run(endless(release), timeout_s=0.1).status == "timeout"


def test_only_so_many_functions_may_go_on_alone(bench: Bench, release: threading.Event) -> None:
    made = endless(release)
    late = [bench.run(made, timeout_s=0.01).status for _ in range(function_call.MOST_STRAGGLERS)]
    refused = bench.run(tool(Function(said)))
    assert (set(late), refused.status, "32 functions did not end" in refused.stderr) == ({"timeout"}, "refused", True)
    release.set()
    for thread in threading.enumerate():
        if thread.name == "function-mine":
            thread.join(10)
    assert bench.run(tool(Function(said))).status == "ok"


def test_a_function_is_given_up_when_its_call_is(bench: Bench, release: threading.Event) -> None:
    def holding(one: Held) -> nullcontext[None]:
        threading.Timer(0.05, one.stop).start()
        return nullcontext()

    made = endless(release)
    execution = Execution(
        Toolbox([made]), ScriptedSandbox(lambda _: Outcome("ok")), FixedVault({}), FolderBlobs(bench.folder)
    )
    call = ToolCall(
        tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), tool="mine", digest=made.spec.digest,
        arguments={"text": "x"}, deadline=time.time() + 20, timeout_s=20, grant="",
    )  # fmt: skip
    assert execution.run(call, holding).status == "died"
