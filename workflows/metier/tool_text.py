"""A tool as text for the person who approves it: all that a model would be told, and what is different from what was approved.

`cli_tools` prints it. A description may come from a stranger's server, so nothing in it reaches a terminal as a command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from metier_tools.pins import Approved
from metier_tools.tool import ToolSpec

_INDENT = " " * 4


def harmless(text: str) -> str:
    """The text with what cannot be seen (escape sequences, marks that turn the direction) spelled out; lines stay lines."""
    return "".join(one if one.isprintable() or one == "\n" else _spelled(one) for one in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def in_full(row: Mapping[str, object]) -> str:
    """A tool as `metier tools list` knows it, with description and parameters."""
    head = "  ".join(str(row[part]) for part in ("name", "kind", "profile", "timeout_s", "digest", "state"))
    told = [_part("description", _text(row["description"])), _part("parameters", _text(row["parameters"]))]
    return "\n".join([_line(head), *told])


def change(spec: ToolSpec, before: Approved | None) -> str:
    """What is new of a tool, or what has changed of it and from what."""
    now = _told(spec)
    if before is None:
        head = f"new      {spec.name} {spec.digest[:12]}"
        return "\n".join([_line(head), *(_part(name, text) for name, text in now.items() if text != "{}")])
    then = _told(before.spec(spec.name))
    head = f"changed  {spec.name} {before.digest[:12]} -> {spec.digest[:12]}"
    differing = [name for name in now if now[name] != then[name]]
    return "\n".join([_line(head), *(f"{_part(name, then[name])}\n{_after(now[name])}" for name in differing)])


def _told(spec: ToolSpec) -> dict[str, str]:
    """The parts that an approval covers."""
    return {
        "kind": spec.kind,
        "risk": spec.risk,
        "description": spec.description,
        "parameters": _text(spec.parameters),
        "also": _text(spec.also),
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _line(text: str) -> str:
    return harmless(text).replace("\n", "\\n")


def _part(name: str, text: str) -> str:
    return f"  {name}: {_below(text)}"


def _after(text: str) -> str:
    return f"    -> {_below(text)}"


def _below(text: str) -> str:
    """The lines after the first are set in, so that none looks like one of ours."""
    return harmless(text).replace("\n", f"\n{_INDENT}  ")
