"""What people read: progress lines on stderr, and the one-sentence error.

Called by every module beside it; hands on to nobody. `stack.main` turns a `StackError` into its sentence and exit 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path


class StackError(Exception):
    """Something a person must read: the message is whole sentences, shown without a traceback."""


def say(name: str, news: str) -> None:
    """Print one progress line: who, and what happened. In one piece: services start side by side."""
    sys.stderr.write(f"{name:<12} {news}\n")
    sys.stderr.flush()


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log, indented, for the end of an error message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return indent(text.splitlines()[-lines:])


def indent(lines: Sequence[str]) -> str:
    """Put each line on a line of its own, set in under the sentence before it."""
    return "".join(f"\n    {line}" for line in lines)
