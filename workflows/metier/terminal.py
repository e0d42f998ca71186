"""How results are shown to people. The commands print through it."""

from __future__ import annotations

import os
import sys

from rich.console import Console

PLAIN_WIDTH = 120
"""Columns where there is no terminal to ask, such as in a pipe or a CI log."""


def console() -> Console:
    """A console on standard output: as wide as the terminal, or as `COLUMNS` says, or `PLAIN_WIDTH`."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else PLAIN_WIDTH)
