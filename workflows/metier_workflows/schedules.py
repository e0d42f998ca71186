"""Runs that start by the clock: the file that declares them, what is due, and the keeper that starts it.

Every orchestrator keeps all schedules; a run's id follows from its schedule and the time that it is due, so each time starts one run. Expressions, and
what they mean where clocks are put forward or back, are those of Debian's cron, by `cronsim`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import structlog
from cronsim import CronSim, CronSimError
from pydantic import Field, JsonValue, StringConstraints, field_validator

from metier_infra import telemetry
from metier_infra.declared import Declared, load
from metier_infra.errors import RejectRequest
from metier_infra.events import RunRequested
from metier_infra.journal import Journal
from metier_infra.words import Limits, Name
from metier_workflows.accepting import Accepting, requested

log = structlog.get_logger()

LATE = timedelta(minutes=1)
"""What was due longer ago than this was missed: nobody looked."""
WINDOWS = (timedelta(days=1), timedelta(days=32), timedelta(days=400))
"""How far back the last time that was due is looked for, step by step."""


class Schedule(Declared):
    """Start a run of `workflow` on `input` at each time that `cron` gives (minute, hour, day of the month, month, day of the week) in `timezone`.

    Attributes:
        missed: what becomes of times at which no orchestrator was up: `last` starts the last of them alone, late; `skip` none.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9._-]{1,100}$")]
    cron: str
    timezone: str = "UTC"
    workflow: Name
    version: Name | None = None
    input: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    tenant: Name = "default"
    priority: Annotated[int, Field(ge=0, le=9)] = 5
    limits: Limits | None = None
    missed: Literal["skip", "last"] = "last"

    @field_validator("timezone")
    @classmethod
    def _a_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"no time zone is called {value!r}; names are those of the IANA, such as Europe/Rome"
            ) from error
        return value

    @field_validator("cron")
    @classmethod
    def _an_expression(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("five fields: minute, hour, day of the month, month, day of the week")
        try:
            next(CronSim(value, datetime.now(UTC)))
        except CronSimError as error:
            raise ValueError(f"{error}: not an expression of cron") from error
        except StopIteration:
            raise ValueError("this is never due") from None
        return value

    @property
    def source(self) -> str:
        """The source of the requests that it makes."""
        return f"/metier/schedules/{self.name}"


class ScheduleFile(Declared):
    """What a file of schedules holds."""

    schedules: tuple[Schedule, ...]

    @field_validator("schedules")
    @classmethod
    def _named_once(cls, value: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        names = [one.name for one in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two schedules are called {twice[0]!r}")
        return value


def load_schedules(path: Path) -> Sequence[Schedule]:
    """What a file declares. Raises `BadSpec` with file, line and field."""
    return load(path, ScheduleFile, parts={"schedules": Schedule}).schedules


def times(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """The times at which it is due, after this one, in UTC, in order."""
    last = after
    for local in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.timezone))):
        at = local.astimezone(UTC)
        if at > last:  # in the hour that comes twice, the expression gives the first of both, which may be over
            yield at
            last = at


def due(schedule: Schedule, looked_at: datetime, now: datetime) -> Sequence[datetime]:
    """What is to be started now: what came due since it was looked at; of what was missed, the last alone, or nothing."""
    late = now - LATE
    fresh = _until(schedule, max(looked_at, late), now)
    if fresh or schedule.missed == "skip":
        return fresh
    return _last(schedule, looked_at, late)


def _last(schedule: Schedule, after: datetime, until: datetime) -> Sequence[datetime]:
    for window in WINDOWS:
        if found := _until(schedule, max(after, until - window), until):
            return found[-1:]
    return _until(schedule, after, until)[-1:]


def _until(schedule: Schedule, after: datetime, until: datetime) -> Sequence[datetime]:
    found: list[datetime] = []
    for at in times(schedule, after) if after < until else ():
        if at > until:
            break
        found.append(at)
    return found


class Keeper:
    """Starts what is due."""

    def __init__(self, journal: Journal, accepting: Accepting, schedules: Sequence[Schedule]) -> None:
        self._journal = journal
        self._accepting = accepting
        self._schedules = schedules

    async def look(self) -> float:
        """Start what is due now; in how many seconds to look again, at the latest. Raises `RetryLater`s: then it comes again."""
        if not self._schedules:
            return LATE.total_seconds()
        looked_at = await self._journal.schedules.looked_at([one.name for one in self._schedules])
        now = _at(await self._journal.schedules.now_s())
        for schedule in self._schedules:
            for at in due(schedule, _at(looked_at[schedule.name]), now):
                await self._start(schedule, at)
            await self._journal.schedules.look(schedule.name, now.timestamp())
        following = [found for one in self._schedules for found in islice(times(one, now), 1)]
        return min([(at - now).total_seconds() for at in following], default=LATE.total_seconds())

    async def _start(self, schedule: Schedule, at: datetime) -> None:
        """Ask for the run of this time, as a publisher would. What is rejected stays so: the time has passed."""
        asked = RunRequested(
            **schedule.model_dump(include=RunRequested.model_fields.keys() - {"limits"}), limits=schedule.limits
        )
        with telemetry.span(telemetry.schedule(schedule.name)) as span:
            try:
                await self._accepting.take(requested(asked, schedule.source, at.isoformat(), span.traceparent))
            except RejectRequest as error:
                log.warning(
                    "a time started no run", action="skip", schedule=schedule.name, at=at.isoformat(), reason=error.code
                )


def _at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
