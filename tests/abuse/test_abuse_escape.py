"""Escape surface: devices, kernel files, privileges, programs of one's own, and the ways out of the file system."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

WRITE = "os.open({path!r}, os.O_WRONLY)"
READ = "os.read(os.open({path!r}, os.O_RDONLY), 1)"

NO_SUCH_DEVICE = [
    "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/vsock", "/dev/vhost-vsock", "/dev/loop-control",
    "/dev/mapper/control", "/dev/sda", "/dev/vda", "/dev/userfaultfd", "/dev/snapshot", "/dev/shm/x", "/dev/console", "/dev/cpu/0/msr",
]  # fmt: skip


def test_no_device_is_there_but_the_harmless(python: Callable[..., Outcome]) -> None:
    assert python(f"import os; print([path for path in {NO_SUCH_DEVICE} if os.path.lexists(path)])").stdout == "[]\n"
    found = python(
        "import os, stat\nprint(sorted(p.name for p in os.scandir('/dev') if not stat.S_ISDIR(p.stat(follow_symlinks=False).st_mode)))"
    )
    names = "fd full null ptmx random stderr stdin stdout tty urandom zero"
    assert found.stdout == f"{[*names.split()]}\n" or found.stdout == f"{['core', *names.split()]}\n"


KERNEL_FILES = [
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/vm/drop_caches", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname",
    "/proc/sys/fs/suid_dumpable", "/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/irq/default_smp_affinity",
]  # fmt: skip


@pytest.mark.parametrize("path", KERNEL_FILES)
def test_no_setting_of_the_kernel_can_be_written(refusal: Callable[[str], str], path: str) -> None:
    assert refusal(WRITE.format(path=path)) in {"EROFS", "EACCES", "ENOENT"}


WALK = """
import os, stat
opened = []
for top in ('/sys', '/proc/sys', '/proc/irq', '/proc/bus', '/proc/fs', '/proc/scsi'):
    for folder, folders, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            if not stat.S_ISREG(os.lstat(path).st_mode): continue
            try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError: continue
            opened.append(path)
        for name in ('metier', '.metier'):
            try: os.mkdir(os.path.join(folder, name))
            except OSError: continue
            opened.append(folder)
print(opened)
"""


def test_nothing_in_sys_or_proc_sys_opens_for_writing_nor_takes_a_folder(python: Callable[..., Outcome]) -> None:
    assert python(WALK, 60.0).stdout == "[]\n"


PID1_READS = [
    "mem",
    "environ",
    "maps",
    "smaps",
    "auxv",
    "pagemap",
    "io",
    "stack",
    "syscall",
    "personality",
    "task/1/mem",
    "task/1/environ",
]
PID1_WRITES = [
    "mem",
    "oom_score_adj",
    "clear_refs",
    "comm",
    "coredump_filter",
    "timerslack_ns",
    "uid_map",
    "attr/current",
    "task/1/comm",
    "autogroup",
]
PID1_LINKS = ["exe", "cwd", "root", "fd/0", "fd/1", "fd/2", "ns/mnt", "ns/pid", "ns/user"]


def test_pid1_cannot_be_read(python: Callable[..., Outcome]) -> None:
    told = python(ERRNOS + f"print(seen({PID1_READS!r}, lambda p: os.read(os.open('/proc/1/' + p, os.O_RDONLY), 1)))")
    assert set(json.loads(told.stdout).values()) <= {"EACCES", "EPERM", "ENOENT"}
    assert json.loads(told.stdout)["mem"] == json.loads(told.stdout)["environ"] == "EACCES"


def test_pid1_cannot_be_written(python: Callable[..., Outcome]) -> None:
    told = python(
        ERRNOS + f"print(seen({PID1_WRITES!r}, lambda p: os.write(os.open('/proc/1/' + p, os.O_WRONLY), b'0')))"
    )
    assert set(json.loads(told.stdout).values()) <= {"EACCES", "EPERM", "ENOENT"}
    assert json.loads(told.stdout)["mem"] == json.loads(told.stdout)["oom_score_adj"] == "EACCES"


def test_pid1s_folders_files_and_namespaces_cannot_be_entered(python: Callable[..., Outcome]) -> None:
    told = python(ERRNOS + f"print(seen({PID1_LINKS!r}, lambda p: os.open('/proc/1/' + p, os.O_RDONLY)))")
    assert set(json.loads(told.stdout).values()) == {"EACCES"}


ERRNOS = """
import errno, json, os
def seen(paths, deed):
    found = {}
    for path in paths:
        try: deed(path)
        except OSError as error: found[path] = errno.errorcode[error.errno]
        else: found[path] = 'allowed'
    return json.dumps(found)
