"""What the role images are locked to, and what `make images` says where it cannot build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]
LOCKS = REPOSITORY / "requirements"
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def pinned(name: str) -> dict[str, set[str]]:
    """A lock's versions by package; a package may have one for each Python."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (LOCKS / name).read_text(), re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


@pytest.mark.parametrize("name", ["agent.lock", "tools.lock"])
def test_roles_run_on_the_same_versions_of_what_they_share(name: str) -> None:
    shared, own = pinned("run.lock"), pinned(name)

    assert {package: own.get(package) for package in shared} == shared


@pytest.mark.parametrize("name", ["run.lock", "agent.lock", "tools.lock"])
def test_what_a_role_has_alone_and_what_all_share_is_what_its_lock_says(name: str) -> None:
    program = "import images, sys; print(images.beyond(*(open(path).read() for path in sys.argv[1:])), end='')"
    words = [sys.executable, "-c", program, str(LOCKS / "run.lock"), str(LOCKS / name)]
    alone = subprocess.run(words, cwd=REPOSITORY / "infra/local", capture_output=True, text=True, check=True).stdout

    assert sorted((alone + (LOCKS / "run.lock").read_text()).splitlines()) == sorted(
        (LOCKS / name).read_text().splitlines()
    )
    assert bool(alone) == (name != "run.lock")


def test_what_builds_the_images_is_locked_too() -> None:
    wanted = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependency-groups"]["image"]}

    assert wanted <= pinned("image.lock").keys()


@pytest.mark.parametrize("name", ["run.lock", "agent.lock", "tools.lock", "image.lock"])
def test_every_package_of_a_lock_has_its_hashes(name: str) -> None:
    entries = re.split(r"\n(?=\S)", (LOCKS / name).read_text().strip())

    assert len(entries) > 30
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize(
    ("words", "host", "said"),
    [
        (["build", "orchestra"], "unix:///nowhere", "There is no image orchestra: there are orchestrator, agent"),
        (["build"], "tcp://127.0.0.1:1", "docs/how-to/build-the-images.md"),
        (["build", "tools"], "unix:///nowhere", "No container engine answers at unix:///nowhere"),
    ],
)
def test_where_it_cannot_build_it_says_so_in_a_sentence(words: list[str], host: str, said: str) -> None:
    command = [sys.executable, str(REPOSITORY / "infra/local/images.py"), *words]

    done = subprocess.run(command, env=os.environ | {"DOCKER_HOST": host}, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("images: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
