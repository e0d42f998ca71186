"""The alerts of the chart: each fires when it must, is silent when it must be, and one that is a little wrong is found out. Judged by Prometheus's own promtool.

Not tested: that an Alertmanager tells anybody.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import mutants
from .cases import CASES
from .promtool import REPOSITORY, RULES, Case, boards, by_pace, promtool, wrong

RUNBOOKS = REPOSITORY / "docs" / "how-to" / "runbooks.md"
EVERY_ALERT = pytest.mark.parametrize("alert", mutants.alerts())
LABEL = re.compile(r"\$labels\.(\w+)")


def of(alert: str) -> list[Mapping[str, Any]]:
    return [rule for rule in mutants.rules() if rule.get("alert") == alert]


def of_cases(alert: str) -> list[Case]:
    return [case for case in CASES if case.alert == alert]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_promtool_has_nothing_to_say_of_a_rule_file(path: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", str(path))

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_cases_in_which_it_fires_and_cases_in_which_it_does_not() -> None:
    firing = Counter(case.alert for case in CASES if case.fires)
    silent = Counter(case.alert for case in CASES if not case.fires)

    assert firing.keys() == silent.keys() == set(mutants.alerts())
    assert [name for name, count in Counter(map(str, CASES)).items() if count > 1] == []


@EVERY_ALERT
def test_an_alert_fires_when_it_must_and_only_then_also_where_it_is_named_as_a_mutant_is(
    alert: str, tmp_path: Path
) -> None:
    whole = mutants.of_alert(alert)
    same = [{**rule, "labels": {**rule["labels"], "mutant": "0"}} for rule in whole if "alert" in rule]
    windows = {rule["labels"].get("window") for rule in same}

    assert wrong(of_cases(alert), [*whole, *same], tmp_path, {"": None, "0": windows}) == ""


@EVERY_ALERT
def test_the_cases_find_out_an_alert_that_is_a_little_wrong(alert: str, tmp_path: Path) -> None:
    left = mutants.of(alert)
    assert len(left) >= 4

    for cases in by_pace(of_cases(alert)).values():
        found = found_out(cases, left, tmp_path) if left else set[str]()
        left = [mutant for mutant in left if mutant.number not in found]

    assert [mutant.says for mutant in left] == []


def found_out(cases: Sequence[Case], these: Sequence[mutants.Mutant], folder: Path) -> set[str]:
    """The numbers of those mutants of which promtool says that they are wrong in one of these cases."""
    rules = [*mutants.of_alert(cases[0].alert), *(rule for mutant in these for rule in mutant.rules)]
    said = wrong(cases, rules, folder, {mutant.number: mutant.windows for mutant in these})
    return set(re.findall(r'expr: ".*mutant=\\"(\d+)\\"', said))


@EVERY_ALERT
def test_an_alert_says_what_it_is_how_grave_and_where_to_go_on(alert: str) -> None:
    for rule in of(alert):
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/how-to/runbooks.md#{alert.lower()}"
        assert rule["annotations"]["summary"].endswith(".")
        assert "$labels.namespace" in rule["annotations"]["description"]
        assert "$value" in rule["annotations"]["description"] or alert in WITHOUT_A_FIGURE


WITHOUT_A_FIGURE = {
    *("MetierRoleGone", "MetierServiceAway", "MetierAgentDrifted", "MetierRouterBroken"),
    *("MetierCheckpointsFailing", "MetierEngineSelftestFailing", "MetierLeasesExpiring"),
}
"""What they tell is that something is so, and not how much."""


@EVERY_ALERT
def test_an_alert_speaks_of_labels_that_it_has(alert: str) -> None:
    named = {label for rule in of(alert) for text in rule["annotations"].values() for label in LABEL.findall(text)}

    for case in of_cases(alert):
        for fired in case.fires:
            assert named <= fired.keys() | {"namespace"}, case


def test_every_alert_has_a_section_in_the_run_books_and_every_section_an_alert() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")

    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sorted(sections) == mutants.alerts()
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        parts = re.findall(r"^\*\*(.+?)\*\*", section, re.MULTILINE)
        assert [part.rstrip(":") for part in parts] == ["It means", "Who is hurt", "Look here first", "Do this", "It is over"]  # fmt: skip


def test_the_run_books_send_people_to_panels_that_are_there() -> None:
    text = RUNBOOKS.read_text(encoding="utf-8")
    titles = {panel["title"] for board in boards() for panel in board["panels"]}

    named = set(re.findall(r'"([A-Z][^"\n]+)"', re.sub(r"```.*?```", "", text, flags=re.DOTALL)))

    assert named - titles == set()
    assert len(named) > 15
