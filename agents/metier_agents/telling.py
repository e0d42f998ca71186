"""What an agent's work is told of on `metier.events`: its tool calls, and for agents that stream, what the model writes as it comes.

`hands` tells of tool calls; the trail opens `Teller.telling` round each request for an answer. All of it goes through the call's `Outgoing`, which the worker
drains before it records the answer, so that an answer stands after what led to it. It is told at best effort: the answer, which is whole and checked, comes with
its own event. Pieces of a request that was made again have a higher `attempt`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from metier_infra.messages import Envelope
from metier_infra.outgoing import Outgoing
from metier_infra.progress_events import TextWritten, ToolAnswered, ToolCalled
from metier_infra.rows import Call, ToolCallRow
from metier_infra.words import Stamp

EVERY_S = 0.1
"""What is written within this time is told in one event; seconds."""


def source(agent: str) -> str:
    """Where an agent's events come from."""
    return f"/metier/agents/{agent}"


def tool_called(row: ToolCallRow) -> Envelope[ToolCalled]:
    """A tool call is sent. Told again where it is sent again, under the same id."""
    told = ToolCalled.model_validate(row.model_dump(include={"run_id", "call_id", "tool_call_id", "agent", "tool"}))
    return Envelope(told, f"{row.tool_call_id}/called", source(row.agent), row.run_id)


def tool_answered(row: ToolCallRow) -> Envelope[ToolAnswered]:
    """Its first recorded result is there."""
    status = {"ok": bool(row.ok), "status": str((row.result or {}).get("status", "")), "wall_ms": row.wall_ms}
    told = row.model_dump(include={"run_id", "call_id", "tool_call_id", "agent", "tool"})
    return Envelope(
        ToolAnswered.model_validate(told | status), f"{row.tool_call_id}/answered", source(row.agent), row.run_id
    )


class Teller:
    """Tells what is written in one call."""

    def __init__(self, outgoing: Outgoing, call: Call, stamp: Stamp | None) -> None:
        self._outgoing, self._call, self._stamp = outgoing, call, stamp
        self._requests: Counter[int] = Counter()

    @asynccontextmanager
    async def telling(self, step: int) -> AsyncGenerator[Callable[[str], None]]:
        """Tell the pieces that are handed to what it yields, until the request for step `step` has ended."""
        self._requests[step] += 1
        written: list[str] = []
        ended = asyncio.Event()
        teller = asyncio.create_task(self._tell(step, self._requests[step], written, ended))
        try:
            yield written.append
            ended.set()
            await teller
        finally:
            teller.cancel()

    async def _tell(self, step: int, request: int, written: list[str], ended: asyncio.Event) -> None:
        piece = 0
        while not ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), EVERY_S)
            if written and not ended.is_set():
                self._send(step, request, piece, written)
                piece += 1
        self._send(step, request, -1, written)

    def _send(self, step: int, request: int, piece: int, written: list[str]) -> None:
        """Tell what was written since the last time; piece -1 is the last one of its request."""
        text = "".join(written)
        written.clear()
        call, attempt = self._call, (self._call.attempt - 1) * 1000 + request
        data = TextWritten(
            run_id=call.run_id,
            call_id=call.call_id,
            agent=call.agent,
            step=step,
            attempt=attempt,
            piece=piece,
            text=text,
            stamp=self._stamp,
        )
        told = Envelope(data, f"{call.call_id}/text/{step}/{attempt}/{piece}", source(call.agent), call.run_id)
        self._outgoing.tell(told)
