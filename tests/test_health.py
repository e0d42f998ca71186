"""Health and metrics of a role over HTTP: what it answers in each of its states, whatever its loop, its services or its clients do.

Not here: which metrics a system shows (`alerts/test_scraped`), nor what they count (`test_metrics`).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from metier_infra import metrics, standing
from metier_infra.bus import Consumption, Handler, MemoryBus
from metier_infra.errors import BadSettings, BusGone
from metier_infra.events import RUNS
from metier_infra.health import Health
from metier_infra.health_http import MOST_CLIENTS, HealthServer
from metier_infra.kafka_bus import KafkaBus
from metier_infra.messages import Record
from metier_infra.prometheus import Prometheus, name_of
from metier_infra.service import Ready, serve
from metier_infra.settings import KafkaSettings
from metier_infra.standing import Standing
from metier_tools import grant
from metier_tools.builtin import BUILTIN
from metier_tools.celery_lane import CeleryLane
from metier_tools.tool import ToolCall

HUNG = 90.0
ASKS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
KEY = b"a key of the tests"
NOBODY = "127.0.0.1:9"
"""Where nothing listens."""


def until(found: Callable[[], object], what: Callable[[], str]) -> None:
    """Wait for another process or thread: nothing tells us when it is there, so look again and again."""
    limit = time.monotonic() + HUNG
    while not found():
        assert time.monotonic() < limit, what()
        time.sleep(0.05)


# What it says of itself.


def test_a_process_is_ready_only_while_it_lacks_nothing_and_never_again_once_it_drains() -> None:
    process = Standing()
    assert (process.state, process.why) == ("starting", "it starts")
    process.starting("it waits for the journal")
    assert process.why == "it waits for the journal"
    process.ready()
    assert (process.state, process.why) == ("ready", "")
    process.lacks("metier.runs", "it reads nothing from metier.runs")
    assert (process.state, process.why) == ("starting", "it reads nothing from metier.runs")
    process.starting("it waits for the journal")
    assert process.why == "it reads nothing from metier.runs"
    process.ready()
    process.has("metier.runs")
    assert process.state == "ready"
    process.draining()
    process.ready()
    process.starting("it would like to")
    assert process.state == "draining"


def test_every_metric_has_the_name_in_prometheus_that_is_said_of_it() -> None:
    prometheus = Prometheus()
    metrics.stop()
    metrics.start("tests", "one", prometheus.reader)
    told = {"counter": metrics.add, "histogram": metrics.record, "gauge": metrics.level}
    for one in metrics.METRICS:
        told[one.kind](one, 1, dict.fromkeys(one.labels, "x"))
    shown = {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(prometheus.exposition())
        for sample in family.samples
    }
    metrics.stop()
    for one in metrics.METRICS:
        name = name_of(one) + ("_count" if one.kind == "histogram" else "")
        assert shown.get(name) == {label.replace(".", "_") for label in one.labels}, one.name
    assert len({name_of(one) for one in metrics.METRICS}) == len(metrics.METRICS)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Standing:
    """How this process stands, as if it had just started."""
    made = Standing()
    monkeypatch.setattr(standing, "here", made)
    return made


def test_what_a_role_says_of_its_readiness_is_how_it_stands(here: Standing) -> None:
    ready = Ready(None, 2)
    ready.one()
    assert here.state == "starting"
    ready.one()
    assert here.state == "ready"
    ready.gone("its worker ended")
    assert (here.state, here.why) == ("starting", "its worker ended")
    Ready(None).one()
    assert here.state == "ready"
    ready.gone()
    assert here.state == "draining"


class Flaky(MemoryBus):
    """A bus that is away when it is first asked, and then is there. `seen` is what the process was when it came back."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        self.seen.append((standing.here.state, standing.here.why))
        if len(self.seen) == 1:
            raise BusGone("nobody answers")
        await super().consume(what, handle, stop)


async def test_a_role_that_loses_its_broker_is_not_ready_until_it_has_its_partitions_again(here: Standing) -> None:
    here.ready()
    bus, stop, again = Flaky(), asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(serve(bus, Consumption([RUNS], "g", ready=again.set), {}, stop))
    async with asyncio.timeout(HUNG):
        await again.wait()
        assert here.state == "ready"
        stop.set()
        await serving
    assert bus.seen == [("ready", ""), ("starting", "it reads nothing from metier.runs: nobody answers")]


