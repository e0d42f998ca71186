"""`metier runs cancel` over real services: the model's request and the container end within the promised two seconds, and what had not started never does.

The figures are logged (`pytest -o log_cli=1 --log-level=info`); what is asserted only tells an end from a hang, for the machine may be slow.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from metier_infra.words import RunId, stable_id

from .conftest import Fleet, new_fleet, open_journal, until

if TYPE_CHECKING:
    from kafka import ConsumerRecord

log = logging.getLogger(__name__)
BUSY = 6
"""So many containers work when one of them is cancelled, on a machine of two processors or so."""
GRINDING = "301"
"""What their programs are known by."""
HANG_S = 30.0
"""Without a cancel, the model and the tool of these tests take far longer."""


class Silent:
    """A model server that takes a request and never answers: when each came, and when its caller hung up."""

    def __init__(self) -> None:
        self.began: list[float] = []
        self.ended: list[float] = []
        silent = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                silent.began.append(time.time())
                self.connection.settimeout(120)
                try:
                    self.connection.recv(1)
                finally:
                    silent.ended.append(time.time())

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture(scope="module")
def silent() -> Generator[Silent]:
    made = Silent()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()


GRAPHS = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from metier import agent, workflow

class State(TypedDict):
    text: str

def ask(name):
    async def node(state: State):
        return {"text": (await agent(name).ask(state["text"])).text}
    return node

for name in ("thinker", "digger", "grinder"):
    @workflow(name)
    def made(name=name):
        graph = StateGraph(State)
        graph.add_node("ask", ask(name))
        graph.add_edge(START, "ask")
        graph.add_edge("ask", END)
        return graph
    globals()[name] = made
"""


