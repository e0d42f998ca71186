"""What only a lane of several processes can show: kills, drains, lost connections, lost data, forgeries, copies, spans."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
import structlog

from metier_infra.errors import BadSettings, LaneGone, MetierError, ToolCancelled
from metier_infra.settings import LaneSettings, RoleSettings, SandboxSettings, load
from metier_tools.celery_app import Config, Note
from metier_tools.celery_lane import CeleryLane
from metier_tools.lane import ToolLane
from metier_tools.redis_line import check_broker
from metier_tools.reply import Reply, call_digest, seal
from metier_tools.serve import serve_tools
from metier_tools.tool import ToolCall, ToolResult

from .conftest import celery
from .kit import (
    KEY,
    REDIS,
    Gate,
    Looker,
    Receiver,
    Scripted,
    Tools,
    execution,
    lives,
    offspring,
    read,
    serving,
    tool_call,
    until,
)


def lane_to(namespace: str, *, url: str = REDIS, resend_s: float = 5.0) -> CeleryLane:
    return CeleryLane(url, KEY, namespace=namespace, resend_s=resend_s)


async def test_without_a_runner_the_lane_is_gone_at_the_deadline(namespace: str) -> None:
    lane, began = lane_to(namespace), time.monotonic()
    with pytest.raises(LaneGone, match="no tool runner answered"):
        await lane.call(tool_call(left_s=0.7))
    assert time.monotonic() - began < 10
    await lane.close()


async def test_a_caller_that_gives_up_leaves_the_lane_in_order(tools: Tools) -> None:
    lane = await celery(tools)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lane.call(tool_call("import time; time.sleep(1)")), 0.2)
    assert (await lane.call(tool_call())).ok
    await lane.close()


async def test_spans_of_a_call_are_children_of_the_caller_and_out_within_a_second(
    tools: Tools, receiver: Receiver
) -> None:
    lane = await celery(tools)
    trace, parent = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    call = tool_call(traceparent=f"00-{trace}-{parent}-01")
    result = await lane.call(call)
    assert await asyncio.to_thread(until, lambda: len(receiver.of(trace)) == 3, 2)
    spans = receiver.of(trace)
    root = spans["execute_tool python"]
    assert root.parent_span_id.hex() == parent
    assert {spans[name].parent_span_id for name in ("sandbox.lease", "sandbox.exec")} == {root.span_id}
    noted = {one.key: one.value for one in spans["sandbox.exec"].attributes}
    assert noted["metier.sandbox.container.id"].string_value == result.container
    assert "print(6*7)" not in str(receiver.spans)
    await lane.close()


async def test_a_killed_runner_leaves_nothing_its_calls_go_to_the_next_and_that_one_drains(
    tmp_path: Path, namespace: str
) -> None:
    first = Tools(tmp_path, namespace)
    await asyncio.to_thread(first.await_ready)
    lane = lane_to(namespace, resend_s=2.0)
    call = asyncio.create_task(lane.call(tool_call("import time; time.sleep(1.5); print('done')", left_s=60)))
    await asyncio.sleep(1)
    family = first.family()
    assert len(family) == 4
    first.kill()
    assert await asyncio.to_thread(until, lambda: not first.containers(), 5)
    assert await asyncio.to_thread(until, lambda: not any(map(lives, family)), 5)
    second = Tools(tmp_path, namespace)
    try:
        assert (await call).stdout == "done\n"
        await drains(second, lane)
    finally:
        await lane.close()
        second.kill()


async def drains(tools: Tools, lane: ToolLane) -> None:
    """SIGTERM: the call in hand is finished and answered, the process is not ready any more and ends well, nothing is left."""
    assert tools.ready.exists()
    call = asyncio.create_task(lane.call(tool_call("import time; time.sleep(1); print('drained')")))
    await asyncio.sleep(0.5)
    assert await asyncio.to_thread(tools.end) == 0
    assert (await call).stdout == "drained\n"
    assert not tools.ready.exists()
    assert tools.containers() == []


async def test_a_lane_that_is_closed_under_a_call_says_so(namespace: str) -> None:
    lane = lane_to(namespace)
    call = asyncio.create_task(lane.call(tool_call()))
    await asyncio.sleep(0.2)
    await lane.close()
    with pytest.raises(LaneGone, match="closed under the call"):
        await asyncio.wait_for(call, 1)


async def test_calls_outlive_a_redis_that_goes_away_for_a_while(tmp_path: Path, namespace: str) -> None:
    gate = Gate()
    await gate.open()
    tools = Tools(tmp_path, namespace, redis_url=gate.url)
    lane = lane_to(namespace, url=gate.url, resend_s=1.0)
    try:
        await asyncio.to_thread(tools.await_ready)
        assert (await lane.call(tool_call())).ok
        in_hand = asyncio.create_task(lane.call(tool_call("import time; time.sleep(0.5); print('a')", left_s=30)))
        await asyncio.sleep(0.3)
        await gate.shut()
        unsent = asyncio.create_task(lane.call(tool_call("print('b')", left_s=30)))
        await asyncio.sleep(1.5)
        await gate.open()
        assert [(await call).stdout for call in (in_hand, unsent)] == ["a\n", "b\n"]
    finally:
        await lane.close()
        await asyncio.to_thread(tools.end)
        await gate.shut()


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("redis://127.0.0.1:1/0", LaneGone, "no Redis answers where METIER_REDIS_URL says"),
        ("127.0.0.1:6379", BadSettings, "METIER_REDIS_URL is not a Redis URL"),
    ],
    ids=["away", "no address"],
)
def test_no_redis_is_said_so(url: str, kind: type[MetierError], says: str) -> None:
    with pytest.raises(kind, match=says):
        check_broker(url)


async def test_a_runner_that_starts_while_redis_is_away_waits_for_it_and_says_so(
    tmp_path: Path, namespace: str
) -> None:
    # Given a Redis that hangs up on whoever comes
    gate, came = Gate(), asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        writer.transport.abort()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as away:
        gate.port = away.sockets[0].getsockname()[1]
        tools = Tools(tmp_path, namespace, redis_url=gate.url)
        # When a runner has come, and then Redis is there
        await asyncio.wait_for(came.wait(), 30)
    await gate.open()
    # Then it serves
    await asyncio.to_thread(tools.await_ready)
    assert await asyncio.to_thread(tools.end) == 0
    await gate.shut()


async def test_a_runner_that_waits_for_redis_ends_when_it_is_told_to() -> None:
    stop, lane = asyncio.Event(), LaneSettings.model_validate({"redis_url": "redis://127.0.0.1:1/0", "grant_key": "k"})
    with structlog.testing.capture_logs() as logs:
        runs = asyncio.create_task(
            serve_tools(lane, load(SandboxSettings), load(RoleSettings), stop, execution=execution)
        )
        said = await asyncio.to_thread(until, lambda: any(one.get("action") == "retry" for one in logs), 30)
    stop.set()

    await asyncio.wait_for(runs, 30)
    assert said


@pytest.mark.parametrize(
    ("lane", "says"),
    [({}, "METIER_REDIS_URL is not set"), ({"redis_url": REDIS}, "METIER_GRANT_KEY is not set")],
    ids=["redis", "key"],
)
async def test_a_setting_that_a_runner_needs_is_named(
    lane: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("METIER_REDIS_URL", "METIER_GRANT_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BadSettings, match=says):
        await serve_tools(
            LaneSettings.model_validate(lane),
            SandboxSettings.model_validate({}),
            RoleSettings.model_validate({}),
            asyncio.Event(),
            execution=execution,
        )


# --- copies ---


async def test_a_call_that_nobody_takes_is_sent_again_ever_more_rarely(namespace: str) -> None:
    lane = lane_to(namespace, resend_s=0.1)
    with pytest.raises(LaneGone):
        await lane.call(tool_call(left_s=2.5))
    await lane.close()
    assert 3 <= Looker(namespace).queued() <= 4


async def test_a_copy_of_a_call_in_hand_leaves_its_child_free_and_both_callers_get_the_answer(
    tmp_path: Path, namespace: str
) -> None:
    scripted, call = Scripted(), tool_call("long")
    lane, other = lane_to(namespace), lane_to(namespace)
    async with serving(tmp_path, namespace, scripted, children=2):
        first = asyncio.create_task(lane.call(call))
        await scripted.await_start("long")
        copy = asyncio.create_task(other.call(call))
        assert (await asyncio.wait_for(other.call(tool_call("meanwhile")), 15)).ok
        assert not first.done()
        scripted.let_go.set()
        assert (await first).stdout == (await copy).stdout == "did long"
        assert scripted.ran == ["long", "meanwhile"]
    await lane.close()
    await other.close()


async def test_a_call_in_hand_is_not_sent_again_nor_run_by_a_second_runner(tmp_path: Path, namespace: str) -> None:
    one, two, call = Scripted(), Scripted(), tool_call("long", left_s=30)
    lane = lane_to(namespace, resend_s=0.2)
    async with serving(tmp_path, namespace, one), serving(tmp_path, namespace, two):
        with Looker(namespace).listening() as asked:
            answer = asyncio.create_task(lane.call(call))
            for _ in range(5):
                assert await asyncio.to_thread(until, asked, 10)
        one.let_go.set()
        two.let_go.set()
        assert (await answer).ok
    assert one.ran + two.ran == ["long"]
    await lane.close()


async def test_copies_that_are_left_over_are_known_not_to_be_wanted(tmp_path: Path, namespace: str) -> None:
    scripted, looker, call = Scripted(), Looker(namespace), tool_call("wanted", left_s=30)
    lane, config = lane_to(namespace, resend_s=0.2), Config(redis_url=REDIS, namespace=namespace)
    async with serving(tmp_path, namespace, scripted):
        first = asyncio.create_task(lane.call(tool_call("long")))
        await scripted.await_start("long")
        answer = asyncio.create_task(lane.call(call))
        await looker.await_queued(2)
        scripted.let_go.set()
        assert (await answer).ok
        assert (await first).ok
        key = config.given_up(call.tool_call_id)
        assert await asyncio.to_thread(until, lambda: looker.redis.get(key) == call.grant.encode(), 10)
    await lane.close()


# --- forgeries ---


async def test_a_reply_that_no_runner_signed_is_not_believed(tmp_path: Path, namespace: str) -> None:
    scripted, call = Scripted(), tool_call("long")
    lane, redis = lane_to(namespace), Looker(namespace).redis
    lies = Reply(call_digest=call_digest(call.model_dump_json()), result=ToolResult(status="ok", stdout="lies"))
    async with serving(tmp_path, namespace, scripted):
        answer = asyncio.create_task(lane.call(call))
        await scripted.await_start("long")
        for forged in (lies.model_dump_json().encode(), seal(b"guessed", lies), b"", b"not a reply", b"\xff:{}"):
            redis.rpush(lane.reply_list, forged)
        assert await asyncio.to_thread(until, lambda: not redis.exists(lane.reply_list), 10)
        scripted.let_go.set()
        assert (await asyncio.wait_for(answer, 15)).stdout == "did long"
    await lane.close()


@pytest.mark.parametrize(
    "change",
    [{"grant": "forged"}, {"deadline": 1.0}, {"grant": "forged", "deadline": 1.0}, {"arguments": {}}],
    ids=["grant", "deadline", "grant and deadline", "arguments"],
)
async def test_what_a_runner_says_to_a_forged_call_ends_no_other(
    tmp_path: Path, namespace: str, change: dict[str, object]
) -> None:
    scripted, call, lane = Scripted(), tool_call("long"), lane_to(namespace)
    forged = call.model_copy(update=change).model_dump_json()
    async with serving(tmp_path, namespace, scripted, children=2):
        answer = asyncio.create_task(lane.call(call))
        await scripted.await_start("long")
        await asyncio.to_thread(Looker(namespace).send, forged, lane.reply_list)
        assert (await asyncio.wait_for(lane.call(tool_call("after the forged one")), 15)).ok
        assert not answer.done()
        scripted.let_go.set()
        assert (await asyncio.wait_for(answer, 15)).stdout == "did long"
    await lane.close()


async def test_a_cancel_with_a_forged_grant_does_nothing(tmp_path: Path, namespace: str) -> None:
    scripted, running, queued = Scripted(), tool_call("long"), tool_call("queued")
    lane, looker, config = lane_to(namespace), Looker(namespace), Config(redis_url=REDIS, namespace=namespace)
    async with serving(tmp_path, namespace, scripted):
        answers = [asyncio.create_task(lane.call(running))]
        await scripted.await_start("long")
        answers.append(asyncio.create_task(lane.call(queued)))
        await looker.await_queued(1)
        for call in (running, queued):
            for proof in ("", "forged", tool_call().grant):
                looker.redis.set(config.given_up(call.tool_call_id), proof)
                note = Note(tool_call_id=call.tool_call_id, grant=proof)
                assert looker.redis.publish(config.notes, note.model_dump_json()) == 1
        looker.redis.publish(config.notes, b"not a note")
        await heard(looker, config, running)
        scripted.let_go.set()
        assert [(await asyncio.wait_for(one, 15)).ok for one in answers] == [True, True]
    await lane.close()


async def heard(looker: Looker, config: Config, call: ToolCall) -> None:
    """All notes so far have been obeyed: the answer to a question after them is there."""
    asked = Note(tool_call_id=call.tool_call_id, grant=call.grant, reply_list=config.replies("asked"))
    looker.redis.publish(config.notes, asked.model_dump_json())
    assert await asyncio.to_thread(looker.redis.blpop, [config.replies("asked")], 10), "the runner does not listen"


# --- Redis loses things ---


async def test_a_cancel_that_a_runner_could_not_hear_is_found_when_it_hears_again(
    tmp_path: Path, namespace: str
) -> None:
    gate, scripted, call = Gate(), Scripted(), tool_call("long", left_s=60)
    await gate.open()
    lane, other = lane_to(namespace), lane_to(namespace)
    async with serving(tmp_path, namespace, scripted, url=gate.url):
        mine, others = (asyncio.create_task(one.call(call)) for one in (lane, other))
        await scripted.await_start("long")
        await gate.shut()
        mine.cancel()
        key = Config(redis_url=REDIS, namespace=namespace).given_up(call.tool_call_id)
        assert await asyncio.to_thread(until, lambda: bool(Looker(namespace).redis.exists(key)), 10)
        assert not others.done()
        await gate.open()
        with pytest.raises(ToolCancelled):
            await asyncio.wait_for(others, 20)
    await lane.close()
    await other.close()
    await gate.shut()


async def test_a_cancel_that_could_not_be_sent_is_sent_when_redis_is_there_again(
    tmp_path: Path, namespace: str
) -> None:
    gate, scripted, call = Gate(), Scripted(), tool_call("long", left_s=60)
    await gate.open()
    lane, other = lane_to(namespace, url=gate.url), lane_to(namespace)
    async with serving(tmp_path, namespace, scripted):
        mine, others = (asyncio.create_task(one.call(call)) for one in (lane, other))
        await scripted.await_start("long")
        await gate.shut()
        mine.cancel()
        with structlog.testing.capture_logs() as logs:
            assert await asyncio.to_thread(until, lambda: any(one["event"] == "cancel not sent" for one in logs), 10)
        assert not others.done()
        await gate.open()
        with pytest.raises(ToolCancelled):
            await asyncio.wait_for(others, 20)
    await lane.close()
    await other.close()
    await gate.shut()


async def test_a_child_that_is_killed_takes_no_answer_with_it(tmp_path: Path, namespace: str) -> None:
    scripted, lane = Scripted(), lane_to(namespace)
    async with serving(tmp_path, namespace, scripted):
        answer = asyncio.create_task(lane.call(tool_call("long")))
        await scripted.await_start("long")
        workers = [one for one in offspring(os.getpid()) if b"celery_worker" in read(Path(f"/proc/{one}/cmdline"))]
        children = [child for worker in workers for child in offspring(worker)]
        assert len(children) == 1
        os.kill(children[0], signal.SIGKILL)
        assert await asyncio.to_thread(until, lambda: not lives(Path(f"/proc/{children[0]}")), 10)
        scripted.let_go.set()
        assert (await asyncio.wait_for(answer, 15)).stdout == "did long"
        assert (await asyncio.wait_for(lane.call(tool_call("next")), 15)).ok
    assert scripted.ran == ["long", "next"]
    await lane.close()


async def test_no_call_is_lost_when_redis_loses_everything(tmp_path: Path, namespace: str) -> None:
    scripted, looker = Scripted(), Looker(namespace)
    lane = lane_to(namespace, resend_s=0.5)
    async with serving(tmp_path, namespace, scripted):
        running = asyncio.create_task(lane.call(tool_call("long", left_s=60)))
        await scripted.await_start("long")
        queued = asyncio.create_task(lane.call(tool_call("queued", left_s=60)))
        await looker.await_queued(1)
        looker.flush()
        scripted.let_go.set()
        assert (await asyncio.wait_for(running, 30)).ok
        assert (await asyncio.wait_for(queued, 30)).ok
        assert scripted.ran == ["long", "queued"]
    await lane.close()


# --- queues ---


async def test_a_runner_takes_calls_of_the_kinds_that_it_is_told(tmp_path: Path, namespace: str) -> None:
    code, commands = Scripted(), Scripted()
    plain, lane = lane_to(namespace), CeleryLane(REDIS, KEY, namespace=namespace, kinds={"python": "command"})
    async with (
        serving(tmp_path, namespace, code, kinds=["code", "function"]),
        serving(tmp_path, namespace, commands, kinds=["command"]),
    ):
        answers = await asyncio.gather(*(one.call(tool_call(f"{n}")) for n in range(3) for one in (plain, lane)))
        assert all(one.ok for one in answers)
    assert sorted(code.ran) == sorted(commands.ran) == ["0", "1", "2"]
    await plain.close()
    await lane.close()
