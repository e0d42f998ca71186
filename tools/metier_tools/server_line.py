"""An MCP server in a container: its tools listed and called over the attach stream, by the official client. The one module that names `mcp`.

`docker_sandbox` opens it, once for each container; each has a thread of its own, on which the client runs. The server is hostile: what
it writes is bounded by line and by call, what is no protocol ends it, and of its tools only those run that say what was approved.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import Client, MCPError
from mcp.shared.message import SessionMessage
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    Implementation,
    TextContent,
    TextResourceContents,
    jsonrpc_message_adapter,
)
from pydantic import JsonValue, ValidationError

from metier_infra.errors import ServerBroken
from metier_tools.inside import wire
from metier_tools.kept import kept
from metier_tools.pins import MOST_TOOLS
from metier_tools.profile import Profile
from metier_tools.protocol import Chunk, Demux, Forged
from metier_tools.sandbox import Outcome, Request, Server, Verdict
from metier_tools.tool import ToolSpec
from metier_tools.vault import scrubber, spellings

LONGEST_LINE = 4 << 20
"""No message of a server is longer; bytes."""
COMPLAINTS = 4096
"""What is kept of a server's standard error, its last bytes."""
UNASKED = 65536
"""What a server may write between two calls; bytes."""
_READ, _LAST_WORDS = 65536, 500
_Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
_TRACE = ("traceparent", "tracestate", "baggage")


class Misbehaved(Exception):
    """Why a server is at its end: it wrote what it must not, or is gone. `verdict` is what becomes of the call in hand."""

    def __init__(self, why: str, verdict: Verdict = "died") -> None:
        super().__init__(why)
        self.verdict: Verdict = verdict


class Listener:
    """Cuts what a server writes into messages. Pure; raises `Misbehaved`.

    Each byte is looked at once, however they come. `budget` is what the server may write to start, and then in each call, in bytes;
    in between it may write `UNASKED`.
    """

    def __init__(self, budget: int) -> None:
        self._budget = self._left = budget
        self._flood = Misbehaved(f"it wrote more than {budget} bytes in one call", "output_cut")
        self._demux, self._held = Demux(), bytearray()
        self.complaints = bytearray()

    def renew(self) -> None:
        """Begin a call."""
        self._left = self._budget
        self._flood = Misbehaved(f"it wrote more than {self._budget} bytes in one call", "output_cut")

    def rest(self) -> None:
        """End the start, or a call."""
        self._left = UNASKED
        self._flood = Misbehaved(f"it wrote more than {UNASKED} bytes that no call asked for")

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        self._left -= len(data)
        if self._left < 0:
            raise self._flood
        return [line for piece in self._demux.split(data) for line in self._taken(piece) if line.strip()]

    def _taken(self, piece: Chunk) -> list[bytes]:
        if piece.stream == wire.OUT:
            return self._completed(piece.data)
        self.complaints += piece.data
        del self.complaints[:-COMPLAINTS]
        return []

    def _completed(self, data: bytes) -> list[bytes]:
        lines = list[bytearray]()
        self._held += data
        if b"\n" in data:
            *lines, self._held = self._held.split(b"\n")
        if len(self._held) > LONGEST_LINE:
            raise Misbehaved(f"it wrote a line of more than {LONGEST_LINE} bytes", "output_cut")
        return [bytes(line) for line in lines]


def last_words(complaints: bytes, secrets: Sequence[str], interrupted: bool) -> tuple[str, bool]:
    """The end of what a server complained, and whether there was more, before it or, if it was interrupted, after it.

    Secrets are taken out first: half of one, after the cut, would be known to nobody.
    """
    full = len(complaints) >= COMPLAINTS
    said = complaints[_lost(complaints, spellings(secrets)) :] if full else complaints
    clean = scrubber(secrets)(said, interrupted).decode("utf-8", "replace").strip()
    words, _ = kept(clean[-_LAST_WORDS:], COMPLAINTS)
    return words, interrupted or full or len(clean) > _LAST_WORDS


def _lost(data: bytes, known: Sequence[bytes]) -> int:
    """The length of the end of a secret that `data` begins with."""
    return max((size for one in known for size in range(1, len(one)) if data.startswith(one[-size:])), default=0)


