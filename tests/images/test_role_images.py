"""The images of the roles, built by the recipe from a base of this machine's own Python: what is in them, and a system that runs from nothing else.

Not here: the public base image, which needs a registry; what compose wires (test_compose).
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from jsonschema import Draft7Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from metier.compose import recordings_path
from metier_agents.recordings import read_recordings
from metier_infra.settings import KafkaSettings

from .far import far_engine

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "orchestrator": set[str](),
    "agent": {"openai", "anthropic", "groq", "mistralai", "ollama", "retrieval"},
    "tools": {"mcp", "ssh"},
}
SBOM = "/usr/share/metier/sbom.cdx.json"
HARDENED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:mode=1777")
UNWANTED = {
    *(
        "pip",
        "pip3",
        "uv",
        "gcc",
        "cc",
        "c++",
        "g++",
        "ld",
        "make",
        "cmake",
        "cargo",
        "go",
        "git",
        "curl",
        "wget",
        "npm",
    ),
    *("apt", "apt-get", "dpkg", "perl", "su", "sudo", "mount", "passwd", "activate"),
}
PATIENCE_S = 90.0
pytestmark = pytest.mark.timeout(900)  # the first test here waits for the images


def tag(name: str) -> str:
    return f"metier/{name}:{PROJECT['version']}"


def docker(*words: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def images() -> None:
    """All that `make images` makes."""
    subprocess.run([sys.executable, str(REPOSITORY / "infra/local/images.py"), "build"], check=True)


@pytest.fixture(scope="module", params=sorted(EXTRAS))
def role(request: pytest.FixtureRequest, images: None) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def files(role: str) -> Mapping[str, tarfile.TarInfo]:
    """Every file of the image, by its path; folders and links are not among them."""
    container = docker("create", tag(role))
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as program,
            tarfile.open(fileobj=program.stdout, mode="r|") as archive,
        ):
            return {f"/{one.name}": one for one in archive if one.isfile()}
    finally:
        docker("rm", container)


@pytest.fixture(scope="module")
def labels(role: str) -> Mapping[str, str]:
    return dict(json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", tag(role))))


def wanted(role: str) -> set[str]:
    """What the project says it needs for that role, by name."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS[role] for line in extras[extra])]
    return {str(canonicalize_name(Requirement(line).name)) for line in lines}


def test_an_image_says_who_runs_what_and_how_it_ends(role: str) -> None:
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", tag(role)))

    assert (config["User"], config["Entrypoint"], config["StopSignal"]) == ("10001:0", ["metier"], "SIGTERM")
    assert config["WorkingDir"] == "/tmp"


def test_nothing_in_an_image_installs_builds_or_becomes_another_user(files: Mapping[str, tarfile.TarInfo]) -> None:
    programs = {Path(path).name for path, one in files.items() if one.mode & 0o111}

    assert programs & UNWANTED == set()
    assert {path for path in files if "/site-packages/pip/" in path or "/ensurepip/" in path} == set()
    assert {path for path in files if path.endswith((".whl", ".lock", "strip.py"))} == set()
    assert {path for path, one in files.items() if one.mode & 0o6000} == set()


def test_whoever_runs_in_an_image_can_change_nothing_there(files: Mapping[str, tarfile.TarInfo]) -> None:
    assert {path for path, one in files.items() if one.uid or one.mode & 0o022} == set()


def test_all_python_in_an_image_is_compiled(files: Mapping[str, tarfile.TarInfo]) -> None:
    sources = {path for path in files if path.endswith(".py") and "/metier" in path and "/site-packages/" in path}
    compiled = {Path(path).parent.parent / Path(path).name.split(".")[0] for path in files if path.endswith(".pyc")}

    assert len(sources) > 100
    assert {path for path in sources if Path(path).with_suffix("") not in compiled} == set()


@cache
def cyclonedx() -> JsonStrictValidator:
    """The reader of CycloneDX, who looks at an address only once: to tell whether it is one takes most of the time, and images share most."""
    formats = Draft7Validator.FORMAT_CHECKER.checkers
    for name in ("iri-reference", "uri-reference"):
        is_one, raised = formats[name]
        formats[name] = (cache(is_one), raised)
    return JsonStrictValidator(SchemaVersion.V1_6)


