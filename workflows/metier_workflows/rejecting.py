"""What tells whoever made a request that it cannot be done: an event, with the reason.

`accepting` and `control` use it. A request that cannot be read is not for this: it is buried.
"""

from __future__ import annotations

from typing import Any

import structlog

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.errors import RejectRequest
from metier_infra.events import EVENTS_TOPIC, RequestRejected
from metier_infra.messages import Delivery, Envelope
from metier_infra.service import EventHandler, processing, send
from metier_infra.words import Failure, RunId, stable_id
from metier_workflows.approving import SOURCE

log = structlog.get_logger()


def rejecting(handle: EventHandler, bus: Bus) -> EventHandler:
    """A layer: a request about a run that cannot be done is answered with an event that says why."""

    async def layer(envelope: Envelope[Any], delivery: Delivery) -> None:
        with processing(envelope, delivery) as span:
            span.set({telemetry.RUN_ID: envelope.data.run_id})
            try:
                await handle(envelope, delivery)
            except RejectRequest as error:
                span.fail(error.code)
                log.info("request rejected", action="tell", reason=error.code, run_id=about(envelope))
                await send(bus, EVENTS_TOPIC, rejection(envelope, error))

    return layer


def rejection(envelope: Envelope[Any], error: RejectRequest) -> Envelope[RequestRejected]:
    """What tells whoever made a request that it cannot be done: the same whenever it is told."""
    told = RequestRejected(
        request_id=envelope.id,
        request_source=envelope.source,
        request_type=envelope.data.TYPE,
        failure=Failure(code=error.code, message=str(error)),
        run_id=about(envelope),
    )
    name = stable_id("rejected", envelope.source, envelope.id)
    return Envelope(told, f"{name}/rejected", SOURCE, about(envelope), subject=envelope.id)


def about(envelope: Envelope[Any]) -> RunId:
    """The run that a request is about, or would start."""
    return getattr(envelope.data, "run_id", None) or RunId(stable_id("run", envelope.source, envelope.id))
