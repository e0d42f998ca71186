"""What a consumer has not handled yet of its partitions, as kafka-python knows it or the broker says. `kafka_bus` looks, and shows it by `backlog`."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from metier_infra.backlog import Left, Stills
from metier_infra.offsets import Offsets

ASK_S = 2.0
"""How often it is asked where partitions end that are paused; seconds."""


class Backlog:
    """Of one consumer; `prefix` is taken off the topics' names. For the thread that owns it."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._stills = Stills()
        self._ends: Mapping[TopicPartition, int] = {}
        self._ask_at = 0.0

    def of(
        self, consumer: KafkaConsumer, parts: Mapping[TopicPartition, Offsets], committed: Mapping[TopicPartition, int]
    ) -> Sequence[Left]:
        """What is left of each partition that the consumer has. While the broker is away, that is what was left when it went."""
        held = {part: own for part, own in parts.items() if part in consumer.assignment()}
        self._ask(consumer, consumer.paused() & held.keys())
        return [self._left(consumer, part, own, committed.get(part, 0)) for part, own in held.items()]

    def _ask(self, consumer: KafkaConsumer, paused: Collection[TopicPartition]) -> None:
        """Nothing is fetched of what is paused, which would say where it ends: ask now and then."""
        if paused and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + ASK_S
            with suppress(KafkaError):
                self._ends = consumer.end_offsets([*paused], timeout_ms=1_000)

    def _left(self, consumer: KafkaConsumer, part: TopicPartition, offsets: Offsets, committed: int) -> Left:
        end = max(consumer.highwater(part) or 0, self._ends.get(part, 0))  # 0: nothing was fetched yet
        first = consumer.position(part, timeout_ms=0) if end and offsets.oldest_at is None else offsets.committable
        left = end - (end if first is None else first)
        since = self._stills.since(part, committed, left, time.time())
        return Left(part.topic.removeprefix(self._prefix), max(0, left), offsets.oldest_at, since)
