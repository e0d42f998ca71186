"""Prometheus's own programs, and its unit tests of rules made from cases. Called by the tests beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "metier"
RULES = sorted((CHART / "alerts").glob("*.yaml"))
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
Labels = Mapping[str, str]
Rule = Mapping[str, Any]
Mutants = Mapping[str, set[str | None] | None]
"""Labels of mutants, each with the windows of its alerts; None: all of them."""
_CALM = {**os.environ, "GOGC": "400"}
"""A program that lives for seconds need not tidy up its memory all the time."""
_QUOTED = str.maketrans({'"': "'", "\\": "/"})


@dataclass(frozen=True)
class Case:
    """What happens to some series, and which alerts fire then: those that are named here and no others.

    Attributes:
        alert: whose case it is.
        says: what it shows, as a sentence.
        series: values by series, in promtool's own notation, one for each `every`.
        at: when, from the first value on.
        fires: the labels of each alert that fires, without the namespace.
        every: how far values and evaluations are apart.
    """

    alert: str
    says: str
    series: Mapping[str, str]
    at: str
    fires: tuple[Labels, ...] = ()
    every: str = "1m"

    def __str__(self) -> str:
        return f"{self.alert}: {self.says}"


@cache
def program(name: str) -> str:
    """The place of `promtool` or `prometheus`, fetched if it is not there."""
    command = [sys.executable, str(REPOSITORY / "infra/local/kubetools.py"), name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()[-1]


def boards() -> list[Mapping[str, Any]]:
    """Every dashboard of the chart."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False, env=_CALM)


def wrong(cases: Sequence[Case], rules: Sequence[Rule], folder: Path, mutants: Mutants | None = None) -> str:
    """What promtool says where the rules do not do what the cases say; nothing: they do. Each case has a namespace of its own.

    `mutants`: in place of the alerts themselves those with these labels are asked for, each for itself, and for its windows.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": list(rules)}]}))
    files: list[str] = []
    for pace, these in by_pace(cases).items():
        asked = [_asked(case, *one) for case in these for one in (mutants or {"": None}).items()]
        given = [{"series": _in(case, one), "values": values} for case in these for one, values in case.series.items()]
        test = {"interval": pace, "input_series": given, "promql_expr_test": asked}
        files.append(str(folder / f"{pace}.yaml"))
        whole = {"rule_files": ["rules.yaml"], "evaluation_interval": pace, "tests": [test]}
        Path(files[-1]).write_text(yaml.safe_dump(whole))
    done = promtool("test", "rules", *files)
    return done.stdout + done.stderr if done.returncode else ""


def by_pace(cases: Sequence[Case]) -> Mapping[str, Sequence[Case]]:
    """The cases by how far their values are apart: the further, the sooner they are judged."""
    paces = sorted({case.every for case in cases}, key=lambda pace: (pace[-1], -int(pace[:-1])))  # hours, then minutes
    return {pace: [case for case in cases if case.every == pace] for pace in paces}


def _asked(case: Case, mutant: str, windows: set[str | None] | None) -> Mapping[str, object]:
    told = {"alertstate": "firing", **({"mutant": mutant} if mutant else {})}
    fires = [one for one in case.fires if windows is None or one.get("window") in windows]
    return {
        "expr": _in(case, series("ALERTS", alertstate="firing", mutant=mutant)),
        "eval_time": case.at,
        "exp_samples": [{"labels": _in(case, series("ALERTS", **told, **one)), "value": 1} for one in fires],
    }


def _in(case: Case, one: str) -> str:
    return one.replace("{", f'{{namespace="{str(case).translate(_QUOTED)}",', 1)


def series(metric: str, **labels: str) -> str:
    """A series as it is written in PromQL."""
    return metric + "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
