"""Each alert with the recordings it stands on, and all the ways to get it a little wrong. Called by the tests beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from .promtool import RULES

Rule = Mapping[str, Any]
_COMPARED = re.compile(r" (>=|>|==) ")
_THRESHOLD = re.compile(r"(?<= )(>=?) ((?:[\d.]+ \* )*)([\d.]+)")
_RANGE = re.compile(r"\[(\d+)([mhd])\]")
_SET = ("and", "or", "unless")
_FLIPPED = {">": "<", ">=": "<", "==": "!="}


@dataclass(frozen=True)
class Mutant:
    """What is wrong, and the rules that are then other than they should be: recordings under names of their own, alerts with the label `mutant`."""

    number: str
    says: str
    rules: Sequence[Rule]

    @property
    def windows(self) -> set[str | None]:
        """Those of its alerts: of a burn rate, only some are touched."""
        return {rule["labels"].get("window") for rule in self.rules if "alert" in rule}


@cache
def rules() -> Sequence[Rule]:
    """Every rule of every rule file."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    """The names of all alerts."""
    return sorted({rule["alert"] for rule in rules() if "alert" in rule})


def of_alert(name: str) -> list[Rule]:
    """The rules of this alert after the recordings that they name."""
    wanted = _needed([rule["expr"] for rule in rules() if rule.get("alert") == name])
    return [rule for rule in rules() if rule.get("alert") == name or rule.get("record") in wanted]


def _needed(texts: Sequence[str]) -> set[str]:
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    found = {name for name in recorded if any(_names(text, name) for text in texts)}
    return found | (_needed([recorded[name] for name in found]) if found else set())


def _names(text: str, recorded: str) -> bool:
    return re.search(rf"\b{recorded}\b", text) is not None


def of(name: str) -> list[Mutant]:
    """Every mutant of an alert and of its recordings."""
    whole, found = of_alert(name), list[Mutant]()
    for at, rule in enumerate(whole):
        for says, changed in _changes(rule):
            number = str(len(found))
            apart = _apart([*whole[:at], changed, *whole[at + 1 :]], changed, number)
            found.append(Mutant(number, f"{rule.get('record', name)}: {says}", apart))
    return found


def _apart(whole: Sequence[Rule], broken: Rule, number: str) -> list[Rule]:
    """The broken rule, and all that stands on it: recordings renamed, alerts labelled."""
    renamed: set[str] = set()
    kept: list[Rule] = []
    for rule in whole:
        text = rule["expr"]
        below = [one for one in renamed if _names(text, one)]
        if rule is not broken and not below:
            continue
        for one in below:
            text = re.sub(rf"\b{one}\b", f"{one}_{number}", text)
        if "record" in rule:
            renamed.add(rule["record"])
            kept.append({"record": f"{rule['record']}_{number}", "expr": text})
        else:
            kept.append({**rule, "expr": text, "labels": {**rule["labels"], "mutant": number}, "annotations": {}})
    return kept


def _changes(rule: Rule) -> Iterator[tuple[str, Rule]]:
    text = rule["expr"]
    for says, expr in (*_flipped(text), *_scaled(text), *_without_a_side(text), *_other_ranges(text)):
        yield f"{says} in\n{expr}", {**rule, "expr": expr}
    if "for" in rule:
        yield "no `for`", {name: value for name, value in rule.items() if name != "for"}
        yield "a `for` of two days", {**rule, "for": "2d"}
    if "labels" in rule:
        yield "another severity", {**rule, "labels": {**rule["labels"], "severity": "none"}}


def _flipped(text: str) -> Iterator[tuple[str, str]]:
    for found in _COMPARED.finditer(text):
        yield f"{found[1]} flipped", f"{text[: found.start(1)]}{_FLIPPED[found[1]]}{text[found.end(1) :]}"


def _scaled(text: str) -> Iterator[tuple[str, str]]:
    """Each threshold that is not zero, doubled and halved."""
    for found in _THRESHOLD.finditer(text):
        for factor in (2, 0.5):
            if value := float(found[3]):
                yield f"{found[3]} x {factor}", f"{text[: found.start(3)]}{value * factor:g}{text[found.end(3) :]}"


def _without_a_side(text: str) -> Iterator[tuple[str, str]]:
    """Each `and`, `or` and `unless` that has a line of its own, without what is to its left or right there."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.strip() in _SET:
            left, right = _side(lines, at, -1), _side(lines, at, 1)
            yield f"nothing after `{line.strip()}`", "\n".join([*lines[:at], *lines[right + 1 :]])
            if line.strip() != "unless":
                yield f"nothing before `{line.strip()}`", "\n".join([*lines[:left], *lines[at + 1 :]])


def _side(lines: Sequence[str], at: int, step: int) -> int:
    """The last line, going that way, of the operand beside the operator at `at`."""
    depth = _depth(lines[at])
    place = at + step
    while 0 <= place + step < len(lines):
        further = lines[place + step]
        if _depth(further) < depth or (_depth(further) == depth and further.strip() in _SET):
            break
        place += step
    return place


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _other_ranges(text: str) -> Iterator[tuple[str, str]]:
    """Each window, ten times as long wherever it stands."""
    for found in {found[0]: found for found in _RANGE.finditer(text)}.values():
        longer = f"[{int(found[1]) * 10}{found[2]}]"
        yield f"{found[0]} is {longer}", text.replace(found[0], longer)
