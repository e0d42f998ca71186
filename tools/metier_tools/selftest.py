"""Does this engine enforce what we ask of it? Some take limits and ignore them.

`docker_sandbox` lends it a container: `findings` runs programs there that look at their walls, and two that run against them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from metier_tools.limits import NOBODY, USERS
from metier_tools.profile import Profile
from metier_tools.sandbox import Outcome, Request

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
mounts = {words[1]: words[2:4] for words in map(str.split, open("/proc/self/mounts"))}
home = os.environ["HOME"]
scratch = os.statvfs(home)
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": int(status["NoNewPrivs"]),
    "seccomp": int(status["Seccomp"]),
    "read_only": "ro" in mounts["/"][1].split(","),
    "scratch": mounts.get(home, ["", ""])[1].split(","),
    "scratch_bytes": scratch.f_blocks * scratch.f_frsize,
    "scratch_files": scratch.f_files,
    "elsewhere": [
        place
        for place, (kind, _) in mounts.items()
        if place != home and kind != "mqueue" and os.path.isdir(place) and os.access(place, os.W_OK)
    ],
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
_PAGE = 4096
"""What the kernel rounds a scratch folder's size up to; bytes."""


class Seen(BaseModel):
    """What the probe saw from inside; error numbers are 0 where nothing was refused, limits -1 where none can be read.

    `elsewhere` are the mounts beside the scratch folder that can be written: what a program leaves there is found by the
    next one. Message queues are not counted, since the reset after each call removes them.
    """

    uid: int
    gid: int
    capabilities: int
    no_new_privileges: int
    seccomp: int
    read_only: bool
    scratch: list[str]
    scratch_bytes: int
    scratch_files: int
    elsewhere: list[str]
    interfaces: list[str]
    connect: int
    vsock: int
    io_uring: int
    pids: int
    memory: int
    swap: int


@dataclass(frozen=True)
class Finding:
    """One thing that a container must be held to, and whether this one is."""

    name: str
    holds: bool
    seen: str


def findings(run: Callable[[Request], Outcome], profile: Profile) -> list[Finding]:
    """What a container of this profile proves of itself, by looking and by trying."""
    looked = judged(run(Request("python", PROBE, 10.0)), profile)
    if len(looked) < len(Seen.model_fields) // 2:
        return looked
    return [*looked, _pids(run, profile), _memory(run, profile)]


def judged(outcome: Outcome, profile: Profile) -> list[Finding]:
    """What the probe saw, against what the profile asks."""
    if outcome.status != "ok":
        return [Finding("anything", False, f"the probe ended with {outcome.status}: {outcome.stderr.strip()[-300:]}")]
    try:
        seen = Seen.model_validate_json(outcome.stdout)
    except ValidationError:
        return [Finding("anything", False, "the probe's answer cannot be read")]
    return [Finding(name, holds, what) for name, (holds, what) in _checks(seen, profile).items()]


_FORKS = """
import os, time
count = 0
try:
    while count < %d:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        count += 1
except OSError:
    pass
print(count)
"""


def _pids(run: Callable[[Request], Outcome], profile: Profile) -> Finding:
    outcome = run(Request("python", _FORKS % (profile.pids + 16), 10.0))
    count = outcome.stdout.strip()
    return Finding(
        "pids limit, when tried", count.isdigit() and int(count) < profile.pids, f"{count} processes were had"
    )


def _memory(run: Callable[[Request], Outcome], profile: Profile) -> Finding:
    outcome = run(Request("python", f"len(bytes({profile.memory_bytes}).hex())", 10.0))
    return Finding("memory limit, when tried", outcome.status == "oom", f"the program ended with {outcome.status}")


def _checks(seen: Seen, profile: Profile) -> dict[str, tuple[bool, str]]:
    return {
        "user without rights": (seen.uid in USERS and seen.gid == NOBODY, f"{seen.uid}:{seen.gid}"),
        "no capabilities": (seen.capabilities == 0, f"{seen.capabilities:#x}"),
        "no-new-privileges": (seen.no_new_privileges == 1, f"{seen.no_new_privileges}"),
        "seccomp filter": (seen.seccomp == 2, f"mode {seen.seccomp}"),
        "system calls refused (io_uring)": (seen.io_uring == _EPERM, f"errno {seen.io_uring}"),
        "socket families refused (vsock)": (seen.vsock == _EPERM, f"errno {seen.vsock}"),
        "read-only root": (seen.read_only, "read-only" if seen.read_only else "writable"),
        "scratch folder limited": ({"noexec", "nosuid", "nodev"} <= set(seen.scratch), ",".join(seen.scratch)),
        "size of the scratch folder": (0 < seen.scratch_bytes < profile.tmp_bytes + _PAGE, f"{seen.scratch_bytes}"),
        "files in the scratch folder": (0 < seen.scratch_files <= profile.tmp_inodes, f"{seen.scratch_files}"),
        "nothing else can be written": (not seen.elsewhere, ",".join(seen.elsewhere)),
        "no network": (not set(seen.interfaces) - {"lo"} and seen.connect == _ENETUNREACH, f"errno {seen.connect}"),
        "pids limit": (seen.pids == profile.pids, f"{seen.pids}"),
        "memory limit": (seen.memory == profile.memory_bytes, f"{seen.memory}"),
        "no swap": (seen.swap in {0, profile.memory_bytes}, f"{seen.swap}"),
    }
