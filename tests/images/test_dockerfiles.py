"""Every Dockerfile under hadolint, with no rule left out unless the line above says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
RECIPES = sorted((REPOSITORY / "infra/images").glob("*/Dockerfile"))
EVERY_RECIPE = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.parent.name)


def lint(recipe: Path) -> subprocess.CompletedProcess[str]:
    command = [HADOLINT, "--no-color", "--failure-threshold", "style", "--config", "/dev/null", recipe]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@EVERY_RECIPE
def test_hadolint_finds_nothing(recipe: Path) -> None:
    done = lint(recipe)

    assert (done.returncode, done.stdout) == (0, "")


@EVERY_RECIPE
def test_a_rule_that_is_left_out_has_its_reason_above_it(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    ignored = [number for number, line in enumerate(lines) if line.startswith("# hadolint")]

    assert all(lines[number].startswith("# hadolint ignore=DL") for number in ignored)
    assert all(lines[number - 1].startswith("# ") and "hadolint" not in lines[number - 1] for number in ignored)


def test_hadolint_is_not_deaf(tmp_path: Path) -> None:
    recipe = tmp_path / "Dockerfile"
    recipe.write_text("FROM debian:latest\nRUN cd /tmp && sudo true\n")

    done = lint(recipe)

    assert done.returncode == 1
    assert {rule for rule in ("DL3007", "DL3004") if rule in done.stdout} == {"DL3007", "DL3004"}


def test_there_is_a_recipe_for_roles_and_one_for_sandboxes() -> None:
    assert [recipe.parent.name for recipe in RECIPES] == ["runtime", "sandbox"]
