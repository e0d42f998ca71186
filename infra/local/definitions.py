"""The custom resource definitions that the chart's optional objects need, taken from the Go modules of those who own them.

Called by `kubetools` and the tests in `tests/kube`; hands on to `golang`. Each is a folder of YAML files in the cache folder.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import golang
import install
import state
from say import say


@dataclass(frozen=True)
class Source:
    """A module at a version, its sum as go.sum would have it, the folder of its definitions, and which of them are wanted."""

    module: str
    pinned: str
    folder: str
    wanted: tuple[str, ...]


SOURCES: Mapping[str, Source] = {
    "keda": Source(
        module="github.com/kedacore/keda/v2@v2.21.0",
        pinned="h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        folder="config/crd/bases",
        wanted=("keda.sh_scaledobjects", "keda.sh_triggerauthentications"),
    ),
    "monitoring": Source(
        module="github.com/prometheus-operator/prometheus-operator@v0.92.1",
        pinned="h1:rHWuFo6SVya4FBSCNg2DCzyc4xAv54zk3eDTzp5mQZc=",
        folder="example/prometheus-operator-crd",
        wanted=tuple(f"monitoring.coreos.com_{kind}" for kind in ("podmonitors", "servicemonitors", "prometheusrules")),
    ),
}


def folder(name: str) -> Path:
    """Return the folder of one source's definitions, fetched if it is not there."""
    source = SOURCES[name]
    target = state.CACHE / f"{name}-{source.module.rpartition('@')[2]}"
    with install.installing(target) as half:
        if half:
            say("definitions", f"fetching {source.module}")
            with golang.source(source.module, source.pinned) as files:
                for definition in source.wanted:
                    shutil.copy(files / source.folder / f"{definition}.yaml", half)
    return target