"""

UNNAMED = """
fd = os.open('/tmp', os.O_TMPFILE | os.O_RDWR, 0o755)
os.write(fd, open('/usr/bin/env', 'rb').read())
os.execve(os.open(f'/proc/self/fd/{fd}', os.O_RDONLY), ['x'], {})
"""
DETOUR = """
import glob, subprocess
loaders = glob.glob('/lib*/ld-linux-*.so*') + glob.glob('/lib/*/ld-linux-*.so*')
end = subprocess.run([loaders[0], copied('/usr/bin/env')], capture_output=True, text=True)
if 'failed to map segment' in end.stderr: raise OSError(errno.EPERM, end.stderr)
"""
DEEDS: dict[str, tuple[str, str]] = {
    "a block device of one's own": ("os.mknod('/tmp/d', 0o60666, os.makedev(8, 0))", "EPERM"),
    "a character device of one's own": ("os.mknod('/tmp/d', 0o20666, os.makedev(1, 1))", "EPERM"),
    "a terminal": ("os.open('/dev/tty', os.O_RDWR)", "ENXIO"),
    "typing into a terminal": ("fcntl.ioctl(1, termios.TIOCSTI, b'x')", "ENOTTY"),
    "the console's clipboard": ("fcntl.ioctl(1, 0x541C, bytes([3, 0]))", "ENOTTY"),
    "user 0": ("os.setresuid(0, 0, 0)", "EPERM"),
    "group 0": ("os.setresgid(0, 0, 0)", "EPERM"),
    "another user": ("os.setreuid(1000, 1000)", "EPERM"),
    "further groups": ("os.setgroups([0])", "EPERM"),
    "a user map": ("os.write(os.open('/proc/self/uid_map', os.O_WRONLY), b'0 65534 1')", "EPERM"),
    "the permission to set groups": ("os.write(os.open('/proc/self/setgroups', os.O_WRONLY), b'allow')", "EACCES"),
    "an ambient capability": ("if ctypes.CDLL(None, use_errno=True).prctl(47, 2, 21, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
    "secure bits": ("if ctypes.CDLL(None, use_errno=True).prctl(28, 1, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EPERM"),
    "new privileges again": ("if ctypes.CDLL(None, use_errno=True).prctl(38, 0, 0, 0, 0): raise OSError(ctypes.get_errno(), '')", "EINVAL"),
    "a file capability": ("open('/tmp/f', 'w').close(); os.setxattr('/tmp/f', 'security.capability', struct.pack('<5I', 0x02000001, 0x200000, 0, 0, 0))", "EPERM"),
    "an overlay's attribute": ("open('/tmp/f', 'w').close(); os.setxattr('/tmp/f', 'trusted.overlay.opaque', b'y')", "EPERM"),
    "an immutable file": ("fcntl.ioctl(os.open('/tmp/f', os.O_CREAT | os.O_RDWR), 0x40086602, struct.pack('l', 0x10))", "EPERM"),
    "freezing a file system": ("fcntl.ioctl(os.open('/tmp', os.O_RDONLY), 0xC0045877, 0)", "EPERM"),
    "the parent of our pid namespace": ("fcntl.ioctl(os.open('/proc/self/ns/pid', os.O_RDONLY), 0xB702)", "EPERM"),
    "the parent of our user namespace": ("fcntl.ioctl(os.open('/proc/self/ns/user', os.O_RDONLY), 0xB701)", "EPERM"),
    "the interpreter's own file": ("os.open('/proc/self/exe', os.O_WRONLY)", "EACCES"),
    "a program of one's own": ("os.chmod(copied('/usr/bin/env'), 0o4755); os.execv('/tmp/copy', ['copy'])", "EACCES"),
    "an unnamed program of one's own": (UNNAMED, "EACCES"),
    "a program mapped from the scratch folder": ("mmap.mmap(os.open(copied('/usr/bin/env'), os.O_RDONLY), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)", "EPERM"),
    "the loader's detour": (DETOUR, "EPERM"),
    "a hard link out of the scratch folder": ("os.link('/etc/passwd', '/tmp/passwd')", "EXDEV"),
    "a hard link to PID 1's output": ("os.link('/proc/1/fd/1', '/tmp/out', follow_symlinks=True)", "EACCES"),
    "the kernel's messages": ("os.open('/proc/kmsg', os.O_RDONLY)", "EACCES"),
    "the kernel's slabs": ("os.open('/proc/slabinfo', os.O_RDONLY)", "EACCES"),
    "the page frames of the machine": ("os.open('/proc/kpageflags', os.O_RDONLY)", "EACCES"),
    "another root": ("os.chroot('/tmp')", "EPERM"),
    "the scratch folder's mode": ("os.chmod('/tmp', 0)", "EPERM"),
    "the scratch folder itself": ("os.rename('/tmp', '/tmp2')", "EROFS"),
    "the host's name": ("socket.sethostname('x')", "EPERM"),
    "a network device up": ("fcntl.ioctl(socket.socket(socket.AF_UNIX), 0x8914, b'lo'.ljust(16, bytes(1)) + struct.pack('h', 0) + bytes(22))", "EPERM"),
}  # fmt: skip
COPIED = "import shutil\ndef copied(path): return shutil.copy(path, '/tmp/copy')\n"


@pytest.mark.parametrize("what", DEEDS)
def test_a_way_out_is_shut(refusal: Callable[[str], str], what: str) -> None:
    deed, says = DEEDS[what]
    assert refusal(COPIED + deed) == says


SETUID = """
import os, stat
found = []
for folder, _, names in os.walk('/'):
    if folder.startswith(('/proc', '/sys')): continue
    for name in names:
        mode = os.lstat(os.path.join(folder, name)).st_mode
        if stat.S_ISREG(mode) and mode & 0o6000: found.append(os.path.join(folder, name))
