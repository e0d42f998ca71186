"""The commands that do something to runs, beside a `metier dev`: what they ask for, what they say of it, and what they refuse.

Not here: what an orchestrator does with the requests; `test_control` has that.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metier import cli_control, cli_runs, client
from metier.cli import app
from metier_infra.bus import MemoryBus
from metier_infra.database import Statement, migrate
from metier_infra.errors import BadSettings, MissingRun
from metier_infra.events import REQUESTS, CancelRequested, RedriveRequested, RetryRequested
from metier_infra.journal import Journal
from metier_infra.messages import Envelope, decode
from metier_infra.rows import Run
from metier_infra.service import Ready
from metier_infra.socket_bus import serve_bus
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import RunId
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.workflow import Workflows

HUNG = 30
A, B, C, D = (RunId(letter * 32) for letter in "abcd")


DONE = {
    "held": "UPDATE runs SET status = 'running', owner = 'another', epoch = 1, lease_until = :now + 600 WHERE run_id = :run_id",
    "succeeded": "UPDATE runs SET status = 'succeeded', result = '{}', finished_at = :now, announced = 1 WHERE run_id = :run_id",
    "evil": """UPDATE runs SET status = 'failed', failure = '{"code": "x", "message": "\\u001b[2J\\u202e"}', finished_at = :now, announced = 1 WHERE run_id = :run_id""",
    "failed": "UPDATE runs SET status = 'failed', finished_at = :now, announced = 1 WHERE run_id = :run_id",
}


class House:
    """A bus, a journal and an orchestrator that serves no workflow, in a thread, at this folder's socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: MemoryBus, journal: Journal) -> None:
        self.loop, self.bus, self.journal = loop, bus, journal

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(HUNG)

    def accept(self, run_id: RunId, state: str, **more: Any) -> None:
        """Write a run down with what was done to it, at once: the keeper looks at any moment."""
        asked = {"source": "/shop", "event_id": run_id, "workflow": "w", "version": None, "status": "accepted"}
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        run = Run.model_validate({"run_id": run_id, **asked, "input": {}, "traceparent": trace, **more})
        done = Statement(DONE[state], {"run_id": run_id})
        self.do(self.journal.runs.accept(run, done))

    def run(self, run_id: str) -> Run:
        found: Run = self.do(self.journal.runs.get(run_id))
        return found

    def requests(self) -> list[Envelope[Any]]:
        """What was asked for on the bus."""
        return [decode(one) for one in self.bus.records(REQUESTS)]

    def say(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["runs", *words])

    def json(self, *words: str) -> Any:
        return json.loads(self.say(*words, "--json").stdout)


@contextmanager
def house_in(folder: Path, *, served: bool) -> Generator[House]:
    ready, stop = threading.Event(), asyncio.Event()
    made: list[House] = []

    async def serve() -> None:
        db = SqliteDatabase(folder / ".metier" / "journal.db")
        await migrate(db)
        bus, journal, there = MemoryBus(), Journal(db, 600), asyncio.Event()
        orchestrator = Orchestrator(bus, journal, Workflows([]), {}, instance="one", drain_s=1)
        made.append(House(asyncio.get_running_loop(), bus, journal))
        async with serve_bus(bus, folder / ".metier" / "dev.sock"):
            if served:
                role = asyncio.create_task(orchestrator.run(stop, Ready(None, 2, there.set)))
                await there.wait()
                ready.set()
                await role
            else:
                ready.set()
                await stop.wait()
        await db.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(HUNG)
    yield made[0]
    made[0].loop.call_soon_threadsafe(stop.set)
    thread.join(HUNG)


pytestmark = pytest.mark.usefixtures("logs_aside")


def _alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(folder / ".metier" / "journal.db"))
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    _alone(tmp_path, monkeypatch)
    with house_in(tmp_path, served=True) as made:
        yield made


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """One in which nobody takes requests."""
    _alone(tmp_path, monkeypatch)
    monkeypatch.setattr(cli_control, "TAKEN_S", 0.2)
    with house_in(tmp_path, served=False) as made:
        yield made


def held(house: House, run_id: RunId) -> None:
    """A run that another replica works on: it stays open until that one hears of it."""
    house.accept(run_id, "held")


def test_several_runs_are_cancelled_at_once_with_who_and_why(house: House) -> None:
    held(house, A)
    held(house, B)
    said = house.json("cancel", A[:6], B, "--note", "enough", "--by", "ann")
    assert [(one["run_id"], one["state"], one["became"]) for one in said] == [(A, "taken", A), (B, "taken", B)]
    for run_id in (A, B):
        assert (house.run(run_id).cancelled_by, house.run(run_id).cancel_note) == ("ann", "enough")
    assert {type(one.data) for one in house.requests()} == {CancelRequested}
    assert {one.key for one in house.requests()} == {A, B}