class Collector(BaseHTTPRequestHandler):
    """Takes metrics by OTLP; `came` is set when some came."""

    came = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/metrics":
            self.came.set()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def test_metrics_that_a_collector_takes_show_in_prometheus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        serving = threading.Thread(target=collector.serve_forever)
        serving.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        prometheus = Prometheus()
        metrics.stop()
        metrics.start("tests", "one", prometheus.reader)
        metrics.add(metrics.FENCED, 7)
        assert "metier_fenced_total 7.0" in prometheus.exposition()
        metrics.stop()
        assert Collector.came.is_set()
        collector.shutdown()
        serving.join()


# What it answers, and to whom.


class Server:
    """A server of health in this process."""

    def __init__(self, *, exposition: Callable[[], str] = str, still_s: float = 3600.0, within_s: float = HUNG) -> None:
        self.standing = Standing()
        self._server = HealthServer(
            "127.0.0.1", 0, Health(self.standing, exposition, still_s).answer, within_s=within_s
        )
        self.port = self._server.port

    def ask(self, path: str, method: str = "GET", accept: str = "*/*") -> httpx2.Response:
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx2.request(method, url, headers={"accept": accept}, timeout=HUNG)

    def await_life(self) -> None:
        """Wait until it answers a probe; one of a machine that is very slow may be cut off."""

        def live() -> bool:
            with suppress(httpx2.TransportError):
                return self.ask("/livez").status_code == 200
            return False

        until(live, lambda: "it does not answer")

    def say(self, words: bytes) -> bytes:
        """What comes back, until the server hangs up, of a client that says no more."""
        with self.connect(words) as line:
            line.shutdown(socket.SHUT_WR)
            return heard(line)

    def connect(self, words: bytes = b"") -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.port), HUNG)
        with suppress(ConnectionError):  # it may have heard enough before the end
            line.sendall(words)
        return line

    @property
    def connected(self) -> int:
        return self._server.connected

    def close(self) -> None:
        self._server.close()


def heard(line: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionError):  # to be cut off is an end too
        while more := line.recv(65536):
            found += more
    return found


@pytest.fixture
def server() -> Generator[Server]:
    with closing(Server()) as made:
        yield made


def test_each_state_has_its_answer_for_people_and_for_machines(server: Server) -> None:
    assert (server.ask("/livez").status_code, server.ask("/livez").text) == (200, "live\n")
    server.standing.starting("it waits for the journal")
    said = server.ask("/readyz")
    assert (said.status_code, said.text) == (503, "starting: it waits for the journal\n")
    said = server.ask("/readyz", accept="application/json")
    assert (said.status_code, said.headers["content-type"]) == (503, "application/json")
    assert said.json() == {"ready": False, "state": "starting", "why": "it waits for the journal"}
    server.standing.ready()
    assert (server.ask("/readyz").status_code, server.ask("/readyz").text) == (200, "ready\n")
    server.standing.draining()
    said = server.ask("/readyz")
    assert (said.status_code, said.text.partition(":")[0]) == (503, "draining")
    assert server.ask("/livez", accept="application/json").json()["live"] is True


@pytest.mark.parametrize(
    ("method", "path", "status", "length"),
    [("HEAD", "/livez", 200, 0), ("POST", "/livez", 405, None), ("GET", "/", 404, None), ("GET", "/livez?verbose", 200, 5)],
)  # fmt: skip
def test_only_what_is_there_is_answered(
    server: Server, method: str, path: str, status: int, length: int | None
) -> None:
    said = server.ask(path, method)
    assert said.status_code == status
    assert length is None or len(said.content) == length


def test_who_asks_for_the_head_gets_no_body(server: Server) -> None:
    said = server.say(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"content-length: 5\r\n" in said
    assert said.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"HTTP/1.1 400"),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"HTTP/1.1 400"),
        (bytes(range(32, 256)), b"HTTP/1.1 400"),
        (b"", b""),
    ],
    ids=["tls", "no host", "bytes", "half", "noise", "nothing"],
)
def test_what_is_no_request_ends_its_own_connection_alone(server: Server, words: bytes, answer: bytes) -> None:
    assert server.say(words).startswith(answer)
    server.await_life()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X-Long: y\r\n" * 20_000 + b"\r\n", b"HTTP/1.1 431"),
        (b"GET /" + b"a" * 100_000, b"HTTP/1.1 431"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 100_000, b"HTTP/1.1 405"),
    ],
    ids=["headers", "target", "a body"],
)
def test_what_is_too_large_is_not_read_to_its_end(server: Server, words: bytes, answer: bytes) -> None:
    said = server.say(words)
    assert said.startswith(answer) or not said  # what was not read may cut the answer off
    server.await_life()


