"""Secrets: where their values come from, and that no result shows them.

`execution` asks for those that a tool names; they travel in the call's frame and nowhere else. `scrubbed` is a net for accidents: a
program that means to tell a secret can disguise it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, quote_plus

HIDDEN = "[secret]"
SHORTEST = 4
"""A shorter value is not looked for: it would be found everywhere."""
SHORTEST_LINE = 8
"""A shorter line of a value of several lines is not looked for by itself."""
_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,127}")


class Vault(Protocol):
    """Secrets by name."""

    def value(self, name: str) -> str | None:
        """The value of a secret, read anew each time; None when there is none of this name."""
        ...


class FolderVault:
    """One file for each secret, as container platforms mount them; a line end at its end is no part of it. None: no secrets at all."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def value(self, name: str) -> str | None:
        """See `Vault.value`."""
        if self._folder is None or not _NAME.fullmatch(name):
            return None
        try:
            return (self._folder / name).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            return None


class FixedVault:
    """Secrets that are given, for tests and for programs that embed Métier."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def value(self, name: str) -> str | None:
        """See `Vault.value`."""
        return self._values.get(name)


def spellings(values: Iterable[str]) -> tuple[bytes, ...]:
    """The values as they are, as common encodings write them, and line by line; the longest first."""
    found: set[bytes] = set()
    for value in values:
        if len(value) >= SHORTEST:
            plain = value.encode()
            found |= {plain, plain.hex().encode(), plain.hex().upper().encode(), *_quoted(value), *_base64(plain)}
            found |= {line.encode() for line in value.splitlines() if len(line) >= SHORTEST_LINE}
    return tuple(sorted(found, key=len, reverse=True))


def _quoted(value: str) -> set[bytes]:
    """What stands in JSON, in Python's `repr`, or in a URL for this value."""
    as_json = {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    in_a_url = {quote(value), quote(value, safe=""), quote_plus(value)}
    return {text.encode() for text in as_json | in_a_url | {repr(value)[1:-1]}}


def _base64(plain: bytes) -> set[bytes]:
    """What stands in a base64 text for these bytes, wherever in it they begin."""
    found: set[bytes] = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            at_the_end = encode(bytes(before) + plain)[(0, 2, 3)[before] :]
            text = at_the_end.rstrip(b"=")
            followed = text[: len(text) - (1 if (before + len(plain)) % 3 else 0)]
            found |= {one for one in (at_the_end, text, followed) if len(one) >= SHORTEST}
    return found


Scrub = Callable[[bytes, bool], bytes]
"""Takes secrets out of bytes; the flag says that the bytes were cut off, maybe in the middle of one."""


def scrubber(values: Iterable[str]) -> Scrub:
    """What takes these secrets out of what a tool gives back."""
    known = spellings(values)
    if not known:
        return lambda data, _: data

    def scrub(data: bytes, cut: bool) -> bytes:
        there = [re.escape(one) for one in known if one in data]  # much quicker than to try them all at each byte
        clean = re.sub(b"|".join(there), HIDDEN.encode(), data) if there else data
        return _without_beginning(clean, known) if cut else clean

    return scrub


def _without_beginning(data: bytes, known: tuple[bytes, ...]) -> bytes:
    longest = max(_overlap(data, one) for one in known)
    return data[: len(data) - longest] + HIDDEN.encode() if longest else data


def _overlap(data: bytes, secret: bytes) -> int:
    """How much of the secret's beginning stands at the end of the data."""
    return next((size for size in range(min(len(secret), len(data)), 0, -1) if data.endswith(secret[:size])), 0)
