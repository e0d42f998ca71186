"""The dashboards of the chart as files: whole, alike, linked, and every expression one that Prometheus takes.

Not tested: what Grafana draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import promql
from .promtool import DASHBOARDS, boards, promtool

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SUBJECTS = {"overview", "agents", "tools-and-sandboxes", "queues", "cost", "routing", "reliability"}
UNITS = {"short", "s", "none", "percentunit", "currencyUSD"}
EVERY_BOARD = pytest.mark.parametrize("board", boards(), ids=lambda board: str(board["uid"]))
Board = Mapping[str, Any]


def panels(board: Board) -> list[Mapping[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def variables(board: Board) -> Mapping[str, Mapping[str, Any]]:
    return {one["name"]: one for one in board["templating"]["list"]}


def test_there_is_a_dashboard_for_each_subject_and_none_shares_a_name() -> None:
    assert {path.stem for path in DASHBOARDS} == SUBJECTS
    assert {board["uid"] for board in boards()} == {f"metier-{name}" for name in SUBJECTS}
    assert len({board["title"] for board in boards()}) == len(SUBJECTS)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_file_is_written_in_the_one_way_that_shows_changes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False, sort_keys=True) + "\n"


@EVERY_BOARD
def test_a_dashboard_is_as_one_exports_it_to_share(board: Board) -> None:
    assert "id" not in board
    assert board["schemaVersion"] >= 41
    assert board["description"].endswith("?")
    assert board["tags"] == ["metier"]
    (link,) = board["links"]
    assert (link["type"], link["tags"], link["keepTime"], link["includeVars"]) == ("dashboards", ["metier"], True, True)


@EVERY_BOARD
def test_a_dashboard_asks_which_source_and_namespace_and_starts_with_all(board: Board) -> None:
    found = variables(board)

    assert found["datasource"]["type"] == "datasource"
    assert {"datasource", "namespace"} <= found.keys() <= {"datasource", "namespace", "workflow", "agent"}
    for name in found.keys() - {"datasource"}:
        assert (found[name]["multi"], found[name]["allValue"]) == (True, ".*")
        assert found[name]["datasource"] == SOURCE
        assert f"${name}" in json.dumps([panel["targets"] for panel in panels(board)])


@EVERY_BOARD
def test_every_panel_says_what_it_shows_in_which_unit_and_from_the_chosen_source(board: Board) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    titles = [(panel["title"], panel["type"]) for panel in panels(board)]

    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["datasource"] == SOURCE
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE
            assert "$namespace" in target["expr"], panel["title"]


@EVERY_BOARD
def test_the_first_row_is_the_answer(board: Board) -> None:
    first = [panel for panel in panels(board) if panel["gridPos"]["y"] == 0]

    assert {panel["type"] for panel in first} == {"stat"}
    assert len(first) == 6
    assert all(panel["fieldConfig"]["defaults"]["noValue"] for panel in first)


@EVERY_BOARD
def test_panels_fill_the_grid_and_do_not_overlap(board: Board) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(24) for y in range(height)}


@EVERY_BOARD
def test_thresholds_rise_and_begin_with_a_colour_for_everything(board: Board) -> None:
    for panel in panels(board):
        steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert steps[0] is None, panel["title"]
        assert steps[1:] == sorted(set(steps[1:])), panel["title"]


def links(board: Board) -> Iterator[str]:
    for panel in panels(board):
        for link in panel["fieldConfig"]["defaults"].get("links", ()):
            yield from re.findall(r"^/d/([\w-]+)\?", link["url"])


def test_links_lead_to_dashboards_that_are_there() -> None:
    found = {uid for board in boards() for uid in links(board)}

    assert len(found) >= 3
    assert found <= {board["uid"] for board in boards()}


def test_every_expression_is_one_that_prometheus_takes(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": promql.plain(text)} for number, (_, text) in enumerate(promql.of_boards())
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    done = promtool("check", "rules", str(tmp_path / "panels.yaml"))

    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_what_an_expression_names_is_found() -> None:
    text = 'sum by (le, a) (rate(x_total{b=~"by (c)", d!="e"}[$__rate_interval])) / on (a) group_left () (y > 0) or vector(0)'

    assert promql.named(text) == {"x_total": {"b", "d"}, "y": set()}
    assert promql.grouped(text) == {"le", "a"}
    assert promql.named("max(a:b:c offset 1h) unless d") == {"a:b:c": set(), "d": set()}
