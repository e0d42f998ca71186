"""What a group has not handled yet, as metrics. Each adapter of the bus shows it for the groups that consume there."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from metier_infra import metrics


@dataclass(frozen=True)
class Left:
    """What is left of one partition. Times are seconds since the epoch.

    Attributes:
        topic: the topic's name.
        records: how many lie there that are not handled, read or not.
        oldest_at: when the oldest of those that were read came there; None: none was.
        since: when the group last got on here, or the first record came; None: nothing is left.
    """

    topic: str
    records: int
    oldest_at: float | None
    since: float | None


Look = Callable[[], Iterable[Left]]


def show(topics: Sequence[str], group: str, look: Look) -> None:
    """Let the gauges of these topics show what `look` finds whenever somebody asks; from any thread."""
    for topic in topics:
        for metric, figure in _FIGURES.items():
            metrics.watch(metric, partial(_of, topic, look, figure), {metrics.TOPIC: topic, metrics.GROUP: group})


def _of(topic: str, look: Look, figure: Callable[[Sequence[Left]], float]) -> float:
    return figure([left for left in look() if left.topic == topic])


def _records(parts: Sequence[Left]) -> float:
    return sum(left.records for left in parts)


def _oldest_s(parts: Sequence[Left]) -> float:
    return _longest(left.oldest_at for left in parts)


def _still_s(parts: Sequence[Left]) -> float:
    return _longest(left.since for left in parts)


def _longest(times: Iterable[float | None]) -> float:
    """Seconds since the first of them; 0 where there is none, and never less."""
    first = min((at for at in times if at is not None), default=None)
    return 0.0 if first is None else max(0.0, time.time() - first)


_FIGURES: Mapping[metrics.Metric, Callable[[Sequence[Left]], float]] = {
    metrics.LAG: _records,
    metrics.OLDEST_EVENT: _oldest_s,
    metrics.COMMIT_AGE: _still_s,
}


class Stills:
    """Since when each partition stands still, by the place that the group has reached there."""

    def __init__(self) -> None:
        self._stood: dict[Hashable, tuple[int, float]] = {}

    def since(self, part: Hashable, reached: int, left: int, now: float) -> float | None:
        """When it got to this place, or the first record came that waits there; None where nothing is left."""
        if left <= 0:
            self._stood.pop(part, None)
            return None
        before = self._stood.get(part)
        if before is None or before[0] != reached:
            before = self._stood[part] = (reached, now)
        return before[1]
