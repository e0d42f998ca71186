"""A whole system, run and scraped: one process of each role on the real services, runs that end well and badly, and what each role then shows.

`worked` is such a system, and `scraped` every metric that a dashboard or an alert may name, as Prometheus gets it from there. Called by the fixture `system`.
Needs what `make test` starts: Docker, Kafka, Postgres and Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from metier.compose import agents_folder, recordings_path
from metier.configuration import configure
from metier.own_database import own_database
from metier_agents.recordings import read_recordings
from metier_infra.metrics import METRICS
from metier_infra.prometheus import name_of

PATIENCE_S = 90.0
AGENTS = ("coder", "reasoner", "careful", "floods", "streams")
CODE = next(one for one in read_recordings(recordings_path()).queries if one.category == "code_reasoning")
SAID = "ANSWER: 42\nCONFIDENCE: 0.9"
FLOOD = "while True: print('x' * 65536)"

Shown = Mapping[str, frozenset[str]]
"""The names of samples, such as `metier_runs_ended_total`, with the labels that they have."""


@asynccontextmanager
async def worked(folder: Path) -> AsyncGenerator[System]:
    """A system that has done its work, and is still there. Takes about half a minute."""
    async with own_database(configure(), f"t_{secrets.token_hex(6)}") as postgres_url:
        with _live_model() as address:
            system = System(_environment(postgres_url, address, _agents(folder)), folder)
            try:
                await asyncio.to_thread(system.start)
                await asyncio.to_thread(_work, system)
                yield system
            finally:
                await asyncio.to_thread(system.end)


def scraped(system: System) -> Shown:
    """What its roles show together, once all is there that is declared."""
    shown: dict[str, frozenset[str]] = {}

    def complete() -> bool:
        for role in system.roles.values():
            shown.update(shown_in(role.metrics()))
        return not missing(shown)

    until(complete, lambda: f"these do not show: {missing(shown)}")
    return shown


def missing(shown: Shown) -> Sequence[str]:
    """The metrics that are declared and do not show, by the names of their samples."""
    return sorted({sample_of(name_of(one), one.kind) for one in METRICS} - shown.keys())


def sample_of(name: str, kind: str) -> str:
    """A sample that the metric has."""
    return f"{name}_bucket" if kind == "histogram" else name


def shown_in(exposition: str) -> Shown:
    """Every sample's name in what a role shows, with the labels that any of its series has."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | sample.labels.keys()
    return found


def until(found: Callable[[], object], why: Callable[[], str]) -> None:
    """Wait for another process: nothing tells us when it is there, so look again and again."""
    limit = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < limit, why()
        time.sleep(0.1)