def understood(line: bytes) -> tuple[SessionMessage, list[dict[str, JsonValue]]]:
    """A message, and the tools that it lists. The client is not shown output schemas: it would follow their references from this host."""
    try:
        told = json.loads(line)
        tools = _listed(told)
        listed = [dict(tool) for tool in tools]
        for tool in tools:
            tool.pop("outputSchema", None)
        return SessionMessage(jsonrpc_message_adapter.validate_python(told, by_name=False)), listed
    except (ValueError, RecursionError) as error:
        raise Misbehaved("it wrote to its standard output what is no JSON-RPC message") from error


def _listed(told: object) -> list[dict[str, JsonValue]]:
    result: object = cast("dict[str, object]", told).get("result") if isinstance(told, dict) else None
    tools: object = cast("dict[str, object]", result).get("tools") if isinstance(result, dict) else None
    found = cast("list[object]", tools) if isinstance(tools, list) else []
    return [cast("dict[str, JsonValue]", one) for one in found if isinstance(one, dict)]


def definition(server: str, told: Mapping[str, JsonValue]) -> ToolSpec:
    """What a server says of one tool, as a spec named `SERVER__TOOL`. Raises `Misbehaved`."""
    also = {name: told[name] for name in ("outputSchema", "annotations") if told.get(name) is not None}
    try:
        return ToolSpec.model_validate(
            {
                "name": f"{server}__{told.get('name')}",
                "description": told.get("description") or "",
                "parameters": told.get("inputSchema"),
                "kind": "mcp",
                "also": also,
            }
        )
    except ValidationError as error:
        raise Misbehaved("it listed a tool that is none") from error


