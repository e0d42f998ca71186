"""The reference page of the commands, made from the commands themselves. `reference` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperGroup, TyperOption

from metier.cli import app
from metier.reference_tables import table


def cli_page() -> str:
    """Every command."""
    parts = ["# Commands\n", "`metier COMMAND --help` says the same on a terminal.\n"]
    for path, command in commands():
        words = [word for one in command.params if (word := _word(one))]
        parts += [f"## `{' '.join((path, *words))}`\n", (command.help or "").strip() + "\n"]
        rows = [(f"`{_name(one)}`", _about(one)) for one in command.params]
        parts += [table(("argument or option", "meaning"), rows)] if rows else []
        parts += [f"{_example(command.epilog)}\n"] if command.epilog else []
    return "\n".join(parts)


def commands() -> list[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    root: Any = typer.main.get_command(app)
    return list(_leaves("metier", root))


def _leaves(path: str, command: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(command, TyperGroup):
        yield path, command
        return
    if command.invoke_without_command:
        yield path, command
    for name, child in command.commands.items():
        yield from _leaves(f"{path} {name}", child)


def _word(parameter: Any) -> str:
    if isinstance(parameter, TyperOption):
        return ""
    name = str(parameter.metavar or parameter.name).upper().removesuffix("…")
    return f"{name}…" if parameter.nargs == -1 else name


def _name(parameter: Any) -> str:
    if not isinstance(parameter, TyperOption):
        return _word(parameter)
    value = "" if parameter.is_flag else f" {parameter.metavar or str(parameter.name).removesuffix('_s').upper()}"
    return f"{', '.join(parameter.opts)}{value}"


def _about(parameter: Any) -> str:
    default = parameter.default
    shown = not (default is None or isinstance(default, bool) or callable(default))
    return f"{parameter.help or ''}{f' Default: {default}.' if shown else ''}"


def _example(epilog: str) -> str:
    return f"Example: `{epilog.removeprefix('Example: ')}`"
