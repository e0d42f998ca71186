"""The images of the roles: what goes into a build, and all of them built on this machine, with no registry.

Called by `make images`, by `tests/images`, and by people who build elsewhere (`context`, see
docs/how-to/build-the-images.md). Hands on to `install` for pip, `image` for a base made of this machine's own Python,
`engine`, and infra/images. Wheels are fetched once, checked against the locks, and kept in the cache folder.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO

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
SHARED = "run.lock"
SANDBOX = "sandbox"
MADE_OF = "metier.made-of"
"""The label of an image that names, by a digest, all that went into it: what is there already is not built again."""
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
    files |= {"build.lock": _LOCKS / BUILD, "shared.lock": _LOCKS / SHARED}
    files |= {f"wheels/{path.name}": path for path in wheels(python).iterdir()}
    files |= {f"source/{path.relative_to(REPOSITORY)}": path for path in _source()}
    with tarfile.open(fileobj=target, mode="w|") as archive:
        for place, path in sorted(files.items()):
            with path.open("rb") as content:
                _add(archive, place, content, path.stat().st_size)
        for role, lock in ROLES.items():
            text = beyond((_LOCKS / SHARED).read_text(), (_LOCKS / lock).read_text()).encode()
            _add(archive, f"{role}.lock", io.BytesIO(text), len(text))


def _add(archive: tarfile.TarFile, place: str, content: IO[bytes], size: int) -> None:
    """Add a file that is the same bytes whoever adds it, and whenever."""
    head = tarfile.TarInfo(place)
    head.size, head.mode = size, 0o644
    archive.addfile(head, content)


def beyond(shared: str, own: str) -> str:
    """Return what a lock has beyond another: its entries of a package and hashes that are not in that one."""
    known = set(_entries(shared))
    return "".join(entry for entry in _entries(own) if entry not in known)


def _entries(lock: str) -> list[str]:
    return re.findall(r"^\S.*\n(?:\s.*\n)*", lock, re.MULTILINE)


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
    with tempfile.TemporaryFile() as context:
        if set(names) & ROLES.keys():
            write_context(python, context)
        for name in names:
            if name == SANDBOX:
                build_one(engine, name, io.BytesIO(_sandbox_context()), {"BASE": base})
            else:
                told = {"BASE": base, "ROLE": name, "VERSION": _project()["version"], "REVISION": _revision()}
                build_one(engine, name, context, told)


def build_one(engine: Engine, name: str, context: io.BufferedIOBase, arguments: Mapping[str, str]) -> None:
    """Build an image, unless there is one that was made of the same."""
    begun = time.monotonic()
    context.seek(0)
    digest = hashlib.file_digest(context, "sha256")
    digest.update(json.dumps(arguments, sort_keys=True).encode())
    if engine.labels(tag(name)).get(MADE_OF) == digest.hexdigest():
        return
    context.seek(0)
    engine.build_image(tag(name), context, arguments, {MADE_OF: digest.hexdigest()})
    say("images", f"made {tag(name)} ({time.monotonic() - begun:.1f} s)")


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
