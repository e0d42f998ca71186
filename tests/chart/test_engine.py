"""`toolRunner.engine.mode: dind`, run: dockerd in a container that may do all, by the very words and mounts that the chart renders.

Not here: the image `docker:…-dind` (its start script changes no word that begins with `dockerd`), and a pod.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.profile import Profile
from metier_tools.sandbox import Recipe, Request

from .kit import REPOSITORY, pods, rendered, variables

LOCAL = REPOSITORY / "infra/local"
PATIENCE_S = 60.0
POWERS = (
    *("--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE"),  # the one that a virtual machine may not have itself
    *("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"),
    *("--volume", "/sys:/sys", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup"),
)
"""What `privileged` means."""
INSTALLED = "import install; install.dockerd()"
IMAGE = "import image, sys; print(image.ensure(sys.argv[1]))"


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


def told(script: str, *words: str) -> str:
    """What a script prints that uses the modules of infra/local."""
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, cwd=LOCAL, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@dataclass(frozen=True)
class Beside:
    """The engine: its socket and the folder for doors as the runner sees them, and the sandbox image that it has."""

    socket: Path
    doors: Path
    image: str


@pytest.fixture(scope="module")
def beside() -> Generator[Beside]:
    pod = pods(rendered("engine-dind"))["tool-runner"]
    engine, (runner,) = pod["initContainers"][0], pod["containers"]
    assert engine["securityContext"]["privileged"] is True
    folder, name = Path(tempfile.mkdtemp(prefix="metier-dind-")), f"metier-dind-{uuid.uuid4().hex[:8]}"
    places = {mount["mountPath"]: folder / mount["name"] for mount in engine["volumeMounts"]}
    for place in places.values():
        place.mkdir()
    doors = places[variables(runner)["TMPDIR"]]
    mounts = [*places.items(), (str(doors), doors), ("/usr", Path("/usr"))]
    volumes = [word for inside, outside in mounts for word in ("--volume", f"{outside}:{inside}")]
    program, *words = engine["args"]
    told(INSTALLED)
    started = docker(
        *("run", "--detach", "--name", name, "--network", "none", "--user", "0:0", *POWERS, *volumes),
        *("--env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "--entrypoint", program),
        *(os.environ["METIER_SANDBOX_IMAGE"], *words),
    )
    socket = places["/run/engine"] / Path(variables(runner)["DOCKER_HOST"]).name
    try:
        assert started.returncode == 0, started.stderr
        _await(engine["startupProbe"]["exec"]["command"], name)
        yield Beside(socket, doors, told(IMAGE, f"unix://{socket}"))
    finally:
        docker("rm", "--force", "--volumes", name)
        shutil.rmtree(folder)


def _await(probe: Sequence[str], name: str) -> None:
    """Until the engine answers the probe of its start."""
    limit = time.monotonic() + PATIENCE_S
    while docker("exec", name, *probe).returncode:
        assert time.monotonic() < limit, docker("logs", "--tail", "20", name).stderr
        time.sleep(0.1)


def test_the_socket_is_for_the_runners_group_alone(beside: Beside) -> None:
    user = pods(rendered("engine-dind"))["tool-runner"]["securityContext"]

    found = beside.socket.stat()

    assert (found.st_gid, found.st_mode & 0o777) == (user["fsGroup"], 0o660)


def test_it_keeps_every_limit_and_a_door_leads_to_the_runners_proxy(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(beside.doors))
    settings = SandboxSettings.model_validate({"image": beside.image, "pool": 0, "limit": 2})
    out = Recipe(Profile.model_validate({"name": "out", "egress": {"hosts": ["example.org"]}}))
    source = "import urllib.request; urllib.request.urlopen('http://elsewhere.example/')"
    sandbox = DockerSandbox(settings, base_url=f"unix://{beside.socket}")
    try:
        assert [one.name for one in sandbox.findings() if not one.holds] == []
        with sandbox.hold("out", 20, out) as held:
            outcome = held.run(Request("python", source, 20))
    finally:
        sandbox.close()

    assert [(one.host, one.verdict) for one in outcome.attempts] == [("elsewhere.example", "not_listed")]
