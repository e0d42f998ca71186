"""`metier models compare`: the page, the tables and the command. The page is read as XML; how it looks is not tested.

Not here: what is found (test_comparison).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import unescape
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console
from typer.testing import CliRunner, Result

from metier.cli import app
from metier.compare_figures import chance, part, percent, percents, thousand, thousands
from metier.compare_page import page
from metier.compare_page_plots import APART, apart
from metier.compare_tables import tables
from metier_workflows.choosing.comparison import Comparison, compare
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.statistics import Estimate
from metier_workflows.evaluating.results import Head, append, begin
from metier_workflows.evaluating.results import Result as Scored
from metier_workflows.evaluating.samples import Sample

pyarrow: Any = import_module("pyarrow")
SVG = "{http://www.w3.org/2000/svg}"
WICKED = ('<script>alert("1")</script>', "a & 'b' \x1b[2J\u202egnp", ']]>--><b x="', "plain")


def made(names: tuple[str, ...] = ("gpt", "claude", "llama"), *, n: int = 120, costs: bool = True, answers: bool = True) -> Matrix:  # fmt: skip
    draws = np.random.default_rng(7)
    chances = np.linspace(0.9, 0.5, len(names))
    scores = (draws.random((n, len(names))) < chances).astype(float)
    said = np.where(scores > 0, "right", draws.choice(["x", "y", ""], scores.shape)) if answers else None
    kinds = tuple(("maths", "law & <order>")[row % 2] for row in range(n))
    ids = tuple(map(str, range(n)))
    paid = draws.gamma(2, 1e-3, scores.shape) if costs else None
    return Matrix(ids, kinds, kinds, ids, names, scores, paid, said)


def read(found: Comparison, name: str = "mine") -> tuple[str, ET.Element]:
    text = page(found, name)
    return text, ET.fromstring(text)


def words(root: ET.Element) -> str:
    return " ".join(root.itertext())


# ---- the page


def test_the_page_says_the_verdicts_and_has_every_model_in_every_category() -> None:
    found = compare(made())
    text, root = read(found)
    assert text.startswith("<!DOCTYPE html>\n<html lang=")
    said = words(root)
    for verdict in (found.verdict, *(one.verdict for one in found.categories)):
        assert verdict.sentence in said
    heat = next(one for one in root.iter("table") if one.attrib["class"] == "heat")
    rows = [["".join(cell.itertext()) for cell in row] for row in heat.iter("tr")]
    assert rows[0] == ["", *found.whole.ranked]
    for row, segment in zip(rows[1:], [found.whole, *(one.segment for one in found.categories)], strict=True):
        accuracies = [segment.standing(name).accuracy for name in found.whole.ranked]
        assert row[1:] == [f"{100 * one.value:.1f}" for one in accuracies if one]


def test_the_colour_of_a_cell_says_who_is_better_and_its_frame_whether_that_is_sure() -> None:
    found = compare(made(n=600))
    heat = next(one for one in read(found)[1].iter("table") if one.attrib["class"] == "heat")
    best, *others = list(heat.iter("tr"))[1].findall("td")
    assert best.attrib["class"].split() == ["down", "top"]
    assert best.attrib["style"] == "--much:0.0"
    assert [one.attrib["class"].split() for one in others] == [["down", "sure"]] * 2
    assert [float(one.attrib["style"].removeprefix("--much:")) for one in others] == sorted(
        float(one.attrib["style"].removeprefix("--much:")) for one in others
    )


def test_every_category_has_its_own_table_of_who_agrees_and_who_fails_together() -> None:
    found = compare(made(n=600))
    root = read(found)[1]
    assert len(found.categories) == 2
    for one, shown in zip(found.categories, root.iter("details"), strict=True):
        heat = next(table for table in shown.iter("table") if table.attrib["class"] == "heat")
        cells = [["".join(cell.itertext()) for cell in row.findall("td")] for row in heat.iter("tr")][1:]
        names = one.segment.ranked
        for pair in one.pairs:
            low, high = sorted(names.index(name) for name in (pair.contrast.first, pair.contrast.second))
            assert pair.agreement is not None
            assert cells[high][low] == percent(pair.agreement.value, 0)
            assert cells[low][high] == part(pair.error_correlation).split(" ", maxsplit=1)[0]
    (pairs,) = (table for table in root.iter("table") if table.attrib["class"] == "by-category")
    rows = [["".join(cell.itertext()) for cell in row] for row in pairs.iter("tr")][1:]
    best = [(one.segment.name, one.pairs[0]) for one in found.categories]
    assert [row[:2] for row in rows] == [
        [name, f"{pair.contrast.first} + {pair.contrast.second}"] for name, pair in best
    ]
    assert [row[4] for row in rows] == [part(pair.error_correlation) for _, pair in best]


@pytest.mark.parametrize("costs", [True, False])
def test_the_plots_have_words_for_who_does_not_see_them_and_a_mark_for_every_model(*, costs: bool) -> None:
    found = compare(made(costs=costs))
    scatter, growth = read(found)[1].iter(f"{SVG}svg")
    assert len(list(scatter.iter(f"{SVG}circle"))) == 3
    assert len(list(growth.iter(f"{SVG}circle"))) == 3
    for picture in (scatter, growth):
        assert picture.attrib["role"] == "img"
        assert picture.findtext(f"{SVG}title")
        told = picture.findtext(f"{SVG}desc") or ""
        assert all(name in told for name in found.whole.ranked)
    assert ("$" in (scatter.findtext(f"{SVG}desc") or "")) is costs
    labels = {one.text for one in scatter.iter(f"{SVG}text")}
    assert set(found.whole.ranked) <= labels


def test_all_that_is_drawn_lies_within_its_picture() -> None:
    for data in (made(), made(tuple(f"model {n}" for n in range(28)), n=60), made(costs=False), made(n=10)):
        for picture in read(compare(data))[1].iter(f"{SVG}svg"):
            wide, high = float(picture.attrib["width"]), float(picture.attrib["height"])
            for one in picture.iter():
                for across, limit in (("x", wide), ("cx", wide), ("y", high), ("cy", high)):
                    assert 0 <= float(one.attrib.get(across, 0)) <= limit
                for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", one.attrib.get("d", "")):
                    assert (0 <= float(x) <= wide, 0 <= float(y) <= high) == (True, True)


@given(st.lists(st.floats(16, 400), min_size=1, max_size=20))
def test_names_beside_a_plot_never_lie_over_one_another(wanted: list[float]) -> None:
    places = apart(sorted(wanted), 16, 400)
    assert all(after - before >= APART - 0.1 for before, after in pairwise(places))
    assert min(places) >= 15.9
    assert max(places) <= 400.1


def test_names_that_have_room_stand_where_their_points_are() -> None:
    assert apart([20.0, 100.0, 300.0], 16, 400) == [20.0, 100.0, 300.0]


@pytest.mark.parametrize(("least", "most"), [(1e-150, 1e150), (1e-9, 1e9)])
def test_costs_that_lie_far_apart_still_have_an_axis_with_few_marks(least: float, most: float) -> None:
    matrix = made(("cheap", "dear"))
    assert matrix.costs is not None
    matrix.costs[:, 0], matrix.costs[:, 1] = least, most

    _, root = read(compare(matrix))

    svg = next(one for one in root.iter() if one.tag.endswith("svg"))
    marks = [one for one in svg.iter() if one.tag.endswith("text") and one.get("text-anchor") == "middle"]
    assert 2 <= len(marks) <= 12


def test_names_of_others_are_only_shown() -> None:
    data = made(WICKED)
    text, root = read(compare(data), WICKED[0])
    assert {one.tag.removeprefix(SVG) for one in root.iter()}.isdisjoint({"script", "b"})
    said = words(root)
    assert '<script>alert("1")</script>' in said
    assert "law & <order>" in said
    assert "\\x1b[2J\\u202e" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)
    allowed = {
        "class",
        "style",
        "title",
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "scope",
        "role",
        "viewBox",
    }
    drawn = {"width", "height", "d", "x", "y", "cx", "cy", "r", "text-anchor"}
    assert {name for one in root.iter() for name in one.attrib} <= allowed | drawn


def test_the_page_needs_nothing_from_elsewhere_and_follows_light_and_dark() -> None:
    text, root = read(compare(made()))
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text
    assert "@import" not in text
    assert "@media (prefers-color-scheme: dark)" in text
    guard = next(one for one in root.iter("meta") if "http-equiv" in one.attrib)
    assert guard.attrib["content"].startswith("default-src 'none';")


def test_what_is_not_known_is_not_on_the_page() -> None:
    full = page(compare(made()), "mine")
    bare = page(compare(made(costs=False, answers=False)), "mine")
    for said in ("Accuracy and cost", "Below the diagonal", "no cheaper one beats"):
        assert said in full
        assert said not in bare
    assert "nan" not in re.sub(r"<style>.*</style>", "", bare, flags=re.DOTALL).lower().split()


def test_one_model_no_score_or_no_query_still_make_a_page() -> None:
    one, empty = made(("gpt",)), made(n=0)
    silent = replace(made(), scores=np.full((120, 3), math.nan))
    for data in (one, empty, silent):
        found = compare(data)
        assert found.verdict.sentence in words(read(found)[1])


def test_a_model_that_is_not_ranked_is_told() -> None:
    data = made()
    data.scores[:100, 2] = math.nan
    assert "Not ranked, since fewer than half of the queries have a score: llama." in words(read(compare(data))[1])


def test_the_same_matrix_makes_the_same_page() -> None:
    assert page(compare(made()), "mine") == page(compare(made()), "mine")


# ---- figures and tables


def test_how_figures_are_written() -> None:
    one = Estimate(-0.0004, -0.0213, 0.5, 9)
    assert (percent(0.8412), percent(None), percents(one)) == ("84.1", "\u2013", "0.0 [\u22122.1 to 50.0]")
    assert (part(one), part(None)) == ("0.00 [\u22120.02 to 0.50]", "\u2013")
    assert [thousand(usd) for usd in (0.0, 0.0024, 12.5, 0.00004123)] == ["0.00", "2.40", "12,500.00", "0.041"]
    assert (thousands(Estimate(0.002, 0.001, 0.003, 5)), thousands(None)) == ("2.00 [1.00 to 3.00]", "\u2013")
    assert (chance(0.0004), chance(0.0421)) == ("< 0.001", "0.042")


def test_the_tables_show_models_pairs_and_what_could_be_dropped_and_obey_no_name() -> None:
    console = Console(width=200, record=True, force_terminal=False)
    with console.capture() as shown:
        console.print(tables(compare(made(WICKED))))
    said = shown.get()
    for title in ("By category", "Models: all, 120 queries", "Pairs that reach most together: 6 of 6", "Which one could be dropped", "The best pool of each size"):  # fmt: skip
        assert title in said
    assert "\x1b" not in said
    assert "\\x1b[2J\\u202e" in said


# ---- the command


def run(*given_words: str | Path) -> Result:
    return CliRunner().invoke(app, ["models", "compare", *map(str, given_words)])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A matrix in Parquet, in the folder's `mine`."""
    data = made()
    queries = {"qid": data.ids, "task": data.tasks, "category": data.categories, "text": data.texts}
    parquet.write_table(pyarrow.table({name: list(one) for name, one in queries.items()}), tmp_path / "mine_q.parquet")
    columns: dict[str, Any] = {"qid": list(data.ids)}
    assert data.costs is not None
    assert data.answers is not None
    for at, name in enumerate(data.models):
        columns |= {f"s__{name}": data.scores[:, at], f"c__{name}": data.costs[:, at]}
        columns[f"a__{name}"] = data.answers[:, at].tolist()
    parquet.write_table(pyarrow.table(columns), tmp_path / "mine_o.parquet")
    return tmp_path / "mine"


