"""A wall clock that can be stepped under a role, as by a time server or an operator. `launch` starts a role under it; `faults` steps it.

`time.time` is replaced before the role starts: the product's deadlines and those of its libraries go by it. `datetime.now`, monotonic clocks and the
programs that a role starts keep the true time: nothing else here can give a process a time of its own.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path

CLOCK = "CHAOS_CLOCK"
"""Names the file that holds how far the clock is ahead."""
STEP_S = 30.0
"""How far it is stepped: less than the time that a tool call may lie in its queue, more than any lease; seconds."""
_AHEAD = struct.Struct("d")


def step(path: Path, ahead_s: float) -> None:
    """Let the clock be so far ahead of the true time from now on, also where the file is in use."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(_AHEAD.pack(ahead_s))


def stepped(path: Path) -> Callable[[], float]:
    """`time.time` by the clock of this file."""
    with path.open("rb") as file:
        ahead = mmap.mmap(file.fileno(), _AHEAD.size, access=mmap.ACCESS_READ)
    true = time.time

    def now() -> float:
        return true() + float(_AHEAD.unpack(ahead)[0])

    return now
