"""A layer round a bus: data that is too large for a record stays in a blob store, and the record carries a claim on it.

`compose` puts it round every bus, so that who publishes and who handles never see a claim. On the wire a claim is the CloudEvents
attribute `dataref` (extension "Claim Check"), `sha256:` with the digest in hex, and an empty value; `datasize` is the data's length in bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from metier_infra.blobs import Blobs
from metier_infra.bus import Bus, Consumption, Handler
from metier_infra.errors import BusGone, MissingBlob, MissingService
from metier_infra.events import DEAD_LETTERS
from metier_infra.messages import DATAREF, DATASIZE, LARGEST_VALUE, Delivery, Record

log = structlog.get_logger()

SCHEME = "sha256:"
INLINE_BYTES = 256 << 10
T = TypeVar("T")


class ClaimCheck:
    """See `metier_infra.bus.Bus`. A value of more than `inline_bytes` goes by claim; a claim is redeemed before its record is handled.

    A record whose claim cannot be redeemed is handled as it came: `decode` says of it that it is `Undecodable`. A store that
    does not answer is a bus that does not.
    """

    def __init__(self, inner: Bus, blobs: Blobs, inline_bytes: int = INLINE_BYTES) -> None:
        self._inner = inner
        self._blobs = blobs
        self._inline_bytes = inline_bytes

    async def publish(self, *records: Record) -> None:
        """See `Bus.publish`. What is claimed is in the store before its record is sent."""
        await self._inner.publish(*[await self._claimed(record) for record in records])

    async def consume(self, what: Consumption, handle: Handler, stop: asyncio.Event) -> None:
        """See `Bus.consume`."""

        async def redeemed(delivery: Delivery) -> None:
            await handle(await self._redeemed(delivery))

        await self._inner.consume(what, redeemed, stop)

    async def close(self) -> None:
        """See `Bus.close`."""
        await self._inner.close()

    async def _claimed(self, record: Record) -> Record:
        if record.topic == DEAD_LETTERS:
            return _as_it_came(record)
        if len(record.value) <= self._inline_bytes:
            return record
        sha256 = await _used(self._blobs.put, record.value)
        others = tuple(one for one in record.headers if one[0].lower() not in {DATAREF, DATASIZE})
        claim = ((DATAREF, f"{SCHEME}{sha256}".encode()), (DATASIZE, b"%d" % len(record.value)))
        return replace(record, value=b"", headers=(*others, *claim))

    async def _redeemed(self, delivery: Delivery) -> Delivery:
        claim = next((value for name, value in delivery.headers if name.lower() == DATAREF), None)
        if claim is None or delivery.value:
            return delivery
        try:
            return replace(delivery, value=await _used(self._redeem, claim))
        except MissingBlob as error:
            log.warning("claim not redeemed", action="handle the record without its data", topic=delivery.topic,
                        partition=delivery.partition, offset=delivery.offset, error=str(error))  # fmt: skip
            return delivery

    def _redeem(self, claim: bytes) -> bytes:
        data = self._blobs.get(digest_of(claim.decode(errors="replace")))
        if len(data) > LARGEST_VALUE:
            raise MissingBlob(f"the bytes of a claim are {len(data)}; an event takes {LARGEST_VALUE} at the most")
        return data


def _as_it_came(letter: Record) -> Record:
    """A dead letter of the record as it lay on its topic: with its claim in place of the data that was redeemed, and claimed by nobody else."""
    claims = [value.decode(errors="replace") for name, value in letter.headers if name.lower() == DATAREF]
    mine = hashlib.sha256(letter.value).hexdigest() if claims else ""
    return replace(letter, value=b"") if mine in map(digest_of, claims) else letter


def digest_of(claim: str) -> str:
    """The digest that a claim names, `sha256:` before it or not."""
    return claim.strip().removeprefix(SCHEME)


async def _used(work: Callable[[bytes], T], value: bytes) -> T:
    """What the store says, from a thread of its own. Raises `BusGone` where it does not answer."""
    try:
        return await asyncio.to_thread(work, value)
    except MissingService as error:
        raise BusGone(str(error)) from error
