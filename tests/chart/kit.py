"""The chart `helm/metier`, rendered by the real helm as people render it. Used by the tests beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm/metier"
CASES = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml")))
MINIMAL = "minimal"
KUBERNETES = "1.37.0"
KEDA = ("--api-versions", "keda.sh/v1alpha1")
MONITORING = ("--api-versions", "monitoring.coreos.com/v1")
Document = Mapping[str, Any]


@cache
def tools() -> Mapping[str, Path]:
    """Where helm and the programs beside it are, built now if they are not there."""
    command = [sys.executable, str(REPOSITORY / "infra/local/kubetools.py"), "lint"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: Path(place) for name, _, place in (line.partition(" ") for line in done.stdout.splitlines())}


def helm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run helm to its end, whatever that is, with folders of its own in place of those under the home folder."""
    homes = {
        f"HELM_{name}_HOME": str(REPOSITORY / f".metier/cache/helm/{name.lower()}")
        for name in ("CACHE", "CONFIG", "DATA")
    }
    command = [tools()["helm"], *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **homes})


def template(
    case: str, *words: str | Path, apis: tuple[str, ...] = (*KEDA, *MONITORING)
) -> subprocess.CompletedProcess[str]:
    """Render the chart with a file of values, and with more words."""
    values = CHART / "ci" / f"{case}-values.yaml"
    return helm("template", "rel", CHART, "-n", "app", "--kube-version", KUBERNETES, *apis, "-f", values, *words)


@cache
def rendered(case: str, *words: str) -> tuple[Document, ...]:
    """What the chart renders to, with words such as `--set` and `a.b=c`."""
    done = template(case, *words)
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


def of_kind(found: tuple[Document, ...], *kinds: str) -> list[Document]:
    """Those of these kinds."""
    return [one for one in found if one["kind"] in kinds]


def named(found: tuple[Document, ...], kind: str, name: str) -> Document:
    """The one of this kind and name."""
    (one,) = [document for document in of_kind(found, kind) if document["metadata"]["name"] == name]
    return one


def component(document: Document) -> str:
    """Which part of the release a document belongs to."""
    return str(document["metadata"]["labels"]["app.kubernetes.io/component"])


def pods(found: tuple[Document, ...]) -> dict[str, Document]:
    """The specification of every pod, by the component that it is of."""
    return {component(one): _spec(one) for one in of_kind(found, "Deployment", "Job", "StatefulSet", "Pod")}


def _spec(document: Document) -> Document:
    spec: Document = document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]
    return spec


def containers(pod: Document) -> Iterator[Document]:
    """Those that prepare, then those that stay."""
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def main_container(found: tuple[Document, ...], of: str) -> Document:
    """The one container that does the work of a component."""
    (container,) = pods(found)[of]["containers"]
    return dict(container)


def variables(container: Document) -> dict[str, Any]:
    """Its environment: name to text, or to where it comes from."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", ())}


def ours(found: tuple[Document, ...]) -> dict[str, list[Document]]:
    """The containers that run a command of Métier, by component."""
    return {
        name: [one for one in containers(pod) if one.get("command", [""])[0] == "metier"]
        for name, pod in pods(found).items()
    }
