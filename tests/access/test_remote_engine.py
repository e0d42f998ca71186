"""A container engine on another machine, over TLS and over SSH: the sandbox keeps what it promises, and what does not fit is said.

The engine is a real one with its own state, behind a real SSH server; both are on this machine. What a sandbox promises on any engine is in
`test_sandbox_contract` and `test_docker_sandbox`; the walls in `tests/abuse`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import JsonValue

from metier_infra.errors import EngineGone, LaneGone, MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import owner
from metier_tools.docker_engine import Engine
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.profile import Profile
from metier_tools.sandbox import Outcome, Recipe, Request

from .certificates import Authority

LOCAL = Path(__file__).parents[2] / "infra/local"
PATIENCE_S = 60.0
USER = "nobody" if os.geteuid() == 0 else Path.home().owner()


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait for another process: nothing tells us when it is there, so look again and again."""
    limit = time.monotonic() + PATIENCE_S
    while not ready():
        assert time.monotonic() < limit, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.02)


class Remote:
    """The engine's machine: its folder, its engine, its SSH server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        self.authority = Authority(folder)
        certificate, key = self.authority.certificate("engine")
        assert (certificate.name, key.name) == ("engine.pem", "engine.key")
        self.start()

    def _engine(self, *words: str) -> str:
        told = subprocess.run([sys.executable, str(LOCAL / "secured_engine.py"), *words], check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
        return told.stdout

    def start(self, *port: str) -> None:
        self.places = json.loads(self._engine("start", str(self.folder), *port).splitlines()[-1])

    def stop(self) -> None:
        self._engine("stop", str(self.folder))

    def restart(self) -> None:
        self.start(str(self.places["port"]))

    def environment(self, name: str, by: Authority | None = None) -> dict[str, str]:
        """What a client sets that comes by a certificate of this name."""
        by = by or self.authority
        kept = Path(tempfile.mkdtemp(dir=self.folder))
        certificate, key = by.certificate(name)
        shutil.copy(by.ca, kept / "ca.pem")
        shutil.copy(certificate, kept / "cert.pem")
        shutil.copy(key, kept / "key.pem")
        return {"DOCKER_HOST": f"tcp://127.0.0.1:{self.places['port']}", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(kept)}  # fmt: skip


@pytest.fixture(scope="module")
def remote() -> Generator[Remote]:
    """The engine behind TLS; of a short path, as sockets need one."""
    folder = Path(tempfile.mkdtemp(prefix="metier-far-"))
    made = Remote(folder)
    yield made
    made.stop()
    shutil.rmtree(folder)


def _key_pair(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")


def _speaks(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as line:
            return line.recv(4) == b"SSH-"
    except OSError:
        return False


class Ssh:
    """The SSH server, and a home folder that knows its key and has ours."""

    def __init__(self, remote: Remote, folder: Path, port: int) -> None:
        self._remote, self._folder, self.port = remote, folder, port
        for name in ("host", "user"):
            _key_pair(remote.folder / name)
        self.keys = folder / ".ssh"
        self.keys.mkdir()
        shutil.copy(remote.folder / "user", self.keys / "id_ed25519")
        self.know(remote.folder / "host.pub")
        self.process = self.start()

    def know(self, key: Path) -> None:
        (self.keys / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key.read_text()}")

    def start(self) -> subprocess.Popen[bytes]:
        with (self._folder / "sshd.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, str(LOCAL / "sshd.py"), str(self._remote.folder), str(self.port)], stderr=log)  # fmt: skip
        until(lambda: _speaks(self.port) or process.poll() is not None, "sshd listens")
        assert process.poll() is None, (self._folder / "sshd.log").read_text()
        return process

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DOCKER_HOST": f"ssh://{USER}@127.0.0.1:{self.port}{self._remote.places['open']}",
            "HOME": str(self._folder),
        }

    def end(self) -> None:
        """End the server and each connection that it has."""
        for pid in [self.process.pid, *_below(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _free_port() -> int:
    """One below those that systems draw for outgoing connections."""
    for port in random.sample(range(20000, 32000), 1000):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@pytest.fixture(scope="module")
def ssh(remote: Remote, tmp_path_factory: pytest.TempPathFactory) -> Generator[Ssh]:
    made = Ssh(remote, tmp_path_factory.mktemp("ssh"), _free_port())
    yield made
    made.end()


@pytest.fixture(params=["tls", "ssh"])
def way(request: pytest.FixtureRequest, remote: Remote) -> Mapping[str, str]:
    """The environment of a tool runner whose engine is far."""
    if request.param == "tls":
        return remote.environment("runner")
    found: Ssh = request.getfixturevalue("ssh")
    return found.environment


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str], **change: object) -> Generator[DockerSandbox]:  # fmt: skip
    """A sandbox there."""
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in way.items():
        monkeypatch.setenv(name, value)
    settings = {"image": remote.places["image"], "pool": 0, "limit": 4} | change
    box = DockerSandbox(SandboxSettings.model_validate(settings))
    try:
        yield box
    finally:
        box.close()


def python(box: DockerSandbox, source: str, timeout_s: float = 10.0, lease: str = "run") -> Outcome:
    with box.hold(lease, 20) as held:
        return held.run(Request("python", source, timeout_s))


def owners(remote: Remote) -> list[str]:
    """Whose containers there are, asked on the engine's own machine."""
    return [one.owner for one in Engine(str(remote.places["unix"])).sandboxes()]