def test_a_matrix_is_compared_and_shown(stored: Path) -> None:
    done = run(stored)
    assert done.exit_code == 0
    assert compare(made()).verdict.sentence.split(":")[0] in done.stdout


def test_everything_is_there_for_machines(stored: Path) -> None:
    told = json.loads(run(stored, "--json").stdout)
    found = compare(made())
    assert told["verdict"]["sentence"] == found.verdict.sentence
    assert [len(one["pairs"]) for one in told["categories"]] == [3, 3]
    assert {"agreement", "error_correlation"} <= told["categories"][0]["pairs"][0].keys()
    assert len(told["pairs"]) == 3
    assert told["drops"][0].keys() == {"model", "oracle", "by_category"}
    assert told["margin"] == 0.05


def test_only_the_models_that_are_named_and_the_margin_that_is_given_count(stored: Path) -> None:
    told = json.loads(run(stored, "--json", "--models", "llama, gpt", "--margin", "20").stdout)
    assert told["models"] == ["llama", "gpt"]
    assert told["margin"] == pytest.approx(0.2)


def test_one_category_is_shown_in_full(stored: Path) -> None:
    done = run(stored, "--category", "maths")
    assert "Models: maths, 60 queries" in done.stdout
    assert "Pairs in maths that reach most together: 3 of 3" in done.stdout
    assert "law" not in done.stdout


