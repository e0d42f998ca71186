"""A TCP proxy that can be cut: between the roles and Kafka, Postgres or Redis. Dropped, bytes go nowhere and nobody is told; rejecting, connections end.

Kafka tells its clients where its brokers are. A broker's address in what it says is replaced by the proxy's: a string, then four bytes of port, in
each version of `Metadata` and `FindCoordinator` (kafka.apache.org/protocol). Both stand at 127.0.0.1, so that no length changes.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_CHUNK = 64 * 1024
Reads = Callable[[asyncio.StreamReader], AsyncIterator[bytes]]


@dataclass
class Proxy:
    """Passes bytes between whoever connects to `port` and the service at `target`, a port of this machine."""

    target: int
    kafka: bool = False
    port: int = 0
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _rejects: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set[asyncio.StreamWriter])

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self._open.add(writer)
        try:
            if not self._rejects:
                await self._flows.wait()
                await self._join(reader, writer)
        except OSError:
            pass  # a service that is away is what this is for
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, onward = await asyncio.open_connection(HOST, self.target)
        self._open.add(onward)
        reads = self._readdressed if self.kafka else _chunks
        ways = [
            asyncio.create_task(self._pass(_chunks(reader), onward)),
            asyncio.create_task(self._pass(reads(back), writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(onward)
            onward.transport.abort()

    async def _pass(self, chunks: AsyncIterator[bytes], writer: asyncio.StreamWriter) -> None:
        async for chunk in chunks:
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()

    async def _readdressed(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """A broker's responses, whole, with the proxy's port in place of its own."""
        theirs, ours = (HOST.encode() + struct.pack(">i", port) for port in (self.target, self.port))
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(4)
                yield head + (await reader.readexactly(struct.unpack(">i", head)[0])).replace(theirs, ours)

    def drop(self) -> None:
        """From now on bytes go nowhere."""
        self._flows.clear()

    def reject(self) -> None:
        """From now on connections end, those that stand and those that come."""
        self._rejects = True
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        """Pass bytes again. What was dropped meanwhile is delivered: it only lay on the line."""
        self._rejects = False
        self._flows.set()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await reader.read(_CHUNK):
        yield chunk


@asynccontextmanager
async def proxy(target: int, *, kafka: bool = False) -> AsyncGenerator[Proxy]:
    """A proxy that passes bytes."""
    made = Proxy(target, kafka)
    made.mend()
    server = await asyncio.start_server(made.meet, HOST, 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.reject()
