"""What the lane's tests stand on: signed calls, a `metier tools` process, a runner without containers, a door before Redis, a span receiver."""

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
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import JsonValue

from metier_infra.blobs import FolderBlobs
from metier_infra.settings import RoleSettings
from metier_tools import grant
from metier_tools.builtin import BUILTIN
from metier_tools.celery_app import TASK, Config, make_app
from metier_tools.execution import Execution
from metier_tools.sandbox import Outcome, Request, Sandbox, ScriptedSandbox
from metier_tools.serve import KINDS, serve_with
from metier_tools.tool import Kind, ToolCall
from metier_tools.vault import FixedVault

KEY = b"a key of the tests"
IMAGE = os.environ.get("METIER_SANDBOX_IMAGE", "METIER_SANDBOX_IMAGE is not set")
REDIS = os.environ.get("METIER_REDIS_URL", "redis://METIER_REDIS_URL.is.not.set")


def execution(sandbox: Sandbox) -> Execution:
    """Runs the tools that ship."""
    return Execution(BUILTIN, sandbox, FixedVault({}), FolderBlobs(Path("no files here")))


def tool_call(
    code: str = "print(6*7)", *, run: str | None = None, tool: str = "python", left_s: float = 20.0, timeout_s: float = 10.0, key: bytes = KEY, **change: JsonValue
) -> ToolCall:  # fmt: skip
    spec, ids = (
        BUILTIN.spec(tool),
        {"run_id": run or uuid.uuid4().hex, "call_id": "call", "tool_call_id": uuid.uuid4().hex},
    )
    given = {**ids, "tool": tool, "digest": spec.digest if spec else "of no tool", "arguments": {"code": code}}
    made = ToolCall.model_validate({**given, "deadline": time.time() + left_s, "timeout_s": timeout_s, "grant": ""})
    return grant.granted(key, made).model_copy(update=change)


def granted_anew(call: ToolCall) -> ToolCall:
    """The same call as another caller sends it, who took over: the id is the same, the grant is not."""
    return grant.granted(KEY, call)


def corner() -> str:
    """A namespace of one's own."""
    return f"test-{uuid.uuid4().hex}"


PROGRAM = """
import asyncio
from metier_infra import telemetry
from metier_infra.service import on_sigterm
from metier_infra.settings import LaneSettings, RoleSettings, SandboxSettings, load
from metier_tools.serve import serve_tools
from metier_tools.builtin import BUILTIN
from metier_tools.execution import Execution
from metier_tools.vault import FixedVault
from metier_infra.blobs import FolderBlobs
from pathlib import Path
async def main():
    stop = asyncio.Event()
    on_sigterm(stop)
    telemetry.start("tools", "test")
    await serve_tools(load(LaneSettings), load(SandboxSettings), load(RoleSettings), stop, execution=lambda box: Execution(BUILTIN, box, FixedVault({}), FolderBlobs(Path('blobs'))))
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


def processes(mark: str) -> list[Path]:
    """Processes of this host, those in containers too, with `mark` in their command line."""
    return [found.parent for found in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in read(found)]


def read(file: Path) -> bytes:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return b""


def listed(bearer: str) -> list[str]:
    line = ["docker", "ps", "-a", "--format", '{{.ID}} {{.Label "io.metier.sandbox.owner"}}']
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return [one.split()[0] for one in said.splitlines() if bearer in one]


def until(ready: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not (found := ready()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


class Receiver:
    """A tiny OTLP receiver: spans by name, as they come in."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        received = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                traces = body if self.path == "/v1/traces" else b""  # metrics come too
                request = ExportTraceServiceRequest.FromString(traces)
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

    @property
    def url(self) -> str:
        return urlsplit(REDIS)._replace(netloc=f"127.0.0.1:{self.port}").geturl()

    async def shut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


class Scripted:
    """A sandbox without containers that notes each program as it starts, and lets the long ones run until they are let go."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.let_go = threading.Event()
        self.sandbox = ScriptedSandbox(self._script)

    def _script(self, request: Request) -> Outcome:
        self.ran.append(request.source)
        if request.source.startswith("long"):
            self.let_go.wait(30)
        return Outcome("ok", 0, f"did {request.source}")

    async def await_start(self, source: str) -> None:
        assert await asyncio.to_thread(until, lambda: source in self.ran, 20), f"{source} was not started"


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    namespace: str,
    scripted: Scripted,
    *,
    url: str = REDIS,
    children: int = 1,
    kinds: Sequence[Kind] = KINDS,
) -> AsyncGenerator[None]:
    """A runner in this process, with a real Celery worker; the block begins when it takes calls."""
    ready, stop = folder / uuid.uuid4().hex, asyncio.Event()
    role = RoleSettings.model_validate({"ready_file": ready, "drain_s": 10})
    config = Config(redis_url=url, namespace=namespace)
    serves = asyncio.create_task(
        serve_with(execution(scripted.sandbox).run, config, KEY, role, stop, children=children, kinds=kinds)
    )
    try:
        assert await asyncio.to_thread(until, lambda: ready.exists() or serves.done(), 30), "the runner is not ready"
        yield
    finally:
        scripted.let_go.set()
        stop.set()
        await serves


class Looker:
    """What a third party with access to Redis sees and does."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.redis = redis.Redis.from_url(REDIS)

    def queued(self, kind: str = "code") -> int:
        return self.redis.llen(f"{self.namespace}:tools.{kind}")

    async def await_queued(self, number: int) -> None:
        assert await asyncio.to_thread(until, lambda: self.queued() == number, 20), "not as many calls in the queue"

    async def await_given_up(self, call: ToolCall) -> None:
        key = Config(redis_url=REDIS, namespace=self.namespace).given_up(call.tool_call_id)
        assert await asyncio.to_thread(until, lambda: bool(self.redis.exists(key)), 20), (
            "nobody said that it is given up"
        )

    def send(self, text: str, reply_list: str) -> None:
        """Put a call of one's own making into the queue, to be answered on any list."""
        config = Config(redis_url=REDIS, namespace=self.namespace)
        app = make_app(config)
        with app.connection_for_write() as connection:
            app.send_task(TASK, (text, reply_list), queue=config.queue("code"), connection=connection)

    def flush(self) -> None:
        found = cast("list[bytes]", self.redis.keys(f"{self.namespace}:*"))
        if found:
            self.redis.delete(*found)

    @contextlib.contextmanager
    def listening(self) -> Generator[Callable[[], bool]]:
        """Listens to what callers say; what is yielded says whether there was something, since it was asked last."""
        with contextlib.closing(cast("Any", self.redis).pubsub(ignore_subscribe_messages=True)) as channel:
            channel.subscribe(Config(redis_url=REDIS, namespace=self.namespace).notes)
            yield lambda: channel.get_message() is not None
