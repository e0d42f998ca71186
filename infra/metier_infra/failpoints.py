"""Named points at which a test makes this process die or stall: one at every durable boundary. Off, a point costs one comparison.

`roles` arms them from `METIER_FAILPOINTS`; modules that write or send something which must not be lost call `failpoint(NAME)` there.
The idea, and the form of the text, are those of FreeBSD's and TiKV's fail points.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from metier_infra.errors import BadSettings

POINTS: Mapping[str, str] = {
    "request.consumed": "a request was read and nothing is written of it",
    "request.accepted": "the run is in the journal and not announced",
    "run.leased": "the run has its lease and nothing of it was told",
    "checkpoint.stored": "a superstep is in the journal and nothing was sent since",
    "call.requested": "a call is in the journal and not sent",
    "call.sent": "a call was sent and nobody waits for it yet",
    "run.finished": "the end is in the journal and not told",
    "run.told": "the end was told and the note of it is not written",
    "record.handled": "a record was handled and its offset is not committed",
    "call.claimed": "a call was claimed and no work was done",
    "model.answered": "the model answered and nothing is recorded",
    "step.recorded": "a step is in the journal and nothing came of it",
    "tool.requested": "a tool call is in the journal and not sent",
    "tool.returned": "a tool's result is back and not recorded",
    "call.answered": "the answer is in the journal and not sent",
    "tool.taken": "a runner took a tool call and has not begun",
    "container.created": "a container was created and not started",
    "tool.executed": "a tool ran and its result is not on its way",
    "tool.replied": "the result is on its way and its copy in the queue is not acknowledged",
}
"""Every point, and what stands and what does not when it is passed."""
_ENTRY = re.compile(
    r"(?P<name>[a-z.]+)=(?P<does>crash|freeze|(?:sleep|freeze):(?P<for_s>\d+(?:\.\d+)?))(?:@(?P<nth>[1-9]\d*))?"
)


Does = Literal["crash", "sleep", "freeze"]
_DOES: Mapping[str, Does] = {"c": "crash", "s": "sleep", "f": "freeze"}


@dataclass(frozen=True)
class Action:
    """What happens at the `nth` pass of a point (None: at each).

    `crash`: the process dies as by kill -9. `sleep`: the thread that passes stands still, `for_s` seconds. `freeze`: the whole process does,
    with 0 until somebody continues it.
    """

    does: Does
    for_s: float
    nth: int | None


@dataclass
class _Points:
    """Those of this process: what is armed, and how often each was passed since. For one thread at a time; a pass that is counted twice harms no test."""

    armed: Mapping[str, Action] | None = None
    passes: Counter[str] = field(default_factory=Counter[str])

    def passing(self, name: str) -> None:
        action = (self.armed or {}).get(name)
        if action is not None:
            self.passes[name] += 1
            _act(action, self.passes[name])


_points = _Points()


def parse(text: str) -> Mapping[str, Action]:
    """The actions of `name=crash@3;name=sleep:2`. Raises `BadSettings` for what cannot be read and for a point that does not exist."""
    found: dict[str, Action] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        read = _ENTRY.fullmatch(entry)
        if read is None or read["name"] not in POINTS:
            forms = "POINT=crash@N, POINT=freeze@N, POINT=freeze:SECONDS@N or POINT=sleep:SECONDS@N"
            raise BadSettings(f"METIER_FAILPOINTS: {entry!r} is not {forms}; there are {', '.join(POINTS)}")
        found[read["name"]] = Action(_DOES[read["does"][0]], float(read["for_s"] or 0), int(read["nth"] or 0) or None)
    return found


def arm(text: str) -> None:
    """Let these points act from now on; an empty text disarms all. Raises as `parse` does."""
    _points.armed, _points.passes = parse(text) or None, Counter()


def failpoint(name: str) -> None:
    """Pass a point: nothing happens unless a test armed it."""
    if _points.armed is not None:
        _points.passing(name)


def _act(action: Action, passed: int) -> None:
    if action.nth not in {None, passed}:
        return
    match action.does:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(action.for_s)
        case "freeze":
            if action.for_s:
                subprocess.Popen(["sh", "-c", f"sleep {action.for_s}; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
