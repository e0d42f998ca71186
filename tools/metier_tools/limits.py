"""What a sandbox may use, as plain data, and the container options that enforce it.

Pure: `docker_sandbox` sends what `container` returns, `selftest` compares it with what a container really sees.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

KIB, MIB = 1024, 1024 * 1024
NOBODY = 65534
SCRATCH = str(PurePosixPath("/", "tmp"))
ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin", f"HOME={SCRATCH}", "LANG=C.UTF-8")


@dataclass(frozen=True)
class Profile:
    """The limits of one container.

    Attributes:
        cpus: processor time, in processors.
        memory_bytes: memory, files in the scratch folder included; there is no swap beyond it.
        pids: processes and threads.
        tmp_bytes: size of the scratch folder, the only place that can be written.
        tmp_inodes: files and folders in it.
        file_bytes: size of one file.
        open_files: open files of one process.
        longest_s: no call may take longer, whatever it asks for; seconds.
        keep_bytes: what is kept of each output stream of a call.
        flood_bytes: a call that writes more than this in all is stopped.
    """

    cpus: float = 1.0
    memory_bytes: int = 256 * MIB
    pids: int = 64
    tmp_bytes: int = 64 * MIB
    tmp_inodes: int = 8192
    file_bytes: int = 64 * MIB
    open_files: int = 256
    longest_s: float = 300.0
    keep_bytes: int = 256 * KIB
    flood_bytes: int = 8 * MIB


@cache
def seccomp() -> str:
    """Our allow-list of system calls, as the engine takes it."""
    return json.dumps(json.loads((Path(__file__).parent / "seccomp.json").read_text()))


def container(
    profile: Profile, image: str, command: list[str], labels: dict[str, str], runtime: str | None = None
) -> dict[str, JsonValue]:
    """The engine's create request for a container that `profile` limits. Every isolation flag is on; none can be turned off."""
    return {
        "Image": image,
        "Cmd": [*command],
        "Entrypoint": [],
        "User": f"{NOBODY}:{NOBODY}",
        "WorkingDir": SCRATCH,
        "Env": [*ENVIRONMENT],
        "Labels": {**labels},
        "NetworkDisabled": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": host(profile, runtime),
    }


def host(profile: Profile, runtime: str | None = None) -> dict[str, JsonValue]:
    """The part of the request that isolates and limits."""
    return {
        **_walls(),
        "Tmpfs": {SCRATCH: _tmpfs(profile)},
        "PidsLimit": profile.pids,
        "Memory": profile.memory_bytes,
        "MemorySwap": profile.memory_bytes,
        "NanoCpus": int(profile.cpus * 1e9),
        "Ulimits": [
            _ulimit("nofile", profile.open_files),
            _ulimit("fsize", profile.file_bytes),
            _ulimit("core", 0),
        ],
        **({"Runtime": runtime} if runtime else {}),
    }


def _walls() -> dict[str, JsonValue]:
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp()}"],
        "Privileged": False,
        "IpcMode": "none",
        "LogConfig": {"Type": "none"},
        "AutoRemove": True,
    }


def _tmpfs(profile: Profile) -> str:
    return f"rw,noexec,nosuid,nodev,size={profile.tmp_bytes},nr_inodes={profile.tmp_inodes},mode=1777"


def _ulimit(name: str, most: int) -> dict[str, JsonValue]:
    return {"Name": name, "Soft": most, "Hard": most}
