"""Métier's own processes on top of the services: one of each role.

Called by `stack` for `up --roles` and `down`; `lifecycle` starts and stops them like any service. Which program is
run is an argument: the tests give a stand-in.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import process
from say import StackError, say
from services import Service
from state import REPOSITORY, State

PROGRAM = REPOSITORY / ".venv/bin/metier"
FIRST = ("migrate", "topics")
"""Run once, to their end, before any role starts."""
ROLES: Mapping[str, Sequence[str]] = {
    "orchestrator": ["orchestrator"],
    "reasoner": ["agent", "reasoner"],
    "coder": ["agent", "coder"],
    "careful": ["agent", "careful"],
    "tools": ["tools"],
}


def every(state: State, program: Path, values: Mapping[str, str]) -> list[Service]:
    """Describe all roles, each told where the services are and which file to make once it is ready."""
    return [_role(state, name, [str(program), *words], values) for name, words in ROLES.items()]


def _role(state: State, name: str, command: Sequence[str], values: Mapping[str, str]) -> Service:
    sign = state.folder("run") / f"{name}.ready"
    own = {"METIER_READY_FILE": str(sign), "METIER_INSTANCE": name}
    return Service(
        name=name,
        url=" ".join(command[1:]),
        command=partial(_without_stale_sign, sign, command),
        ready=sign.exists,
        pidfile=state.pidfile(name),
        log=state.log(name),
        folder=REPOSITORY,
        environment={**os.environ, **values, **own},
        grace=30.0,
        after_stop=partial(sign.unlink, missing_ok=True),
    )


def _without_stale_sign(sign: Path, command: Sequence[str]) -> Sequence[str]:
    sign.unlink(missing_ok=True)
    return command


def prepare(program: Path, values: Mapping[str, str]) -> None:
    """Run what must be done once before any role starts: the tables and the topics."""
    if not program.exists():
        raise StackError(f"{program} is not there: `make up` installs it.")
    for word in FIRST:
        say(word, "running")
        process.run([str(program), word], environment={**os.environ, **values}, folder=REPOSITORY)
