"""The checks of `metier chaos`, the schedule and the failpoints: each check sees what it is for, and nothing where all is well.

That they see it in a running system too is in test_chaos.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metier.chaos import checks, clock, script, trail
from metier.chaos.evidence import Evidence, Seen
from metier.chaos.ledger import Bill, Effect
from metier.chaos.plan import COMPONENTS, KINDS, ROLES, SHARES, Request, draw
from metier.chaos.proxy import HOST, Proxy, proxy
from metier.chaos.recovery import Bound, Recovery, Waits, percentile
from metier.client import SOURCE, run_id_of
from metier_infra import failpoints
from metier_infra.database import migrate
from metier_infra.errors import BadSettings
from metier_infra.journal import Journal
from metier_infra.rows import Run
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import RunId

RUN = run_id_of(SOURCE, "r")
POISON = b"\xff"


def event(name: str, kind: str, **data: object) -> Seen:
    return Seen(RUN, f"{RUN}/{name}", f"io.metier.{kind if '.' in kind else f'run.{kind}'}.v1", {"run_id": RUN, **data})


START = event("started", "started")
RESULT: dict[str, Any] = {"key": "r", "token": "7", "told": ["act receipt-1", "say said-7"]}
END = event("ended", "succeeded", result=RESULT)
TURNS = (("act", 0), ("act", 2), ("say", 0))


def step(part: str, n: int, **more: object) -> dict[str, Any]:
    return {"call_id": part, "n": n, "body": json.dumps({"messages": [{"tag": "model", **more}]})}


def call(part: str, answered_at: float | None = 1.0) -> dict[str, Any]:
    task = json.dumps({"text": f"{'say' if part == 'say' else 'effect'} r/{part} 7"})
    return {
        "call_id": part,
        "run_id": RUN,
        "task": task,
        "attempt": 1,
        "answered_at": answered_at,
        "failure": None,
        "cancelled": None,
    }


GOOD = Evidence(
    requests=[Request(0.0, "r", "chain", 1, POISON)],
    events=[START, END, END],
    dead=[(POISON, "undecodable")],
    runs=[{
        "run_id": RUN, "event_id": "r", "status": "succeeded", "failure": None, "cost_usd": 3 * checks.TURN_USD,
        "owner": None, "epoch": 1, "left_s": 0.0,
    }],
    calls=[call("act"), call("say")],
    steps=[step(part, n) for part, n in TURNS],
    tool_calls=[{"tool_call_id": "t", "call_id": "act", "result": "{}", "ok": 1}],
    effects=[Effect("r/act", "7", "receipt-1")],
    bills=[Bill("r/act", "7", ()), Bill("r/act", "7", ("receipt-1",)), Bill("r/say", "7", ())],
)  # fmt: skip
AGAIN = Bill("r/say", "7", ())


def test_nothing_is_wrong_where_nothing_is() -> None:
    assert not any(checks.judge(GOOD, SOURCE).values())


def test_what_may_happen_twice_is_not_held_against_anybody() -> None:
    # Given an effect that was carried out twice, a request billed twice and marked so, and a start that was told again after the end
    marked = [step("act", 0), step("act", 2), step("say", 0, asked_again=True)]
    again = replace(
        GOOD,
        effects=[*GOOD.effects, Effect("r/act", "7", "receipt-2")],
        bills=[*GOOD.bills, AGAIN],
        steps=marked,
        events=[*GOOD.events, START],
    )

    assert not any(checks.judge(again, SOURCE).values())
    assert checks.executions_per_effect(again) == 2.0


def test_a_call_that_ended_before_it_could_ask_again_says_so_by_what_it_counts() -> None:
    counted = [call("act"), {**call("say"), "tokens": 50}]

    assert not checks.judge(replace(GOOD, bills=[*GOOD.bills, AGAIN], calls=counted), SOURCE)["spend_unaccounted"]


def test_progress_that_a_former_holder_of_the_run_had_on_its_way_may_come_after_the_end() -> None:
    late = replace(GOOD, runs=row(epoch=2), events=[START, END, event("n", "node.ended")])

    assert not any(checks.judge(late, SOURCE).values())
    assert [checks.told_late(found) for found in (late, GOOD)] == [1, 0]


def test_what_a_failed_call_had_cost_may_be_known_better_when_that_is_told_again() -> None:
    told = [event("c", "agent.answered", call_id="act", ok=False, cost_usd=cost) for cost in (0.0, 0.5)]
    other = [event("c", "agent.answered", call_id="act", ok=True, cost_usd=cost) for cost in (0.0, 0.5)]

    assert not checks.judge(replace(GOOD, events=[START, *told, END]), SOURCE)["order_violations"]
    assert checks.judge(replace(GOOD, events=[START, *other, END]), SOURCE)["order_violations"]


TOOL = event("t", "tool.answered", call_id="act")


@pytest.mark.parametrize(
    "change", [{"attempt": 2}, {"cancelled": "not needed"}, {"failure": '{"code": "deadline_missed"}'}]
)
def test_of_a_call_that_another_one_ended_its_former_holder_may_tell_after_the_end(change: dict[str, Any]) -> None:
    calls = [{**call("act"), **change}, call("say")]

    assert not checks.judge(replace(GOOD, calls=calls, events=[START, END, TOOL]), SOURCE)["order_violations"]
    others = replace(GOOD, calls=calls, events=[START, END, event("c", "agent.asked", call_id="act")])
    assert checks.judge(others, SOURCE)["order_violations"], "that is told by the run's holder"


def test_progress_may_come_after_an_end_that_another_replica_told_too() -> None:
    events = [START, END, event("n", "node.ended")]

    assert not any(checks.judge(replace(GOOD, events=[*events, END]), SOURCE).values())
    assert checks.judge(replace(GOOD, events=events), SOURCE)["order_violations"]


def row(**change: object) -> list[dict[str, Any]]:
    return [{**GOOD.runs[0], **change}]


WRONG: list[tuple[str, str, Evidence]] = [
    ("lost", "there is no run", replace(GOOD, runs=[], calls=[], steps=[], tool_calls=[], events=[])),
    ("lost", "failed", replace(GOOD, runs=row(status="failed", failure="{}"))),
    ("lost", "no event told it", replace(GOOD, events=[START])),
    ("lost", "not among the dead letters", replace(GOOD, dead=[])),
    ("lost", "buried, unknown_call", replace(GOOD, dead=[*GOOD.dead, (b"good", "unknown_call")])),
    ("stuck", "running", replace(GOOD, runs=row(status="running"))),
    ("stuck", "nobody answered it", replace(GOOD, calls=[call("act"), call("say", None)])),
    ("doubled_terminal", "nobody asked for", replace(GOOD, runs=[*GOOD.runs, {**GOOD.runs[0], "run_id": "x"}])),
    ("doubled_terminal", "ended 2 times", replace(GOOD, events=[START, END, event("ended", "failed")])),
    ("doubled_terminal", "ended 2 times", replace(GOOD, events=[START, END, event("ended", "succeeded", result={**RESULT, "token": "8"})])),
    ("doubled_results", "2 histories", replace(GOOD, effects=[*GOOD.effects, Effect("r/act", "8", "receipt-2")])),
    ("doubled_results", "saw 2 results", replace(GOOD, bills=[*GOOD.bills, Bill("r/act", "7", ("receipt-2",))])),
    ("doubled_results", "2 tool calls were recorded", replace(GOOD, tool_calls=[*GOOD.tool_calls, *GOOD.tool_calls])),
    ("doubled_results", "told", replace(GOOD, events=[START, event("ended", "succeeded", result={**RESULT, "told": ["act receipt-1"]})])),
    ("doubled_results", "another token", replace(GOOD, events=[START, event("ended", "succeeded", result={**RESULT, "token": "8"})])),
    ("doubled_results", "nobody gave", replace(GOOD, effects=[Effect("r/act", "7", "receipt-3")])),
    ("order_violations", "started", replace(GOOD, events=[END, START])),
    ("order_violations", "started", replace(GOOD, runs=row(epoch=2), events=[END, START])),
    ("order_violations", "node.ended", replace(GOOD, events=[START, END, event("n", "node.ended")])),
    ("order_violations", "never started", replace(GOOD, events=[END])),
    ("order_violations", "tool.answered", replace(GOOD, events=[START, END, TOOL])),
    ("order_violations", "decision.made", replace(GOOD, runs=row(epoch=2), events=[START, END, event("d", "decision.made")])),
    ("order_violations", "started after", replace(GOOD, events=[event("n", "node.started"), START, END])),
    ("order_violations", "of a before", replace(GOOD, events=[START, event("n", "node.ended", task="a"), event("m", "node.started", task="a"), END])),
    ("order_violations", "partition", replace(GOOD, events=[START, replace(END, partition=1)])),
    ("order_violations", "one id for two", replace(GOOD, events=[START, replace(START, data={"run_id": "x"}), END])),
    ("spend_unaccounted", "none marked", replace(GOOD, bills=[*GOOD.bills, AGAIN])),
    ("spend_unaccounted", "recorded, 1 billed", replace(GOOD, bills=GOOD.bills[1:], steps=[*GOOD.steps, step("act", 4)])),
    ("spend_unaccounted", "cost", replace(GOOD, runs=row(cost_usd=5 * checks.TURN_USD))),
    ("recovered_late", "held by", replace(GOOD, late=["r: held by doer-1"])),
    ("sandboxes_leaked", "c0ffee", replace(GOOD, leaked=["c0ffee"])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said", "found"), WRONG, ids=[f"{name}: {said}" for name, said, _ in WRONG])
def test_each_check_sees_what_it_is_for(name: str, said: str, found: Evidence) -> None:
    wrong = checks.judge(found, SOURCE)

    assert any(said in sentence for sentence in wrong[name]), wrong


def test_a_seed_gives_its_schedule_again_and_another_seed_another_one() -> None:
    first, again, other = (draw(seed=seed, runs=500, kills=60) for seed in (7, 7, 8))

    assert first == again
    assert first.faults != other.faults


@pytest.mark.parametrize("kills", [9, 60, 1000])
def test_every_kind_of_fault_comes_by_its_share_and_none_is_left_out(kills: int) -> None:
    found = Counter(fault.kind for fault in draw(seed=1, runs=1, kills=kills).faults)

    assert found.total() == kills
    assert set(found) == set(KINDS)
    assert kills != 60 or found == SHARES


@pytest.mark.parametrize("component", COMPONENTS)
def test_only_what_was_named_is_harmed(component: str) -> None:
    targets = {fault.target for fault in draw(seed=3, runs=1, kills=60, components=[component]).faults}

    assert targets == set(ROLES.get(component, [component]))


def test_what_cannot_be_had_does_not_come() -> None:
    kinds = {fault.kind for fault in draw(seed=3, runs=1, kills=40, kinds=[k for k in KINDS if k != "restart"]).faults}

    assert kinds == set(KINDS) - {"restart"}


def test_the_script_asks_for_its_tool_until_it_has_a_receipt() -> None:
    asked = script.read([{"content": "rules"}, {"content": "effect r/act 7"}])
    told = script.read([{"content": "effect r/act 7"}, {"content": "receipt-12ab and receipt-12ab"}])

    assert asked
    assert script.reply(asked)["tool_calls"][0]["function"]["name"] == "effect"
    assert told
    assert script.reply(told)["content"].startswith("ANSWER: receipt-12ab\n")
    assert script.read([{"content": "hello"}]) is None


def test_what_the_roles_said_of_a_run_is_told_in_order_of_time() -> None:
    logs = {
        "one": f'{{"run_id": "{RUN}", "event": "late", "timestamp": "2"}}\n{{"run_id": "other", "timestamp": "3"}}',
        "two": f'{{"run_id": "{RUN}", "event": "soon", "timestamp": "1"}}',
    }

    told = trail.of({"lost": ["r/act: nobody answered it"], "stuck": []}, {str(RUN): "r", "other": "s"}, logs)

    (name, lines) = next(iter(told.items()))
    assert name.startswith("r (")
    assert [line.split(":")[0] for line in lines] == ["two", "one"]
    assert len(told) == 1


def test_a_clock_can_be_stepped_while_it_is_read(tmp_path: Path) -> None:
    clock.step(tmp_path / "clock", 0.0)
    now = clock.stepped(tmp_path / "clock")
    before, true, after = now(), time.time(), now()
    assert before <= true <= after

    clock.step(tmp_path / "clock", 1000.0)

    assert 999.0 < now() - time.time() <= 1000.0


def test_a_role_is_started_under_its_clock(tmp_path: Path) -> None:
    clock.step(tmp_path / "clock", 5000.0)
    program = (
        "import contextlib, io, runpy, sys, time; true, sys.argv = time.time, ['metier', '--help']\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    runpy.run_module('metier.chaos.launch', run_name='__main__')\n"
        "print(time.time() - true())"
    )
    own = os.environ | {clock.CLOCK: str(tmp_path / "clock")}

    done = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True)

    assert round(float(done.stdout)) == 5000


def test_percentiles_are_of_what_was_measured() -> None:
    assert percentile([], 50) is None
    assert [percentile([4.0, 1.0, 3.0, 2.0], percent) for percent in (50, 99)] == [2.0, 4.0]


def test_a_take_over_may_take_the_lease_the_brokers_patience_and_a_step_and_what_is_away_does_not_count() -> None:
    bound = Bound(lease_s=3.0, session_s=6.0, step_s=20.0)
    waits = Waits("r", 1, 0.0).passed(25.0, True).passed(100.0, False).passed(4.0, True).passed(2.0, True)

    assert [bound.after(outages) for outages in (0, 1)] == [30.0, 40.0]
    assert (waits.able_s, waits.outages) == (31.0, 1)
    assert Waits("r", 1, 0.0).passed(100.0, False).able_s == 0.0


@pytest.mark.parametrize(("able", "late"), [(True, 1), (False, 0)])
async def test_a_run_that_nobody_takes_over_is_late_where_somebody_could_have(
    able: bool, late: int, brief: Journal
) -> None:
    # Given a run of a process that died; nobody goes on with it, and the least is too long
    recovery = Recovery(brief.db, Bound(0.0, 0.0, 0.001))
    run = await held(brief, "one")
    await recovery.follow("one")
    # When time goes by
    looking = asyncio.create_task(recovery.look(lambda _: able))
    await until(lambda: recovery.waiting[0].able_s > 0 or recovery.waiting[0].cut)
    # Then it is late, where one that could have come did not
    assert (len(recovery.late), (recovery.closest or 0) > 1) == (late, bool(late))
    # And when another one has taken it, it waits no more
    assert await brief.runs.lease(run, "two")
    await until(lambda: not recovery.waiting)
    assert len(recovery.took_ms) == 1
    looking.cancel()


async def test_what_a_process_that_was_only_frozen_still_holds_is_not_followed_any_more(brief: Journal) -> None:
    recovery = Recovery(brief.db, Bound(0.0, 0.0, 0.001))
    await held(brief, "one")
    await recovery.follow("one")
    recovery.back("one")

    assert (recovery.waiting, recovery.took_ms, recovery.late, recovery.closest) == ([], [], [], 0.0)


@pytest.fixture
async def brief() -> AsyncIterator[Journal]:
    """A journal whose leases are over at once."""
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Journal(db, lease_s=-1)
    await db.close()


async def held(journal: Journal, owner: str) -> RunId:
    run = Run(run_id=RunId(RUN), source="/s", event_id="r", workflow="w", version=None, status="accepted", input={}, traceparent="")  # fmt: skip
    await journal.runs.accept(run)
    assert await journal.runs.lease(run.run_id, owner)
    return run.run_id


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while True:
            if there():
                return
            await asyncio.sleep(0.01)


async def served(answer: Callable[[bytes], bytes]) -> tuple[asyncio.Server, int]:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(1000):
            writer.write(answer(said))
        writer.close()

    server = await asyncio.start_server(talk, HOST, 0)
    return server, server.sockets[0].getsockname()[1]


async def test_the_proxy_passes_drops_and_rejects() -> None:
    server, port = await served(bytes.upper)
    async with server, proxy(port) as cut:
        reader, writer = await asyncio.open_connection(HOST, cut.port)
        writer.write(b"a")
        assert await reader.read(10) == b"A"
        # When it drops, what is said lies on the line, and arrives later
        cut.drop()
        writer.write(b"b")
        waiting = asyncio.ensure_future(reader.read(10))
        _, pending = await asyncio.wait([waiting], timeout=0.2)
        assert pending
        cut.mend()
        assert await waiting == b"B"
        # When it rejects, the connection ends, and so does a new one
        cut.reject()
        await _ends(reader)
        late, _ = await asyncio.open_connection(HOST, cut.port)
        await _ends(late)
        writer.close()


async def _ends(reader: asyncio.StreamReader) -> None:
    try:
        assert await reader.read(10) == b""
    except ConnectionResetError:
        return


async def test_what_kafka_says_of_its_address_leads_through_the_proxy() -> None:
    made = list[Proxy]()

    def metadata(_: bytes) -> bytes:
        body = b"\x00\x00\x00\x01" + HOST.encode() + made[0].target.to_bytes(4, "big") + b"rest"
        return len(body).to_bytes(4, "big") + body

    server, port = await served(metadata)
    async with server, proxy(port, kafka=True) as cut:
        made.append(cut)
        reader, writer = await asyncio.open_connection(HOST, cut.port)
        writer.write(b"?")
        said = await reader.readexactly(4 + 4 + len(HOST) + 4 + 4)
        assert HOST.encode() + cut.port.to_bytes(4, "big") + b"rest" in said
        writer.close()


BAD_POINTS = ["nowhere=crash", "run.leased=boom", "run.leased", "run.leased=crash@0", "run.leased=sleep:-1"]


@pytest.mark.parametrize("text", BAD_POINTS)
def test_a_failpoint_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(BadSettings, match="METIER_FAILPOINTS"):
        failpoints.parse(text)


def test_a_process_stands_still_until_somebody_continues_it() -> None:
    program = (
        "from metier_infra import failpoints as f; f.arm('run.leased=freeze'); f.failpoint('run.leased'); print(1)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        # When it has stopped, which nobody but the kernel tells, it is continued
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        assert process.communicate()[0] == b"1\n"


def passing(text: str, times: int) -> subprocess.CompletedProcess[bytes]:
    """A process that passes a point so often, and says each time that it lives on."""
    program = (
        "import sys; from metier_infra import failpoints; failpoints.arm(sys.argv[1])\n"
        "for n in range(int(sys.argv[2])): failpoints.failpoint('run.leased'); print(n, flush=True)"
    )
    return subprocess.run([sys.executable, "-c", program, text, str(times)], capture_output=True, check=False)


@pytest.mark.parametrize(("text", "lived"), [("run.leased=crash@3", 2), ("run.leased=crash", 0), ("run.told=crash", 5)])
def test_a_process_dies_at_its_point_at_the_pass_that_is_named(text: str, lived: int) -> None:
    ended = passing(text, 5)

    assert len(ended.stdout.splitlines()) == lived
    assert ended.returncode == (0 if lived == 5 else -9)


def test_every_point_is_passed_somewhere_in_the_product() -> None:
    sources = [
        path
        for top in ("workflows", "agents", "tools", "infra")
        for path in (Path(__file__).parents[1] / top).rglob("*.py")
    ]
    said = "".join(path.read_text() for path in sources)

    assert [name for name in failpoints.POINTS if f'failpoint("{name}")' not in said] == []


def test_a_process_freezes_and_goes_on() -> None:
    ended = passing("run.leased=freeze:0.2@2", 3)

    assert ended.stdout.split() == [b"0", b"1", b"2"]


def test_disarmed_points_do_nothing() -> None:
    failpoints.arm("")
    failpoints.failpoint("run.leased")
