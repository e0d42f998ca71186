"""The helm that renders the chart, built once from its pinned source and kept in the cache folder.

Called by `tests/test_helm.py`, and by people: `python3 infra/local/helm.py template metier helm/metier -f …`. The pins are
`go/go.mod` and `go/go.sum`; building takes one to four minutes, depending on the machine.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import install
import process
import state
from say import StackError, say

VERSION = "v4.2.4"
_MODULE = "helm.sh/helm/v4"
_PINS = Path(__file__).parent / "go"


def helm() -> Path:
    """Return the program, built if it is not there."""
    program = state.CACHE / "bin" / f"helm-{VERSION}"
    program.parent.mkdir(parents=True, exist_ok=True)
    with state.only_one(program.with_suffix(".lock")):
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    go = install.go()
    say("helm", f"building {VERSION}")
    half = program.with_suffix(".half")
    flags = ["-trimpath", "-ldflags", f"-s -w -X {_MODULE}/internal/version.version={VERSION}"]
    caches = {"GOCACHE": str(state.CACHE / "go" / "build"), "GOMODCACHE": str(state.CACHE / "go" / "modules")}
    how = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw", "GOTOOLCHAIN": "local"}
    environment = {**os.environ, **caches, **how}
    process.run([go, "build", *flags, "-o", str(half), f"{_MODULE}/cmd/helm"], environment=environment, folder=_PINS)
    half.replace(program)
    shutil.rmtree(state.CACHE / "go")  # over a gigabyte, and of no use once the program is there


def main() -> int:
    """Run helm with the arguments given, with folders of its own in place of those under the home folder."""
    homes = {f"HELM_{name}_HOME": str(state.CACHE / "helm" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    try:
        program = helm()
    except StackError as error:
        print(f"helm: {error}", file=sys.stderr)
        return 1
    return subprocess.run([program, *sys.argv[1:]], env={**os.environ, **homes}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
