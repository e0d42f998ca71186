"""Dead letters as people see them: found, shown, and sent again to where they lay, byte for byte.

`cli_dead_letters` uses it; `service` writes the letters. A letter's id is where its record lay, TOPIC@PARTITION:OFFSET, as in the log line `record buried`.
That one was sent again is remembered on the topic itself, by a mark behind it: the mark lives longer than the letter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from metier_infra.bus import Bus
from metier_infra.errors import LetterIncomplete
from metier_infra.events import DEAD_LETTERS
from metier_infra.messages import Delivery, Headers, Record

Scan = Callable[[str, Callable[[Delivery], None]], Awaitable[None]]
"""Shows every record that lies on a topic now, those of one partition in their order. Raises `BusGone`."""
FIRST = "metier-dead-reason"
REDRIVEN = "metier-dead-redriven"
PREVIEW = 200
"""So many bytes of a value a summary keeps."""


@dataclass(frozen=True)
class Letter:
    """A record that was buried, as it was, and why. `at` is when, in seconds since the epoch, and 0 where the letter does not say; `size` is the value's, in bytes.

    `without` names the parts (value, key, headers) that were too large to be kept. `foreign`: somebody else wrote it, and it lay nowhere else.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    message: str
    at: float
    key: bytes | None
    value: bytes
    headers: Headers
    size: int
    without: tuple[str, ...] = ()
    redriven: bool = False
    foreign: bool = False

    @property
    def id(self) -> str:
        """Where the record lay."""
        return f"{self.topic}@{self.partition}:{self.offset}"

    @property
    def complete(self) -> bool:
        """Whether it can be sent again as it was."""
        return not self.without and not self.foreign

    @property
    def summary(self) -> Letter:
        """The same with little of its bytes, for many of them."""
        return replace(self, key=self.key and self.key[:PREVIEW], value=self.value[:PREVIEW], headers=())


@dataclass(frozen=True)
class Wanted:
    """Which letters: all conditions hold, and None is none. `since` is seconds since the epoch."""

    reason: str | None = None
    topic: str | None = None
    since: float = 0.0

    def fits(self, letter: Letter) -> bool:
        """Whether this is one of them."""
        reason = self.reason in {None, letter.reason}
        return reason and self.topic in {None, letter.topic} and letter.at >= self.since


def letter_of(delivery: Delivery) -> Letter:
    """The letter in a record of the dead letters. Its own headers begin with the last that says a reason: what stands before is the original's, whatever it says."""
    starts = [n for n, (name, _) in enumerate(delivery.headers) if name == FIRST]
    begin = starts[-1] if starts else len(delivery.headers)
    own = {name: value.decode("utf-8", "replace") for name, value in delivery.headers[begin:]}
    known = own.get("metier-dead-partition", "").isdecimal() and own.get("metier-dead-offset", "").isdecimal()
    place = own if known else {}
    return Letter(
        topic=place.get("metier-dead-topic", delivery.topic),
        partition=int(place.get("metier-dead-partition", delivery.partition)),
        offset=int(place.get("metier-dead-offset", delivery.offset)),
        reason=own.get(FIRST, "unknown"),
        message=own.get("metier-dead-message", ""),
        at=_seconds(own.get("metier-dead-at", "0")),
        key=delivery.key,
        value=delivery.value,
        headers=delivery.headers[:begin],
        size=len(delivery.value),
        without=tuple(own.get("metier-dead-without", "").split()),
        foreign=not known,
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _marked(delivery: Delivery) -> str | None:
    """The id that a mark says was sent again; None for a letter."""
    match delivery.headers:
        case ((name, value),) if name == REDRIVEN:
            return value.decode("utf-8", "replace")
        case _:
            return None


async def summaries(scan: Scan, wanted: Wanted) -> Sequence[Letter]:
    """The letters that are wanted, in the order in which they were buried, each once, with little of their bytes."""
    found: dict[str, Letter] = {}
    marked: set[str] = set()

    def look(delivery: Delivery) -> None:
        if (mark := _marked(delivery)) is not None:
            marked.add(mark)
            return
        letter = letter_of(delivery)
        if letter.id not in found and wanted.fits(letter):
            found[letter.id] = letter.summary

    await scan(DEAD_LETTERS, look)
    return sorted((replace(one, redriven=one.id in marked) for one in found.values()), key=lambda one: one.at)


def in_parts(letters: Iterable[Letter], most: int) -> Iterator[Sequence[str]]:
    """The ids of letters, in parts of at most so many bytes of values together; one that is larger is a part alone."""
    part, size = list[str](), 0
    for one in letters:
        if part and size + one.size > most:
            yield part
            part, size = [], 0
        part.append(one.id)
        size += one.size
    if part:
        yield part


async def whole(scan: Scan, ids: Iterable[str]) -> Mapping[str, Letter]:
    """The letters of these ids, with all their bytes; those that are not there are not among them."""
    wanted, found, marked = frozenset(ids), dict[str, Letter](), set[str]()

    def look(delivery: Delivery) -> None:
        if (mark := _marked(delivery)) is not None:
            marked.add(mark)
            return
        letter = letter_of(delivery)
        if letter.id in wanted:
            found.setdefault(letter.id, letter)

    await scan(DEAD_LETTERS, look)
    return {name: replace(letter, redriven=name in marked) for name, letter in found.items()}


async def redrive(bus: Bus, letter: Letter) -> None:
    """Send the record again, as it was, to its topic, and remember that. Raises `LetterIncomplete`."""
    if letter.foreign:
        raise LetterIncomplete(
            f"{letter.id} was not buried by Métier: it lay nowhere else, so that there is nowhere to send it"
        )
    if letter.without:
        raise LetterIncomplete(f"{letter.id} was kept without its {' and '.join(letter.without)}, which was too large; the original may still lie at its place")  # fmt: skip
    original = Record(letter.topic, letter.key, letter.value, letter.headers)
    mark = Record(DEAD_LETTERS, letter.id.encode(), b"", ((REDRIVEN, letter.id.encode()),))
    await bus.publish(original, mark)