@pytest.fixture(scope="module")
def up(services: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory, silent: Silent) -> Generator[Fleet]:
    """`thinker` asks a model that never answers, `digger` runs a program that never ends, `grinder` one that takes all the time of its processor."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "graphs.py").write_text(GRAPHS)
    agents, script = folder / "agents", folder / "digger.script.yaml"
    agents.mkdir()
    script.write_text("- uses: [{id: u1, tool: dig, arguments: {n: 1}}]\n- text: done\n")
    (folder / "tools").mkdir()
    (folder / "tools" / "dig.yaml").write_text(
        "name: dig\nkind: code\ndescription: digs\nlanguage: python\narguments: {n: {type: integer, description: how deep}}\n"
        "program: import subprocess; subprocess.run(['sleep', '299'])\ntimeout_s: 100\n"
    )
    (agents / "digger.yaml").write_text(
        f"name: digger\ndescription: digs\nmodel: scripted:{script}\npolicy: {{kind: collaborative}}\ntools: [{{name: dig}}]\n"
    )
    (folder / "grinder.script.yaml").write_text("- uses: [{id: u1, tool: grind, arguments: {n: 1}}]\n- text: done\n")
    (folder / "tools" / "grind.yaml").write_text(
        "name: grind\nkind: code\ndescription: grinds\nlanguage: python\narguments: {n: {type: integer, description: how fine}}\n"
        f"program: |\n  import subprocess\n  subprocess.Popen(['sleep', '{GRINDING}'])\n  while True: pass\ntimeout_s: 100\n"
    )
    (agents / "grinder.yaml").write_text(
        f"name: grinder\ndescription: grinds\nmodel: scripted:{folder / 'grinder.script.yaml'}\npolicy: {{kind: collaborative}}\ntools: [{{name: grind}}]\n"
    )
    (agents / "thinker.yaml").write_text(
        "name: thinker\ndescription: thinks\nmodel: openai:gpt-5\npolicy: {kind: autonomous}\n"
    )
    more = {
        "METIER_AGENTS": str(agents),
        "METIER_TOOL_FILES": str(folder / "tools"),
        "METIER_WORKFLOWS": "graphs",
        "PYTHONPATH": str(folder),
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": silent.url,
        "METIER_LEASE_S": "15",
    }
    with new_fleet(services, folder, **more) as fleet:
        assert fleet.metier("tools", "approve", "dig", "grind").returncode == 0
        fleet.start_all("thinker", "digger", "grinder")
        yield fleet


def started(up: Fleet, workflow: str, event_id: str) -> RunId:
    up.request(workflow, {"text": "?"}, event_id)
    return RunId(stable_id("run", "/tests/backend", event_id))


def cancelled(up: Fleet, *run_ids: RunId) -> float:
    """Cancel by the command; when it asked, on the clock of `time.time`."""
    said = up.metier("runs", "cancel", *run_ids, "--note", "enough", "--json")
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert [one["state"] for one in told] == ["taken"] * len(run_ids)
    one = told[0]
    asked = up.records("metier.requests", lambda found: [r for r in found if _id(r) == one["request_id"]])
    (request,) = [dict(r.headers or ()) for r in asked if _id(r) == one["request_id"]]
    return datetime.fromisoformat((request["ce_time"] or b"").decode()).timestamp()


def _id(record: ConsumerRecord) -> str:
    return (dict(record.headers or ()).get("ce_id") or b"").decode()


def digging(word: str = "sleep 299") -> set[str]:
    """The containers in which a program runs that is known by `word`."""
    words = ["docker", "ps", "--quiet", "--filter", "label=io.metier.sandbox.owner"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    tops = {one: subprocess.run(["docker", "top", one], capture_output=True, text=True, check=False) for one in names}
    return {one for one, top in tops.items() if word in top.stdout}


async def test_a_cancel_ends_the_models_request_and_the_run(up: Fleet, silent: Silent) -> None:
    run_id = started(up, "thinker", "think")
    until(lambda: silent.began, "the model's request")
    # When
    asked = cancelled(up, run_id)
    # Then
    until(lambda: silent.ended, "the model's request ends", HANG_S)
    log.info("the model request ended %.2f s after the command asked", silent.ended[0] - asked)
    end = up.terminal("think")
    assert (end["type"], end["note"]) == ("io.metier.run.cancelled.v1", "enough")
    assert up.ends(run_id) == [(b"io.metier.run.cancelled.v1", f"{run_id}/ended".encode())]
    until(lambda: answered(up, run_id), "the call is answered", HANG_S)
    async with open_journal(up) as journal:
        (call,) = await journal.calls.of_run(run_id)
        assert (call.failure or pytest.fail("no failure")).code == "cancelled"
    assert len(silent.began) == 1


async def test_a_cancel_ends_the_tool_call_with_its_container(up: Fleet) -> None:
    run_id = started(up, "digger", "dig")
    until(digging, "its program runs in a container")
    with watching(digging) as gone:
        # When
        asked = cancelled(up, run_id)
        # Then
        until(lambda: gone, "the container ends", HANG_S)
    log.info("the container ended %.2f s after the command asked", gone[0] - asked)
    assert up.terminal("dig")["type"] == "io.metier.run.cancelled.v1"
    until(lambda: answered(up, run_id), "the call is answered", HANG_S)
    async with open_journal(up) as journal:
        (call,) = await journal.calls.of_run(run_id)
        assert (call.failure or pytest.fail("no failure")).code == "cancelled"


async def test_a_cancel_beside_many_busy_containers_ends_that_one_and_no_other(up: Fleet) -> None:
    # Given as many programs that compute without end as there is room for
    run_ids = [started(up, "grinder", f"grind{n}") for n in range(BUSY)]
    until(lambda: len(grinding()) == BUSY, "all of them run")
    before = grinding()
    with watching(lambda: before <= grinding()) as gone:
        # When one of their runs is cancelled
        asked = cancelled(up, run_ids[BUSY // 2])
        # Then one container ends, and the others go on
        until(lambda: gone, "a container ends", HANG_S)
    log.info("beside %d busy ones the container ended %.2f s after the command asked", BUSY - 1, gone[0] - asked)
    assert up.terminal(f"grind{BUSY // 2}")["type"] == "io.metier.run.cancelled.v1"
    assert len(before & grinding()) == BUSY - 1
    # And when all the others are, all of theirs end
    cancelled(up, *[one for one in run_ids if one != run_ids[BUSY // 2]])
    until(lambda: not grinding(), "all containers end", HANG_S)


def grinding() -> set[str]:
    """The containers that compute."""
    return digging(f"sleep {GRINDING}")


@contextmanager
def watching(there: Callable[[], object]) -> Generator[list[float]]:
    """Notes when something is not there any more, while the test does something else."""
    gone: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and not gone:
            if not there():
                gone.append(time.time())

    thread = threading.Thread(target=watch)
    thread.start()
    yield gone
    stop.set()
    thread.join()


async def test_a_call_that_lies_on_the_topic_is_answered_without_a_model_request(up: Fleet, silent: Silent) -> None:
    # Given a worker that is away, and a run that has asked it
    before = len(silent.began)
    up.roles["thinker"].end()
    run_id = started(up, "thinker", "late")
    until(lambda: asked(up, run_id), "the call is on its topic")
    # When the run is cancelled, and the worker comes back
    cancelled(up, run_id)
    assert up.terminal("late")["type"] == "io.metier.run.cancelled.v1"
    up.roles["thinker"].restart()
    # Then
    until(lambda: answered(up, run_id), "the call is answered")
    assert len(silent.began) == before


def answered(up: Fleet, run_id: RunId) -> bool:
    """Whether the run's call is answered."""
    return _count(up, "SELECT count(*) FROM calls WHERE run_id = %s AND answered_at IS NOT NULL", run_id)


def asked(up: Fleet, run_id: RunId) -> bool:
    """Whether the run has asked."""
    return _count(up, "SELECT count(*) FROM calls WHERE run_id = %s", run_id)


def _count(up: Fleet, sql: LiteralString, run_id: RunId) -> bool:
    with psycopg.connect(up.environment["METIER_POSTGRES_URL"]) as connection:
        row = connection.execute(sql, (run_id,)).fetchone()
    return bool(row and row[0])
