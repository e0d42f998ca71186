"""Each bundled store starts as its pod would: the real server program, as the user of the chart, on a root that it cannot write, with the mounts of the chart alone.

Not here: the official images. Their paths, users and start scripts are stood in for as the comments in `PROGRAMS` say.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from .kit import REPOSITORY, Document, containers, named, pods, rendered, variables

LOCAL = REPOSITORY / "infra/local"
STORES = ("postgres", "redis", "kafka")
PATIENCE_S = 120.0
JAVA = """#!/bin/sh
mkdir -p "$LOG_DIR"
exec {java} $KAFKA_HEAP_OPTS $KAFKA_LOG4J_OPTS -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:gc*:file="$LOG_DIR/gc.log" -cp '{jars}/*' {main} "$@"
"""
PROGRAMS = {
    # Those of apache/kafka under /opt/kafka/bin, which choose a heap, log where LOG_DIR says, and run Java
    "kafka-storage.sh": JAVA.replace("{main}", "kafka.tools.StorageTool"),
    "kafka-server-start.sh": JAVA.replace("{main}", "kafka.Kafka"),
    # The start script of postgres, which makes the database on a server that only it can reach, and then starts it
    "docker-entrypoint.sh": """#!/bin/sh
set -e
mkdir -p "$PGDATA"
echo "$POSTGRES_PASSWORD" >/tmp/password
{postgres}/initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --no-sync >/tmp/initdb.log
exec {postgres}/postgres -c listen_addresses='*'
""",
    "pg_isready": '#!/bin/sh\nexec {postgres}/pg_isready "$@"\n',
    "valkey-server": '#!/bin/sh\nexec {redis} "$@"\n',
}
WHERE = """
import install, os
print(os.path.realpath(install.java()), install.kafka_jars(), install.postgres_folder(), os.path.realpath(install.redis_server()))
"""
LISTENS = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)"


def docker(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=False)


class Started:
    """The container of a store, as the chart describes it."""

    def __init__(self, store: str, folder: Path, programs: Path) -> None:
        self.store, self._folder, self.name = store, folder, f"metier-store-{uuid.uuid4().hex[:8]}"
        self._found = rendered("bundled")
        self._pod = pods(self._found)[store]
        (self.container,) = containers(self._pod)
        folder.mkdir()
        self._start(programs)

    def _start(self, programs: Path) -> None:
        user = self._pod["securityContext"]
        assert self.container["securityContext"]["readOnlyRootFilesystem"] is True
        told = {name: self._told(value) for name, value in variables(self.container).items()}
        told["PATH"] = "/opt/kafka/bin:/usr/bin:/bin"
        people = self._folder / "passwd"
        people.write_text(f"store:x:{user['runAsUser']}:{user['runAsGroup']}::/tmp:/bin/sh\n")
        image = {programs: "/opt/kafka/bin", people: "/etc/passwd", Path("/usr"): "/usr"}
        image |= {path: str(path) for path in (*Path("/etc").glob("java-*"), REPOSITORY / ".metier/cache")}
        volumes = [f"{path}:{place}:ro" for path, place in image.items()]
        volumes += [f"{self._place(mount)}:{mount['mountPath']}" for mount in self.container["volumeMounts"]]
        first, *words = self.container.get("command", ["docker-entrypoint.sh"])
        done = docker(
            *("run", "--detach", "--name", self.name, "--read-only", "--cap-drop", "ALL", "--network", "none"),
            *("--security-opt", "no-new-privileges", "--user", f"{user['runAsUser']}:{user['runAsGroup']}"),
            *(word for pair in told.items() for word in ("--env", "=".join(pair))),
            *(word for volume in volumes for word in ("--volume", volume)),
            *("--workdir", "/", "--entrypoint", first, os.environ["METIER_SANDBOX_IMAGE"], *words),
        )
        assert done.returncode == 0, done.stderr

    def _told(self, value: str | Mapping[str, Mapping[str, str]]) -> str:
        if isinstance(value, str):
            return value
        secret = value["secretKeyRef"]
        return str(named(self._found, "Secret", secret["name"])["stringData"][secret["key"]])

    def _place(self, mount: Document) -> Path:
        """A volume as the node prepares it: it belongs to root and to the group of the pod."""
        place, group = self._folder / str(mount["name"]), self._pod["securityContext"]["fsGroup"]
        place.mkdir()
        for name, text in self._content(mount["name"]).items():
            (place / name).write_text(text)
            (place / name).chmod(0o440)
            os.chown(place / name, 0, group)
        os.chown(place, 0, group)
        place.chmod(0o2777 if mount["name"] in ("tmp", "run") else 0o2775)
        return place

    def _content(self, volume: str) -> Mapping[str, str]:
        (source,) = [one for one in self._pod["volumes"] if one["name"] == volume] or [{}]
        if "configMap" in source:
            return dict(named(self._found, "ConfigMap", source["configMap"]["name"])["data"])
        if "secret" in source:
            made = named(self._found, "Secret", source["secret"]["secretName"])["stringData"]
            return {item["path"]: made[item["key"]] for item in source["secret"]["items"]}
        return {}

    def ready(self) -> None:
        """Wait until it answers the probe that says so."""
        probe, port = self.container["readinessProbe"], self.container["ports"][0]["containerPort"]
        listens = ["python3", "-c", LISTENS, str(port)]
        words = probe["exec"]["command"] if "exec" in probe else listens
        limit = time.monotonic() + PATIENCE_S
        while docker("exec", self.name, *words).returncode:
            assert time.monotonic() < limit, self.said()
            assert docker("inspect", "--format", "{{.State.Running}}", self.name).stdout == "true\n", self.said()
            time.sleep(0.2)

    def said(self) -> str:
        done = docker("logs", "--tail", "30", self.name)
        return done.stdout + done.stderr

    def end(self) -> int:
        """SIGTERM, and how it ended."""
        docker("kill", "--signal", "TERM", self.name)
        return int(docker("wait", self.name).stdout)


def write_programs(folder: Path) -> None:
    """What stands in for the programs of the images, each over the real server that this machine has."""
    found = subprocess.run([sys.executable, "-c", WHERE], cwd=LOCAL, check=True, stdout=subprocess.PIPE, text=True)
    known: dict[str, str] = dict(zip(("java", "jars", "postgres", "redis"), found.stdout.split(), strict=True))
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(re.sub(r"\{(\w+)\}", lambda word: known[word[1]], text))
        (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def stores() -> Generator[Mapping[str, Started]]:
    """All three, at one time."""
    folder = Path(tempfile.mkdtemp(prefix="metier-stores-"))
    folder.chmod(0o755)
    write_programs(folder / "programs")
    started: dict[str, Started] = {}
    try:
        for store in STORES:
            started[store] = Started(store, folder / store, folder / "programs")
        yield started
    finally:
        for one in started.values():
            docker("rm", "--force", one.name)
        shutil.rmtree(folder)


@pytest.mark.parametrize("store", STORES)
def test_a_bundled_store_starts_on_a_root_that_it_cannot_write_and_ends_when_told(
    store: str, stores: Mapping[str, Started]
) -> None:
    stores[store].ready()

    assert stores[store].end() in {0, 143}, stores[store].said()
