"""Does this engine enforce what we ask of it? Some take limits and ignore them.

Pure: `docker_sandbox.check` runs `PROBE` in a container like any program, and `weaknesses` judges what it saw.
"""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from metier_tools.limits import NOBODY, Profile
from metier_tools.sandbox import Outcome

PROBE = """
import ctypes, errno, json, os, socket

def first(*paths):
    for path in paths:
        try:
            return int(open(path).read())
        except (OSError, ValueError):
            pass
    return -1

def refused(work):
    try:
        work()
    except OSError as error:
        return error.errno or -1
    return 0

def syscall(number, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "refused")

status = dict(line.split(":", 1) for line in open("/proc/self/status"))
mounts = {words[1]: words[3].split(",") for words in map(str.split, open("/proc/self/mounts"))}
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "seccomp": int(status["Seccomp"]),
    "read_only": "ro" in mounts["/"],
    "scratch": mounts.get(os.environ["HOME"], []),
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "connect": refused(lambda: socket.create_connection(("192.0.2.1", 9), 1)),
    "vsock": refused(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "io_uring": refused(lambda: syscall(425, 1, 0)),
    "pids": first("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"),
    "memory": first("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"),
    "swap": first("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "/sys/fs/cgroup/memory.swap.max"),
}))
"""
_EPERM, _ENETUNREACH = 1, 101


class Seen(BaseModel):
    """What the probe saw from inside; error numbers are 0 where nothing was refused, limits -1 where none can be read."""

    uid: int
    gid: int
    capabilities: int
    no_new_privileges: int
    seccomp: int
    read_only: bool
    scratch: list[str]
    interfaces: list[str]
    connect: int
    vsock: int
    io_uring: int
    pids: int
    memory: int
    swap: int


def weaknesses(outcome: Outcome, profile: Profile) -> list[str]:
    """The names of what is not enforced; empty when all is well."""
    if outcome.status != "ok":
        return [f"anything: the probe ended with {outcome.status}: {outcome.stderr.strip()[-300:]}"]
    try:
        seen = Seen.model_validate_json(outcome.stdout)
    except ValidationError:
        return ["anything: the probe's answer cannot be read"]
    return [name for name, holds in _checks(seen, profile).items() if not holds]


def _checks(seen: Seen, profile: Profile) -> dict[str, bool]:
    return {
        f"user {NOBODY}": (seen.uid, seen.gid) == (NOBODY, NOBODY),
        "no capabilities": seen.capabilities == 0,
        "no-new-privileges": seen.no_new_privileges == 1,
        "seccomp filter": seen.seccomp == 2,
        "system calls refused (io_uring)": seen.io_uring == _EPERM,
        "socket families refused (vsock)": seen.vsock == _EPERM,
        "read-only root": seen.read_only,
        "scratch folder limited": {"noexec", "nosuid", "nodev"} <= set(seen.scratch),
        "no network": not set(seen.interfaces) - {"lo"} and seen.connect == _ENETUNREACH,
        "pids limit": seen.pids == profile.pids,
        "memory limit": seen.memory == profile.memory_bytes,
        "no swap": seen.swap in {0, profile.memory_bytes},
    }
