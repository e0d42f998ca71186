"""A backend in another language: a Node program that knows the AsyncAPI document, and nothing else of Métier, over the real broker.

The program is the one that the how-to shows. Not here: whether the document is valid (`test_contracts`).
"""

from __future__ import annotations

import asyncio
import json
import operator
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from metier import contracts
from metier_agents.model import ScriptedModel
from metier_agents.spec import AgentSpec
from metier_agents.testing import ScriptedLane
from metier_agents.turns import ModelTurn
from metier_agents.worker import AgentWorker
from metier_infra import kafka_topics
from metier_infra.bus import Bus, Consumption
from metier_infra.claims import ClaimCheck
from metier_infra.database import Statement
from metier_infra.events import EVENTS_TOPIC, RunSucceeded, tasks_topic
from metier_infra.journal import Journal
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Delivery, Envelope, decode
from metier_infra.postgres_blobs import PostgresBlobs
from metier_infra.postgres_journal import PostgresDatabase
from metier_infra.service import Ready
from metier_infra.settings import KafkaSettings
from metier_infra.words import AgentCard
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult
from metier_workflows.node import agent
from metier_workflows.orchestrator import Orchestrator
from metier_workflows.workflow import Graph, Workflows, workflow

HUNG = 120
LEASE_S = 3.0
PAGE = Path(__file__).parents[1] / "docs/how-to/publish-from-another-language.md"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SPEC = AgentSpec.model_validate({"name": "solver", "model": "scripted:x", "policy": {"kind": "autonomous"}})
CARDS = {"solver": AgentCard(name="solver", model="m", policy="autonomous")}


class State(TypedDict):
    text: str
    times: int
    said: Annotated[list[str], operator.add]


class Said(TypedDict):
    said: list[str]


class Asked(BaseModel):
    text: str
    times: int = 1


async def say(state: State) -> dict[str, Any]:
    answer = await agent("solver").ask(state["text"], timeout_s=HUNG)
    return {"said": [answer.text * state["times"]]}


@workflow("echo", input=Asked)
def echo() -> Graph:
    graph = StateGraph(State, input_schema=State, output_schema=Said)
    graph.add_node("say", say)
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    return graph


