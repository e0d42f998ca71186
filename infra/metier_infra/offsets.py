"""Which offset of a partition may be committed, when its records are finished out of order. Pure; `kafka_bus` obeys it."""

from __future__ import annotations

from collections import deque


class Offsets:
    """The records of one partition that are in hand. Offsets may have gaps (compaction, transaction markers)."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, float]] = deque()
        self._finished: set[int] = set()
        self._highest = -1

    def take(self, offset: int, at: float = 0.0) -> None:
        """A record was handed out that came at this time."""
        self._pending.append((offset, at))
        self._highest = offset

    def finish(self, offset: int) -> None:
        """A record's handler returned."""
        self._finished.add(offset)
        while self._pending and self._pending[0][0] in self._finished:
            self._finished.discard(self._pending.popleft()[0])

    def rewound(self, offset: int) -> bool:
        """Whether `offset` was handed out before: the consumer was sent back, and what is in hand will come again."""
        return offset <= self._highest

    @property
    def in_hand(self) -> int:
        """How many records were handed out and are not finished."""
        return len(self._pending) - len(self._finished)

    @property
    def committable(self) -> int:
        """The first offset that is not finished: where the group goes on after a crash."""
        return self._pending[0][0] if self._pending else self._highest + 1

    @property
    def oldest_at(self) -> float | None:
        """When the first came that is not finished; None: all are."""
        return self._pending[0][1] if self._pending else None
