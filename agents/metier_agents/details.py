"""Details of people and systems in a text, found by their form and struck out: `output_check` calls it.

Forms, not knowledge: a name is no form, nor is an address that is written out in words. Each pattern begins only where a run of its
characters begins, and repeats either without giving back or a few times at most, so that the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from metier_agents.safety import Detail

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]++@[\w-]++(?:\.[\w-]++)++")
_DIGITS = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
_NUMBER = re.compile(r"(?:\+\(?|\(\+?|(?<!\w))\d(?:[ ()./-]{0,3}\d){6,16}(?!\d)")
_BEGINS_AS_NUMBER = re.compile(r"\(?(?:\+|0)|\(\d")
_GROUPS = re.compile(r"(?<!\d)\d{3}\)?[ .-]{0,2}\d{3}[ .-]\d{4}$")
_OTHER = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d+\.\d+")
"""Dates and decimals."""
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)")
_LABELLED = re.compile(
    r"(?i)(?<![a-z0-9])((?:pass(?:word|wd|phrase)|api[ _-]?key|access[ _-]?key|secret|token)[\"']?\s{0,3}[:=]\s{0,3})\S{6,}+"
)
_RUN = re.compile(r"(?<![\w+=-])[\w+=-]{16,}+")
_KNOWN = re.compile(r"(?:sk|pk|rk)[-_]|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|ASIA|AIza|eyJ|hf_|npm_|pypi-")


def masked(text: str, kinds: Iterable[Detail]) -> str:
    """The text with a word in brackets in place of each detail of these kinds: `[email]`."""
    for kind in sorted(set(kinds)):
        text = _MASKS[kind](text)
    return text


def has(text: str, kinds: Iterable[Detail]) -> bool:
    """Whether there is any such detail in the text."""
    return masked(text, kinds) != text


def _card(text: str) -> str:
    return _DIGITS.sub(lambda match: "[card]" if _checks(match[0]) else match[0], text)


def _checks(number: str) -> bool:
    """Luhn's check digit (ISO/IEC 7812-1)."""
    digits = [int(one) for one in reversed(number) if one.isdecimal()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _email(text: str) -> str:
    return _EMAIL.sub("[email]", text)


def _phone(text: str) -> str:
    return _NUMBER.sub(lambda match: "[phone]" if _is_phone(match[0]) else match[0], text)


def _is_phone(number: str) -> bool:
    """With a country code, an area code that begins with 0 or stands in brackets, or grouped as in North America; and neither date nor decimal."""
    return not _OTHER.fullmatch(number) and bool(_BEGINS_AS_NUMBER.match(number) or _GROUPS.search(number))


def _secret(text: str) -> str:
    text = _LABELLED.sub(r"\1[secret]", _KEY_BLOCK.sub("[secret]", text))
    return _RUN.sub(lambda match: "[secret]" if _is_secret(match[0]) else match[0], text)


def _is_secret(run: str) -> bool:
    """A key that begins as a known kind does, or so long a mixture of small and large letters with digits that nobody wrote it by hand."""
    mixed = any(one.islower() for one in run) and any(one.isupper() for one in run)
    digits = sum(one.isdecimal() for one in run)
    return bool(digits and _KNOWN.match(run)) or (len(run) >= 28 and mixed and digits >= 3)


_MASKS: Mapping[Detail, Callable[[str], str]] = {"card": _card, "email": _email, "phone": _phone, "secret": _secret}
