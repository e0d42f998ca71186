"""What processes of this host have used: of a tree of them, and of the server behind a port. Read from Linux's /proc; elsewhere there is nothing.

`bench_orchestrator` and `bench_peers` ask it before and after a load.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")
_LISTENS = "0A"


def cpu_s(roots: Iterable[int]) -> float:
    """CPU seconds of these processes and all that came of them, those that ended and were waited for too."""
    stats = _stats()
    tree = _tree(set(roots), {pid: fields[1] for pid, fields in stats.items()})
    return sum(sum(stats[pid][11:15]) for pid in tree if pid in stats) / os.sysconf("SC_CLK_TCK")


def _tree(roots: set[int], parents: Mapping[int, int]) -> set[int]:
    found = set(roots)
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def _stats() -> dict[int, list[int]]:
    """By process: the numbers of its `stat` from the third field on; the third, a letter, is 0."""
    found: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text()
        except OSError:
            continue
        found[int(folder.name)] = [0, *map(int, text.rpartition(") ")[2].split()[1:])]
    return found


def listener(port: int) -> int | None:
    """The process that listens on this TCP port of this host, if it is to be seen."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    for link in PROC.glob("[0-9]*/fd/*"):
        try:
            if sockets and str(link.readlink()) in sockets:
                return int(link.parts[2])
        except OSError:
            continue
    return None


def _inodes(port: int) -> set[str]:
    lines = [line.split() for name in ("tcp", "tcp6") for line in _lines(PROC / "net" / name)]
    return {line[9] for line in lines if line[3] == _LISTENS and int(line[1].rpartition(":")[2], 16) == port}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()[1:]
    except OSError:
        return []
