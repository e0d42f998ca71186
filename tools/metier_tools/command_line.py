"""What a command's templates become for one call: the words of the command line, and what the program reads.

`tool_kinds` checks templates with it when a tool is declared, the runner's execution fills them in. Nothing goes through a shell, so a
value stays one word whatever is in it; what is left to fear is a value that a program takes for an option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from metier_tools.declare import unfit
from metier_tools.toolbox import Command, Refusal

WORD_BYTES = 120_000
"""The kernel takes no longer single word of a command line than 128 KiB."""
LINE_BYTES = 1_000_000
"""Nor a longer command line than a quarter of the stack, which is 8 MiB as a rule; the environment goes with it."""
_PLACE = re.compile(r"\{\{([a-zA-Z]\w*)\}\}|\{([a-zA-Z]\w*)\}", re.ASCII)


def fits_in_a_word(script: str) -> str:
    """A script that can stand in a command line, as those of the shell do. Raises as a validator does."""
    if "\0" in script or len(script.encode()) > WORD_BYTES:
        raise unfit(f"a script is at most {WORD_BYTES} bytes, none of them NUL")
    return script


def places(template: str) -> list[str]:
    """The arguments that a template names as `{name}`. Other braces are text, and `{{name}}` is the text `{name}`."""
    return [found[2] for found in _PLACE.finditer(template) if found[2]]


def only_place(template: str) -> str:
    """The argument that is all there is to a template, or nothing."""
    found = _PLACE.fullmatch(template)
    return (found[2] or "") if found else ""


def argv_of(command: Command, arguments: Mapping[str, JsonValue]) -> tuple[str, ...] | Refusal:
    """The command line of one call. `arguments` have been checked, and have their defaults (see `declare.filled`).

    Text stands as it is, numbers and booleans as JSON, a list as several words in place of the word that names it. Refused are NUL, words
    and lines that the kernel does not take, and a word that begins with `-` because of a value, unless the command has a word `--` before it.
    """
    if missing := _missing(command.argv, arguments):
        return missing
    line: list[str] = []
    plain = False
    for template in command.argv:
        for word in _words(template, arguments):
            if refusal := _refused(template, word, plain=plain):
                return refusal
            line.append(word)
        plain = plain or template == "--"
    if sum(len(word.encode()) + 1 for word in line) > LINE_BYTES:
        return Refusal(f"the command line would be longer than {LINE_BYTES} bytes")
    return tuple(line)


def _missing(templates: Iterable[str], arguments: Mapping[str, JsonValue]) -> Refusal | None:
    missing = next((name for template in templates for name in places(template) if name not in arguments), None)
    return Refusal(f"{missing}: this argument is missing") if missing else None


def _words(template: str, arguments: Mapping[str, JsonValue]) -> Sequence[str]:
    whole = arguments.get(only_place(template))
    return [_text(one) for one in whole] if isinstance(whole, list) else [_filled(template, arguments)]


def _filled(template: str, arguments: Mapping[str, JsonValue]) -> str:
    return _PLACE.sub(lambda found: f"{{{found[1]}}}" if found[1] else _text(arguments[found[2]]), template)


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refused(template: str, word: str, *, plain: bool) -> Refusal | None:
    """Why a word cannot stand. A template that begins with a placeholder leaves to a value what the word begins with."""
    named = ", ".join(places(template)) or "the command"
    begins = _PLACE.match(template)
    if word.startswith("-") and begins and begins[2] and not plain:
        return Refusal(f"{named}: a value that begins with - would be taken for an option")
    if "\0" in word:
        return Refusal(f"{named}: NUL cannot stand in a command line")
    if len(word.encode(errors="replace")) > WORD_BYTES:
        return Refusal(f"{named}: a word of a command line is at most {WORD_BYTES} bytes")
    return None


def stdin_of(command: Command, arguments: Mapping[str, JsonValue]) -> bytes | Refusal:
    """What the program of one call reads: text as it is, anything else as JSON. NUL is refused, as in `argv_of`."""
    if missing := _missing([command.stdin], arguments):
        return missing
    text = _filled(command.stdin, arguments)
    return Refusal("NUL cannot stand in what the command reads") if "\0" in text else text.encode()
