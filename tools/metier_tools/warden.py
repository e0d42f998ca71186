"""The end of containers that outlive the process which held them: a small process that waits for that, and then removes them.

Containers with our PID 1 end with their standard input and need no warden. `docker_sandbox` posts one before it starts anything else:
a server or a command that nobody tells to end. Run as `python -m metier_tools.warden OWNER [ENGINE]`; standard input is its tether.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress

LOOKS_S = 60.0
"""How long a warden looks for what its owner left; seconds."""


class Warden:
    """Posts the process, once, and calls it off."""

    def __init__(self, owner: str, base_url: str | None) -> None:
        self._words = [sys.executable, "-m", "metier_tools.warden", owner, *([base_url] if base_url else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def post(self) -> None:
        """Have a warden from now on."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, start_new_session=True)

    def call_off(self) -> None:
        """Have none: the owner has removed its containers itself."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process = None


def watch(owner: str, base_url: str | None) -> None:
    """Wait for the owner's end, then remove its containers, also those that only now come to be."""
    sys.stdin.buffer.read()
    from metier_infra.errors import EngineGone
    from metier_tools.docker_engine import Engine

    engine, until = Engine(base_url), time.monotonic() + LOOKS_S
    quiet = 0
    while time.monotonic() < until and quiet < 3:
        with suppress(EngineGone):
            left = [one for one in engine.sandboxes() if one.owner == owner]
            for one in left:
                engine.remove(one.id)
            quiet = 0 if left else quiet + 1
        time.sleep(1.0)


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