def test_a_command_says_what_became_of_each_and_fails_where_one_is_rejected(house: House) -> None:
    held(house, A)
    house.accept(B, "succeeded")
    said = house.say("cancel", A, B)
    assert said.exit_code == 1
    assert f"run {A[:12]} is cancelled" in said.output
    assert f"run {B[:12]} is not cancelled: run_ended: run {B} succeeded before it could be cancelled" in said.output


def test_a_request_that_nobody_takes_is_said_to_be_on_its_way(deaf: House) -> None:
    deaf.accept(A, "held")
    said = deaf.say("cancel", A)
    assert (said.exit_code, "no orchestrator has taken it yet" in said.output) == (0, True)
    assert deaf.json("cancel", A)[0]["state"] == "sent"


@pytest.mark.parametrize(("command", "kind"), [("retry", RetryRequested), ("redrive", RedriveRequested)])
def test_a_run_is_repeated_as_a_new_one_that_is_named(house: House, command: str, kind: type[Any]) -> None:
    house.accept(A, "failed")
    (said,) = house.json(command, A[:8], "--note", "fixed")
    assert (said["state"], house.run(said["became"]).origin) == ("taken", A)
    (asked,) = house.requests()
    assert isinstance(asked.data, kind)
    assert (asked.data.run_id, asked.data.note) == (A, "fixed")


def test_runs_are_chosen_by_how_and_when_they_ended_and_no_run_twice(house: House) -> None:
    # Given one that failed, one that succeeded, one of another workflow, one under another run
    for run_id, state, more in (
        (A, "failed", {}), (B, "succeeded", {}), (C, "failed", {"workflow": "v"}), (D, "failed", {"parent": A}),
    ):  # fmt: skip
        house.accept(run_id, state, **more)
    # When
    said = house.json("retry", "--workflow", "w", "--since", "1h")
    # Then
    assert [one["run_id"] for one in said] == [A]
    house.say("redrive", "--status", "failed", "--workflow", "w", "--since", "1h")
    assert [type(one.data) for one in house.requests() if one.data.run_id == A] == [RetryRequested]


def test_a_run_is_told_something_and_one_that_ended_is_not(house: House) -> None:
    held(house, A)
    (said,) = house.json("signal", A[:6], "paid", '{"euros": 12}', "--by", "ann")
    assert (said["state"], said["became"]) == ("taken", A)
    (told,) = house.do(house.journal.signals.of_run(A))
    assert (told.name, told.data, told.sent_by) == ("paid", {"euros": 12}, "ann")
    house.accept(B, "failed")
    ended = house.say("signal", B, "paid")
    assert (ended.exit_code, "is not signalled: run_ended" in ended.output) == (1, True)


def test_what_others_wrote_hides_no_run_and_does_no_more_to_a_terminal_than_be_shown(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_runs.out, "width", 120)
    run_id, evil = client.run_id_of(client.SOURCE, "e"), "\u202e\x9b2J" + "w" * 190
    house.accept(run_id, "evil", source=client.SOURCE, event_id="e", workflow=evil, input={"text": evil})
    listed, shown = house.say("list").output, house.say("show", run_id).output
    ended = CliRunner().invoke(app, ["publish", "w", "{}", "--id", "e", "--wait"])
    assert run_id[:12] in listed
    assert "failed" in listed
    assert (ended.exit_code, f"run {run_id} failed: x: \\x1b[2J\\u202e" in ended.output) == (1, True)
    assert {one for one in listed + shown + ended.output if not one.isprintable()} == {"\n"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("cancel",), BadSettings),
        (("retry",), BadSettings),
        (("redrive", "aaaa", "--status", "failed"), BadSettings),
        (("retry", "--status", "succeeded"), BadSettings),
        (("retry", "--since", "soon"), BadSettings),
        (("retry", "--workflow", "nothing"), MissingRun),
        (("cancel", "ffff"), MissingRun),
        (("cancel", "aaaa", "ffff"), MissingRun),
        (("cancel", "aaaa", "--by", "x" * 300), BadSettings),
        (("signal", "aaaa", "paid", "not JSON"), BadSettings),
        (("signal", "aaaa", "paid", "[NaN]"), BadSettings),
        (("signal", "aaaa", "paid", "[" * 100_000), BadSettings),
        (("cancel", "aaaa\udcff"), MissingRun),
        (("cancel", "aaaa", "--by", "\x1b"), BadSettings),
    ],
)
def test_what_is_not_clear_asks_for_nothing(house: House, words: tuple[str, ...], error: type[Exception]) -> None:
    held(house, A)
    assert isinstance(house.say(*words).exception, error)
    assert house.requests() == []
