"""What `metier chaos` finds when all is over: the events on the topic, the journal's rows, the dead letters, the ledger. Read as they lie, not judged.

`harness` gathers it past the proxies; `checks` judges it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from metier.chaos.ledger import Bill, Effect
from metier.chaos.plan import Request
from metier_infra.bus import Bus, Consumption
from metier_infra.database import Database
from metier_infra.errors import BusGone
from metier_infra.events import DEAD_LETTERS, EVENTS_TOPIC
from metier_infra.messages import Delivery, Record

MARK = b"chaos-mark-"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Seen:
    """One record of `metier.events`, in its partition's order."""

    run_id: str
    id: str
    type: str
    data: Mapping[str, Any]
    partition: int = 0


@dataclass(frozen=True)
class Evidence:
    """All that was found. `requests` were acknowledged; `dead` are the dead letters' bytes and reasons; `leaked` are containers that nobody holds.

    `late` says of what a dead process held and nobody went on with in time.
    """

    requests: Sequence[Request]
    events: Sequence[Seen]
    dead: Sequence[tuple[bytes, str]]
    runs: Rows
    calls: Rows
    steps: Rows
    tool_calls: Rows
    effects: Sequence[Effect]
    bills: Sequence[Bill]
    leaked: Sequence[str] = ()
    late: Sequence[str] = ()


async def rows(db: Database) -> Mapping[str, Rows]:
    """The journal, as far as the promises speak of it."""
    wanted = {
        "runs": "SELECT run_id, event_id, status, failure, cost_usd, owner, epoch, lease_until - :now AS left_s FROM runs",
        "calls": "SELECT call_id, run_id, task, attempt, answered_at, failure, cancelled FROM calls",
        "steps": "SELECT call_id, n, body FROM steps ORDER BY call_id, n",
        "tool_calls": "SELECT tool_call_id, call_id, result, ok FROM tool_calls",
    }
    return {name: await db.read(sql) for name, sql in wanted.items()}


async def records(bus: Bus, topic: str, partitions: int) -> Sequence[Delivery]:
    """Everything on a topic up to now: marks are published until every partition has one, and are left out."""
    found: list[Delivery] = []
    marked: set[int] = set()
    stop, mark = asyncio.Event(), MARK + secrets.token_bytes(8)

    async def see(delivery: Delivery) -> None:
        found.append(delivery)
        if delivery.value == mark:
            marked.add(delivery.partition)
        if len(marked) == partitions:
            stop.set()

    await bus.publish(*(Record(topic, f"mark-{number}".encode(), mark) for number in range(16 * partitions)))
    while not stop.is_set():
        with suppress(BusGone):
            await bus.consume(Consumption([topic], None, "earliest", concurrency=1), see, stop)
    different = {
        (delivery.partition, delivery.offset): delivery for delivery in found if not delivery.value.startswith(MARK)
    }
    return [different[place] for place in sorted(different)]


async def events(bus: Bus, partitions: int) -> Sequence[Seen]:
    """The events that were published about runs."""
    return [_seen(delivery) for delivery in await records(bus, EVENTS_TOPIC, partitions)]


def _seen(delivery: Delivery) -> Seen:
    about = dict(delivery.headers)
    name, kind = (about.get(header, b"").decode(errors="replace") for header in ("ce_id", "ce_type"))
    run_id = (delivery.key or b"").decode(errors="replace")
    return Seen(run_id, name, kind, json.loads(delivery.value), delivery.partition)


async def dead_letters(bus: Bus, partitions: int) -> Sequence[tuple[bytes, str]]:
    """The bytes of each dead letter, and why it lies there."""
    found = await records(bus, DEAD_LETTERS, partitions)
    return [(one.value, dict(one.headers).get("metier-dead-reason", b"").decode(errors="replace")) for one in found]
