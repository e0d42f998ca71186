"""The images of the roles: what goes into a build, and all of them built on this machine, with no registry.

Called by `make images`, by `tests/images`, and by people who build elsewhere (`context`, see
docs/how-to/build-the-images.md). Hands on to `install` for pip, `image` for a base made of this machine's own Python,
`engine`, and infra/images. Wheels are fetched once, checked against the locks, and kept in the cache folder.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import image
import install
import process
import state
from engine import Engine
from say import StackError, say
from state import REPOSITORY

ROLES = {"orchestrator": "run.lock", "agent": "agent.lock", "tools": "tools.lock"}
"""The roles that have an image, and the lock of what each runs on."""

BUILD = "image.lock"
SANDBOX = "sandbox"
_IMAGES = REPOSITORY / "infra/images"
_LOCKS = REPOSITORY / "requirements"
_SOURCE = ("LICENSE", "README.md", "agents", "infra/metier_infra", "pyproject.toml", "tools", "workflows")


def tag(name: str) -> str:
    """Return what an image is called: the role or `sandbox`, and the project's version."""
    return f"metier/{name}:{_project()['version']}"


def _project() -> dict[str, str]:
    return dict(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"])


def wheels(python: str) -> Path:
    """Return a folder with the wheels of every lock, for that Python; each was checked against its hash."""
    locks = [_LOCKS / name for name in (*ROLES.values(), BUILD)]
    asked = subprocess.run([python, "-IVV"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(asked + b"".join(lock.read_bytes() for lock in locks)).hexdigest()[:12]
    target = state.CACHE / f"wheels-{digest}"
    with install.installing(target) as half:
        if half:
            say("images", "fetching wheels")
            options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(half)]
            named = [word for lock in locks for word in ("--requirement", str(lock))]
            environment = {**os.environ, "PYTHONPATH": str(install.pip())}
            process.run([python, "-m", "pip", "download", "--quiet", *options, *named], environment=environment)
    return target


def write_context(python: str, target: BinaryIO) -> None:
    """Write the tar that the role images are built from: recipe, locks, wheels, and the project's source."""
    files = {path.name: path for path in (_IMAGES / "runtime").iterdir() if path.is_file()}
    files |= {f"{role}.lock": _LOCKS / lock for role, lock in ROLES.items()} | {BUILD: _LOCKS / BUILD}
    files |= {f"wheels/{path.name}": path for path in wheels(python).iterdir()}
    files |= {f"source/{path.relative_to(REPOSITORY)}": path for path in _source()}
    with tarfile.open(fileobj=target, mode="w|") as archive:
        for place, path in sorted(files.items()):
            head = tarfile.TarInfo(place)
            head.size, head.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                archive.addfile(head, content)


def _source() -> Iterator[Path]:
    for top in _SOURCE:
        found = [REPOSITORY / top] if (REPOSITORY / top).is_file() else (REPOSITORY / top).rglob("*")
        yield from (path for path in found if path.is_file() and "__pycache__" not in path.parts)


def build(names: list[str]) -> None:
    """Build these images in the engine that DOCKER_HOST names, on a base of this machine's own Python."""
    if unknown := set(names) - {*ROLES, SANDBOX}:
        raise StackError(f"There is no image {', '.join(sorted(unknown))}: there are {', '.join([*ROLES, SANDBOX])}.")
    host = os.environ.get("DOCKER_HOST", "")
    python = image.python() if host.startswith("unix:") else None
    if not python:
        raise StackError(
            "No base can be made of this machine's Python: docs/how-to/build-the-images.md has another way."
        )
    engine, base = Engine(host), image.ensure(host)
    for name in names:
        begun = time.monotonic()
        if name == SANDBOX:
            engine.build_image(tag(name), [_sandbox_context()], {"BASE": base})
        else:
            _build_role(engine, name, base, python)
        say("images", f"made {tag(name)} ({time.monotonic() - begun:.1f} s)")


def _build_role(engine: Engine, role: str, base: str, python: str) -> None:
    arguments = {"BASE": base, "ROLE": role, "VERSION": _project()["version"], "REVISION": _revision()}
    with tempfile.TemporaryFile() as context:
        write_context(python, context)
        context.seek(0)
        engine.build_image(tag(role), context, arguments)


def _revision() -> str:
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _sandbox_context() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(_IMAGES / SANDBOX / "Dockerfile", "Dockerfile")
    return target.getvalue()


def main() -> int:
    """Build images, or write the context of a build to standard output; a `StackError` is a sentence and exit 1."""
    parser = argparse.ArgumentParser(prog="images.py", description=str(__doc__).partition("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    commands.add_parser("context", help="write the tar of a build, for the Python that runs this, to standard output")
    building = commands.add_parser("build", help="build images on this machine, in the engine of DOCKER_HOST")
    every = [*ROLES, SANDBOX]
    building.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(every)}; none: all")
    options = parser.parse_args()
    try:
        if options.command == "context":
            write_context(sys.executable, sys.stdout.buffer)
        else:
            build(options.names or every)
    except StackError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
