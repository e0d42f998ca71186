"""Métier's roles as processes, each its own user of the secured broker with what `kafka-acls.yaml` gives it, and no more."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer

from metier_infra import kafka_access, kafka_acls
from metier_infra.kafka_acls import Access
from metier_infra.settings import KafkaSettings

from . import lists
from .conftest import Secured

PATIENCE_S = 60.0
AGENTS = ("echo", "other")
ANSWER = {"question": "?", "answer": "42"}
SCRIPT = """
- cost_usd: 0.001
  uses: [{id: u1, tool: python, arguments: {code: 'print(6 * 7)'}}]
- text: "ANSWER: 42\\nCONFIDENCE: 0.9"
  cost_usd: 0.002
"""
WORKFLOW = """
from typing import TypedDict
from langgraph.graph import END, START, StateGraph
from metier import agent, workflow

class State(TypedDict, total=False):
    question: str
    answer: str

async def ask(state: State) -> State:
    return {"answer": (await agent("echo").ask(state["question"])).text}

@workflow("once")
def once():
    return StateGraph(State).add_node("ask", ask).add_edge(START, "ask").add_edge("ask", END)
"""


def until(found: Callable[[], object], what: str) -> None:
    """Wait for another process: nothing tells us when it is there, so look again and again."""
    limit = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.02)


class Role:
    """One process, with its log."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        name = "-".join(words)
        self.log, self._sign = folder / f"{name}.log", folder / f"{name}.ready"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metier", *words],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**environment, "METIER_READY_FILE": str(self._sign), "METIER_INSTANCE": name},
            )  # fmt: skip

    def ready(self) -> None:
        until(lambda: self._sign.exists() or self.process.poll() is not None, f"{self.log.stem} ready")
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Estate:
    """The roles, their users and their lists, under one prefix."""

    def __init__(self, secured: Secured, environment: dict[str, str], folder: Path) -> None:
        self.secured, self.prefix, self._folder = secured, f"t-{secrets.token_hex(4)}.", folder
        self._environment = {**environment, "METIER_KAFKA_PREFIX": self.prefix}
        self.accesses = kafka_acls.accesses(AGENTS, prefix=self.prefix, principal=f"User:{self.prefix}{{role}}")
        self.users = sorted({self.prefix + one.role for one in self.accesses} | {f"{self.prefix}tools"})
        self.roles: dict[str, Role] = {}
        self.made: list[str] = []
        secured.know(*self.users)
        self.admin = secured.admin()
        lists.add(self.admin, lists.entries(self.accesses))

    def of(self, role: str) -> list[Access]:
        """What a role may do."""
        return [one for one in self.accesses if one.role == role]

    def settings(self, role: str) -> KafkaSettings:
        """Those of a client that comes as this role."""
        return self.secured.settings(self.prefix + role, self.prefix + role, prefix=self.prefix, partitions=2)

    def _variables(self, role: str) -> dict[str, str]:
        known = {
            "METIER_KAFKA_BOOTSTRAP": self.secured.places["SASL_PLAINTEXT"], "METIER_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "METIER_KAFKA_SASL_MECHANISM": "SCRAM-SHA-256", "METIER_KAFKA_USERNAME": self.prefix + role,
            "METIER_KAFKA_PASSWORD": self.prefix + role,
        }  # fmt: skip
        return {**self._environment, **({} if role == "tools" else known)}

    def start(self, role: str, *words: str) -> None:
        """Start a process that comes as this role. A tool runner is told of no broker."""
        self.roles[role] = Role(words, self._variables(role), self._folder)

    def metier(self, role: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as this role."""
        return subprocess.run(
            [sys.executable, "-m", "metier", *words],
            cwd=self._folder, env=self._variables(role), capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def produce(self, role: str | None, topic: str, value: bytes, headers: dict[str, str] | None = None) -> None:
        """What a backend does, with a client of its own; None: who may do everything."""
        settings = self.settings(role) if role else self.secured.settings()
        producer = KafkaProducer(**kafka_access.arguments(settings))
        pairs = [(name, text.encode()) for name, text in (headers or {}).items()]
        producer.send(self.prefix + topic, value=value, key=b"k", headers=pairs).get(timeout=30)
        producer.close()

    def request(self, event_id: str) -> None:
        """Ask for a run, as a backend."""
        about = {
            "ce_specversion": "1.0", "ce_id": event_id, "ce_source": "/tests/backend",
            "ce_type": "io.metier.run.requested.v1", "content-type": "application/json",
        }  # fmt: skip
        body = {"workflow": "once", "input": {"question": "?"}}
        self.produce("publisher", "metier.requests", json.dumps(body).encode(), about)

    def terminal(self, event_id: str) -> dict[str, object]:
        """The data of the terminal event of a run, read as a backend that has a group."""
        with self._reading() as consumer:
            limit = time.monotonic() + PATIENCE_S
            while time.monotonic() < limit:
                for record in (one for batch in consumer.poll(200).values() for one in batch):
                    if json.loads(record.value or b"{}").get("request_id") == event_id:
                        return dict(json.loads(record.value or b"{}"))
        tails = "\n".join(f"--- {name}\n{role.said()[-1500:]}" for name, role in self.roles.items())
        raise AssertionError(f"no end of {event_id} within {PATIENCE_S:g} s\n{tails}")

    @contextmanager
    def _reading(self) -> Generator[KafkaConsumer]:
        group = f"{self.prefix}metier.backend.{secrets.token_hex(4)}"
        consumer = KafkaConsumer(
            group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **kafka_access.arguments(self.settings("reader"))
        )  # fmt: skip
        consumer.subscribe([f"{self.prefix}metier.events"])
        consumer.partitions_for_topic(f"{self.prefix}metier.events")  # see `kafka_bus`: else it is given nothing
        try:
            yield consumer
        finally:
            consumer.close(autocommit=False)

    def close(self) -> None:
        """End what was started; take away what was made."""
        for role in self.roles.values():
            role.process.send_signal(signal.SIGTERM)
        for role in self.roles.values():
            try:
                role.process.wait(40)
            except subprocess.TimeoutExpired:
                role.process.kill()
                role.process.wait()
        lists.remove(self.admin, lists.entries(self.accesses))
        self.admin.close()


def agents_folder(folder: Path) -> Path:
    """Two scripted agents that run a program."""
    agents, script = folder / "agents", folder / "echo.script.yaml"
    agents.mkdir()
    script.write_text(SCRIPT)
    for name in AGENTS:
        text = f"name: {name}\ndescription: runs a program\nmodel: scripted:{script}\npolicy: {{kind: collaborative}}\ntools: [{{name: python}}]\n"
        (agents / f"{name}.yaml").write_text(text)
    return agents


@contextmanager
def new_estate(secured: Secured, postgres_url: str, folder: Path) -> Generator[Estate]:
    """An estate without roles yet."""
    (folder / "access_once.py").write_text(WORKFLOW)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("METIER_KAFKA", "OTEL_"))}
    own = {
        "METIER_POSTGRES_URL": postgres_url, "METIER_AGENTS": str(agents_folder(folder)), "METIER_WORKFLOWS": "access_once", "PYTHONPATH": str(folder),
        "METIER_LANE_NAMESPACE": secrets.token_hex(6), "METIER_GRANT_KEY": secrets.token_hex(16), "METIER_KAFKA_PARTITIONS": "2",
        "METIER_LEASE_S": "3", "METIER_SANDBOX_POOL": "1", "METIER_DRAIN_S": "8",
    }  # fmt: skip
    made = Estate(secured, {**inherited, **own}, folder)
    try:
        yield made
    finally:
        made.close()
