"""When a record that fails as if a service were away is poison after all. `service` puts this layer round each handler, under the one that retries.

A failure counts against a record when another one was handled since its failure before: then the service was there. While the journal
or the bus is away nothing is handled, so nothing counts, however long that lasts. A provider or a runner that is away is no evidence
either: others do without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from metier_infra.bus import Handler
from metier_infra.errors import BusGone, BusRefused, JournalGone, Poison
from metier_infra.messages import Delivery

Place = tuple[str, int, int]


@dataclass(frozen=True)
class Rule:
    """Poison is what failed `failures` times while others were handled, over `after_s` seconds or more."""

    failures: int = 20
    after_s: float = 600.0


@dataclass(frozen=True)
class Doubt:
    """What is held against one record: since when, how often, and how many others had been handled at its last failure."""

    since_s: float
    others: int
    failures: int = 0

    def again(self, others: int) -> Doubt:
        """After one more failure, when `others` have been handled in all."""
        return replace(self, others=others, failures=self.failures + (others > self.others))


def doubted(handle: Handler, rule: Rule, clock: Callable[[], float] = time.monotonic, most: int = 1_000) -> Handler:
    """A layer: raises `Poison` for a record of which `rule` says so. It remembers at most `most` records that fail."""
    doubts: dict[Place, Doubt] = {}
    others = 0

    async def layer(delivery: Delivery) -> None:
        nonlocal others
        place = delivery.topic, delivery.partition, delivery.offset
        try:
            await handle(delivery)
        except BusRefused:
            raise  # a person's to mend: the record is as good as any
        except (JournalGone, BusGone) as error:
            doubt = doubts.pop(place, Doubt(clock(), others)).again(others)
            if doubt.failures >= rule.failures and clock() - doubt.since_s >= rule.after_s:
                raise Poison(_why(doubt, clock() - doubt.since_s, error)) from error
            doubts[place] = doubt
            if len(doubts) > most:
                del doubts[next(iter(doubts))]
            raise
        doubts.pop(place, None)
        others += 1

    return layer


def _why(doubt: Doubt, age_s: float, error: Exception) -> str:
    return f"it failed {doubt.failures} times in {age_s:.0f} s while other records were handled, last by: {error}"
