"""Which metrics and labels an expression names. Called by the tests beside it; promtool says whether it is one at all."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import mutants
from .promtool import boards

VARIABLES = {"$__rate_interval": "5m", "$__range": "1h"}
_TEXT = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_GROUPED = re.compile(r"\b(?:by|on|ignoring|group_left|group_right|without)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"[a-zA-Z_:][\w:]*(?!\s*\()\b")
_WORDS = frozenset({"and", "or", "unless", "offset", "by", "on", "ignoring", "group_left"})
_DURATION = re.compile(r"(?<!\w)\d+[smhdwy]\b")


def plain(expression: str) -> str:
    """The expression as Grafana would send it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def named(expression: str) -> dict[str, set[str]]:
    """The metrics that it names, each with the labels that it is selected by."""
    found: dict[str, set[str]] = {}
    text = _TEXT.sub('""', plain(expression))
    for metric, matchers in _SELECTOR.findall(text):
        labels = {one.strip() for one in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)}
        found[metric] = found.get(metric, set()) | labels
    rest = _DURATION.sub("", _RANGE.sub("", _GROUPED.sub("", _SELECTOR.sub("", text))))
    for metric in _NAME.findall(rest):
        if metric not in _WORDS and not re.search(rf"\b{metric}\s*\(", rest):
            found.setdefault(metric, set())
    return found


def grouped(expression: str) -> set[str]:
    """The labels by which it groups or joins."""
    return {
        label.strip()
        for listed in _GROUPED.findall(_TEXT.sub('""', expression))
        for label in listed.split(",")
        if label.strip()
    }


def of_boards() -> Iterator[tuple[str, str]]:
    """Each expression of the dashboards, with where it stands."""
    for board in boards():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield f"{board['title']}: {panel['title']}", target["expr"]


def of_rules() -> Iterator[tuple[str, str]]:
    """Each expression of the rules, with where it stands."""
    for rule in mutants.rules():
        yield str(_name(rule)), rule["expr"]


def recorded() -> set[str]:
    """The metrics that rules make."""
    return {rule["record"] for rule in mutants.rules() if "record" in rule}


def _name(rule: Mapping[str, Any]) -> object:
    return rule.get("alert", rule.get("record"))
