"""A broker that lets in only whom it knows: SASL with and without TLS, mutual TLS, access control lists.

Called by the tests in `tests/access`: `python3 infra/local/secured_kafka.py FOLDER`, where FOLDER holds `broker.pem` (key and certificate) and
`ca.pem`. It prints where its listeners are, as JSON, and becomes the broker: whoever started it ends it by its id. Its administrator is
`admin` by the password `admin`; whoever the administrator makes comes in by SCRAM.
"""

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NoReturn

import install
import ports
import process
from say import StackError

LISTENERS = ("SASL_SSL", "SASL_PLAINTEXT", "SSL", "CONTROLLER")
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_RECIPE = Path(__file__).parent / "kafka"
_MODULE = "org.apache.kafka.common.security"
_DRAWN = range(20000, 32000)
"""Below the range from which systems draw ports for outgoing connections."""
_CLUSTER = "bWV0aWVyLXRlc3RzLTAwMQ"


def main() -> NoReturn:
    """Become the broker."""
    folder = Path(sys.argv[1]).resolve()
    try:
        java = _java()
        places = {name: f"127.0.0.1:{port}" for name, port in zip(LISTENERS, _free(len(LISTENERS)), strict=True)}
        settings = folder / "server.properties"
        settings.write_text(_properties(folder, places))
        administrator = [word for one in MECHANISMS for word in ("--add-scram", f"{one}=[name=admin,password=admin]")]
        tool = [
            "kafka.tools.StorageTool",
            "format",
            "--ignore-formatted",
            "-t",
            _CLUSTER,
            "-c",
            str(settings),
            *administrator,
        ]
        process.run([*java, *tool])
    except StackError as error:
        sys.exit(f"secured_kafka: {error}")
    print(json.dumps(places), flush=True)
    os.execv(java[0], [*java, "kafka.Kafka", str(settings)])


def _java() -> list[str]:
    program = [install.java(), "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
    return [*program, f"-Dlog4j2.configurationFile={_RECIPE / 'log4j2.properties'}", "-cp", f"{install.kafka_jars()}/*"]


def _free(count: int) -> Sequence[int]:
    free = (port for port in random.sample(_DRAWN, len(_DRAWN)) if ports.is_free(port))
    return [next(free) for _ in range(count)]


def _properties(folder: Path, places: dict[str, str]) -> str:
    told = [f"{name}://{place}" for name, place in places.items()]
    return Template((_RECIPE / "secured.properties").read_text()).substitute(
        listeners=",".join(told),
        advertised=",".join(told[:-1]),
        controller=places["CONTROLLER"].rpartition(":")[2],
        folder=folder,
        plain=f'{_MODULE}.plain.PlainLoginModule required username="admin" password="admin" user_admin="admin";',
        scram=f"{_MODULE}.scram.ScramLoginModule required;",
    )


if __name__ == "__main__":
    main()