class Role:
    """One process, its log, and what it answers."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.log = folder / f"{words[0]}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metier", *words],
                cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def url(self) -> str:
        """Where it answers; empty: nowhere yet."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("{")]
        ports = [said["port"] for said in map(json.loads, lines) if said.get("action") == "listen"]
        return f"http://127.0.0.1:{ports[0]}" if ports else ""

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        url = self.url()
        return bool(url) and httpx2.get(f"{url}/readyz", timeout=30).status_code == 200

    def metrics(self) -> str:
        return httpx2.get(f"{self.url()}/metrics", timeout=30).raise_for_status().text

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class System:
    """The roles, and a Kafka client that knows nothing of Métier's code."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.roles: dict[str, Role] = {}
        self.ended: dict[str, Mapping[str, object]] = {}

    def start(self) -> None:
        self.metier("topics")
        for words in (["orchestrator"], ["tools"], ["agent", *AGENTS]):
            self.roles[words[0]] = Role(words, self.environment, self.folder)
        until(lambda: all(role.ready() for role in self.roles.values()), self.tails)

    def metier(self, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "metier", *words],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def publish(self, value: bytes, event_id: str = "") -> None:
        about = {
            "ce_specversion": "1.0", "ce_id": event_id, "ce_source": "/tests/backend",
            "ce_type": "io.metier.run.requested.v1", "content-type": "application/json",
        }  # fmt: skip
        producer = KafkaProducer(bootstrap_servers=self.environment["METIER_KAFKA_BOOTSTRAP"])
        headers = [(name, text.encode()) for name, text in about.items()] if event_id else []
        topic = self.environment["METIER_KAFKA_PREFIX"] + "metier.requests"
        producer.send(topic, value=value, key=b"tenant", headers=headers).get(timeout=20)
        producer.close()

    def ask(self, event_id: str, workflow: str, value: object, **more: object) -> None:
        self.publish(json.dumps({"workflow": workflow, "input": value, **more}).encode(), event_id)

    def await_ends(self, *event_ids: str) -> None:
        """Wait for the terminal events of these requests."""
        consumer = KafkaConsumer(bootstrap_servers=self.environment["METIER_KAFKA_BOOTSTRAP"])
        name = self.environment["METIER_KAFKA_PREFIX"] + "metier.events"
        parts = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)

        def there() -> bool:
            for batch in consumer.poll(200).values():
                said = [json.loads(record.value or b"{}") for record in batch]
                self.ended.update({one["request_id"]: one for one in said if one.get("request_id")})
            return set(event_ids) <= self.ended.keys()

        until(there, self.tails)
        consumer.close()

    def tails(self) -> str:
        return "\n".join(f"--- {name}\n{role.log.read_text()[-2000:]}" for name, role in self.roles.items())

    def end(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Role.end, self.roles.values()))


def _work(system: System) -> None:
    """Runs that succeed, fail, are too dear, come twice, end a container; a record that is none; an outcome; the death of the tool runner's worker."""
    question = {"question": CODE.text}
    system.ask("good", "specialists", question)
    system.ask("good", "specialists", question)
    system.ask("unknown", "of nobody", {})
    system.ask("dear", "specialists", question, limits={"usd": 0})
    for agent in ("floods", "streams"):
        system.ask(agent, "metier.eval", {"pair": {"agent": agent, "text": "?"}})
    system.publish(b"no event")
    system.await_ends("good", "unknown", "dear", "floods", "streams")
    system.metier("outcomes", "report", str(system.ended["good"]["run_id"]), "--agent", "coder", "--score", "1")
    runner = system.roles["tools"].process.pid
    (worker,) = subprocess.run(["pgrep", "-P", str(runner)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(worker), signal.SIGKILL)


def _agents(folder: Path) -> Path:
    """The agents that ship; one whose programs write without an end; one whose model streams."""
    agents, script = folder / "agents", folder / "floods.script.yaml"
    shutil.copytree(agents_folder(configure()), agents)
    uses = [{"id": "u1", "tool": "python", "arguments": {"code": FLOOD}}]
    script.write_text(json.dumps([{"uses": uses}, {"text": SAID}]))
    floods = {"name": "floods", "model": f"scripted:{script}", "tools": [{"name": "python"}]}
    streams = {"name": "streams", "model": "openai:local-model", "stream": True}
    for one in (floods, streams):
        spec = {"description": "for tests", "policy": {"kind": "collaborative"}, **one}
        (agents / f"{one['name']}.yaml").write_text(json.dumps(spec))
    return agents


def _environment(postgres_url: str, model: str, agents: Path) -> Mapping[str, str]:
    prefix = f"t-{secrets.token_hex(4)}."
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    own = {
        "METIER_HTTP_PORT": "0", "METIER_AGENTS": str(agents), "METIER_POSTGRES_URL": postgres_url, "METIER_KAFKA_PREFIX": prefix,
        "METIER_LANE_NAMESPACE": prefix.rstrip("."), "METIER_GRANT_KEY": secrets.token_hex(16), "METIER_LEASE_S": "3",
        "METIER_SANDBOX_POOL": "0", "METIER_DRAIN_S": "8", "METIER_KAFKA_PARTITIONS": "2",
        "OPENAI_BASE_URL": f"{model}/v1", "OPENAI_API_KEY": "none",
    }  # fmt: skip
    return {**inherited, **own}


class _Completions(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        about = {"id": "c1", "object": "chat.completion.chunk", "created": 0, "model": "local-model"}
        said = {"index": 0, "delta": {"role": "assistant", "content": SAID}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        none: list[object] = []
        chunks: Sequence[dict[str, object]] = [{"choices": [said]}, {"choices": none, "usage": usage}]
        lines = [*(json.dumps(about | chunk) for chunk in chunks), "[DONE]"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@contextmanager
def _live_model() -> Generator[str]:
    """The address of a server that streams chat completions as OpenAI does, and says what they took."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Completions)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
