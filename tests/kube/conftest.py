"""A real control plane for the cluster tests, one for all of them, and a namespace of its own for each."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from .kit import CALM, REPOSITORY, places
from .manifests import Document

_HOLD = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"
"""What the cluster runs for: it tells how to reach it, and ends when we close its standard input, or die."""


class Cluster:
    """A control plane that is up, by the programs that people command it with."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def run(self, program: str, *words: str | Path, told: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl or helm to its end, whatever that is."""
        place = places("lint", "cluster")[program]
        return subprocess.run(
            [place, *words], input=told, capture_output=True, text=True, check=False, env=self._environment | CALM
        )

    def must(self, program: str, *words: str | Path, told: str = "") -> str:
        """Run it, and return what it said; the test fails where it does."""
        done = self.run(program, *words, told=told)
        assert done.returncode == 0, f"{program} {' '.join(map(str, words))}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


class Namespace:
    """One namespace, in which Pod Security enforces *restricted*."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.name = cluster, name

    def helm(self, *words: str | Path) -> str:
        return self.cluster.must("helm", "-n", self.name, *words)

    def kubectl(self, *words: str | Path, told: str = "") -> str:
        return self.cluster.must("kubectl", "-n", self.name, *words, told=told)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """Return the objects of some kinds."""
        return list(json.loads(self.kubectl("get", *words, "-o", "json"))["items"])

    def create(self, documents: Sequence[Document], *words: str) -> subprocess.CompletedProcess[str]:
        """Create objects, as the API server has it."""
        text = yaml.safe_dump_all(documents)
        return self.cluster.run("kubectl", "-n", self.name, "create", "--validate=strict", "-f", "-", *words, told=text)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The control plane: etcd, the API server, the controllers, the scheduler, and nodes that pretend to run pods."""
    program, state = REPOSITORY / "infra/local/cluster.py", tmp_path_factory.mktemp("cluster")
    command = [sys.executable, program, "run", "--state", state, "--", sys.executable, "-c", _HOLD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the cluster did not start: what it said is above"
        yield Cluster(json.loads(line))
    assert process.returncode == 0
    assert {path.name for path in state.iterdir()} == {"lock"}


@contextmanager
def new_namespace(cluster: Cluster) -> Generator[Namespace]:
    """A namespace that nobody else uses, gone afterwards."""
    name = f"t-{secrets.token_hex(4)}"
    levels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": levels}}
    cluster.must("kubectl", "create", "-f", "-", told=json.dumps(made))
    cluster.must("kubectl", "-n", name, "wait", "--for=create", "serviceaccount/default", "--timeout=120s")
    yield Namespace(cluster, name)
    cluster.must("kubectl", "delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace of this test's own."""
    with new_namespace(cluster) as made:
        yield made


@pytest.fixture
def operators(cluster: Cluster) -> Iterator[None]:
    """The custom resources of KEDA and the Prometheus operator, as if they were installed."""
    folders = [word for place in places("keda", "monitoring").values() for word in ("-f", place)]
    cluster.must("kubectl", "apply", "--server-side", *folders)
    cluster.must("kubectl", "wait", "--for=condition=Established", *folders, "--timeout=120s")
    yield
    cluster.must("kubectl", "delete", *folders, "--timeout=120s")