def test_the_page_is_written_and_the_verdict_said(stored: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    done = run(stored, "--html", file)
    assert done.exit_code == 0
    assert file.read_text(encoding="utf-8") == page(compare(made()), "mine")
    assert unescape(done.stdout).startswith(f"{file}: ")


def test_a_name_tells_the_terminal_nothing_where_only_the_verdict_is_said(tmp_path: Path) -> None:
    rows = {"qid": [f"q{at}" for at in range(20)]}
    names = ("loud\x07\x9b31m", "calm")
    scores = {f"s__{name}": [float(at % 2) for at in range(20)] for name in names}
    parquet.write_table(pyarrow.table(rows), tmp_path / "rude_q.parquet")
    parquet.write_table(pyarrow.table(rows | scores), tmp_path / "rude_o.parquet")
    done = run(tmp_path / "rude", "--html", tmp_path / "report.html")
    assert done.exit_code == 0
    assert r"loud\x07\x9b31m" in done.stdout
    assert done.stdout.strip().isprintable()


def test_what_an_evaluation_left_is_compared_too(tmp_path: Path) -> None:
    samples = [Sample(id=f"s{n}", text="how much?", expected="4", category="maths") for n in range(20)]
    begin(tmp_path / "eval", Head(id="e1", name="sums"), samples)
    for one in samples:
        for agent, score in (("careful", 1.0), ("hasty", float(one.id in {"s1", "s2"}))):
            append(
                tmp_path / "eval" / "results.jsonl",
                Scored(sample=one.id, digest=one.digest, agent=agent, category="maths", score=score, answer="4"),
            )
    told = json.loads(run(tmp_path / "eval", "--json").stdout)
    assert (told["verdict"]["kind"], told["verdict"]["models"]) == ("one leads", ["careful"])
    assert told["whole"]["standings"][1]["accuracy"]["value"] == 0.1


@pytest.mark.parametrize(
    ("words_given", "says"),
    [
        (("nosuch",), "neither the folder of a `metier eval run`"),
        (("mine", "--models", "gpt,nobody"), "--models: there is no 'nobody'; there are: 'gpt', 'claude', 'llama'"),
        (("mine", "--models", ""), "--models: there is no ''"),
        (("mine", "--category", "art"), "--category: there is no 'art'"),
        (("mine", "--html", "no/such/folder.html"), "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said(
    words_given: tuple[str, ...], says: str, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stored.parent)
    done = run(*words_given)
    assert done.exit_code != 0
    assert says in str(done.exception)
