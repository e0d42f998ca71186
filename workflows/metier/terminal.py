"""What a command is to whoever started it: how results are shown, whose its output is, and how a signal ends it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import IO

from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.text import Text

from metier_infra.errors import BadSettings

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask, such as in a pipe or a CI log."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def console() -> Console:
    """A console on standard output: as wide as the terminal, or as `COLUMNS` says, or `PLAIN_WIDTH`."""
    known = on_terminal(sys.stdout) or "COLUMNS" in os.environ
    return Console(width=None if known else PLAIN_WIDTH)


def shown(text: str) -> str:
    """Text of others as one line that a terminal only shows: what is not printable (control characters, changes of direction) is escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "backslashreplace").decode() for one in text
    )


def shown_json(data: object) -> Text:
    """JSON that a terminal only shows: what is not printable in its strings is escaped, as JSON escapes it."""
    lines = json.dumps(data, indent=2, ensure_ascii=False).split("\n")
    return JSONHighlighter()("\n".join(line if line.isprintable() else _escaped(line) for line in lines))


def _escaped(line: str) -> str:
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in line)


def on_terminal(stream: IO[str] | None) -> bool:
    """Whether a person is at the other end. Python has None for a stream that was closed before it began."""
    return stream is not None and stream.isatty()


def own_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output, for the caller alone from now on: what else this process prints goes to standard error.

    Neither is Python's own object, which a thread that still reads would keep from being closed at the end.

    Raises:
        BadSettings: one of them was closed before this process began.
    """
    for stream, name in ((sys.stdin, "standard input"), (sys.stdout, "standard output")):
        if _closed(stream):
            raise BadSettings(f"{name} is closed; calls are read from standard input and answered on standard output")
    sys.stdout.flush()
    mine = os.dup(1)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return os.fdopen(0, "rb", closefd=False), os.fdopen(mine, "wb", buffering=0)


def _closed(stream: IO[str] | None) -> bool:
    return stream is None


def end_by_signals() -> None:
    """From now on a signal of `ENDING` ends this process as `sys.exit` does, with 128 and its number; a second one changes nothing.

    One that is ignored, as under `nohup`, stays so.
    """
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]

    def end(number: int, _: FrameType | None) -> None:
        for one in heard:
            signal.signal(one, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in heard:
        signal.signal(number, end)


@contextmanager
def one_interrupt() -> Generator[None]:
    """In here Ctrl-C does what it did, once: a second one does not cut short how this process ends. Where it did nothing, as under `nohup`, it goes on so.

    Inside a coroutine the first one cancels the main task, as `asyncio.run` has it. Only the main thread hears signals, so that another one changes nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or current_thread() is not main_thread():
        yield
        return

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before(number, frame)

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is once:
            signal.signal(signal.SIGINT, before)
