"""The tools that ship: a Python program and a shell script, each in the run's sandbox.

`compose` puts this toolbox into agents and runners.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from metier_tools.tool import Program
from metier_tools.toolbox import Arguments, Toolbox, declare

SCRIPT_BYTES = 120_000
"""The kernel takes no longer single argument than 128 KiB, and a script is one."""


def _fits(script: str) -> str:
    if "\0" in script or len(script.encode()) > SCRIPT_BYTES:
        raise ValueError(f"a script is at most {SCRIPT_BYTES} bytes, none of them NUL")
    return script


class PythonArguments(Arguments):
    """What `python` takes."""

    code: str = Field(
        description="a complete Python 3 program; only what it prints comes back", min_length=1, max_length=200_000
    )


class ShellArguments(Arguments):
    """What `shell` takes."""

    script: Annotated[str, AfterValidator(_fits)] = Field(
        description="a POSIX sh script; only what it prints comes back", min_length=1
    )


_FRESH = "No network, nothing can be installed, and nothing is kept from one call to the next: files go under /tmp."

PYTHON = declare(
    "python",
    f"Run a Python 3 program with the standard library and return what it prints. {_FRESH}",
    PythonArguments,
    runs=Program(language="python", argument="code"),
)
SHELL = declare(
    "shell",
    f"Run a POSIX shell script with the usual small tools and return what it prints. {_FRESH}",
    ShellArguments,
    runs=Program(language="shell", argument="script"),
)
BUILTIN = Toolbox((PYTHON, SHELL))
