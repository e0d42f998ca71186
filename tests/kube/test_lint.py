"""The chart under helm 4 and helm 3, for each Kubernetes that it is meant for: it lints, it renders, and what renders fits the schemas.

No template asks which Kubernetes it is for, so what renders for one is what renders for all: it is rendered once, and held against the schemas of each.

Not tested here: what the values mean (`tests/chart`), what the documents must be like (`test_policies`), a cluster (`test_cluster`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import cast

import pytest
import yaml
from kubernetes_validate import ValidationError, utils, validate

from .kit import (
    CASES,
    CHART,
    KINDS,
    MINORS,
    each_rendered,
    every_document,
    places,
    read_values,
    rendered,
    run,
    template,
)
from .manifests import Document, name_of, read
from .schemas import write_schemas

HELMS = ("helm", "helm3")
FULL = CHART / "ci/full-values.yaml"
each_minor = pytest.mark.parametrize("minor", MINORS)
_read_once = cache(utils.schema_contents)


def test_no_template_asks_which_kubernetes_it_is_for() -> None:
    texts = [path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()]

    assert len(texts) > 20
    assert [text for text in texts if "KubeVersion" in text or ".Capabilities.Kube" in text] == []


@pytest.mark.parametrize("helm", HELMS)
def test_the_same_renders_for_every_kubernetes(helm: str) -> None:
    assert len({rendered(FULL, helm=helm, minor=minor) for minor in MINORS}) == 1


@pytest.mark.parametrize("helm", HELMS)
@each_minor
def test_lint_has_nothing_to_say(helm: str, minor: str) -> None:
    lint = partial(run, helm, "lint", "--strict", "--quiet", "--kube-version", f"{minor}.0", CHART, "-f")
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lint, CASES))

    assert [(one.returncode, one.stdout) for one in done] == [(0, "")] * len(CASES)


def test_both_helms_render_the_same() -> None:
    four, three = (each_rendered(MINORS[-1], helm) for helm in HELMS)

    for values, one, other in zip(CASES, map(by_name, four), map(by_name, three), strict=True):
        assert one == other, values.name
        assert len(one) > 5


def by_name(text: str) -> dict[str, Document]:
    """What was rendered, whatever its order."""
    return {name_of(one): one for one in read(text)}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of schemas for each minor version: Kubernetes's own, KEDA's and the Prometheus operator's."""
    folder = tmp_path_factory.mktemp("schemas")
    definitions = [file for place in places("keda", "monitoring").values() for file in place.glob("*.yaml")]
    for minor in MINORS:
        write_schemas(folder / minor, minor, definitions, {one["kind"] for one in every_document()})
    return folder


def conform(schemas: Path, minor: str, *files: Path) -> subprocess.CompletedProcess[str]:
    place = f"{schemas / minor}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    return run("kubeconform", "-n", "1", "-strict", "-summary", "-output", "json", "-schema-location", place, *files)


@each_minor
def test_every_document_fits_its_schema(schemas: Path, minor: str, tmp_path: Path) -> None:
    documents = every_document()
    (tmp_path / "all.yaml").write_text("\n---\n".join(map(json.dumps, documents)))

    done = conform(schemas, minor, tmp_path)

    told = json.loads(done.stdout)
    assert done.returncode == 0, told["resources"]
    assert told["summary"]["valid"] == len(documents)


@each_minor
def test_a_second_reader_of_the_schemas_agrees(minor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        utils, "schema_contents", _read_once
    )  # it reads megabytes of definitions anew for each document
    builtin = {json.dumps(one) for one in every_document() if one["kind"] not in KINDS}
    assert len(builtin) > 50

    for one in builtin:
        validate(json.loads(one), minor, strict=True)


def test_the_second_reader_sees_a_field_that_is_misspelt() -> None:
    text = json.dumps(next(one for one in every_document() if one["kind"] == "Deployment"))

    with pytest.raises(ValidationError, match="replica"):
        validate(json.loads(text.replace('"replicas":', '"replica":')), MINORS[-1], strict=True)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("Deployment", "replicas:", "replica:"),
        ("Deployment", "containers:", "container:"),
        ("PodDisruptionBudget", "maxUnavailable:", "maxUnavailables:"),
        ("ScaledObject", "maxReplicaCount:", "maxReplicasCount:"),
        ("ScaledObject", "scaleTargetRef:", "scaleTarget:"),
        ("PrometheusRule", "expr:", "expression:"),
    ],
)
def test_a_misspelt_field_does_not_fit(schemas: Path, kind: str, old: str, new: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(next(one for one in every_document() if one["kind"] == kind))
    assert old in text
    (tmp_path / "misspelt.yaml").write_text(text.replace(old, new))

    done = conform(schemas, MINORS[-1], tmp_path / "misspelt.yaml")

    assert done.returncode == 1
    (found,) = json.loads(done.stdout)["resources"]
    assert found["status"] == "statusInvalid"


@pytest.mark.parametrize("helm", HELMS)
def test_a_kubernetes_that_is_too_old_is_refused(helm: str) -> None:
    done = template(CASES[0], helm=helm, minor="1.30")

    assert done.returncode == 1
    assert "incompatible with Kubernetes v1.30.0" in done.stderr


def paths_of(values: object, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every map in values, the whole first."""
    if not isinstance(values, dict):
        return []
    maps = cast("dict[str, object]", values)
    return [above, *(path for name, below in maps.items() for path in paths_of(below, (*above, name)))]


def closed(schema: dict[str, object], path: tuple[str, ...]) -> bool:
    """Whether the schema of the values lets no unknown name in, at a path."""
    for name in path:
        properties = cast("dict[str, object]", schema.get("properties") or {})
        below = properties.get(name)
        if not isinstance(below, dict):
            return False
        schema = cast("dict[str, object]", below)
    return schema.get("additionalProperties") is False and bool(schema.get("properties"))


def test_an_unknown_value_is_refused_wherever_the_schema_is_ours() -> None:
    values, schema = read_values(CHART / "values.yaml"), json.loads((CHART / "values.schema.json").read_text())
    ours = [path for path in paths_of(values) if closed(schema, path)]
    assert () in ours
    assert len(ours) > 5

    done = template(CASES[0], *(word for path in ours for word in ("--set", ".".join([*path, "nosuchvalue=1"]))))

    said = re.findall(r"at '(.*)': additional properties 'nosuchvalue' not allowed", done.stderr)
    assert done.returncode == 1
    assert sorted(said) == sorted("".join(f"/{name}" for name in path) for path in ours)


def test_the_charts_own_tests_pass(tmp_path: Path) -> None:
    copy = shutil.copytree(CHART, tmp_path / "metier")

    done = run("helm-unittest", "--strict", copy)

    assert done.returncode == 0, done.stdout + done.stderr
