"""What decides whether an image is built again: all that goes into it, and nothing else.

Not here: what is in the images (`test_role_images`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
# A Python of another kind: its pip finds one wheel for any lock.
if [ "$1" = -IVV ]; then echo {version}; exit; fi
while [ "$1" != --dest ]; do shift; done
echo wheel >"$2/one-1-py3-none-any.whl"
"""
CONTEXT = "import hashlib, images, sys; f = open('../../context.tar', 'wb'); images.write_context(sys.argv[1], f)"
CHANGED = (
    *("infra/images/runtime/Dockerfile", "infra/images/runtime/strip.py", "requirements/run.lock", "requirements/agent.lock"),
    *("requirements/image.lock", "pyproject.toml", "agents/metier_agents/one.py", "tools/metier_tools/data/one.json"),
)  # fmt: skip
OTHER = ("tests/test_one.py", "docs/one.md", "agents/metier_agents/__pycache__/one.cpython-311.pyc")
TWICE = """
import io, json, sys, tarfile
import images
from engine import Engine

host, base, name = sys.argv[1:]
engine = Engine(host)

def labels(word, role):
    text = f"ARG BASE\\nFROM $BASE\\nARG ROLE\\nLABEL word={word} role=$ROLE\\n".encode()
    context, head = io.BytesIO(), tarfile.TarInfo("Dockerfile")
    head.size = len(text)
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.addfile(head, io.BytesIO(text))
    images.build_one(engine, name, context, {"BASE": base, "ROLE": role})
    return [engine.labels(images.tag(name))[one] for one in ("word", "role")]

print(json.dumps([labels("one", "a"), labels("one", "a"), labels("other", "a"), labels("other", "b")]))
"""


class Copy:
    """A copy of what images are made of, small enough to be made for a test."""

    def __init__(self, root: Path) -> None:
        self.root, self._python = root, root / "python"
        for part in ("infra/local", "infra/images", "requirements"):
            shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("LICENSE", "README.md", "pyproject.toml"):
            shutil.copy(REPOSITORY / file, root / file)
        for place in (*CHANGED, *OTHER):
            self.add(place, "\n")
        self.become("Python 3.11.1")
        (root / ".metier/cache/pip-26.3").mkdir(parents=True)

    def become(self, version: str) -> None:
        """Run on a Python of this version."""
        self._python.write_text(PYTHON.format(version=version))
        self._python.chmod(0o755)

    def add(self, place: str, text: str) -> None:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(text)

    def context(self) -> bytes:
        subprocess.run([sys.executable, "-c", CONTEXT, self._python], cwd=self.root / "infra/local", check=True)
        return (self.root / "context.tar").read_bytes()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_the_context_of_a_build_is_the_same_bytes_until_something_that_goes_in_is_another(copy: Copy) -> None:
    first = copy.context()
    for place in OTHER:
        copy.add(place, "more\n")
    assert copy.context() == first

    seen = {first}
    for place in CHANGED:
        copy.add(place, "more\n")
        seen.add(copy.context())
    assert len(seen) == 1 + len(CHANGED)


def test_wheels_are_fetched_once_for_a_python_and_its_locks(copy: Copy) -> None:
    def fetched() -> int:
        copy.context()
        return len([path for path in (copy.root / ".metier/cache").glob("wheels-*") if path.is_dir()])

    assert (fetched(), fetched()) == (1, 1)
    copy.become("Python 3.12.0")
    assert fetched() == 2
    copy.add("requirements/tools.lock", "more\n")
    assert fetched() == 3


def test_an_image_is_built_once_for_what_goes_into_it_and_again_for_anything_else() -> None:
    name = f"t{secrets.token_hex(4)}"
    words = [os.environ["DOCKER_HOST"], os.environ["METIER_SANDBOX_IMAGE"], name]
    local = REPOSITORY / "infra/local"
    done = subprocess.run([sys.executable, "-c", TWICE, *words], cwd=local, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [["one", "a"], ["one", "a"], ["other", "a"], ["other", "b"]]
    assert done.stderr.count("made metier/") == 3
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    subprocess.run(["docker", "rmi", "--force", f"metier/{name}:{version}"], check=True, capture_output=True)
