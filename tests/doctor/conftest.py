"""An installation with all that it needs, a Redis that may be spoilt, and the doctor in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from metier.doctor import settings
from metier.doctor.case import asked
from metier.doctor.examination import examine
from metier.doctor.finding import Finding
from metier.doctor.parts import PARTS
from metier_infra.settings import KafkaSettings

STACK = Path(__file__).parents[2] / "infra/local/stack.py"
KEY = "0123456789abcdef" * 4
Doctor = Callable[..., dict[str, list[Finding]]]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of these tests alone."""
    words = ["--only", "redis", "--ports", "auto", "--state", str(tmp_path_factory.mktemp("redis"))]
    free = {name: value for name, value in os.environ.items() if name != "METIER_REDIS_URL"}
    command = [sys.executable, str(STACK), "run", *words, "--", "sh", "-c", 'echo "$METIER_REDIS_URL"; cat']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=free) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, "no Redis was started"
        yield url
        server.stdin.close()


@pytest.fixture
def own_redis(redis_server: str) -> Iterator[redis.Redis]:
    """The same, as it was when it started, before and after."""
    with redis.Redis.from_url(redis_server) as client:
        names = ("maxmemory", "maxmemory-policy", "save", "appendonly", "requirepass")
        before = {name: str(dict(client.config_get(name))[name]) for name in names}
        yield client
        for name, value in before.items():
            client.config_set(name, value)
        client.replicaof("NO", "ONE")


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Examines what an environment says of these parts, and gives the findings by id."""

    def look(
        environment: Mapping[str, str],
        only: Sequence[str],
        *,
        role: Sequence[str] = (),
        late_s: float = 0.0,
        **flags: bool,
    ) -> dict[str, list[Finding]]:
        for name in [name for name in os.environ if name.startswith(("METIER_", "OTEL_"))]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("metier.configuration.LOCAL_ENV", Path("no such file"))
        case = settings.case(
            asked(role), before_install=flags.get("before_install", False), models=flags.get("models", False)
        )
        clock = case.clock
        found = examine(replace(case, clock=lambda: clock() - late_s), PARTS, only)
        told: dict[str, list[Finding]] = {}
        for one in found:
            told.setdefault(one.id, []).append(one)
        return told

    return look


@pytest.fixture
def corner(kafka: KafkaSettings) -> dict[str, str]:
    """What names a corner of the real broker, with topics of two partitions to be."""
    return {
        "METIER_KAFKA_BOOTSTRAP": str(kafka.bootstrap),
        "METIER_KAFKA_PREFIX": kafka.prefix,
        "METIER_KAFKA_PARTITIONS": "2",
    }


@pytest.fixture
def installed(corner: dict[str, str], postgres_url: str, redis_server: str) -> dict[str, str]:
    """An environment in which all is well, but that nobody has made the topics yet."""
    return {
        **corner,
        "METIER_POSTGRES_URL": postgres_url,
        "METIER_REDIS_URL": redis_server,
        "METIER_GRANT_KEY": KEY,
        "METIER_SANDBOX_IMAGE": os.environ["METIER_SANDBOX_IMAGE"],
    }


def machine(text: str) -> dict[str, list[dict[str, str]]]:
    """Findings by id, of what `--json` gives."""
    told: dict[str, list[dict[str, str]]] = {}
    for one in json.loads(text)["findings"]:
        told.setdefault(one["id"], []).append(one)
    return told
