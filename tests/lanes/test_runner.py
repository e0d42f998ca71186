"""The runner: deadlines, what is remembered, and how a call is given up. Not here: grants' own rules (`test_grant`), containers."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from metier_infra.errors import EngineGone, GrantRefused, ToolCancelled
from metier_tools.once import Once
from metier_tools.runner import Runner
from metier_tools.sandbox import Held, Outcome, Request, ScriptedSandbox
from metier_tools.tool import FileRef, ToolResult

from .kit import KEY, Scripted, execution, granted_anew, tool_call, until


def answer(request: Request) -> Outcome:
    return Outcome("ok", 0, request.source)


def test_a_runner_clips_the_tools_time_to_the_calls_deadline() -> None:
    asked: list[float] = []

    def note(request: Request) -> Outcome:
        asked.append(request.timeout_s)
        return answer(request)

    Runner(execution(ScriptedSandbox(note)).run, KEY).run(tool_call(left_s=2.0, timeout_s=99))
    assert 1.5 < asked[0] <= 2.0


def test_an_error_is_not_remembered() -> None:
    tries: list[int] = []

    def away(request: Request) -> Outcome:
        tries.append(1)
        if len(tries) == 1:
            raise EngineGone("away")
        return answer(request)

    runner, call = Runner(execution(ScriptedSandbox(away)).run, KEY), tool_call("1")
    with pytest.raises(EngineGone):
        runner.run(call)
    assert runner.run(call).ok
    assert runner.run(call).ok
    assert len(tries) == 2


def test_what_is_remembered_is_bounded() -> None:
    once, runs = Once(most=3, most_chars=100), list[str]()

    def run(key: str, result: ToolResult) -> None:
        def do() -> ToolResult:
            runs.append(key)
            return result

        work, ours = once.take(key, "a grant")
        if ours:
            once.settle(work, do)

    for key in "abcda":
        run(key, ToolResult(status="ok", stdout="x"))
    assert runs == ["a", "b", "c", "d", "a"]
    run("big", ToolResult(status="ok", stdout="x" * 40, files={"f": FileRef(sha256="", size=1, inline="x" * 59)}))
    run("d", ToolResult(status="ok", stdout="x"))
    assert runs[-2:] == ["big", "d"]


class Begun:
    """A runner with one long call in hand, on a thread."""

    def __init__(self) -> None:
        self.scripted, self.call = Scripted(), tool_call("long")
        self.runner = Runner(execution(self.scripted.sandbox).run, KEY)
        self.threads = ThreadPoolExecutor(4)
        self.answer = self.threads.submit(self.runner.run, self.call)
        assert until(lambda: bool(self.scripted.ran), 10)

    def end(self) -> None:
        self.scripted.let_go.set()
        self.threads.shutdown()


@pytest.fixture
def begun() -> Generator[Begun]:
    made = Begun()
    yield made
    made.end()


def test_a_cancel_ends_the_call_at_once(begun: Begun) -> None:
    assert list(begun.runner.in_hand) == [begun.call.tool_call_id]
    assert begun.runner.cancel(begun.call.tool_call_id, begun.call.grant)
    with pytest.raises(ToolCancelled):
        begun.answer.result(10)
    assert not begun.runner.in_hand


@pytest.mark.parametrize("proof", ["", "forged", "ü"])
def test_a_cancel_without_the_calls_grant_does_nothing(begun: Begun, proof: str) -> None:
    assert not begun.runner.cancel(begun.call.tool_call_id, proof)
    assert not begun.runner.has(begun.call.tool_call_id, proof)
    assert not begun.runner.cancel(begun.call.tool_call_id, tool_call().grant)
    assert begun.runner.has(begun.call.tool_call_id, begun.call.grant)
    begun.scripted.let_go.set()
    assert begun.answer.result(10).ok


def test_a_copy_of_a_cancelled_call_is_not_started_again(begun: Begun) -> None:
    begun.runner.cancel(begun.call.tool_call_id, begun.call.grant)
    with pytest.raises(ToolCancelled):
        begun.runner.run(begun.call)
    assert begun.scripted.ran == ["long"]


def test_what_another_caller_wants_too_goes_on_until_both_have_given_up(begun: Begun) -> None:
    name, anew = begun.call.tool_call_id, granted_anew(begun.call)
    another = begun.threads.submit(begun.runner.run, anew)
    assert until(lambda: begun.runner.has(name, anew.grant), 10)
    assert begun.runner.cancel(name, begun.call.grant)
    with pytest.raises(ToolCancelled):
        begun.runner.run(begun.call)
    assert begun.runner.has(name, anew.grant)
    assert not another.done()
    assert begun.runner.cancel(name, anew.grant)
    with pytest.raises(ToolCancelled):
        another.result(10)
    assert begun.scripted.ran == ["long"]


def test_a_copy_that_is_not_granted_learns_nothing_of_a_call_in_hand(begun: Begun) -> None:
    with pytest.raises(GrantRefused):
        begun.runner.run(begun.call.model_copy(update={"grant": "forged"}))


@pytest.mark.parametrize("deadline", [1.0, 9e9], ids=["past", "later"])
def test_a_call_whose_deadline_was_moved_is_refused(begun: Begun, deadline: float) -> None:
    with pytest.raises(GrantRefused, match="not for this call"):
        begun.runner.run(begun.call.model_copy(update={"deadline": deadline}))


def test_a_call_that_was_given_up_on_its_way_is_not_started() -> None:
    scripted = Scripted()
    runner = Runner(execution(scripted.sandbox).run, KEY, gave_up=lambda _: True)
    with pytest.raises(ToolCancelled):
        runner.run(tool_call("1"))
    assert scripted.ran == []
    assert runner.in_hand == ()


def test_a_cancel_between_taking_a_call_and_its_container_ends_it_before_the_program() -> None:
    scripted = Scripted()
    runner, call = Runner(execution(scripted.sandbox).run, KEY), tool_call("late", run="busy")
    with ThreadPoolExecutor(1) as threads:
        with scripted.sandbox.hold("busy", 1):
            answer = threads.submit(runner.run, call)
            assert until(lambda: runner.has(call.tool_call_id, call.grant), 10)
            assert runner.cancel(call.tool_call_id, call.grant)
        with pytest.raises(ToolCancelled):
            answer.result(10)
    assert scripted.ran == []
    assert runner.run(granted_anew(call)).ok
    assert scripted.ran == ["late"]


@pytest.mark.parametrize("ended", [False, True], ids=["within", "after"])
def test_only_a_container_that_the_call_still_holds_is_stopped(ended: bool) -> None:
    once, stops = Once(), list[str]()
    work, _ = once.take("id", "grant")
    held = Held("box", "image", False, 0.0, 0.0, lambda _: Outcome("ok"), lambda: stops.append("box"))
    with suppress(ToolCancelled), work.holding(held):
        if not ended:
            assert once.give_up("id", "grant")
    if ended:
        assert once.give_up("id", "grant")
    assert stops == ([] if ended else ["box"])
    assert isinstance(work.answer.exception(5), ToolCancelled)


def test_what_is_finished_cannot_be_cancelled() -> None:
    runner, call = Runner(execution(ScriptedSandbox(answer)).run, KEY), tool_call("1")
    first = runner.run(call)
    assert not runner.cancel(call.tool_call_id, call.grant)
    assert runner.run(call) == first


def test_a_cancel_that_races_the_end_leaves_one_answer() -> None:
    for _ in range(200):
        once, start = Once(), threading.Barrier(2)
        work, _ = once.take("id", "grant")

        def cancel(once: Once = once, start: threading.Barrier = start) -> None:
            start.wait()
            once.give_up("id", "grant")

        racer = threading.Thread(target=cancel)
        racer.start()
        start.wait()
        once.settle(work, lambda: ToolResult(status="ok"))
        racer.join()
        error = work.answer.exception(5)
        assert error is None or isinstance(error, ToolCancelled)
        assert once.keys() == ()
