"""`metier outcomes` and `metier decisions`: what they show, what they ask for, and what they refuse. Not here: what outcomes count (`test_outcomes`), how decisions are made (`test_deciding`)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from metier import cli_outcomes
from metier.cli import app
from metier_infra.bus import MemoryBus
from metier_infra.database import migrate
from metier_infra.events import OUTCOMES, OutcomeReported
from metier_infra.journal import Journal
from metier_infra.messages import decode
from metier_infra.outcomes import Outcome
from metier_infra.rows import Call, Run
from metier_infra.service import Ready
from metier_infra.socket_bus import serve_bus
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import AgentCard, CallId, Decision, RunId, Task, Wanted
from metier_workflows.choosing.router import Asked
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.routing import decide
from metier_workflows.workflow import Workflows

HUNG = 30
RUN = RunId("a" * 32)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CARDS = {name: AgentCard(name=name, model="m", policy="p", skills={"math": 0.5}) for name in ("coder", "reasoner")}
WANTED = Wanted(task=Task(text="2 + 2?", category="math"), topologies=("panel",))
DECISION = decide(WANTED, CARDS, Asked("2 + 2?", "math", "default", 9))


async def one_run(journal: Journal) -> None:
    """A run that decided twice, once in a node of its own, and asked one agent."""
    made = Run(run_id=RUN, source="/s", event_id="e", workflow="w", version=None, status="accepted", input={}, traceparent=TRACE)  # fmt: skip
    await journal.runs.accept(made)
    await journal.decisions.record("d1", RUN, DECISION, ("t", "w", 1), WANTED)
    wordy = DECISION.model_copy(update={"reason": "because " * 40})
    await journal.decisions.record("e1", RUN, wordy, ("t", "w", 2))
    await journal.calls.request(Call(call_id=CallId("c"), run_id=RUN, agent="coder", task=WANTED.task, deadline=2e9))


class House:
    """A journal with one run, a bus, and where it is `served` an orchestrator, in a thread, at this folder's socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bus: MemoryBus, journal: Journal) -> None:
        self.loop, self.bus, self.journal = loop, bus, journal

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(HUNG)

    def outcomes(self) -> list[Outcome]:
        return list(self.do(self.journal.outcomes.listed(RUN)))

    def record(self, name: str, decision: Decision) -> None:
        self.do(self.journal.decisions.record(name, RUN, decision, ("t", "w", 3), WANTED))


@contextmanager
def house_in(folder: Path, *, served: bool) -> Generator[House]:
    ready, stop = threading.Event(), asyncio.Event()
    made: list[House] = []

    async def serve() -> None:
        db = SqliteDatabase(folder / ".metier" / "journal.db")
        await migrate(db)
        bus, journal, there = MemoryBus(), Journal(db, 600), asyncio.Event()
        await one_run(journal)
        made.append(House(asyncio.get_running_loop(), bus, journal))
        async with serve_bus(bus, folder / ".metier" / "dev.sock"), asyncio.TaskGroup() as group:
            if served:
                role = Orchestrator(bus, journal, Workflows([]), CARDS, instance="one", drain_s=1)
                group.create_task(role.run(stop, Ready(None, 2, there.set)))
                await there.wait()
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


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / ".metier" / "journal.db"))
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path, served=True) as made:
        yield made


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """One in which nobody takes outcomes."""
    monkeypatch.setattr(cli_outcomes, "TAKEN_S", 0.2)
    with house_in(tmp_path, served=False) as made:
        yield made


