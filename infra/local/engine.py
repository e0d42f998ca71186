"""The container engine's HTTP interface, and what a private engine can leave behind.

Called by `services` (find one, is it ready, empty it, sweep after it) and `image` (is it there, import it, build it);
hands on to dockerd. No docker program is needed.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import process
from say import StackError, indent

DEFAULT_HOST = "unix:///var/run/docker.sock"
_QUICK = 2.0
_LONG = 600.0


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A container engine at an address as in DOCKER_HOST: `unix://PATH` or `tcp://HOST:PORT`."""

    def __init__(self, host: str) -> None:
        self.host = host

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        timeout: float = _QUICK,
    ) -> tuple[int, bytes]:
        """Send one request and return the status and the whole answer."""
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/x-tar"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        address = urllib.parse.urlsplit(self.host)
        if address.scheme == "unix":
            return _SocketConnection(address.path, timeout)
        if address.scheme in ("tcp", "http") and address.hostname:
            return http.client.HTTPConnection(address.hostname, address.port or 2375, timeout=timeout)
        raise StackError(f"DOCKER_HOST is {self.host!r}: give unix://PATH or tcp://HOST:PORT.")

    def answers(self) -> bool:
        """Ask whether the engine is there; raise what a socket raises when nothing listens."""
        return self.request("GET", "/_ping")[1] == b"OK"

    def has_image(self, tag: str) -> bool:
        """Ask whether an image of that name and tag is there."""
        return self.request("GET", f"/images/{urllib.parse.quote(tag)}/json")[0] == 200

    def import_image(self, tag: str, archive: Iterable[bytes], changes: Iterable[str]) -> None:
        """Make an image of one layer out of a root file system's tar, with Dockerfile lines for its settings."""
        repository, _, version = tag.rpartition(":")
        query = [("fromSrc", "-"), ("repo", repository), ("tag", version), *(("changes", line) for line in changes)]
        self._make("/images/create", query, archive)

    def labels(self, tag: str) -> Mapping[str, str]:
        """Return the labels of an image; none where there is no such image."""
        status, told = self.request("GET", f"/images/{urllib.parse.quote(tag)}/json")
        return (json.loads(told)["Config"]["Labels"] or {}) if status == 200 else {}

    def build_image(
        self,
        tag: str,
        context: Iterable[bytes],
        arguments: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Build an image from a tar with a Dockerfile in it; no step of it has a network."""
        query = [("t", tag), ("rm", "1"), ("forcerm", "1"), ("networkmode", "none")]
        told = [("buildargs", json.dumps(arguments or {})), ("labels", json.dumps(labels or {}))]
        self._make("/build", [*query, *told], context)

    def _make(self, path: str, query: list[tuple[str, str]], body: Iterable[bytes]) -> None:
        status, answer = self.request("POST", f"{path}?{urllib.parse.urlencode(query)}", body=body, timeout=_LONG)
        *told, last = answer.decode(errors="replace").strip().splitlines() or [""]
        if status != 200 or "errorDetail" in last:
            refused = f"The container engine at {self.host} refused to make the image: {last}"
            raise StackError(refused + indent("".join(map(_told, told)).splitlines()[-8:]))

    def kill_containers(self) -> None:
        """End every running container at once, so that the engine need not wait for each at its own stop."""
        for container in json.loads(self.request("GET", "/containers/json")[1]):
            self.request("POST", f"/containers/{container['Id']}/kill", timeout=10)


def _told(line: str) -> str:
    """Return what a step of a build printed, out of one line of the engine's answer."""
    return str(json.loads(line).get("stream", ""))


def find() -> str | None:
    """Return the address of an engine that answers at one of its usual places, or None."""
    for place in (DEFAULT_HOST, f"unix://{Path.home()}/.docker/run/docker.sock"):
        with suppress(OSError, http.client.HTTPException):
            if Engine(place).answers():
                return place
    return None


def sweep(run_folder: Path, data: Path) -> None:
    """End the containers and shims that a killed engine left, then unmount what is still mounted for it."""

    def is_ours(command_line: str) -> bool:
        program = command_line.partition(" ")[0].rpartition("/")[2]
        return program.startswith("containerd") and f"{run_folder}/" in command_line

    for pid in process.families(process.matching(is_ours)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mount in (*_mounts_under(run_folder), *_mounts_under(data)):
        subprocess.run(["umount", "-l", mount], check=False)


def _mounts_under(folder: Path) -> list[str]:
    table = Path("/proc/self/mounts")
    lines = table.read_text().splitlines() if table.exists() else []
    places = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return sorted((place for place in places if f"{place}/".startswith(f"{folder}/")), reverse=True)
