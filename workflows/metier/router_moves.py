"""Asks for a router version to be moved, and sees what becomes of it. `metier routers` and the demo use it; the orchestrator moves."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from metier import client
from metier.configuration import System
from metier_infra.events import REQUESTS, Event, RequestRejected, RouterMoveRequested
from metier_infra.messages import Envelope
from metier_infra.routers import Move
from metier_infra.service import send
from metier_infra.words import Failure, Word, stable_id

TAKEN_S = 10.0
"""How long it is waited to see that an orchestrator took the request."""


class Moved(Word):
    """What became of a request to move a version. `state` is `sent` where no orchestrator took it yet."""

    router: str
    request_id: str
    state: Literal["moved", "rejected", "sent"]
    move: Move | None = None
    failure: Failure | None = None


async def ask(system: System, request: Envelope[RouterMoveRequested]) -> Moved:
    """Publish the request, and see for a while what becomes of it."""
    rejected: list[Failure] = []
    move_id = stable_id("move", request.source, request.id)

    def seen(event: Envelope[Event]) -> None:
        if isinstance(event.data, RequestRejected) and event.data.request_id == request.id:
            rejected.append(event.data.failure)

    async with client.following(system.bus, seen):
        await send(system.bus, REQUESTS, request)
        ends = time.monotonic() + TAKEN_S
        while (move := await system.journal.routers.moved(move_id)) is None:
            if rejected or time.monotonic() > ends:
                break
            await asyncio.sleep(0.1)
    state: Literal["moved", "rejected", "sent"] = "moved" if move else "rejected" if rejected else "sent"
    return Moved(router=request.data.router, request_id=request.id, state=state, move=move,
                 failure=rejected[0] if rejected else None)  # fmt: skip
