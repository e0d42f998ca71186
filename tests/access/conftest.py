"""A broker that lets in only whom it knows, started once for these tests, and clients of it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient, ScramMechanism, UserScramCredentialUpsertion
from pydantic import SecretStr

from metier_infra import kafka_access
from metier_infra.kafka_cause import cause
from metier_infra.settings import KafkaSettings, load

from .certificates import Authority

PROGRAM = Path(__file__).parents[2] / "infra/local/secured_kafka.py"
STARTS_S = 120.0
SEEN_S = 30.0


@dataclass
class Secured:
    """Where the broker's listeners are, who signs certificates, and whom it knows."""

    places: dict[str, str]
    authority: Authority

    def settings(self, user: str = "admin", word: str = "admin", **other: object) -> KafkaSettings:
        """Those of a client that comes by SCRAM without TLS, unless `other` says more."""
        plain = load(KafkaSettings).model_copy(update={"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256"})  # fmt: skip
        chosen = plain.model_copy(update={"username": user, "password": SecretStr(word), **other})
        return chosen.model_copy(update={"bootstrap": self.places[chosen.security_protocol]})

    def by_certificate(self, name: str, **other: object) -> KafkaSettings:
        """Those of a client that shows a certificate of this name, and no password."""
        certificate, key = self.authority.certificate(name)
        files = {"ca_file": self.authority.ca, "cert_file": certificate, "key_file": key}
        nobody = {"sasl_mechanism": None, "username": None, "password": None}
        known = self.settings(security_protocol="SSL")
        return known.model_copy(update={**nobody, **files, **other})

    def admin(self) -> KafkaAdminClient:
        """A client that may do everything."""
        return kafka_access.opened(KafkaAdminClient, self.settings())

    def know(self, *users: str) -> None:
        """Let these come in, each by its name as its password, and wait until they can."""
        admin = self.admin()
        admin.alter_user_scram_credentials([UserScramCredentialUpsertion(one, ScramMechanism.SCRAM_SHA_256, one) for one in users])  # fmt: skip
        admin.close()
        limit = time.monotonic() + SEEN_S
        for settings in [self.settings(one, one) for one in users]:
            while cause(settings, kafka_access.brokers(settings), None) is not None:
                assert time.monotonic() < limit, f"the broker does not know {settings.username} within {SEEN_S:g} s"
                time.sleep(0.02)


def _begin(folder: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """The process, and where its listeners are."""
    process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def _ready(process: subprocess.Popen[str], settings: KafkaSettings) -> bool:
    """Wait for the broker; False where it ended, as when somebody took its port meanwhile."""
    limit = time.monotonic() + STARTS_S
    while cause(settings, kafka_access.brokers(settings), None) is not None:
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit, f"the broker is not there within {STARTS_S:g} s"
        time.sleep(0.1)
    return True


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """The broker, ready."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    certificate, key = authority.certificate("broker")
    (folder / "broker.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
    for _ in range(3):
        process, places = _begin(folder)
        made = Secured(places, authority)
        try:
            if _ready(process, made.settings()):
                yield made
                return
        finally:
            process.kill()
            process.wait()
    pytest.fail("the broker ended three times before it was ready: see above what it said")


@pytest.fixture
def corner(secured: Secured) -> Callable[..., KafkaSettings]:
    """Settings of a client in a corner of this test's own."""
    prefix = f"t-{secrets.token_hex(4)}."
    return lambda *who, **other: secured.settings(*who, **{"prefix": prefix, **other})
