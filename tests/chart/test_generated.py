"""The files that are made of `values.yaml`: its schema and the README are what their tools give now, and every level that is ours is closed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .kit import CHART, tools

OPEN = {
    "global": True,
    "agentDefaults.file": True,
    "test.input": True,
}
"""Levels of others: an agent's file, what Kubernetes defines, a workflow's input."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHART, tmp_path / "metier"))


def test_the_schema_is_what_the_values_say(copy: Path) -> None:
    (copy / "values.schema.json").unlink()

    subprocess.run([tools()["helm-values-schema-json"]], cwd=copy, check=True, capture_output=True)

    made = (copy / "values.schema.json").read_text()
    assert made == (CHART / "values.schema.json").read_text(), "run helm-values-schema-json in helm/metier"


def test_the_readme_is_what_the_values_say(copy: Path) -> None:
    (copy / "README.md").unlink()

    words = ["--chart-search-root", copy, "--sort-values-order", "file", "--log-level", "warning"]
    subprocess.run([tools()["helm-docs"], *words], cwd=copy, check=True, capture_output=True)

    made = (copy / "README.md").read_text()
    assert made == (CHART / "README.md").read_text(), "run helm-docs --sort-values-order file in helm/metier"


def levels(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every level that names its values, and those that name none."""
    if schema.get("type") == "object":
        yield path, schema
        for name, inner in schema.get("properties", {}).items():
            yield from levels(inner, f"{path}.{name}".removeprefix("."))


def test_every_level_that_is_ours_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    opened = {path for path, one in levels(schema) if one.get("additionalProperties") is not False}

    others = {path for path in opened if isinstance(dict(levels(schema))[path].get("additionalProperties"), bool)}
    assert {path for path in others if not path.endswith("resources")} <= set(OPEN)
    assert len(list(levels(schema))) > 40


def test_every_value_is_in_the_schema_and_has_the_type_that_it_says() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    assert set(schema["properties"]) == set(values)
