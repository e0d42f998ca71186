"""The tool lane, over both adapters: in this process, and through Celery on Redis to a real runner process with real containers.

Then what only a lane of several processes can show: kills, drains, lost connections, spans. Not here: what programs may do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import JsonValue

from metier_infra.errors import BadSettings, DeadlineMissed, EngineGone, GrantRefused, LaneGone, MissingService
from metier_infra.settings import LaneSettings, RoleSettings, SandboxSettings
from metier_tools import grant
from metier_tools.builtin import BUILTIN
from metier_tools.celery_lane import CeleryLane, check_broker, pauses
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.inline_lane import InlineLane
from metier_tools.lane import ToolLane
from metier_tools.runner import Once, Runner
from metier_tools.sandbox import Outcome, Request, ScriptedSandbox
from metier_tools.serve import serve_tools
from metier_tools.tool import ToolCall, ToolResult

KEY = b"a key of the tests"
IMAGE = os.environ.get("METIER_SANDBOX_IMAGE", "METIER_SANDBOX_IMAGE is not set")
REDIS = os.environ.get("METIER_REDIS_URL", "redis://METIER_REDIS_URL.is.not.set")


def tool_call(
    code: str = "print(6*7)", *, run: str | None = None, tool: str = "python", left_s: float = 20.0, key: bytes = KEY, **change: JsonValue
) -> ToolCall:  # fmt: skip
    ids = {"run_id": run or uuid.uuid4().hex, "call_id": "call", "tool_call_id": uuid.uuid4().hex, "tool": tool}
    arguments: dict[str, JsonValue] = {"code": code}
    deadline = time.time() + left_s
    signed = grant.sign(
        key, run_id=ids["run_id"], call_id="call", tool_call_id=ids["tool_call_id"], tool=tool, arguments=arguments, expires=deadline
    )  # fmt: skip
    given = {**ids, "arguments": arguments, "deadline": deadline, "timeout_s": 10.0, "grant": signed}
    return ToolCall.model_validate(given | change)


PROGRAM = """
import asyncio
from metier_infra import telemetry
from metier_infra.service import on_sigterm
from metier_infra.settings import LaneSettings, RoleSettings, SandboxSettings, load
from metier_tools.serve import serve_tools
async def main():
    stop = asyncio.Event()
    on_sigterm(stop)
    telemetry.start("tools", "test")
    await serve_tools(load(LaneSettings), load(SandboxSettings), load(RoleSettings), stop)
    telemetry.stop()
asyncio.run(main())
"""


class Tools:
    """A `metier tools` process on a namespace of its own."""

    def __init__(self, folder: Path, namespace: str, *, redis_url: str = REDIS, otlp: str = "") -> None:
        self.ready = folder / f"ready-{uuid.uuid4().hex}"
        self.namespace = namespace
        settings = {
            "METIER_REDIS_URL": redis_url,
            "METIER_LANE_NAMESPACE": namespace,
            "METIER_GRANT_KEY": KEY.decode(),
            "METIER_READY_FILE": str(self.ready),
            "METIER_SANDBOX_IMAGE": IMAGE,
            "METIER_SANDBOX_LIMIT": "3",
            "METIER_SANDBOX_POOL": "1",
            "METIER_DRAIN_S": "10",
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
        }
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=os.environ | settings)

    def await_ready(self) -> None:
        ended = until(lambda: self.ready.exists() or self.process.poll() is not None, 30)
        assert ended, "the tools process did not become ready in time"
        assert self.process.poll() is None, "the tools process ended"

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def containers(self) -> list[str]:
        """Ids of the containers that this process holds, or has left."""
        return listed(f"|{self.process.pid}|")

    def family(self) -> list[Path]:
        """The Celery worker of this process and its forked children, as folders of /proc that go when they do."""
        worker = offspring(self.process.pid)
        return [Path(f"/proc/{pid}") for pid in (*worker, *(child for one in worker for child in offspring(one)))]


def offspring(pid: int) -> list[int]:
    said = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(one) for one in said.split()]


def lives(process: Path) -> bool:
    with contextlib.suppress(OSError):
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def listed(bearer: str) -> list[str]:
    line = ["docker", "ps", "-a", "--format", '{{.ID}} {{.Label "io.metier.sandbox.owner"}}']
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return [one.split()[0] for one in said.splitlines() if bearer in one]


def until(ready: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.05)
    return ready()


class Receiver:
    """A tiny OTLP receiver: spans by name, as they come in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = ExportTraceServiceRequest.FromString(body)
                received.extend(
                    span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans
                )
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def of(self, trace: str) -> dict[str, Span]:
        return {span.name: span for span in list(self.spans) if span.trace_id.hex() == trace}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def receiver() -> Generator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Generator[Tools]:
    made = Tools(tmp_path_factory.mktemp("tools"), f"test-{uuid.uuid4().hex}", otlp=receiver.url)
    try:
        made.await_ready()
        yield made
        assert made.end() == 0
        assert made.containers() == []
    finally:
        made.kill()


