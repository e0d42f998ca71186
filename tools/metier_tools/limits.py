"""The container options that enforce a profile.

Pure: `docker_sandbox` sends what `container` returns, `selftest` compares it with what a container really sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from metier_tools.inside import wire
from metier_tools.profile import Profile

NOBODY = 65534
USERS = range(63_000, 65_000)
"""Numbers of users that a machine is not likely to have, and that a user namespace of the usual size holds."""
SCRATCH = str(PurePosixPath("/", "tmp"))
PROXIES = tuple(
    f"{name}=http://127.0.0.1:{wire.PORT}" for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
)
"""What programs go by where the network may be used."""
ENVIRONMENT = ("PATH=/usr/local/bin:/usr/bin:/bin", f"HOME={SCRATCH}", "USER=sandbox", "LANG=C.UTF-8")


@cache
def seccomp(*, network: bool = False) -> str:
    """Our allow-list of system calls, as the engine takes it.

    Internet sockets are unreachable, those of the container's own loopback device too: their buffers are the host's memory. With
    `network` a program may have TCP over IPv4, by which it comes to the relay; nothing else leads anywhere.
    """
    rules = json.loads((Path(__file__).parent / "seccomp.json").read_text())
    rules["syscalls"] += _TCP if network else [_unreachable(family) for family in (_AF_INET, _AF_INET6)]
    return json.dumps(rules)


_AF_INET, _AF_INET6, _SOCK_STREAM, _TYPE, _TCP_PROTOCOL, _ENETUNREACH = 2, 10, 1, 0xF, 6, 101


def _unreachable(family: int) -> dict[str, JsonValue]:
    args: list[JsonValue] = [{"index": 0, "value": family, "op": "SCMP_CMP_EQ"}]
    return {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENETUNREACH, "args": args}


_TCP = [
    {
        "names": ["socket"],
        "action": "SCMP_ACT_ALLOW",
        "args": [
            {"index": 0, "value": _AF_INET, "op": "SCMP_CMP_EQ"},
            {"index": 1, "value": _TYPE, "valueTwo": _SOCK_STREAM, "op": "SCMP_CMP_MASKED_EQ"},
            {"index": 2, "value": protocol, "op": "SCMP_CMP_EQ"},
        ],
    }
    for protocol in (0, _TCP_PROTOCOL)
]


@dataclass(frozen=True)
class Place:
    """Where a container runs, beside its profile: operators' choices, and what this one call needs.

    Attributes:
        runtime: an OCI runtime by its name in the engine; None: the engine's default.
        cgroup_parent: the cgroup under which all sandboxes together are limited; None: the engine's default.
        door: a socket of ours on this machine, which leads to the egress proxy.
        user: the user's number. One of its own for each container: the kernel counts some things by user, whatever the container.
        stays: whether the container is kept when it has ended, for its exit code.
    """

    runtime: str | None = None
    cgroup_parent: str | None = None
    door: str | None = None
    user: int = NOBODY
    stays: bool = False


def container(
    profile: Profile, image: str, command: Sequence[str], labels: Mapping[str, str], place: Place | None = None
) -> dict[str, JsonValue]:
    """The engine's create request for a container that `profile` limits. Every isolation flag is on; none can be turned off."""
    place = place or Place()
    return {
        "Image": image,
        "Cmd": [*command],
        "Entrypoint": [],
        "User": f"{place.user}:{NOBODY}",
        "WorkingDir": SCRATCH,
        "Env": [*ENVIRONMENT, *(PROXIES if profile.egress else ())],
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
        "HostConfig": host(profile, place),
    }


def host(profile: Profile, place: Place) -> dict[str, JsonValue]:
    """The part of the request that isolates and limits."""
    return {
        **_walls(profile),
        "AutoRemove": not place.stays,
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
        **({"Runtime": place.runtime} if place.runtime else {}),
        **({"CgroupParent": place.cgroup_parent} if place.cgroup_parent else {}),
        **({"Mounts": [_door(place.door)]} if place.door else {}),
    }


def _door(path: str) -> JsonValue:
    """A mount, and not a bind, which would make a folder where nothing is."""
    return {"Type": "bind", "Source": path, "Target": wire.DOOR, "ReadOnly": True}


def _walls(profile: Profile) -> dict[str, JsonValue]:
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={seccomp(network=profile.egress is not None)}"],
        "Privileged": False,
        "IpcMode": "none",
        "LogConfig": {"Type": "none"},
    }


def _tmpfs(profile: Profile) -> str:
    return f"rw,noexec,nosuid,nodev,size={profile.tmp_bytes},nr_inodes={profile.tmp_inodes},mode=1777"


def _ulimit(name: str, most: int) -> dict[str, JsonValue]:
    return {"Name": name, "Soft": most, "Hard": most}
