"""Whose container is this? Names that no later process can have, and whether their bearer still lives.

`docker_sandbox` labels every container with it and removes those whose owner is dead.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

LABEL = "io.metier.sandbox.owner"
BOX = "io.metier.sandbox.box"
"""A name that the owner gave the container before it asked the engine for it."""


def me() -> str:
    """This process: the machine's boot, the pid namespace, the pid in it, and when it started, in clock ticks since that boot."""
    return f"{_here()}|{os.getpid()}|{_started(os.getpid())}"


def another() -> str:
    """A new owner in this process."""
    return f"{me()}|{uuid.uuid4().hex}"


def is_orphan(owner: str) -> bool:
    """Whether this owner was a process that we would see, and that has ended. Of other machines and namespaces nothing is known: no."""
    boot, namespace, pid, started, *_ = [*owner.split("|"), "", "", ""]
    return f"{boot}|{namespace}" == _here() and pid.isdigit() and _started(int(pid)) != started


def _here() -> str:
    """Where a pid means what it means to us."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}|{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    """When the process started; empty for one that is not there, or dead and only not yet reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
