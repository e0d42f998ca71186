"""Make sure that the container engine has the sandbox image, and say its tag.

Called by `stack` and `images`; hands on to `infra/images/sandbox/from_system.py` (an image of this machine's own Python, with no
registry) or to that folder's Dockerfile, and to `engine`. The tag is a digest of what goes in, so that an image is
made once and a changed recipe makes another.
"""

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator

import ready
from engine import Engine
from say import StackError, say
from state import REPOSITORY

NAME = "metier-sandbox"

_RECIPE = REPOSITORY / "infra/images/sandbox"
_FROM_SYSTEM = [sys.executable, "-I", str(_RECIPE / "from_system.py")]
_SETTINGS = ["USER 65534:65534", "WORKDIR /work", 'CMD ["/bin/sh"]', "ENV PATH=/usr/bin:/bin"]


def ensure(host: str) -> str:
    """Return the tag of the sandbox image, made first if the engine does not have it."""
    begun, engine = time.monotonic(), Engine(host)
    if not ready.answers(engine.answers):
        raise StackError(f"No container engine answers at {host}.")
    digest = _digest_of_system() if host.startswith("unix:") else None
    tag = f"{NAME}:{digest or _digest_of_dockerfile()}"
    if engine.has_image(tag):
        return tag
    if digest:
        engine.import_image(tag, _system_archive(), _SETTINGS)
    else:
        engine.build_image(tag, [_build_context()])
    say("image", f"made {tag} ({time.monotonic() - begun:.1f} s)")
    return tag


def _digest_of_system() -> str | None:
    """Ask for the digest of this machine's parts; None where an image cannot be made of them."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return None
    done = subprocess.run([*_FROM_SYSTEM, "--digest"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:12] or None


def python() -> str | None:
    """Return the Python that an image of this machine's parts has; None where none can be made."""
    if not _digest_of_system():
        return None
    return subprocess.run([*_FROM_SYSTEM, "--python"], capture_output=True, text=True, check=True).stdout.strip()


def _system_archive() -> Iterator[bytes]:
    with subprocess.Popen([*_FROM_SYSTEM, "-"], stdout=subprocess.PIPE) as program:
        while program.stdout and (piece := program.stdout.read(1 << 20)):
            yield piece
    if program.returncode:
        raise StackError("The sandbox image could not be made of this machine's own Python.")


def _digest_of_dockerfile() -> str:
    return hashlib.sha256((_RECIPE / "Dockerfile").read_bytes()).hexdigest()[:12]


def _build_context() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(_RECIPE / "Dockerfile", "Dockerfile")
    return target.getvalue()
