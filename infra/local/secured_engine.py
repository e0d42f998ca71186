"""A container engine that is reached over TLS, each side known by its certificate, and by a socket that a user without rights may open.

Called by `tests/access`: `python3 infra/local/secured_engine.py start FOLDER [PORT]`, where FOLDER holds `ca.pem`, `engine.pem` and `engine.key`,
prints as JSON where it is and which sandbox image it has; `stop FOLDER` ends it and what it leaves.
"""

import json
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import image
import lifecycle
import ports
import services
from say import StackError
from state import State


def main() -> int:
    """Start or stop one engine."""
    action, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    try:
        port = int(sys.argv[3]) if len(sys.argv) > 3 else _free()
        engine = _engine(folder, port)
        if action == "stop":
            lifecycle.stop([engine])
            return 0
        lifecycle.start([engine])
        _open_to_all(folder / "docker.sock")
        print(json.dumps({"port": port, "unix": engine.url, "open": str(folder / "docker.sock"), "image": image.ensure(engine.url)}))  # fmt: skip
    except StackError as error:
        sys.exit(f"secured_engine: {error}")
    return 0


def _engine(folder: Path, port: int) -> services.Service:
    plain = services.docker(State(folder / "state"))

    def command() -> Sequence[str]:
        (folder / "docker.sock").unlink(missing_ok=True)
        files = {"tlscacert": "ca.pem", "tlscert": "engine.pem", "tlskey": "engine.key"}
        tls = [f"--{name}={folder / file}" for name, file in files.items()]
        return [
            *plain.command(),
            f"--host=tcp://127.0.0.1:{port}",
            f"--host=unix://{folder}/docker.sock",
            "--tlsverify",
            *tls,
        ]

    return replace(plain, command=command)


def _free() -> int:
    return next(port for port in random.sample(range(20000, 32000), 1000) if ports.is_free(port))


def _open_to_all(path: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(path, "nobody")


if __name__ == "__main__":
    sys.exit(main())
