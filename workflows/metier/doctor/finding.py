"""One thing that was looked at, and what is to be done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        id: what was looked at: `PART.THING`, the same in every version.
        level: `error` for what will not work, `warning` for what works until it matters, `skipped` for what was not looked at.
        seen: what was seen, or why nothing was.
        do: what to do; empty where nothing is to be done.
        of: of several of the kind, which: a topic, a file, a model.
    """

    id: str
    level: Level
    seen: str
    do: str = ""
    of: str = ""


def ok(name: str, seen: str, *, of: str = "") -> Finding:
    """All is well."""
    return Finding(name, "ok", seen, of=of)


def warning(name: str, seen: str, do: str, *, of: str = "") -> Finding:
    """It works, until it matters."""
    return Finding(name, "warning", seen, do, of)


def error(name: str, seen: str, do: str, *, of: str = "") -> Finding:
    """It will not work."""
    return Finding(name, "error", seen, do, of)


def skipped(name: str, why: str, *, of: str = "") -> Finding:
    """It was not looked at."""
    return Finding(name, "skipped", why, of=of)
