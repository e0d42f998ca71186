"""The programs that check the chart and run a control plane, built once from pinned sources and kept in the cache folder.

Called by `helm`, `cluster`, the tests under `tests/kube`, `make`, and people: `python3 infra/local/kubetools.py lint` prints a line per
program, its name and its place. Hands on to `golang`, for one tier of `TIERS` at a time; by its command line also to `definitions` and to
`install`, for what is not built here. The pins are `go/go.mod` and `go/go.sum`: a program is named for its version there, and built again
when either file changes.
"""

import argparse
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import definitions
import golang
import install
import state
from say import StackError, say

TIERS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "lint": (
        {
            "helm": "helm.sh/helm/v4/cmd/helm",
            "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
            "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
            "helm-docs": "github.com/norwoodj/helm-docs/cmd/helm-docs",
            "helm-values-schema-json": "github.com/losisin/helm-values-schema-json/v2",
        },
        {"helm3": "helm.sh/helm/v3/cmd/helm"},
    ),
    "cluster": (
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
            "kubectl": "k8s.io/kubernetes/cmd/kubectl",
            "kwok": "sigs.k8s.io/kwok/cmd/kwok",
        },
    ),
}
"""Each tier's programs and their main packages, by the commands that build them: one cannot make two files of the same name."""

_PINS = Path(__file__).parent / "go"
_BIN = state.CACHE / "bin"
_BUILD = ("build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-gcflags=all=-l -dwarf=false")
"""Without inlining and what a debugger reads: a package that is compiled once and run for minutes compiles in two thirds of the time."""


def tools(*tiers: str) -> dict[str, Path]:
    """Return each program of these tiers, built if it is not there; what Go fetched and compiled for it is removed again."""
    if not all(map(_is_whole, tiers)):
        _BIN.mkdir(parents=True, exist_ok=True)
        with state.only_one(_BIN / "kubetools.lock"):
            _build_missing(tiers)
    return _programs(tiers)


def _build_missing(tiers: Iterable[str]) -> None:
    missing = [tier for tier in tiers if not _is_whole(tier)]
    for tier in missing:
        _build(tier)
    if missing:
        golang.forget()


def _programs(tiers: Iterable[str]) -> dict[str, Path]:
    found = {name: package for tier in tiers for build in TIERS[tier] for name, package in build.items()}
    pinned = versions()
    return {name: _BIN / f"{name}-{version_of(package, pinned)}" for name, package in found.items()}


def versions() -> dict[str, str]:
    """Return the version of every module that go.mod requires."""
    return dict(re.findall(r"^\s(\S+) (v\S+)", (_PINS / "go.mod").read_text(), re.MULTILINE))


def version_of(package: str, pinned: Mapping[str, str]) -> str:
    """Return the version of the module that a package is in."""
    return next(version for module, version in pinned.items() if f"{package}/".startswith(f"{module}/"))


def _is_whole(tier: str) -> bool:
    record = _BIN / f"{tier}.pins"
    built = record.read_text() if record.exists() else ""
    return built == _digest() and all(program.exists() for program in _programs([tier]).values())


def _digest() -> str:
    return hashlib.sha256((_PINS / "go.mod").read_bytes() + (_PINS / "go.sum").read_bytes()).hexdigest()


def _build(tier: str) -> None:
    programs = _programs([tier])
    say("kubetools", f"building {', '.join(programs)} from source: minutes, once")
    half = _BIN / f"{tier}.half"
    for build in TIERS[tier]:
        shutil.rmtree(half, ignore_errors=True)
        flags = ["-ldflags", " ".join(["-s -w", *_stamps(versions())])]
        golang.run(*_BUILD, *flags, "-o", f"{half}/", *build.values(), folder=_PINS)
        for name, package in build.items():
            _only_version(name, programs[name])
            (half / _file_of(package)).replace(programs[name])
    shutil.rmtree(half)
    (_BIN / f"{tier}.pins").write_text(_digest())


def _stamps(pinned: Mapping[str, str]) -> list[str]:
    """Return what the linker must write into the programs: without it helm 3 believes that Kubernetes is 1.20."""
    kubernetes = pinned["k8s.io/kubernetes"]
    major, minor, _ = kubernetes.removeprefix("v").split(".")
    written = {
        "helm.sh/helm/v4/internal/version.version": pinned["helm.sh/helm/v4"],
        "helm.sh/helm/v3/internal/version.version": pinned["helm.sh/helm/v3"],
        "k8s.io/component-base/version.gitVersion": kubernetes,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
    }
    for place in ("pkg/chartutil", "pkg/lint/rules"):
        written[f"helm.sh/helm/v3/{place}.k8sVersionMajor"] = major
        written[f"helm.sh/helm/v3/{place}.k8sVersionMinor"] = minor
    return [f"-X {name}={text}" for name, text in written.items()]


def _file_of(package: str) -> str:
    """Return the name that Go gives a package's program: its last word that is no version."""
    *rest, last = package.split("/")
    return rest[-1] if re.fullmatch(r"v\d+", last) else last


def _only_version(name: str, program: Path) -> None:
    for other in _BIN.glob(f"{name}-v[0-9]*"):
        if other != program:
            other.unlink()


def main() -> int:
    """Print the name and the place of each thing that is asked for: the programs of a tier, or what is alone."""
    alone: dict[str, Callable[[], Path]] = {
        **{name: partial(definitions.folder, name) for name in definitions.SOURCES},
        "promtool": install.promtool,
        "prometheus": install.prometheus,
    }
    parser = argparse.ArgumentParser(prog="kubetools.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("wanted", nargs="+", choices=[*TIERS, *alone], metavar=f"{{{','.join([*TIERS, *alone])}}}")
    wanted = parser.parse_args().wanted
    try:
        found = tools(*(name for name in wanted if name in TIERS))
        found |= {name: alone[name]() for name in wanted if name in alone}
    except StackError as error:
        print(f"kubetools: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"{name} {place}" for name, place in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