@dataclass
class Shop:
    """A running system, and where the backend's program lies."""

    bus: Bus
    journal: Journal
    node: str
    folder: Path
    environment: Mapping[str, str]

    async def ask(self, order: str, value: object, **more: str) -> dict[str, Any]:
        """Run the backend to its end: what it printed."""
        broker = self.environment["METIER_KAFKA_BOOTSTRAP"]
        words = ["ask.mjs", "asyncapi.json", broker, order, "echo", json.dumps(value)]
        program = await asyncio.create_subprocess_exec(
            self.node, *words, cwd=self.folder, env={**self.environment, **more},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(HUNG):
            said, complaint = await program.communicate()
        assert program.returncode == 0, complaint.decode()
        return json.loads(said)


@pytest.fixture
async def shop(
    kafka: KafkaSettings, postgres_url: str, contract_tools: tuple[str, Path], tmp_path: Path
) -> AsyncIterator[Shop]:
    names = ["metier.requests", "metier.runs", EVENTS_TOPIC, "metier.dead-letters", tasks_topic("solver")]
    kafka_topics.apply(kafka, [kafka_topics.Topic(name, 2, 1) for name in names])
    (program,) = re.findall(r"^```js\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "ask.mjs").write_text(program)
    (tmp_path / "asyncapi.json").write_text(contracts.written(contracts.document(public=True)))
    node, packages = contract_tools
    (tmp_path / "node_modules").symlink_to(packages)
    environment = {
        "METIER_KAFKA_BOOTSTRAP": kafka.bootstrap or "",
        "METIER_KAFKA_PREFIX": kafka.prefix,
        "METIER_POSTGRES_URL": postgres_url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    async with AsyncExitStack() as after:
        bus = ClaimCheck(KafkaBus(kafka, client="metier-tests"), PostgresBlobs(postgres_url))
        after.push_async_callback(bus.close)
        db = await PostgresDatabase(postgres_url).open()
        after.push_async_callback(db.close)
        journal = Journal(db, LEASE_S)
        await serve(bus, journal, after)
        yield Shop(bus, journal, node, tmp_path, environment)


async def serve(bus: Bus, journal: Journal, after: AsyncExitStack) -> None:
    """An orchestrator and an agent worker, which end with the test."""
    ready, stop = asyncio.Event(), asyncio.Event()
    count = Ready(None, 3, ready.set)
    worker = AgentWorker(
        bus=bus, journal=journal, lane=ScriptedLane(lambda _: ToolResult(status="ok")), toolbox=BUILTIN,
        agents={"solver": SPEC}, open_model=lambda _: ScriptedModel([ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9")] * 9),
        grant_key=b"k" * 32, instance="w", drain_s=1,
    )  # fmt: skip
    orchestrator = Orchestrator(bus, journal, Workflows([echo]), CARDS, instance="o", drain_s=1)
    roles = [asyncio.create_task(orchestrator.run(stop, count)), asyncio.create_task(worker.run(stop, count.one))]

    async def end() -> None:
        stop.set()
        await asyncio.gather(*roles)

    after.push_async_callback(end)
    async with asyncio.timeout(HUNG):
        await ready.wait()


async def ends(bus: Bus, count: int) -> list[Envelope[RunSucceeded]]:
    """The first ends that were told."""
    found: list[Any] = []
    stop = asyncio.Event()

    async def keep(delivery: Delivery) -> None:
        event = decode(delivery)
        if isinstance(event.data, RunSucceeded):
            found.append(event)
            if len(found) == count:
                stop.set()

    async with asyncio.timeout(HUNG):
        await bus.consume(Consumption([EVENTS_TOPIC], None), keep, stop)
    return found


async def test_a_program_that_knows_the_document_alone_starts_a_run_and_reads_its_end_in_its_own_trace(
    shop: Shop, spans: InMemorySpanExporter
) -> None:
    told = await shop.ask("order-7", {"text": "6·7 = ?"}, TRACEPARENT=f"00-{TRACE}-b7ad6b7169203331-01")
    (run,) = await shop.journal.runs.recent(limit=9)
    assert (told["type"], told["data"]["result"]) == ("io.metier.run.succeeded.v1", {"said": ["42"]})
    assert (run.source, run.event_id, run.run_id) == ("/shop/checkout", "order-7", told["data"]["run_id"])
    assert [told["traceparent"].split("-")[1], run.traceparent.split("-")[1]] == [TRACE, TRACE]
    traces = {span.context.trace_id for span in spans.get_finished_spans() if span.context and "agent" in span.name}
    assert traces == {int(TRACE, 16)}


async def test_a_request_sent_twice_is_one_run_and_an_end_told_twice_has_one_id(shop: Shop) -> None:
    first = await shop.ask("order-8", {"text": "6·7 = ?"})
    again = await shop.ask("order-8", {"text": "6·7 = ?"})
    (run,) = await shop.journal.runs.recent(limit=9)
    await shop.journal.db.write(Statement("UPDATE runs SET announced = 0 WHERE run_id = :id", {"id": run.run_id}))
    one, two = await ends(shop.bus, 2)
    assert first["id"] == again["id"] == one.id == two.id
    assert first["data"] == again["data"] == one.data.model_dump(mode="json") == two.data.model_dump(mode="json")


async def test_a_result_too_large_for_a_record_is_got_by_its_claim(shop: Shop) -> None:
    told = await shop.ask("order-9", {"text": "6·7 = ?", "times": 1_000_000})
    assert told["data"]["result"] == {"said": ["42" * 1_000_000]}


async def test_what_does_not_fit_the_document_is_refused_before_it_is_sent(shop: Shop) -> None:
    with pytest.raises(
        AssertionError, match="RunRequested: its payload does not fit the contract: data/input must be object"
    ):
        await shop.ask("order-10", "no object")
    assert await shop.journal.runs.recent(limit=9) == []