def test_a_client_that_says_nothing_more_is_hung_up_on() -> None:
    with closing(Server(within_s=0.2)) as server, server.connect(b"GET /livez HTTP/1.1\r\n") as slow:
        assert heard(slow) == b""


def test_a_client_that_does_not_take_its_answer_is_hung_up_on() -> None:
    large = "x" * (64 << 20)
    with closing(Server(exposition=lambda: large, within_s=0.5)) as server, server.connect(ASKS) as slow:
        server.await_life()
        until(lambda: not server.connected, lambda: "it waits for ever")
        assert len(heard(slow)) < len(large)


def test_who_holds_connections_open_keeps_no_probe_out(server: Server) -> None:
    with ExitStack() as held:
        for _ in range(3 * MOST_CLIENTS):
            held.enter_context(server.connect(b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: "))
        server.await_life()
        assert server.connected <= MOST_CLIENTS


def test_a_defect_in_an_answer_is_that_answers_alone() -> None:
    def broken() -> str:
        raise RuntimeError("broken")

    with closing(Server(exposition=broken)) as server:
        assert server.ask("/metrics").status_code == 500
        server.await_life()


def test_metrics_are_written_once_for_many_that_ask_at_a_time() -> None:
    written: list[int] = []

    def exposition() -> str:
        written.append(1)
        return f"{len(written)}\n"

    health = Health(Standing(), exposition)
    said = {health.answer("/metrics", as_json=False).body for _ in range(1000)}
    assert len(said) < 1000
    until(lambda: health.answer("/metrics", as_json=False).body not in said, lambda: "it never writes them again")


async def test_a_loop_that_is_blocked_is_told_of_and_told_well_again_when_it_turns() -> None:
    with closing(Server(still_s=2.5)) as server, ThreadPoolExecutor(1) as beside:
        server.standing.beat()

        def becomes(status: int) -> httpx2.Response:
            said: list[httpx2.Response] = []

            def so() -> bool:
                said[:] = [server.ask("/livez")]
                return said[0].status_code == status

            until(so, lambda: f"no {status}")
            return said[0]

        blocked = beside.submit(becomes, 503).result(HUNG)  # this blocks the loop
        assert blocked.text.startswith("the event loop has not turned for ")
        assert server.ask("/readyz").text == "starting: it starts\n"
        assert (await asyncio.to_thread(becomes, 200)).text == "live\n"


def test_a_port_that_is_taken_is_said_so(server: Server) -> None:
    with pytest.raises(BadSettings, match=f"METIER_HTTP_PORT: .* 127.0.0.1 port {server.port}: Address already in use"):
        HealthServer("127.0.0.1", server.port, Health(Standing(), str).answer)


# Real roles.


class Role:
    """One process, its log, and what it answers."""

    def __init__(self, folder: Path, *words: str, **settings: str) -> None:
        self.log = folder / f"{secrets.token_hex(4)}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("METIER_", "OTEL_"))}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metier", *words],
                cwd=folder, env={**inherited, "METIER_HTTP_PORT": "0", **settings}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def _url(self) -> str:
        lines = [line for line in self.said().splitlines() if line.startswith("{")]
        ports = [line["port"] for line in map(json.loads, lines) if line.get("action") == "listen"]
        return f"http://127.0.0.1:{ports[0]}" if ports else ""

    def ask(self, path: str) -> httpx2.Response:
        until(lambda: self._url() or self.process.poll() is not None, lambda: f"no port: {self.said()[-2000:]}")
        return httpx2.get(f"{self._url()}{path}", timeout=HUNG)

    def becomes(self, status: int, words: str, path: str = "/readyz") -> None:
        """Wait until it answers so."""

        def so() -> bool:
            answer = self.ask(path)
            return answer.status_code == status and words in answer.text

        until(so, lambda: f"not {status} {words!r}: {self.ask(path).text} {self.said()[-2000:]}")

    def shows(self, sample: str, **labels: str) -> float:
        """The sum of a sample's series that have these labels, as they are now; 0 where there is none."""
        families = text_string_to_metric_families(self.ask("/metrics").text)
        found = [one for family in families for one in family.samples if one.name == sample]
        return sum(one.value for one in found if labels.items() <= one.labels.items())

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[..., Role]]:
    """Starts roles; whatever was started is ended."""
    started: list[Role] = []

    def make(*words: str, **settings: str) -> Role:
        started.append(Role(tmp_path, *words, **settings))
        return started[-1]

    yield make
    for role in started:
        role.process.kill()
        role.process.wait()


