"""The face of the commands: each says what it does and shows an example that works as typed. Not here: what they do."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
import typer

from metier.cli import app

ROOT = typer.main.get_command(app)


def commands(command: object = ROOT, *path: str) -> Iterator[tuple[tuple[str, ...], object]]:
    inner: dict[str, object] = getattr(command, "commands", {})
    if not inner or getattr(command, "invoke_without_command", False):
        yield path, command
    for name, one in inner.items():
        yield from commands(one, *path, name)


EVERY = dict(commands())


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_each_command_says_what_it_does_and_shows_how(path: tuple[str, ...]) -> None:
    command = EVERY[path]
    said, example = str(getattr(command, "help", "")), str(getattr(command, "epilog", ""))
    assert said.endswith(".")
    assert example.startswith("Example: ")
    words = shlex.split(example.removeprefix("Example: "), comments=True)
    begin = words.index("metier") + 1
    assert tuple(words[begin : begin + len(path)]) == path


def test_calls_by_hand_say_what_becomes_of_blank_lines_refusals_and_calls_that_find_no_container() -> None:
    said = " ".join(str(getattr(EVERY["tools", "exec"], "help", "")).split())
    assert "blank lines are skipped" in said
    assert "`refused` is an answer" in said
    assert "a call waits METIER_SANDBOX_WAIT_S" in said


def test_all_commands_of_the_roles_and_the_users_are_there() -> None:
    names = {" ".join(path) for path in EVERY}
    roles = {"orchestrator", "agent", "tools", "dev", "topics", "migrate"}
    users = {"publish", "runs list", "runs show", "runs watch", "trace", "version", "demo"}
    tools = {"tools list", "tools approve", "tools exec", "tools selftest"}
    assert roles | users | tools | {"bench orchestrator", "bench sandbox"} <= names