print(found)
"""


def test_the_image_has_no_setuid_file(python: Callable[..., Outcome]) -> None:
    assert python(SETUID, 30.0).stdout == "[]\n"


WRITABLE = """
import os
found = set()
for folder, folders, names in os.walk('/'):
    if folder.startswith(('/proc', '/sys', '/tmp')): continue
    try: os.close(os.open(os.path.join(folder, 'metier-was-here'), os.O_CREAT | os.O_WRONLY))
    except OSError: continue
    found.add(folder)
print(sorted(found - {'/dev/mqueue'}))
"""


def test_no_folder_takes_a_file_but_the_scratch_folder(python: Callable[..., Outcome]) -> None:
    assert python(WRITABLE, 30.0).stdout == "[]\n"


def test_what_the_kernel_hides_from_containers_is_empty(python: Callable[..., Outcome]) -> None:
    hidden = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats"]
    seen = python(f"import os\nprint([p for p in {hidden} if os.path.exists(p) and open(p, 'rb').read(1)])")
    assert seen.stdout == "[]\n"
    assert python("import os; print([os.listdir(p) for p in ('/proc/acpi', '/proc/scsi', '/sys/firmware') if os.path.exists(p)])").stdout in {
        f"{[[]] * count}\n" for count in range(4)
    }  # fmt: skip


HOST_PATHS = """
import os, re
said = open('/proc/self/mountinfo').read()
paths = re.findall(r'(?:lowerdir|upperdir|workdir)=([^,\\s]+)', said)
print(len(paths) > 0, [p for group in paths for p in group.split(':') if os.path.exists(p)])
print([p for p in ('/var/run/docker.sock', '/run/docker.sock', '/run/containerd', '/run/secrets', '/host', '/rootfs') if os.path.lexists(p)])
"""


def test_the_hosts_folders_are_known_by_name_but_not_reachable(python: Callable[..., Outcome]) -> None:
    assert python(HOST_PATHS).stdout == "True []\n[]\n"


def test_the_engine_leaks_no_descriptor_into_a_call(shell: Callable[..., Outcome]) -> None:
    assert shell("exec ls -A /proc/self/fd").stdout.split() == ["0", "1", "2", "3"]
    assert shell("readlink -f /proc/self/cwd /proc/self/root").stdout == "/tmp\n/\n"


CLIMB = "import os\nfor _ in range(64): os.chdir('..')\nprint(os.getcwd(), os.listdir('.') == os.listdir('/proc/self/root'), os.stat('/..').st_ino == os.stat('/').st_ino)"


def test_climbing_ends_at_the_containers_root(python: Callable[..., Outcome]) -> None:
    assert python(CLIMB).stdout == "/ True True\n"