def test_programs_run_there_as_they_do_here(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str]) -> None:  # fmt: skip
    with opened(monkeypatch, remote, way) as box:
        # The engine there enforces what is asked of it
        box.check()
        # Every end of a program is an outcome, and it has no clock but its own
        assert python(box, "print(6*7)").stdout == "42\n"
        assert python(box, "1/0").status == "error"
        late = python(box, "print('before', flush=True)\nwhile True: pass", 0.5)
        assert (late.status, late.stdout) == ("timeout", "before\n")
        # What is large comes whole, and a file goes there and back
        assert python(box, "print('x' * 200_000, end='')").stdout == "x" * 200_000
        with box.hold("run", 20) as held:
            there = held.run(Request("python", "open('b', 'wb').write(open('a', 'rb').read()[::-1])", 10.0, files={"a": bytes(range(256))}, take=("b",)))  # fmt: skip
        assert there.files == {"b": bytes(range(256))[::-1]}
        # Nothing is left for the next call of the run, in the same container
        with box.hold("same", 20) as held:
            first = held.run(Request("python", "open('/tmp/left', 'w').write('x')", 10.0))
            second = held.run(Request("python", "import os; print(os.path.exists('/tmp/left'))", 10.0))
        assert (first.status, second.stdout) == ("ok", "False\n")
        # Runs side by side
        with ThreadPoolExecutor(3) as threads:
            texts = [
                one.result().stdout
                for one in [threads.submit(python, box, f"print({n})", lease=f"l{n}") for n in range(3)]
            ]
        assert texts == ["0\n", "1\n", "2\n"]
    # And nothing stays
    until(lambda: box.owner not in owners(remote), "the containers are gone")


def test_a_call_in_hand_ends_when_the_sandbox_is_closed(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str]) -> None:  # fmt: skip
    with opened(monkeypatch, remote, way) as box, ThreadPoolExecutor(1) as threads:
        running = threads.submit(python, box, "import time; time.sleep(60)", 90.0)
        until(lambda: box.owner in owners(remote), "the container is there")
        box.close()
        with pytest.raises(LaneGone):
            running.result(PATIENCE_S)


HOLDER = """
import sys
from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Request
box = DockerSandbox(SandboxSettings(image=sys.argv[1], pool=1, limit=3))
with box.hold("busy", 30) as held:
    print(box.owner, flush=True)
    held.run(Request("shell", "trap '' TERM HUP INT PIPE; while :; do sleep 1; done", 60))
"""


def test_containers_there_end_with_the_process_here(remote: Remote, way: Mapping[str, str]) -> None:
    words = [sys.executable, "-c", HOLDER, str(remote.places["image"])]
    with subprocess.Popen(words, env={**os.environ, **way}, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        bearer = holder.stdout.readline().strip()
        until(lambda: owners(remote).count(bearer) == 2, "a busy container and a warm one")
        holder.send_signal(signal.SIGKILL)
    until(lambda: bearer not in owners(remote), "the containers are gone")


def _processes() -> dict[int, int]:
    """Every process that runs, and its parent."""
    found: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def _below(pid: int) -> set[int]:
    """Every process that a process started, and those that they started."""
    parents, below = _processes(), {pid}
    while more := {one for one, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {pid}


def test_the_reaper_removes_there_what_dead_owners_left(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str]) -> None:  # fmt: skip
    dead = subprocess.Popen(["true"])
    dead.wait()
    bearer = f"{owner.me().rsplit('|', 2)[0]}|{dead.pid}|1"
    engine = Engine(str(remote.places["unix"]))
    config: dict[str, JsonValue] = {
        "Image": engine.image_id(str(remote.places["image"])),
        "Cmd": ["none"],
        "Labels": {owner.LABEL: bearer},
    }
    engine.create(config)
    assert bearer in owners(remote)
    with opened(monkeypatch, remote, way):
        assert bearer not in owners(remote)


def test_egress_is_refused_as_the_proxy_lies_on_another_machine(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str]) -> None:  # fmt: skip
    profile = Profile.model_validate({"name": "out", "egress": {"hosts": ["example.org"]}})
    with opened(monkeypatch, remote, way) as box, pytest.raises(MissingService), box.hold("out", 20, Recipe(profile)):
        pass


