"""A fleet: Métier's roles as real processes over real Kafka, Postgres, Redis and Docker, isolated by prefix, database and namespace."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from metier_infra.database import migrate
from metier_infra.journal import Journal
from metier_infra.postgres_journal import PostgresDatabase

if TYPE_CHECKING:
    from kafka import ConsumerRecord

NEEDED = ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_REDIS_URL", "METIER_SANDBOX_IMAGE")
PATIENCE_S = 60.0


@pytest.fixture(scope="session")
def services() -> Mapping[str, str]:
    """Where the real services are; `make test` starts them."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    assert not missing, f"{', '.join(missing)} not set: run `make test`, or `. .metier/env` after `make up`"
    return {name: os.environ[name] for name in NEEDED}


def until(found: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for another process: nothing tells us when it is there, so look again and again."""
    limit = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < limit, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.02)


class Process:
    """One role: its process, its log, its ready file."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> None:
        self.name, self.words = name, words
        self.log = folder / f"{name}.log"
        self.sign = folder / f"{name}.ready"
        self.environment = {**environment, "METIER_READY_FILE": str(self.sign), "METIER_INSTANCE": name}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.sign.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "metier", *self.words],
                cwd=self.log.parent, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def ready(self) -> None:
        until(lambda: self.sign.exists() or self.process.poll() is not None, f"{self.name} ready")
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start()

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def said(self) -> list[dict[str, object]]:
        """Its log lines, as far as they are JSON."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@dataclass
class Fleet:
    """Roles under one prefix, with a plain kafka-python producer and consumer that know nothing of Métier's code."""

    environment: dict[str, str]
    folder: Path
    prefix: str
    roles: dict[str, Process] = field(default_factory=dict[str, Process])

    def start(self, name: str, *words: str, **more: str) -> Process:
        self.roles[name] = Process(words, {**self.environment, **more}, self.folder, name)
        return self.roles[name]

    def start_all(self, *agents: str, **more: str) -> None:
        """An orchestrator, a tool runner, and a worker for each agent."""
        self.metier("topics", **more)
        self.start("orchestrator", "orchestrator", **more)
        self.start("tools", "tools", **more)
        for agent in agents:
            self.start(agent, "agent", agent, **more)
        for role in self.roles.values():
            role.ready()

    def metier(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "metier", *words],
            cwd=self.folder, env={**self.environment, **more}, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def produce(
        self, value: bytes, headers: Mapping[str, str], *, topic: str = "metier.requests", key: str = "tenant"
    ) -> None:
        producer = KafkaProducer(bootstrap_servers=self.environment["METIER_KAFKA_BOOTSTRAP"])
        pairs = [(name, text.encode()) for name, text in headers.items()]
        producer.send(self.prefix + topic, value=value, key=key.encode(), headers=pairs).get(timeout=20)
        producer.close()

    def request(self, workflow: str, value: object, event_id: str, **headers: str) -> None:
        """What a backend sends: a CloudEvent in binary mode."""
        about = {
            "ce_specversion": "1.0", "ce_id": event_id, "ce_source": "/tests/backend",
            "ce_type": "io.metier.run.requested.v1", "content-type": "application/json",
        }  # fmt: skip
        self.produce(json.dumps({"workflow": workflow, "input": value}).encode(), {**about, **headers})

    def records(self, topic: str, enough: Callable[[list[ConsumerRecord]], object]) -> list[ConsumerRecord]:
        """Everything on a topic, read until it is enough."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.environment["METIER_KAFKA_BOOTSTRAP"], auto_offset_reset="earliest"
        )
        name = self.prefix + topic
        parts = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
        consumer.assign(parts)
        for part in parts:
            consumer.seek(part, 0)
        found: list[ConsumerRecord] = []
        limit = time.monotonic() + PATIENCE_S
        try:
            while not enough(found):
                assert time.monotonic() < limit, (
                    f"{topic}: {[_type(record) for record in found]} and no more; {self.tails()}"
                )
                for batch in consumer.poll(200).values():
                    found += batch
        finally:
            consumer.close()
        return found

    def terminal(self, event_id: str) -> dict[str, object]:
        """The data of the terminal event of the run that this request started."""

        def ends(records: list[ConsumerRecord]) -> list[dict[str, object]]:
            data = [json.loads(r.value or b"{}") | {"type": _type(r)} for r in records]
            return [d for d in data if d.get("request_id") == event_id]

        return ends(self.records("metier.events", ends))[0]

    def ends(self, run_id: str) -> list[tuple[bytes, bytes]]:
        """Every different terminal event of a run that lies on the topic now, by type and id: there must be one."""
        mark = json.dumps({"mark": secrets.token_hex(8)}).encode()
        self.produce(mark, {}, topic="metier.events", key=run_id)
        seen = self.records("metier.events", lambda found: any(record.value == mark for record in found))
        about = [dict(record.headers or ()) for record in seen if run_id.encode() in (record.value or b"")]
        return sorted(
            {(a["ce_type"] or b"", a["ce_id"] or b"") for a in about if (a["ce_id"] or b"").endswith(b"/ended")}
        )

    def tails(self) -> str:
        return "\n".join(
            f"--- {name}\n{role.log.read_text(errors='replace')[-1500:]}" for name, role in self.roles.items()
        )


def _type(record: ConsumerRecord) -> str:
    return (dict(record.headers or ()).get("ce_type") or b"?").decode()


def echo_agents(folder: Path, code: str) -> Path:
    """A folder with one scripted agent, `echo`: each call runs a program and answers 42 for 0.003 USD."""
    agents, script = folder / "agents", folder / "echo.script.yaml"
    agents.mkdir()
    script.write_text(
        "- cost_usd: 0.001\n"
        f"  uses: [{{id: u1, tool: python, arguments: {{code: '{code}'}}}}]\n"
        '- text: "ANSWER: 42\\nCONFIDENCE: 0.9"\n  cost_usd: 0.002\n'
    )
    (agents / "echo.yaml").write_text(
        f"name: echo\ndescription: runs a program\nmodel: scripted:{script}\npolicy: {{kind: collaborative}}\ntools: [{{name: python}}]\n"
    )
    return agents


SLOW = "import time; time.sleep(0.5); print(6 * 7)"
"""Half a second of code in a sandbox, for `echo_agents`."""


@contextmanager
def new_database(server: str) -> Generator[str]:
    """A migrated database of somebody's own, dropped at the end."""
    name = f"t_{secrets.token_hex(6)}"
    url = f"{server.rpartition('/')[0]}/{name}"
    _admin(server, f"CREATE DATABASE {name}")
    try:
        asyncio.run(_migrate(url))
        yield url
    finally:
        _admin(server, f"DROP DATABASE {name} WITH (FORCE)")


