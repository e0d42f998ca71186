"""The chart, and the programs that look at it: built once from pinned sources (`make kube`), and run as people run them.

Used by the tests beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from .manifests import Document, read

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm/metier"
CASES = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
"""Values for each way in which the chart is used; whoever adds a file there has it tested."""
MINORS = ("1.33", "1.34", "1.35", "1.36", "1.37")
"""The minor versions of Kubernetes that the chart is held against."""
APIS = ("keda.sh/v1alpha1", "monitoring.coreos.com/v1")
"""What optional objects need of a cluster, as `Capabilities.APIVersions` tells the templates."""
KINDS = ("ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PodMonitor", "PrometheusRule")

SIDECAR_MODES = {"sysbox", "dind"}
"""The modes in which an engine runs beside the tool runner, and cannot be restricted."""
_HOMES = {
    f"HELM_{name}_HOME": str(REPOSITORY / f".metier/cache/helm/{name.lower()}") for name in ("CACHE", "CONFIG", "DATA")
}
CALM = {"GOGC": "400"}
"""For a program that lives for a second and need not tidy up its memory all the time."""


@cache
def places(*wanted: str) -> Mapping[str, Path]:
    """Return where the programs of these tiers are, built now if `make kube` did not: that takes minutes."""
    command = [sys.executable, str(REPOSITORY / "infra/local/kubetools.py"), *wanted]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    pairs = (line.split(" ", 1) for line in done.stdout.splitlines())
    return {name: Path(place) for name, place in pairs}


def run(program: str, *words: str | Path, tier: str = "lint") -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end, whatever that is."""
    command = [places(tier)[program], *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_HOMES, **CALM})


def template(
    values: Path,
    *words: str,
    chart: Path = CHART,
    helm: str = "helm",
    minor: str = MINORS[-1],
    apis: Sequence[str] = APIS,
) -> subprocess.CompletedProcess[str]:
    """Render the chart for a cluster that has those APIs."""
    kinds = [f"{api}/{kind}" for api in apis for kind in KINDS]
    told = [word for api in (*apis, *kinds) for word in ("--api-versions", api)]
    fixed = ["template", "rel", chart, "-n", "app", "--kube-version", f"{minor}.0", "-f", values]
    return run(helm, *fixed, *told, *words)


@cache
def rendered(values: Path, *, helm: str = "helm", minor: str = MINORS[-1]) -> str:
    """Return what the chart as it is renders to."""
    done = template(values, helm=helm, minor=minor)
    assert done.returncode == 0, done.stderr
    return done.stdout


def each_rendered(minor: str, helm: str = "helm") -> Sequence[str]:
    """Return what the chart renders for each of its values, in the order of `CASES`."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(partial(rendered, helm=helm, minor=minor), CASES))


@cache
def every_document() -> Sequence[Document]:
    """Return what the chart renders for any of its values, the same only once."""
    return list({json.dumps(one): one for text in each_rendered(MINORS[-1]) for one in read(text)}.values())


def read_values(values: Path) -> dict[str, Any]:
    """Return a file of values."""
    return dict(yaml.safe_load(values.read_text()) or {})


def engine_of(values: Path) -> str:
    """Return which engine a file of values gives the tool runner."""
    return str(read_values(values).get("toolRunner", {}).get("engine", {}).get("mode", "remote"))
