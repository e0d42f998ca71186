"""`metier agents list|check|show`: what they say of good files and of bad ones. Not here: every way in which a file is bad (test_agent_spec)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier.cli_specs import problems
from metier_tools.builtin import BUILTIN

GOOD = "name: {name}\nmodel: scripted:{name}.yaml\npolicy: {{kind: autonomous}}\ntools: [{{name: python}}]\nskills: {{sums: 0.7}}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("adder", "teller"):
        (tmp_path / f"{name}.yaml").write_text(GOOD.format(name=name))
    monkeypatch.setenv("METIER_AGENTS", str(tmp_path))
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["agents", *words])
    return done.exit_code, done.output


def test_agents_are_listed_with_their_digests(folder: Path) -> None:
    code, said = run("list", "--json")
    assert code == 0
    agents = json.loads(said)
    assert [(one["name"], one["policy"]["kind"], one["skills"]) for one in agents] == [
        ("adder", "autonomous", {"sums": 0.7}),
        ("teller", "autonomous", {"sums": 0.7}),
    ]
    before = agents[0]["digest"]
    (folder / "adder.yaml").write_text(GOOD.format(name="adder").replace("autonomous", "collaborative"))
    assert json.loads(run("list", "--json")[1])[0]["digest"] != before
    assert "adder" in run("list")[1]


def test_an_agent_is_shown_as_it_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIER_MODEL_ADDER", "scripted:other.yaml")
    code, said = run("show", "adder")
    assert code == 0
    assert "model: scripted:other.yaml" in said
    assert "threshold: 0.8" in said
    assert json.loads(run("show", "adder", "--json")[1])["limits"]["turns"] == 8


def test_good_files_have_no_problems(folder: Path) -> None:
    assert run("check") == (0, "2 agent files checked, 0 problems\n")


def test_every_problem_is_told_at_once_with_its_file(folder: Path) -> None:
    (folder / "bad.yaml").write_text("name: bad\nmodel: scripted:x\npolcy: {kind: autonomous}\n")
    (folder / "twice.yaml").write_text(GOOD.format(name="adder"))
    (folder / "tools.yaml").write_text(GOOD.format(name="tools").replace("python", "perl"))
    found = problems(sorted(folder.glob("*.yaml")), BUILTIN, folder / "safety")
    assert found == [
        f"{folder}/bad.yaml:3: polcy: unknown field; did you mean policy?",
        f"{folder}/tools.yaml: tools: there is no tool 'perl'; there are python, shell",
        f"{folder}/twice.yaml: an agent named adder is declared in {folder}/adder.yaml already",
    ]
    code, said = run("check", "--json")
    assert (code, json.loads(said)["problems"]) == (2, found)


def test_a_file_that_is_not_there_is_said_so(folder: Path) -> None:
    code, said = run("check", str(folder / "none.yaml"))
    assert code == 2
    assert "none.yaml: cannot be read" in said