async def celery(tools: Tools) -> CeleryLane:
    return CeleryLane(REDIS, namespace=tools.namespace)


async def inline(tools: Tools) -> InlineLane:
    del tools
    settings = SandboxSettings.model_validate({"image": IMAGE, "pool": 1, "limit": 3})
    sandbox = await asyncio.to_thread(DockerSandbox, settings)
    return InlineLane(Runner(BUILTIN, sandbox, KEY), sandbox)


@pytest.fixture(params=[inline, celery], ids=["inline", "celery"])
async def lane(request: pytest.FixtureRequest, tools: Tools) -> AsyncGenerator[ToolLane]:
    make: Callable[[Tools], Awaitable[ToolLane]] = request.param
    made = await make(tools)
    yield made
    await made.close()


async def test_a_call_is_answered_with_all_that_is_known_of_it(lane: ToolLane) -> None:
    result = await lane.call(tool_call())
    assert (result.status, result.exit_code, result.stdout, result.stderr, result.truncated) == (
        "ok",
        0,
        "42\n",
        "",
        False,
    )
    assert len(result.container) == 12
    assert result.image.startswith("sha256:")
    assert result.wall_ms > 0


@pytest.mark.parametrize(
    ("call", "status", "says"),
    [
        (lambda: tool_call("1/0"), "error", "ZeroDivisionError"),
        (lambda: tool_call("while True: pass", timeout_s=0.3), "timeout", ""),
        (lambda: tool_call(tool="perl"), "refused", "there is no tool 'perl'"),
        (lambda: tool_call(tool="shell"), "refused", "script: Field required"),
    ],
    ids=["error", "timeout", "unknown tool", "arguments"],
)
async def test_what_a_tool_does_wrong_is_a_result(
    lane: ToolLane, call: Callable[[], ToolCall], status: str, says: str
) -> None:
    result = await lane.call(call())
    assert result.status == status
    assert says in result.stderr


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tool_call(key=b"guessed"), GrantRefused, "signed with another key"),
        (lambda: tool_call(arguments={"code": "print(2)"}), GrantRefused, "not for this call"),
        (lambda: tool_call(left_s=-1), DeadlineMissed, "had passed before it could start"),
    ],
    ids=["forged", "other arguments", "too late"],
)
async def test_what_is_no_tools_fault_is_an_error_of_our_tree(
    lane: ToolLane, call: Callable[[], ToolCall], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await lane.call(call())


RANDOM = "import os; print(os.urandom(8).hex())"


async def test_the_same_call_again_is_the_same_work(lane: ToolLane) -> None:
    call = tool_call(RANDOM)
    first = await lane.call(call)
    assert await lane.call(call) == first
    assert (await lane.call(tool_call(RANDOM))).stdout != first.stdout


async def test_the_same_call_twice_at_once_runs_once(lane: ToolLane) -> None:
    call = tool_call("import os, time; time.sleep(0.3); print(os.urandom(8).hex())")
    first, second = await asyncio.gather(lane.call(call), lane.call(call))
    assert first == second


async def test_calls_of_one_run_share_a_container_and_runs_do_not(lane: ToolLane) -> None:
    runs = [uuid.uuid4().hex for _ in range(3)]
    results = await asyncio.gather(*[lane.call(tool_call(run=run)) for run in runs * 4])
    of_run = [{result.container for result in results[n::3]} for n in range(3)]
    assert [len(found) for found in of_run] == [1, 1, 1]
    assert len({result.container for result in results}) == 3


async def test_a_closed_lane_takes_no_calls(lane: ToolLane) -> None:
    await lane.close()
    with pytest.raises(LaneGone):
        await lane.call(tool_call())


# --- the runner ---


def answer(request: Request) -> Outcome:
    return Outcome("ok", 0, request.source)


def test_a_runner_clips_the_tools_time_to_the_calls_deadline() -> None:
    asked: list[float] = []

    def note(request: Request) -> Outcome:
        asked.append(request.timeout_s)
        return answer(request)

    Runner(BUILTIN, ScriptedSandbox(note), KEY).run(tool_call(left_s=2.0, timeout_s=99))
    assert 1.5 < asked[0] <= 2.0


def test_an_error_is_not_remembered() -> None:
    tries: list[int] = []

    def away(request: Request) -> Outcome:
        tries.append(1)
        if len(tries) == 1:
            raise EngineGone("away")
        return answer(request)

    runner, call = Runner(BUILTIN, ScriptedSandbox(away), KEY), tool_call("1")
    with pytest.raises(EngineGone):
        runner.run(call)
    assert runner.run(call).ok
    assert runner.run(call).ok
    assert len(tries) == 2


def test_what_is_remembered_is_bounded() -> None:
    once, runs = Once(most=3, most_chars=100), list[str]()

    def work(key: str, size: int) -> Callable[[], ToolResult]:
        def run() -> ToolResult:
            runs.append(key)
            return ToolResult(status="ok", stdout="x" * size)

        return run

    for key in "abcda":
        once.run(key, work(key, 1))
    assert runs == ["a", "b", "c", "d", "a"]
    once.run("big", work("big", 99))
    once.run("d", work("d", 1))
    assert runs[-2:] == ["big", "d"]


# --- the lane of several processes ---


@pytest.mark.parametrize(("left_s", "waits"), [(0, []), (3, [3]), (5, [5]), (12, [5, 7]), (40, [5, 10, 20, 5])])
def test_a_call_is_sent_again_ever_more_rarely(left_s: float, waits: list[float]) -> None:
    assert list(pauses(5, left_s)) == waits


async def test_without_a_runner_the_lane_is_gone_at_the_deadline() -> None:
    lane, began = CeleryLane(REDIS, namespace=f"test-{uuid.uuid4().hex}"), time.monotonic()
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


async def test_a_killed_runner_leaves_nothing_its_calls_go_to_the_next_and_that_one_drains(tmp_path: Path) -> None:
    namespace = f"test-{uuid.uuid4().hex}"
    first = Tools(tmp_path, namespace)
    await asyncio.to_thread(first.await_ready)
    lane = CeleryLane(REDIS, namespace=namespace, resend_s=2.0)
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


async def test_a_lane_that_is_closed_under_a_call_says_so() -> None:
    lane = CeleryLane(REDIS, namespace=f"test-{uuid.uuid4().hex}")
    call = asyncio.create_task(lane.call(tool_call()))
    await asyncio.sleep(0.2)
    await lane.close()
    with pytest.raises(LaneGone, match="closed under the call"):
        await asyncio.wait_for(call, 1)


class Gate:
    """A socket in front of Redis that can be shut, and opened again on the same port."""

    def __init__(self) -> None:
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to = urlsplit(REDIS)
        redis_reader, redis_writer = await asyncio.open_connection(to.hostname, to.port)
        self._writers |= {writer, redis_writer}
        await asyncio.gather(self._pump(reader, redis_writer), self._pump(redis_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def shut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def test_calls_outlive_a_redis_that_goes_away_for_a_while(tmp_path: Path) -> None:
    gate = Gate()
    await gate.open()
    url = urlsplit(REDIS)._replace(netloc=f"127.0.0.1:{gate.port}").geturl()
    tools = Tools(tmp_path, f"test-{uuid.uuid4().hex}", redis_url=url)
    lane = CeleryLane(url, namespace=tools.namespace, resend_s=1.0)
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


def test_no_redis_is_said_so() -> None:
    with pytest.raises(MissingService, match="no Redis answers where METIER_REDIS_URL says"):
        check_broker("redis://127.0.0.1:1/0")


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
        )