@pytest.fixture
def services(topics: KafkaSettings, postgres_url: str) -> Mapping[str, str]:
    """Settings of a role over the real Kafka and Postgres."""
    return {
        "METIER_KAFKA_BOOTSTRAP": str(topics.bootstrap),
        "METIER_KAFKA_PREFIX": topics.prefix,
        "METIER_POSTGRES_URL": postgres_url,
        "METIER_DRAIN_S": str(HUNG),
    }


@pytest.fixture
def echo(tmp_path: Path) -> Mapping[str, str]:
    """Settings with one scripted agent, and a workflow that asks it."""
    agents, script = tmp_path / "agents", tmp_path / "echo.script.yaml"
    agents.mkdir()
    script.write_text('- text: "ANSWER: 42\\nCONFIDENCE: 0.9"\n')
    spec = f"name: echo\ndescription: says it again\nmodel: scripted:{script}\npolicy: {{kind: collaborative}}\n"
    (agents / "echo.yaml").write_text(spec)
    return {"METIER_WORKFLOWS": "metier.examples.five", "METIER_AGENTS": str(agents)}


async def test_an_orchestrator_starts_is_ready_and_drains(
    start: Callable[..., Role], services: Mapping[str, str], echo: Mapping[str, str], topics: KafkaSettings
) -> None:
    # Given a request, and an orchestrator that nobody answers
    bus = KafkaBus(topics, client="metier-tests")
    headers = {"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/tests", "ce_type": "io.metier.run.requested.v1"}
    asked = json.dumps({"workflow": "five", "input": {"question": "?", "answers": []}}).encode()
    told = tuple((name, value.encode()) for name, value in headers.items())
    await bus.publish(Record("metier.requests", b"t", asked, told))
    await bus.close()
    role = start("orchestrator", **services, **echo)
    # When it has started it is ready, and holds the run
    await asyncio.to_thread(role.becomes, 200, "ready")
    assert role.shows("metier_role_state", metier_role_state="ready", metier_role="orchestrator") == 1
    assert role.shows("metier_role_state", metier_role_state="draining") == 0
    assert role.shows("metier_build", metier_role="orchestrator") == 1
    began = "metier_run_first_step_seconds_count"
    await asyncio.to_thread(until, lambda: role.shows(began, gen_ai_workflow_name="five") == 1, role.said)
    # Then it drains when it is told to end, and is alive
    role.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(role.becomes, 503, "draining")
    await asyncio.to_thread(role.becomes, 200, "live", "/livez")
    drains = {"metier_role_state": "draining"}
    await asyncio.to_thread(until, lambda: role.shows("metier_role_state", **drains) == 1, role.said)


def test_a_role_without_its_journal_is_alive_says_so_and_ends_when_it_is_told_to(
    start: Callable[..., Role], services: Mapping[str, str]
) -> None:
    role = start("orchestrator", **{**services, "METIER_POSTGRES_URL": f"postgresql://u@{NOBODY}/d"})
    role.becomes(503, "starting: it waits for the journal")
    role.becomes(200, "live", "/livez")
    assert role.end() == 0


def test_a_role_without_its_broker_is_alive_and_says_so(
    start: Callable[..., Role], services: Mapping[str, str]
) -> None:
    role = start("orchestrator", **{**services, "METIER_KAFKA_BOOTSTRAP": NOBODY})
    role.becomes(503, "starting: it reads nothing from metier.")
    role.becomes(200, "live", "/livez")