def test_an_image_tells_what_it_is_made_of_and_holds_its_role_s_extras_alone(
    role: str, labels: Mapping[str, str]
) -> None:
    # Given the list that a label names
    assert labels["metier.sbom"] == SBOM
    text = docker("run", "--rm", "--entrypoint", "cat", tag(role), labels["metier.sbom"])
    listed = json.loads(text)
    # When its components are compared with what Python finds in the image
    program = (
        "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    )
    there: list[tuple[str, str]] = json.loads(docker("run", "--rm", "--entrypoint", "python", tag(role), "-c", program))
    valid = cyclonedx().validate_str(text)
    listed_as = {(one["name"], one["version"]) for one in listed["components"]}
    # Then it is CycloneDX, none is missing, and what the role needs is among them and what only others need is not
    assert valid is None
    assert {(name, version) for name, version in there} - listed_as == {("metier", PROJECT["version"])}
    root = listed["metadata"]["component"]
    assert (root["name"], root["version"]) == ("metier", PROJECT["version"])
    names = {str(canonicalize_name(name)) for name, _ in there}
    others = {name for other in EXTRAS for name in wanted(other)} - wanted(role)
    assert wanted(role) <= names
    assert names & others == set()
    assert "python" in {name for name, _ in listed_as}


def test_an_image_s_labels_say_version_source_and_role(role: str, labels: Mapping[str, str]) -> None:
    assert labels["metier.role"] == role
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert {"title", "description", "revision", "base.name"} <= {
        name.removeprefix("org.opencontainers.image.") for name, text in labels.items() if text
    }


class Running:
    """A role that runs from its image, hardened, on this machine's network."""

    def __init__(self, container: str) -> None:
        self.container = container

    def said(self) -> list[dict[str, Any]]:
        """Its log lines."""
        done = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]

    def lives(self) -> bool:
        return docker("inspect", "--format", "{{.State.Running}}", self.container) == "true"

    def ready(self) -> None:
        """Wait until it says so itself, where it listens."""
        self.until(lambda: [line for line in self.said() if line["action"] == "listen"])
        (port,) = [line["port"] for line in self.said() if line["action"] == "listen"]
        self.until(lambda: answers(f"http://127.0.0.1:{port}/readyz"))

    def until(self, found: Callable[[], object]) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not found():
            assert self.lives(), self.said()[-5:]
            assert time.monotonic() < limit, self.said()[-5:]
            time.sleep(0.1)

    def end(self) -> int:
        """SIGTERM, and its exit code."""
        docker("kill", "--signal", "TERM", self.container)
        return int(docker("wait", self.container))


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture
def environment(kafka: KafkaSettings, empty_postgres_url: str) -> Mapping[str, str]:
    """A corner of every service."""
    return {
        "METIER_KAFKA_BOOTSTRAP": str(kafka.bootstrap),
        "METIER_KAFKA_PREFIX": kafka.prefix,
        "METIER_POSTGRES_URL": empty_postgres_url,
        "METIER_REDIS_URL": os.environ["METIER_REDIS_URL"],
        "METIER_LANE_NAMESPACE": f"t-{secrets.token_hex(6)}",
        "METIER_GRANT_KEY": secrets.token_hex(16),
        "METIER_HTTP_PORT": "0",
    }


def options(environment: Mapping[str, str]) -> list[str]:
    named = [word for name, text in environment.items() for word in ("--env", f"{name}={text}")]
    return [*HARDENED, "--network", "host", *named]


def to_its_end(environment: Mapping[str, str], *words: str) -> str:
    return docker("run", "--rm", *options(environment), tag("orchestrator"), *words)


def engine() -> tuple[str, ...]:
    """What lets the tool runner at the tests' own engine: the folder of its socket, and the socket's group."""
    socket = Path(os.environ["DOCKER_HOST"].removeprefix("unix://"))
    told = ("--env", f"DOCKER_HOST=unix://{socket}", "--env", f"METIER_SANDBOX_IMAGE={tag('sandbox')}")
    return ("--volume", f"{socket}:{socket}", "--group-add", str(socket.stat().st_gid), *told)


@contextmanager
def running(environment: Mapping[str, str], name: str, words: Sequence[str], *more: str) -> Generator[Running]:
    container = docker("run", "--detach", *options(environment), *more, tag(name), *words)
    try:
        yield Running(container)
    finally:
        docker("rm", "--force", container, check=False)


@pytest.mark.usefixtures("images")
def test_the_tool_runner_s_image_reaches_an_engine_over_ssh_and_holds_it_to_every_limit() -> None:
    with far_engine(Path(os.environ["DOCKER_HOST"].removeprefix("unix://"))) as far:
        told = {"DOCKER_HOST": far.address, "METIER_SANDBOX_IMAGE": tag("sandbox")}
        keys = ("--volume", f"{far.keys}:/tmp/.ssh:ro")
        said = docker("run", "--rm", *options(told), *keys, tag("tools"), "tools", "selftest", "--json")

    assert json.loads(said)["ok"] is True


@pytest.mark.usefixtures("images")
def test_a_run_goes_through_a_system_made_of_images_alone_and_each_role_drains_at_sigterm(
    environment: Mapping[str, str],
) -> None:
    query = next(q for q in read_recordings(recordings_path()).queries if q.category == "code_reasoning")
    with ExitStack() as stack:
        # Given tables, topics and all roles, from their images: no capability, a root that cannot be written, user 10001
        to_its_end(environment, "migrate")
        to_its_end(environment, "topics")
        roles = [
            stack.enter_context(running(environment, "orchestrator", ["orchestrator"])),
            stack.enter_context(running(environment, "agent", ["agent", "reasoner", "coder", "careful"])),
            stack.enter_context(running(environment, "tools", ["tools"], *engine())),
        ]
        for one in roles:
            one.ready()
        # When a question is asked that only running code in a sandbox answers
        told = to_its_end(
            environment, "publish", "specialists", json.dumps({"question": query.text}), "--wait", "--json"
        )
        # Then its answer is the known one
        assert json.loads(told.splitlines()[-1])["result"]["answer"] == query.gold
        # and each role, told to end, ends by itself and well
        assert [one.end() for one in roles] == [0, 0, 0]
        assert [one.said()[-1]["action"] for one in roles] == ["end", "end", "end"]
