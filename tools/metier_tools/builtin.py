"""The tools that ship: a Python program and a shell script, each in the run's sandbox.

`tool_files` puts them into every toolbox.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from metier_tools.command_line import fits_in_a_word
from metier_tools.declare import Arguments, from_model
from metier_tools.toolbox import Toolbox, Written


class PythonArguments(Arguments):
    """What `python` takes."""

    code: str = Field(
        description="a complete Python 3 program; only what it prints comes back", min_length=1, max_length=200_000
    )


class ShellArguments(Arguments):
    """What `shell` takes."""

    script: Annotated[str, AfterValidator(fits_in_a_word)] = Field(
        description="a POSIX sh script; only what it prints comes back", min_length=1
    )


_FRESH = "No network, nothing can be installed, and nothing is kept from one call to the next: files go under /tmp."

PYTHON = from_model(
    "python",
    f"Run a Python 3 program with the standard library and return what it prints. {_FRESH}",
    PythonArguments,
    Written("python", "code"),
)
SHELL = from_model(
    "shell",
    f"Run a POSIX shell script with the usual small tools and return what it prints. {_FRESH}",
    ShellArguments,
    Written("shell", "script"),
)
BUILTIN = Toolbox((PYTHON, SHELL))
