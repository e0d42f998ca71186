"""The tool lane, over both adapters: in this process, and through Celery on Redis to a real runner process with real containers.

Not here: what only a lane of several processes can show (`test_celery_lane`), the runner itself (`test_runner`), what programs may do.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from metier_infra.errors import DeadlineMissed, GrantRefused, LaneGone, ToolCancelled
from metier_tools.celery_lane import CeleryLane
from metier_tools.inline_lane import InlineLane
from metier_tools.lane import ToolLane
from metier_tools.runner import Runner
from metier_tools.tool import ToolCall, ToolResult

from .kit import (
    KEY,
    REDIS,
    Looker,
    Scripted,
    execution,
    granted_anew,
    listed,
    lives,
    processes,
    serving,
    tool_call,
    until,
)


async def test_a_call_is_answered_with_all_that_is_known_of_it(lane: ToolLane) -> None:
    result = await lane.call(tool_call())
    assert (result.status, result.exit_code, result.stdout, result.stderr, result.truncated) == (
        "ok",
        0,
        "42\n",
        "",
        False,
    )
    assert len(result.container) == 12
    assert result.image.startswith("sha256:")
    assert result.wall_ms > 0


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (lambda: tool_call("1/0"), "error", "ZeroDivisionError"),
        (lambda: tool_call("while True: pass", timeout_s=0.3), "timeout", ""),
        (lambda: tool_call(tool="perl"), "refused", "there is no tool 'perl'"),
        (lambda: tool_call(tool="shell"), "refused", "script: Field required"),
    ],
    ids=["error", "timeout", "unknown tool", "arguments"],
)
async def test_what_a_tool_does_wrong_is_a_result(
    lane: ToolLane, call: Callable[[], ToolCall], status: str, says: str
) -> None:
    result = await lane.call(call())
    assert result.status == status
    assert says in result.stderr


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tool_call(key=b"guessed"), GrantRefused, "signed with another key"),
        (lambda: tool_call(arguments={"code": "print(2)"}), GrantRefused, "not for this call"),
        (lambda: tool_call(left_s=-1), DeadlineMissed, "had passed before it could start"),
    ],
    ids=["forged", "other arguments", "too late"],
)
async def test_what_is_no_tools_fault_is_an_error_of_our_tree(
    lane: ToolLane, call: Callable[[], ToolCall], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await lane.call(call())


RANDOM = "import os; print(os.urandom(8).hex())"


async def test_the_same_call_again_is_the_same_work(lane: ToolLane) -> None:
    call = tool_call(RANDOM)
    first = await lane.call(call)
    assert await lane.call(call) == first
    assert (await lane.call(tool_call(RANDOM))).stdout != first.stdout


async def test_the_same_call_twice_at_once_runs_once(lane: ToolLane) -> None:
    call = tool_call("import os, time; time.sleep(0.3); print(os.urandom(8).hex())")
    first, second = await asyncio.gather(lane.call(call), lane.call(call))
    assert first == second


async def test_calls_of_one_run_share_a_container_and_runs_do_not(lane: ToolLane) -> None:
    runs = [uuid.uuid4().hex for _ in range(3)]
    results = await asyncio.gather(*[lane.call(tool_call(run=run)) for run in runs * 4])
    of_run = [{result.container for result in results[n::3]} for n in range(3)]
    assert [len(found) for found in of_run] == [1, 1, 1]
    assert len({result.container for result in results}) == 3


async def test_a_closed_lane_takes_no_calls(lane: ToolLane) -> None:
    await lane.close()
    with pytest.raises(LaneGone):
        await lane.call(tool_call())


async def given_up(call: asyncio.Task[ToolResult]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_cancel_ends_the_program_and_its_container_within_a_second(lane: ToolLane) -> None:
    run, mark = uuid.uuid4().hex, f"60.{uuid.uuid4().int}"
    held = (await lane.call(tool_call(run=run))).container
    program = f"import subprocess; subprocess.run(['sleep', '{mark}'])"
    call = asyncio.create_task(lane.call(tool_call(program, run=run)))
    assert await asyncio.to_thread(until, lambda: bool(processes(mark)), 15)
    found, began = processes(mark), time.monotonic()
    await given_up(call)
    assert await asyncio.to_thread(until, lambda: not any(map(lives, found)), 10)
    assert time.monotonic() - began < 1
    assert await asyncio.to_thread(until, lambda: not listed(held), 10)
    after = await lane.call(tool_call(run=run))
    assert after.ok
    assert after.container != held


# --- with one place for a call, and a sandbox that notes what it runs ---


@dataclass
class Narrow:
    """A lane to one runner that runs one call at a time, and another lane to the same."""

    lane: ToolLane
    other: ToolLane
    scripted: Scripted
    await_waiting: Callable[[], Awaitable[object]]
    await_told: Callable[[ToolCall], Awaitable[object]]


@asynccontextmanager
async def narrow_inline(folder: Path, namespace: str) -> AsyncGenerator[Narrow]:
    del folder, namespace
    scripted = Scripted()
    runner = Runner(execution(scripted.sandbox).run, KEY)
    lanes = [InlineLane(runner, scripted.sandbox, threads=1) for _ in range(2)]
    yield Narrow(lanes[0], lanes[1], scripted, lambda: asyncio.sleep(0), lambda _: asyncio.sleep(0))
    scripted.let_go.set()
    for lane in lanes:
        await lane.close()


@asynccontextmanager
async def narrow_celery(folder: Path, namespace: str) -> AsyncGenerator[Narrow]:
    scripted, looker = Scripted(), Looker(namespace)
    lanes = [CeleryLane(REDIS, KEY, namespace=namespace) for _ in range(2)]
    async with serving(folder, namespace, scripted):
        yield Narrow(lanes[0], lanes[1], scripted, lambda: looker.await_queued(1), looker.await_given_up)
    for lane in lanes:
        await lane.close()


@pytest.fixture(params=[narrow_inline, narrow_celery], ids=["inline", "celery"])
async def narrow(request: pytest.FixtureRequest, tmp_path: Path, namespace: str) -> AsyncGenerator[Narrow]:
    make: Callable[[Path, str], AbstractAsyncContextManager[Narrow]] = request.param
    async with make(tmp_path, namespace) as made:
        yield made


async def test_a_call_that_is_cancelled_before_it_starts_never_starts(narrow: Narrow) -> None:
    first = asyncio.create_task(narrow.lane.call(tool_call("long first")))
    await narrow.scripted.await_start("long first")
    call = tool_call("second")
    second = asyncio.create_task(narrow.lane.call(call))
    await narrow.await_waiting()
    await given_up(second)
    await narrow.await_told(call)
    third = asyncio.create_task(narrow.lane.call(tool_call("third")))
    narrow.scripted.let_go.set()
    assert (await first).ok
    assert (await third).ok
    assert narrow.scripted.ran == ["long first", "third"]


async def test_a_call_that_finds_no_place_before_its_deadline_ends_then_and_never_starts(narrow: Narrow) -> None:
    first = asyncio.create_task(narrow.lane.call(tool_call("long first")))
    await narrow.scripted.await_start("long first")
    with pytest.raises(LaneGone, match="before its deadline"):
        await asyncio.wait_for(narrow.lane.call(tool_call("second", left_s=1)), 1 + 2)
    third = asyncio.create_task(narrow.lane.call(tool_call("third")))
    narrow.scripted.let_go.set()
    assert (await first).ok
    assert (await third).ok
    assert narrow.scripted.ran == ["long first", "third"]


async def test_a_cancelled_call_makes_room_for_the_next(narrow: Narrow) -> None:
    first = asyncio.create_task(narrow.lane.call(tool_call("long first")))
    await narrow.scripted.await_start("long first")
    await given_up(first)
    assert (await asyncio.wait_for(narrow.lane.call(tool_call("next")), 15)).ok


async def test_a_call_goes_on_until_the_last_who_waits_for_it_gives_up(narrow: Narrow) -> None:
    call = tool_call("long")
    waiters = [asyncio.create_task(narrow.lane.call(call)) for _ in range(3)]
    await narrow.scripted.await_start("long")
    await given_up(waiters[0])
    await given_up(waiters[1])
    assert not waiters[2].done()
    narrow.scripted.let_go.set()
    assert (await waiters[2]).stdout == "did long"
    assert narrow.scripted.ran == ["long"]


async def test_whoever_else_waits_for_a_call_hears_that_it_was_cancelled(narrow: Narrow) -> None:
    call = tool_call("long")
    mine, others = (asyncio.create_task(lane.call(call)) for lane in (narrow.lane, narrow.other))
    await narrow.scripted.await_start("long")
    await given_up(mine)
    with pytest.raises(ToolCancelled, match="was cancelled by its caller"):
        await asyncio.wait_for(others, 15)


async def test_a_cancelled_call_may_be_made_again_under_a_new_grant_but_not_under_its_old_one(narrow: Narrow) -> None:
    call = tool_call("long")
    first = asyncio.create_task(narrow.lane.call(call))
    await narrow.scripted.await_start("long")
    await given_up(first)
    with pytest.raises(ToolCancelled):
        await asyncio.wait_for(narrow.other.call(call), 15)
    narrow.scripted.let_go.set()
    assert (await asyncio.wait_for(narrow.other.call(granted_anew(call)), 15)).stdout == "did long"
    assert narrow.scripted.ran == ["long", "long"]


def stand_still() -> None:
    """Hold the event loop, while threads go on."""
    time.sleep(0.05)


async def test_when_a_cancelled_call_ends_its_runner_has_been_told(tmp_path: Path, namespace: str) -> None:
    async with narrow_inline(tmp_path, namespace) as narrow:
        first = asyncio.create_task(narrow.lane.call(tool_call("long first")))
        await narrow.scripted.await_start("long first")
        second = asyncio.create_task(narrow.lane.call(tool_call("second")))
        await asyncio.sleep(0.01)
        await given_up(second)
        narrow.scripted.let_go.set()
        stand_still()
        assert (await first).ok
        assert narrow.scripted.ran == ["long first"]
