"""The arguments of a tool call as patterns read them, and how much of them is read at all. Pure; a model wrote them, so they may be anything.

`approval` refuses what `unreadable` names, and looks with `at` and `texts` into the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast

from pydantic import JsonValue

MOST_VALUES = 20_000
DEEPEST = 64
MOST_CHARACTERS = 2_000_000
LARGEST_BITS = 4096
"""Of a whole number."""


def at(arguments: Mapping[str, JsonValue], path: str) -> list[JsonValue]:
    """The values to which a path leads; a name that has dots in it is found too."""
    if path == "*":
        return [dict(arguments)]
    level: list[JsonValue] = [dict(arguments)]
    for part in path.split("."):
        level = [one[part] for value in level for one in _items(value) if isinstance(one, dict) and part in one]
    whole = [arguments[path]] if "." in path and path in arguments else []
    return level + whole


def _items(value: JsonValue) -> Iterator[JsonValue]:
    """The value, or the items of a list, of lists within it too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting.extend(one)
        else:
            yield one


def texts(value: JsonValue) -> Iterator[str]:
    """All that can be read in a value: texts, names, and plain values as JSON writes them."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
        else:
            yield one if isinstance(one, str) else json.dumps(one)


def unreadable(arguments: Mapping[str, JsonValue]) -> str:
    """Why arguments are more, or other, than can be judged; empty when they are not. It looks at no more than it allows."""
    level: list[object] = [arguments]
    values = characters = 0
    for _ in range(DEEPEST):
        values += len(level)
        if values > MOST_VALUES:
            return f"they have more than {MOST_VALUES} values"
        for one in level:
            if fault := _fault(one):
                return fault
        characters += sum(len(text) for one in level for text in _own_texts(one))
        if characters > MOST_CHARACTERS:
            return f"they have more than {MOST_CHARACTERS} characters"
        level = list(islice((inner for one in level for inner in _inside(one)), MOST_VALUES + 1))
        if not level:
            return ""
    return f"they are deeper than {DEEPEST} levels"


def _fault(value: object) -> str:
    if not _is_json(value):
        return "they are no JSON"
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        return "they have a number that is too long"
    return "" if all(map(_is_unicode, _own_texts(value))) else "they have text that is no Unicode"


def _is_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) for name in cast("Iterable[object]", value))
    return value is None or isinstance(value, str | int | float | list)


def _own_texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else ()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return cast("Mapping[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()
