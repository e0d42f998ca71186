"""Paths of files that go into a sandbox or come out of it: below the scratch folder, and nowhere else."""

from __future__ import annotations

LONGEST = 255
"""A path has at most so many bytes."""
MOST_FILES = 64
"""How many files a call may bring, and how many may be taken after it."""


def path_problem(path: str) -> str:
    """Why a path cannot name a file of a call; empty when it can."""
    parts = path.split("/")
    if not path or "\0" in path or "\n" in path:
        return "it is empty, or holds a NUL or a line end"
    if len(path.encode("utf-8", "surrogatepass")) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    if any(part in {"", ".", ".."} for part in parts):
        return "it must be relative to the scratch folder, with no . or .. in it"
    if not path.isprintable():
        return "it holds characters that cannot be printed"
    return ""