def _admin(server: str, statement: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(statement.encode())


async def _migrate(url: str) -> None:
    db = await PostgresDatabase(url, 1).open()
    await migrate(db)
    await db.close()


@contextmanager
def new_fleet(services: Mapping[str, str], folder: Path, **more: str) -> Generator[Fleet]:
    """A fleet without roles yet; whatever was started is ended, by its pid."""
    prefix = f"t-{secrets.token_hex(4)}."
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("METIER_", "OTEL_"))}
    own = {
        "METIER_KAFKA_PREFIX": prefix, "METIER_LANE_NAMESPACE": prefix.rstrip("."), "METIER_GRANT_KEY": secrets.token_hex(16),
        "METIER_LEASE_S": "3", "METIER_SANDBOX_POOL": "1", "METIER_DRAIN_S": "8", "METIER_KAFKA_PARTITIONS": "2",
    }  # fmt: skip
    with new_database(services["METIER_POSTGRES_URL"]) as url:
        made = Fleet({**inherited, **services, **own, "METIER_POSTGRES_URL": url, **more}, folder, prefix)
        try:
            yield made
        finally:
            for role in made.roles.values():
                role.process.send_signal(signal.SIGTERM)
            for role in made.roles.values():
                role.end()


@pytest.fixture
def fleet(services: Mapping[str, str], tmp_path: Path) -> Generator[Fleet]:
    """A fleet of this test's own, without roles yet."""
    with new_fleet(services, tmp_path) as made:
        yield made


@asynccontextmanager
async def open_journal(fleet: Fleet) -> AsyncGenerator[Journal]:
    """The journal of a fleet, read beside it."""
    db = await PostgresDatabase(fleet.environment["METIER_POSTGRES_URL"], 2).open()
    try:
        yield Journal(db)
    finally:
        await db.close()


@dataclass
class Receiver:
    """A tiny OTLP receiver: the spans that arrived, with the service that sent each."""

    url: str
    spans: list[tuple[str, Span]]


@pytest.fixture
def receiver() -> Generator[Receiver]:
    """OTLP over HTTP on 127.0.0.1."""
    spans: list[tuple[str, Span]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest()
            if self.path == "/v1/traces":  # metrics come too
                request.ParseFromString(body)
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                spans.extend((service, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Receiver(f"http://127.0.0.1:{server.server_port}", spans)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """`until`, for tests."""
    return until