class Attached:
    """The transport: what the client writes goes into the container, what comes out of it to the client."""

    def __init__(self, line: socket.socket, server: str, budget: int) -> None:
        self._line, self._server = line, server
        self.listener = Listener(budget)
        self.definitions: dict[str, ToolSpec] = {}
        self.fault: Misbehaved | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[_Streams]:
        """The two streams that the client wants."""
        to_client, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](16)
        to_server, from_client = anyio.create_memory_object_stream[SessionMessage](16)
        self._line.setblocking(False)
        async with anyio.create_task_group() as tasks, to_client, from_server, to_server, from_client:
            tasks.start_soon(self._read, to_client)
            tasks.start_soon(self._write, from_client)
            yield from_server, to_server
            tasks.cancel_scope.cancel()

    async def _read(self, to_client: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        loop = asyncio.get_running_loop()
        async with to_client:
            try:
                while data := await loop.sock_recv(self._line, _READ):
                    for line in self.listener.feed(data):
                        await to_client.send(self._understood(line))
                self.fault = Misbehaved("it ended")
            except Misbehaved as error:
                self.fault = error
            except Forged as error:
                self.fault = Misbehaved(str(error))
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                self.fault = Misbehaved("its container ended")

    def _understood(self, line: bytes) -> SessionMessage:
        message, listed = understood(line)
        for told in listed:
            spec = definition(self._server, told)
            self.definitions[spec.name] = spec
        if len(self.definitions) > MOST_TOOLS:
            raise Misbehaved(f"it lists more than {MOST_TOOLS} tools")
        return message

    async def _write(self, from_client: MemoryObjectReceiveStream[SessionMessage]) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            async for message in from_client:
                said = message.message.model_dump(mode="json", by_alias=True, exclude_unset=True)
                await loop.sock_sendall(self._line, json.dumps(_untraced(said)).encode() + b"\n")


def _untraced(said: dict[str, Any]) -> dict[str, Any]:
    """Without our trace's ids, which are no business of a server's."""
    meta: object = said.get("params", {}).get("_meta") if isinstance(said.get("params"), dict) else None
    if isinstance(meta, dict):
        for name in _TRACE:
            cast("dict[str, object]", meta).pop(name, None)
    return said


class ServerLine:
    """See `line.Line`. Opening it waits until the server has listed its tools. Raises `ServerBroken`.

    Args:
        line: a connected socket that carries the engine's multiplexed stream; the server's process has been started.
        server: what runs there.
        profile: bounds what it may write.
        within_s: how long it may take to start; seconds.
    """

    def __init__(self, line: socket.socket, server: Server, profile: Profile, within_s: float) -> None:
        self._socket, self._name, self._profile = line, server.name, profile
        self._secrets = tuple(value for _, value in server.environment)
        self._attached = Attached(line, server.name, profile.flood_bytes)
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._ready: Future[Client] = Future()
        self._calls: set[Future[CallToolResult]] = set()
        self._broken = False
        self._in_use = threading.Lock()
        self._thread = threading.Thread(target=self._live, name=f"mcp-{server.name}", daemon=True)
        self._thread.start()
        try:
            self._client = self._ready.result(within_s)
        except BaseException as error:
            self.hang_up()
            why = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
            raise ServerBroken(f"the MCP server {server.name} does not start: {why}{self._complaints()[0]}") from error

    @property
    def definitions(self) -> tuple[ToolSpec, ...]:
        """What the server says of its tools."""
        return tuple(self._attached.definitions.values())

    def _complaints(self) -> tuple[str, bool]:
        fault, said = self._attached.fault, bytes(self._attached.listener.complaints)
        words, cut = last_words(said, self._secrets, fault is not None and fault.verdict == "output_cut")
        return (f"; its last words: {words}" if words else ""), cut

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(BaseException):
            runner.run(self._serve())
        self._broken = True
        if not self._ready.done():
            self._ready.set_exception(self._attached.fault or Misbehaved("it does not speak the protocol"))
        for call in list(self._calls):
            call.cancel()

    async def _serve(self) -> None:
        about = Implementation(name="metier", version="1")
        async with Client(self._attached.open(), client_info=about, cache=None) as client:
            page = await client.list_tools()
            while page.next_cursor and len(self._attached.definitions) < MOST_TOOLS:
                page = await client.list_tools(cursor=page.next_cursor)
            self._attached.listener.rest()
            self._ready.set_result(client)
            await self._end.wait()

    def alive(self) -> bool:
        """See `Line.alive`."""
        return not self._broken and self._attached.fault is None

    def run(self, request: Request) -> Outcome:
        """See `Line.run`. A tool that the server describes otherwise than was approved is refused."""
        began = time.monotonic()
        with self._in_use:
            drifted = self._drift(request)
            outcome = Outcome("refused", stderr=drifted) if drifted else self._called(request)
            if outcome.status not in {"ok", "error", "refused"}:
                self._broken = True
        return replace(outcome, wall_ms=round(1000 * (time.monotonic() - began), 3))

    def _drift(self, request: Request) -> str:
        name = f"{self._name}__{request.source}"
        found = self._attached.definitions.get(name)
        if found is None:
            return f"the MCP server {self._name} no longer has a tool {request.source}; approve it anew with `metier tools approve`"
        if found.digest != request.digest:
            return f"the MCP server {self._name} describes {request.source} otherwise than was approved; look at it with `metier tools list --live`, then `metier tools approve {name}`"
        return ""

    def _called(self, request: Request) -> Outcome:
        if not self.alive():
            return self._died()
        timeout_s = min(request.timeout_s, self._profile.longest_s)
        call = asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)
        self._calls.add(call)
        try:
            return outcome_of(call.result(timeout_s), self._profile.keep_bytes)
        except TimeoutError:
            call.cancel()
            return Outcome("timeout")
        except MCPError as error:
            return self._died() if self._attached.fault else self._refused(error)
        except (CancelledError, RuntimeError, OSError, anyio.ClosedResourceError, ValidationError):
            return self._died()
        finally:
            self._calls.discard(call)

    async def _answer(self, request: Request) -> CallToolResult:
        listener = self._attached.listener
        listener.renew()
        try:
            return await self._client.call_tool(request.source, dict(request.arguments))
        finally:
            listener.rest()

    def _refused(self, error: MCPError) -> Outcome:
        said, cut = kept(str(error), self._profile.keep_bytes)
        return Outcome("error", stderr=said, truncated=cut)

    def _died(self) -> Outcome:
        fault, (complaints, cut) = self._attached.fault or Misbehaved("it ended"), self._complaints()
        said = f"the MCP server {self._name} was ended: {fault}{complaints}"
        return Outcome(fault.verdict, stderr=said, truncated=cut)

    def hang_up(self) -> None:
        """See `Line.hang_up`."""
        self._broken = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5.0)
        self._socket.close()


def outcome_of(result: CallToolResult, keep: int) -> Outcome:
    """What a model reads of a server's answer: its texts; of other contents only what they are."""
    texts = [_text(block) for block in result.content]
    if not texts and result.structured_content is not None:
        texts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text, cut = kept("\n".join(texts), keep)
    return Outcome("error" if result.is_error else "ok", None, text, truncated=cut)


def _text(block: object) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, EmbeddedResource) and isinstance(block.resource, TextResourceContents):
        return block.resource.text
    return f"[{getattr(block, 'type', 'content')} {getattr(block, 'mime_type', None) or ''}]".replace(" ]", "]")