def test_an_engine_that_restarts_is_found_again(monkeypatch: pytest.MonkeyPatch, remote: Remote, way: Mapping[str, str]) -> None:  # fmt: skip
    with opened(monkeypatch, remote, way) as box:
        assert python(box, "print(1)").stdout == "1\n"
        remote.stop()
        with pytest.raises(EngineGone):
            python(box, "print(2)", lease="while away")
        remote.restart()
        assert python(box, "print(3)", lease="back").stdout == "3\n"


def test_a_tunnel_that_breaks_is_laid_anew(monkeypatch: pytest.MonkeyPatch, remote: Remote, ssh: Ssh) -> None:
    with opened(monkeypatch, remote, ssh.environment) as box:
        assert python(box, "print(1)").stdout == "1\n"
        # The server and its connections end, as in a restart of the other machine
        ssh.end()
        with pytest.raises(EngineGone, match=r"ssh does not reach|no container engine answers"):
            python(box, "print(2)", lease="while away")
        ssh.process = ssh.start()
        assert python(box, "print(3)", lease="back").stdout == "3\n"


# ---- who is not let in


def test_an_engine_with_another_authoritys_certificate_is_not_believed(monkeypatch: pytest.MonkeyPatch, remote: Remote, tmp_path: Path) -> None:  # fmt: skip
    way = remote.environment("runner", Authority(tmp_path))
    with pytest.raises(MissingService, match=r"shows a certificate that is not trusted .*see ca.pem in DOCKER_CERT_PATH"), opened(monkeypatch, remote, way):  # fmt: skip
        pass


def test_a_runner_with_a_strangers_certificate_is_told_so(monkeypatch: pytest.MonkeyPatch, remote: Remote, tmp_path: Path) -> None:  # fmt: skip
    way = remote.environment("runner", Authority(tmp_path))
    shutil.copy(remote.authority.ca, Path(way["DOCKER_CERT_PATH"]) / "ca.pem")
    with pytest.raises(MissingService, match=r"does not take our certificate .*see cert.pem and key.pem"), opened(monkeypatch, remote, way):  # fmt: skip
        pass


def test_what_an_engine_says_about_a_refusal_is_cut_short(remote: Remote) -> None:
    engine = Engine(str(remote.places["unix"]))
    config: dict[str, JsonValue] = {"Image": str(remote.places["image"]), "HostConfig": {"SecurityOpt": ["x" * 10_000]}}
    with pytest.raises((EngineGone, MissingService), match=r"the container engine refused: .*xx … xx") as told:
        engine.create(config)
    assert len(str(told.value)) < 400


def test_files_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, remote: Remote, tmp_path: Path) -> None:
    way = {**remote.environment("runner"), "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(MissingService, match=r"ca.pem, cert.pem and key.pem cannot be used: No such file"), opened(monkeypatch, remote, way):  # fmt: skip
        pass


def test_a_host_key_that_is_not_known_and_a_user_who_may_not_come_in_are_told(monkeypatch: pytest.MonkeyPatch, remote: Remote, ssh: Ssh, tmp_path: Path) -> None:  # fmt: skip
    _key_pair(tmp_path / "other")
    ssh.know(tmp_path / "other.pub")
    with pytest.raises(MissingService, match=r"ssh does not reach .*its host key is not the one in ~/.ssh/known_hosts"), opened(monkeypatch, remote, ssh.environment):  # fmt: skip
        pass
    ssh.know(remote.folder / "host.pub")
    stranger = {**ssh.environment, "DOCKER_HOST": ssh.environment["DOCKER_HOST"].replace(f"{USER}@", "somebody@")}
    with pytest.raises(MissingService, match=r"ssh does not reach .*permission denied"), opened(monkeypatch, remote, stranger):  # fmt: skip
        pass


def test_a_key_that_cannot_be_read_and_a_machine_that_is_away_are_told(monkeypatch: pytest.MonkeyPatch, remote: Remote, ssh: Ssh, tmp_path: Path) -> None:  # fmt: skip
    shutil.copytree(ssh.keys, tmp_path / ".ssh")
    (tmp_path / ".ssh/config").write_text("Port many\n")
    with pytest.raises(MissingService, match=r"ssh does not reach .*what is in ~/.ssh cannot be used: "), opened(monkeypatch, remote, {**ssh.environment, "HOME": str(tmp_path)}):  # fmt: skip
        pass
    away = {**ssh.environment, "DOCKER_HOST": f"ssh://{USER}@127.0.0.1:{_free_port()}"}
    with pytest.raises(MissingService, match=r"ssh does not reach "), opened(monkeypatch, remote, away):  # fmt: skip
        pass
