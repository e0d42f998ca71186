r"""The number that an answer writes down. `scorers` compares it with what is expected, `panel` with those of others.

The rules, in this order:

1. Quotes, `$`, `\boxed{…}`, `**` and a full stop round the text are dropped; so is a currency sign before the number, and after it a unit:
   words, `%`, `°`. So `12 %` is 12 and not 0.12.
2. Digits may be grouped in threes by commas, apostrophes, underscores or narrow spaces. The decimal sign is a point; `1,5` is no number.
3. `3/4`, `1 1/2` and `\frac{3}{4}` are fractions; `1.5e3`, `1.5 * 10^3` and `1.5 \times 10^{3}` (or with the sign of multiplication) have an exponent.
4. Where the whole text is no number, and exactly one stands in it, it is that one.
"""

from __future__ import annotations

import math
import re

LONGEST = 1_000
"""Characters of an answer that are looked at; a longer one is no number."""
_DIGITS = r"(?:\d{1,3}(?:[,'_\u2009\u202f\u00a0]\d{3})+|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][+-]?\d{1,4}|\s*(?:\u00d7|\\times|\*)\s*10\^\{?[+-]?\d{1,4}\}?)"
_FRACTION = rf"(?:(?:\d+\s+)?{_DIGITS}\s*/\s*{_DIGITS})"
_NUMBER = rf"[+\-\u2212]?\s*[$€£¥]?\s*(?:{_FRACTION}|{_PLAIN}{_POWER}?)"
_WHOLE = re.compile(rf"({_NUMBER})\s*(?:%|°|\\%)?\s*(?:[^\W\d_]+(?:[ ./²³^-]+[^\W\d_]+)*)?[²³.]?")
_INSIDE = re.compile(rf"(?<![\w.,/])({_NUMBER})(?![\d/]|[.,]\d)")
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
_TEN = re.compile(r"\s*(?:\u00d7|\\times|\*)\s*10\^\{?([+-]?\d+)\}?")
_SEPARATORS = re.compile(r"[,'_\u2009\u202f\u00a0$€£¥]")
_CURRENCY = re.compile(r"[$€£¥]")
_SPACES = re.compile(r"\s{2,}")
_TOLD = 2**53
"""From here on a float does not tell every whole number."""
_ROUND = " \t\r\n\"'`*"


def number_of(text: str) -> float | None:
    """The number, by the rules above; None when there is none."""
    if len(text) > LONGEST:
        return None
    bare = _bare(text)
    if whole := _WHOLE.fullmatch(bare):
        return _value(whole[1])
    found = [match[1] for match in _INSIDE.finditer(bare)]
    return _value(found[0]) if len(found) == 1 else None


def written(text: str) -> tuple[str, str] | None:
    """The number that the whole text is, in one way of writing it, and its unit: a currency sign, or what stands after; None where the text is anything else.

    Whole numbers are told to the last digit, others to nine.
    """
    bare = _bare(text) if len(text) <= LONGEST else ""
    whole = _WHOLE.fullmatch(bare)
    value = _value(whole[1]) if whole else None
    if whole is None or value is None:
        return None
    unit = "".join(_CURRENCY.findall(whole[1])) + bare[whole.end(1) :].strip(" .")
    digits = _SEPARATORS.sub("", whole[1]).replace("\u2212", "-").replace(" ", "")
    if re.fullmatch(r"[+-]?\d+", digits):
        return str(int(digits)), unit
    return str(int(value)) if value == int(value) and abs(value) < _TOLD else f"{value:.9g}", unit


def _bare(text: str) -> str:
    text = _SPACES.sub(" ", text)  # several of them make the patterns slow, and say no more than one
    inner = _BOXED.search(text)
    kept = (inner[1] if inner else text).strip(_ROUND)
    if kept.startswith("$") and kept.endswith("$"):
        kept = kept.strip("$")
    return _FRAC.sub(r"\1/\2", kept).strip(_ROUND)


def _value(written: str) -> float | None:
    """The value of what `_NUMBER` matched; None where it is not finite."""
    plain = _TEN.sub(r"e\1", _SEPARATORS.sub("", written).replace("\u2212", "-").strip())
    sign = -1.0 if plain.startswith("-") else 1.0
    try:
        value = sign * _unsigned(plain.lstrip("+-").strip())
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _unsigned(plain: str) -> float:
    if "/" not in plain:
        return float(plain)
    above, _, below = plain.partition("/")
    *whole, part = above.split()
    return sum(map(float, whole)) + float(part) / float(below)