def say(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def told(*words: str) -> Any:
    result = say(*words, "--json")
    return json.loads(result.stdout)


def test_an_outcome_is_published_taken_and_listed(house: House) -> None:
    said = say("outcomes", "report", "aaaa", "--score", "0.25", "--agent", "coder", "--decision", "d", "--by", "ann", "--note", "off\x1bby one")  # fmt: skip
    assert said.stdout == "outcome of run aaaaaaaaaaaa is taken: 0.25\n"
    (sent,) = [decode(one) for one in house.bus.records(OUTCOMES)]
    assert sent.key == RUN
    assert sent.data == OutcomeReported(run_id=RUN, score=0.25, agent="coder", decision_id="d1", by="ann", note="off\x1bby one")  # fmt: skip
    (row,) = told("outcomes", "list", "--run", "aaaa")
    assert (row["score"], row["agent"], row["counts"], row["orphan"]) == (0.25, "coder", 1.0, False)
    shown = say("outcomes", "list").stdout
    assert "0.25" in shown
    assert "\x1b" not in shown


def test_a_later_word_of_the_same_speaker_takes_the_place_of_the_first(house: House) -> None:
    for score in ("1", "0"):
        assert told("outcomes", "report", RUN, "--score", score)["taken"]
    assert [one.score for one in house.outcomes()] == [0.0]


def test_a_word_that_bears_an_earlier_time_than_one_that_stands_is_told_not_to_count(house: House) -> None:
    ahead = Outcome(run_id=RUN, score=0.5, by="ann", event_id="e", said_at=time.time() + 3600)
    house.do(house.journal.outcomes.record(ahead))
    said = say("outcomes", "report", RUN, "--score", "1", "--by", "ann").stdout
    assert "does not count: a word of ann about the same says 0.5, and bears a later time, 20" in said
    answer = told("outcomes", "report", RUN, "--score", "1", "--by", "ann")
    assert (answer["taken"], answer["stands"]) == (False, "e")
    assert told("outcomes", "report", RUN, "--score", "1", "--by", "bob")["taken"]


def test_what_nobody_takes_was_sent(deaf: House) -> None:
    assert "no orchestrator has taken it yet" in say("outcomes", "report", RUN, "--score", "1").stdout
    assert len(deaf.bus.records(OUTCOMES)) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("bbbb", "--score", "1"), "no run"),
        (("aaaa", "--score", "1", "--agent", "nobody"), "asked no agent 'nobody'; it asked coder"),
        (("aaaa", "--score", "1", "--decision", "x"), "no decision of run"),
        (("aaaa", "--score", "1", "--weight", "0"), "--weight is above 0"),
        (("aaaa", "--score", "1.5"), "'--score'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(deaf: House, words: tuple[str, ...], why: str) -> None:
    result = say("outcomes", "report", *words)
    assert result.exit_code != 0
    assert why in str(result.exception) + result.output
    assert deaf.bus.records(OUTCOMES) == []


def test_decisions_are_listed_with_their_ids(deaf: House) -> None:
    rows = told("decisions", "list", "aaaa")
    assert [row["decision_id"] for row in rows] == ["d1", "e1"]
    assert rows[0]["chosen"] == ["coder", "reasoner"]
    assert "declared skills" in say("decisions", "list", "aaaa").stdout


def test_a_long_reason_takes_nothing_from_who_was_chosen(deaf: House) -> None:
    listed = say("decisions", "list", "aaaa").stdout
    assert all(name in listed for name in DECISION.chosen)
    assert DECISION.topology in listed
    assert "…" not in listed


def test_decisions_are_made_again_and_one_that_comes_out_otherwise_fails_the_command(deaf: House) -> None:
    assert [row["result"] for row in told("decisions", "replay", "aaaa")] == ["same", "unknown"]
    assert say("decisions", "replay", "aaaa").exit_code == 0
    deaf.record("f1", DECISION.model_copy(update={"router": "gone.v1"}))
    assert {row["result"] for row in told("decisions", "replay", "aaaa")} == {"same", "unknown"}
    deaf.record("g1", DECISION.model_copy(update={"chosen": ("coder",), "weights": (0.5,)}))
    result = say("decisions", "replay", "aaaa")
    assert result.exit_code == 1
    assert "decision g1 by declared-skills.v1: another: coder, reasoner in place of coder" in result.stdout
    deaf.record("h1", DECISION.model_copy(update={"reason": "a hunch", "enough": 0.1}))
    shown = say("decisions", "replay", "aaaa").stdout
    assert "decision h1 by declared-skills.v1: another: the same agents, with another reason, enough" in shown
