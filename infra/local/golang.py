"""Go, run with caches of its own that can be removed afterwards.

Called by `kubetools` (build) and `definitions` (download); hands on to the tool chain that `install` finds. Modules come from where Go is told
to look, and are checked: against go.sum, or against the sum that the caller pins.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import install
import process
import state
from say import StackError

_CACHE = state.CACHE / "go"


def run(*words: str, folder: Path) -> None:
    """Run Go on the module in a folder, below those with whom it shares the machine, and not so low that they starve it."""
    process.run(["nice", "-n", "10", install.go(), *words], environment=_environment(_CACHE), folder=folder)


def forget() -> None:
    """Remove what `run` fetched and compiled: gigabytes, and of no use once the programs are there."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def _environment(cache: Path) -> dict[str, str]:
    """Return the environment for Go: caches of our own, no C, no other tool chain than the one we found."""
    caches = {"GOCACHE": str(cache / "build"), "GOMODCACHE": str(cache / "modules")}
    return {
        **os.environ,
        **caches,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-modcacherw",
    }


@contextmanager
def source(module: str, pinned: str) -> Generator[Path]:
    """Give, for a while, the folder of a module's source, with no other module behind it. Raises `StackError` when its sum is another."""
    cache = state.CACHE / f"{module.rpartition('/')[2]}.source"
    environment = {**_environment(cache), "GOSUMDB": "off"}
    command = [install.go(), "mod", "download", "-json", module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")
    told: dict[str, str] = json.loads(done.stdout or "{}")
    if done.returncode or told.get("Sum") != pinned:
        why = told.get("Error") or f"its sum is {told.get('Sum')}" if told else done.stderr.strip()
        raise StackError(f"{module} could not be had as pinned ({pinned}): {why}")
    yield Path(told["Dir"])
    shutil.rmtree(cache)
