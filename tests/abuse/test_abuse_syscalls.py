"""Escape surface: the system calls by which sandboxes were broken, each by its number, with the errno that each must end with."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

MACHINE = os.uname().machine
COLUMN = {"x86_64": 0, "aarch64": 1}[MACHINE]
NONE = -1
REFUSED: dict[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_getevents": (208, 4),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "remap_file_pages": (216, 234),
    "request_key": (249, 218),
    "sched_setattr": (314, 274),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
    "vmsplice": (278, 75),
}
"""Each call's number on x86_64 and on aarch64. Zeros as arguments: a filter looks at the number first, so nothing else may answer."""
PORTS = {"ioperm": 173, "iopl": 172, "modify_ldt": 154, "uselib": 134, "ustat": 136, "_sysctl": 156}
"""Those that only x86_64 has."""
CALLS = {name: numbers[COLUMN] for name, numbers in REFUSED.items()} | (PORTS if MACHINE == "x86_64" else {})
NAMESPACES = {
    "time": 0x80, "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
CLONE, UNSHARE, PERSONALITY, SOCKET = ((56, 272, 135, 41), (220, 97, 92, 198))[COLUMN]
SIGCHLD, SIGSYS = 17, 31


@pytest.mark.parametrize("name", CALLS)
def test_a_dangerous_system_call_is_not_permitted(refusal: Callable[[str], str], name: str) -> None:
    assert refusal(f"syscall({CALLS[name]}, 0, 0, 0, 0, 0, 0)") == "EPERM"


@pytest.mark.parametrize("name", NAMESPACES)
def test_no_namespace_can_be_unshared(refusal: Callable[[str], str], name: str) -> None:
    assert refusal(f"syscall({UNSHARE}, {NAMESPACES[name]})") == "EPERM"


@pytest.mark.parametrize("name", [name for name, flag in NAMESPACES.items() if flag > 0xFF])
def test_no_namespace_can_be_cloned(refusal: Callable[[str], str], name: str) -> None:
    assert refusal(f"syscall({CLONE}, {NAMESPACES[name] | SIGCHLD}, 0, 0, 0, 0)") == "EPERM"


def test_a_namespace_hidden_behind_other_flags_and_high_bits_is_still_seen(refusal: Callable[[str], str]) -> None:
    assert refusal(f"syscall({CLONE}, {1 << 40 | 0x10000000 | 0x20000 | SIGCHLD}, 0, 0, 0, 0)") == "EPERM"


def test_clone3_is_said_not_to_exist_since_its_flags_cannot_be_seen(refusal: Callable[[str], str]) -> None:
    user = "flags = struct.pack('<11Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)\n"
    assert refusal(user + "syscall(435, ctypes.addressof(ctypes.create_string_buffer(flags)), 88)") == "ENOSYS"


@pytest.mark.parametrize("persona", [0x0040000, 0x0400000, 0x0008000, 8])
def test_address_randomisation_and_old_personalities_cannot_be_asked_for(
    refusal: Callable[[str], str], persona: int
) -> None:
    assert refusal(f"syscall({PERSONALITY}, {persona})") == "EPERM"


def test_the_process_that_asks_to_be_traced_is_refused_too(python: Callable[..., Outcome]) -> None:
    said = python(
        "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nprint(l.ptrace(0, 0, 0, 0), ctypes.get_errno())"
    )
    assert said.stdout == "-1 1\n"


UNKNOWN = "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\nprint([n for n in range(424, 700) if n not in {allowed} and (l.syscall(n, -1, -1, -1, -1, -1, -1), ctypes.get_errno()) not in ((-1, 1), (-1, 38))])"  # fmt: skip
LISTED = {424, 434, 436, 437, 439, 441, 444, 445, 446, 449, 452, 454, 455, 456}
"""What our list allows of the numbers that all machines share: pidfds, close_range, openat2, faccessat2, epoll_pwait2, landlock, futexes."""


def test_a_system_call_that_no_list_names_is_refused_however_new(python: Callable[..., Outcome]) -> None:
    assert python(UNKNOWN.format(allowed=LISTED)).stdout == "[]\n"


MACHINE_CODE = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex('{code}'))
print(ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
FOREIGN = {
    "x32": "import ctypes; print(ctypes.CDLL(None).syscall(0x40000000 | 39))",
    "x32 execve": "import ctypes; print(ctypes.CDLL(None).syscall(0x40000000 | 520, 0, 0, 0))",
    "int 0x80 getpid": MACHINE_CODE.format(code="b814000000cd80c3"),
    "int 0x80 clone into a user namespace": MACHINE_CODE.format(code="b878000000bb11000010cd80c3"),
}  # fmt: skip


@pytest.mark.parametrize("abi", FOREIGN if MACHINE == "x86_64" else [])
def test_the_system_calls_of_another_abi_are_death(python: Callable[..., Outcome], abi: str) -> None:
    outcome = python(FOREIGN[abi])
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("error", -SIGSYS, "")


def test_no_further_filter_or_capability_loosens_the_first(refusal: Callable[[str], str]) -> None:
    allow_all = "program = ctypes.create_string_buffer(struct.pack('<HBBI', 6, 0, 0, 0x7FFF0000))\n"
    load = "filter = ctypes.create_string_buffer(struct.pack('<HxxxxxxQ', 1, ctypes.addressof(program)))\n"
    apply = "assert ctypes.CDLL(None).prctl(22, 2, ctypes.c_long(ctypes.addressof(filter)), 0, 0) == 0\n"
    assert refusal(allow_all + load + apply + f"syscall({UNSHARE}, 0x10000000)") == "EPERM"
