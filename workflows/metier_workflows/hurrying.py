"""Cancels that need not wait behind other requests: however many lie before one, the model requests and containers of its run end within two seconds.

The orchestrator reads `metier.requests` by a second group that passes over everything else. A cancel is then taken a second time, in its order, which changes
nothing: that one answers what cannot be done, and is the one that counts for a run that was asked for just before.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from metier_infra.bus import Bus, Consumption
from metier_infra.errors import BuryRecord, RejectRequest
from metier_infra.events import HURRIED, REQUESTS, CancelRequested
from metier_infra.messages import Delivery
from metier_infra.service import contained, dispatch, follow, retried
from metier_workflows.control import Control

_TYPE = CancelRequested.TYPE.encode()


async def hurry(bus: Bus, control: Control, stop: asyncio.Event) -> None:
    """Take cancels as they come, until `stop`."""
    take = retried(contained(dispatch({CancelRequested: control.on_cancel})))

    async def look(delivery: Delivery) -> None:
        if any(name.lower() == "ce_type" and value == _TYPE for name, value in delivery.headers):
            with suppress(BuryRecord, RejectRequest):  # whoever takes it in its order tells
                await take(delivery)

    await follow(bus, Consumption([REQUESTS], HURRIED, "latest", concurrency=64), look, stop)