def test_a_role_whose_port_is_taken_ends_at_once_and_says_so(start: Callable[..., Role], server: Server) -> None:
    role = start("dev", METIER_HTTP_PORT=str(server.port))
    assert role.process.wait(HUNG) == 2
    assert (
        f"METIER_HTTP_PORT: nothing can listen at 127.0.0.1 port {server.port}: Address already in use" in role.said()
    )


@pytest.fixture
def lane_settings() -> Mapping[str, str]:
    """Settings of a tool runner in a corner of the real Redis."""
    return {
        "METIER_REDIS_URL": os.environ["METIER_REDIS_URL"],
        "METIER_LANE_NAMESPACE": f"test-{secrets.token_hex(8)}",
        "METIER_GRANT_KEY": KEY.decode(),
        "METIER_SANDBOX_IMAGE": os.environ["METIER_SANDBOX_IMAGE"],
        "METIER_SANDBOX_POOL": "0",
        "METIER_CONCURRENCY": "2",
    }


@pytest.fixture
async def lane(lane_settings: Mapping[str, str]) -> AsyncGenerator[CeleryLane]:
    made = CeleryLane(lane_settings["METIER_REDIS_URL"], KEY, namespace=lane_settings["METIER_LANE_NAMESPACE"])
    yield made
    await made.close()


def tool_call(code: str) -> ToolCall:
    spec = BUILTIN.spec("python")
    assert spec is not None
    ids = {"run_id": secrets.token_hex(8), "call_id": "call", "tool_call_id": secrets.token_hex(8)}
    given = {"tool": "python", "digest": spec.digest, "arguments": {"code": code}, "timeout_s": 1.0, "grant": ""}
    made = ToolCall.model_validate({**ids, **given, "deadline": time.time() + HUNG})
    return grant.granted(KEY, made)


def offspring(pid: int) -> list[int]:
    said = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(one) for one in said.split()]


async def test_one_port_tells_of_all_processes_of_a_tool_runner_and_forgets_nothing_when_they_die(
    start: Callable[..., Role], lane_settings: Mapping[str, str], lane: CeleryLane
) -> None:
    role, kills = start("tools", **lane_settings), "metier_sandbox_kills_total"
    await asyncio.to_thread(role.becomes, 200, "ready")
    assert role.shows("metier_engine_selftest") == 1

    async def end_two_programs() -> None:
        ends = await asyncio.gather(*(lane.call(tool_call("while True: pass")) for _ in range(2)))
        assert [one.status for one in ends] == ["timeout", "timeout"]

    async def until_shown(count: int) -> None:
        await asyncio.to_thread(until, lambda: role.shows(kills, metier_cause="timeout") == count, role.said)

    # Given what two children did
    await end_two_programs()
    await until_shown(2)
    (worker,) = offspring(role.process.pid)
    # When a child dies, what it did stays counted, and what others do comes to it
    os.kill(offspring(worker)[0], signal.SIGKILL)
    await end_two_programs()
    await until_shown(4)
    # and when all of them die: it is not ready until another worker takes calls
    os.kill(worker, signal.SIGKILL)
    await asyncio.to_thread(
        until, lambda: role.shows("metier_retries_total", metier_reason="worker_ended") == 1, role.said
    )
    await asyncio.to_thread(role.becomes, 200, "ready")
    await end_two_programs()
    await until_shown(6)


@pytest.fixture
def silent_engine(tmp_path: Path) -> Generator[str]:
    """The address of a container engine that takes connections and says nothing."""
    place = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(place))
        engine.listen(64)
        yield f"unix://{place}"


def test_a_tool_runner_is_not_ready_before_its_engine_has_proved_itself(
    start: Callable[..., Role], lane_settings: Mapping[str, str], silent_engine: str
) -> None:
    role = start("tools", **{**lane_settings, "DOCKER_HOST": silent_engine})
    role.becomes(503, "starting: the container engine has not proved yet that it keeps every limit")
    role.becomes(200, "live", "/livez")


def test_a_tool_runner_whose_engine_fails_its_self_test_is_never_ready(
    start: Callable[..., Role], lane_settings: Mapping[str, str], bare_image: str, tmp_path: Path
) -> None:
    sign = tmp_path / "ready"
    role = start("tools", **{**lane_settings, "METIER_SANDBOX_IMAGE": bare_image, "METIER_READY_FILE": str(sign)})
    assert role.process.wait(HUNG) == 2
    assert not sign.exists()
    assert '"event": "ready"' not in role.said()
