"""Files and disk: trees made to break the wipe or to turn it against others, hostile names, and the limits of the scratch folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from metier_tools.sandbox import Outcome

LEFT_BEHIND = {
    "hostile names": "for name in (b'-rf', b' ', b'*', b'a\\nb', b'\\xff\\xfe', b'x' * 255, b'\\x1b[31m', b'..x', b'$(id)', '\\u202e'.encode()):\n"
    "    open(b'/tmp/' + name, 'w').close(); os.mkdir(b'/tmp/d' + name[:200]); open(b'/tmp/d' + name[:200] + b'/' + name, 'w').close()",
    "links to everything": "for n, to in enumerate(('/', '/proc', '/proc/1/root', '/etc', '/tmp', '.', '..', '/dev/null', '/nowhere', 'l0')): os.symlink(to, f'/tmp/l{n}')",
    "a loop of links": "os.mkdir('/tmp/a'); os.symlink('/tmp/b', '/tmp/a/b'); os.symlink('/tmp/a', '/tmp/b')",
    "a hundred hard links": "open('f', 'w').close(); os.mkdir('d')\nfor n in range(100): os.link('f', f'd/{n}')",
    "shut folders": "for mode in (0, 0o111, 0o222, 0o444, 0o1000):\n"
    "    os.makedirs(f'/tmp/{mode}/in/side'); open(f'/tmp/{mode}/in/side/f', 'w').close(); os.chmod(f'/tmp/{mode}/in', mode); os.chmod(f'/tmp/{mode}', mode)",
    "sticky, setgid and setuid": "os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d/f', 0o7777); os.chmod('d', 0o7000)",
    "fifos, sockets and a whiteout": "os.mkfifo('fifo'); s = socket.socket(socket.AF_UNIX); s.bind('/tmp/socket'); os.mknod('white', 0o20000, 0)",
    "a file that is mapped and deleted": "f = os.open('m', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 20); m = mmap.mmap(f, 1 << 20); m[:5] = b'stays'; os.unlink('m')",
    "a folder that is a dead program's home": "os.makedirs('/tmp/x/y'); os.chdir('/tmp/x/y'); os.rename('/tmp/x', '/tmp/z')",
    "locked files": "f = open('lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX); fcntl.fcntl(f, 1024, 1)",
    "sealed and attributed": "open('f', 'w').close()\ntry: os.setxattr('f', 'user.x', b'y' * 1000)\nexcept OSError: pass\nos.chmod('f', 0)",
    "no dump, no time": "f = os.open('f', os.O_CREAT); fcntl.ioctl(f, 0x40086602, struct.pack('l', 0x40 | 0x80)); os.mkdir('d'); open('d/g', 'w').close()",
}  # fmt: skip
IMPORTS = "import fcntl, mmap, os, socket, struct\n"


@pytest.mark.parametrize("what", LEFT_BEHIND)
def test_what_is_left_in_the_scratch_folder_is_wiped(python: Callable[..., Outcome], what: str) -> None:
    outcome = python(IMPORTS + LEFT_BEHIND[what] + "\nprint('left')")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ok", "left\n", "")


def test_links_do_not_lead_the_wipe_astray(python: Callable[..., Outcome]) -> None:
    before = python(
        "import os; print(os.stat('/etc').st_mode, os.stat('/proc/1').st_mode, len(os.listdir('/etc')), os.stat('/dev/mqueue').st_mode)"
    )
    python(
        "import os\nos.mkdir('d', 0)\nfor to in ('/etc', '/dev/mqueue', '/proc/1', '/usr/bin'): os.symlink(to, to.replace('/', '_'))"
    )
    after = python(
        "import os; print(os.stat('/etc').st_mode, os.stat('/proc/1').st_mode, len(os.listdir('/etc')), os.stat('/dev/mqueue').st_mode)"
    )
    assert (before.status, after.stdout) == ("ok", before.stdout)


@pytest.mark.parametrize(("deep", "name"), [(150, "d"), (1000, "d"), (3000, "n" * 200)])
def test_a_deep_tree_is_wiped_or_ends_the_container(python: Callable[..., Outcome], deep: int, name: str) -> None:
    outcome = python(f"import os\nfor n in range({deep}): os.mkdir('{name}'); os.chdir('{name}')\nprint('down')")
    assert (outcome.status, outcome.stdout) == ("ok", "down\n")


def test_a_wide_tree_is_wiped_in_the_time_that_a_call_has(python: Callable[..., Outcome]) -> None:
    wide = "import os\nfor n in range(4000): os.mkdir(f'/tmp/{n}'); open(f'/tmp/{n}/f', 'w').close()\nprint('wide')"
    outcome = python(wide)
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("ok", 0, "wide\n")


def test_files_are_limited_in_number(refusal: Callable[[str], str]) -> None:
    assert refusal("for n in range(10_000): os.close(os.open(f'/tmp/{n}', os.O_CREAT))") == "ENOSPC"


def test_links_are_limited_in_number_too(refusal: Callable[[str], str]) -> None:
    assert refusal("for n in range(10_000): os.symlink('x', f'/tmp/{n}')") == "ENOSPC"


def test_the_scratch_folder_is_limited_in_size(python: Callable[..., Outcome]) -> None:
    fill = "import os\nwritten = 0\ntry:\n    for n in range(9):\n        f = os.open(f'/tmp/{n}', os.O_CREAT | os.O_WRONLY)\n        for _ in range(32): written += os.write(f, bytes(1 << 20))\n"
    outcome = python(fill + "except OSError as error: print(error.errno, written >> 20)")
    assert outcome.stdout == "28 64\n"


def test_a_file_that_nobody_can_see_counts_too(python: Callable[..., Outcome]) -> None:
    hide = "import os\nwritten = 0\nf = os.open('/tmp', os.O_TMPFILE | os.O_WRONLY), os.open('/tmp', os.O_TMPFILE | os.O_WRONLY)\n"
    outcome = python(
        hide
        + "try:\n    for n in range(200): written += os.write(f[n % 2], bytes(1 << 20))\nexcept OSError as error: print(error.errno, written >> 20)"
    )
    assert outcome.stdout == "28 64\n"


def test_a_reservation_beyond_the_scratch_folder_is_refused(refusal: Callable[[str], str]) -> None:
    assert (
        refusal(
            "f = os.open('/tmp/f', os.O_CREAT | os.O_WRONLY)\nfor at in range(9): os.posix_fallocate(os.open(f'/tmp/{at}', os.O_CREAT | os.O_WRONLY), 0, 32 << 20)"
        )
        == "ENOSPC"
    )


def test_a_file_beyond_the_limit_of_one_is_refused(refusal: Callable[[str], str]) -> None:
    assert refusal("f = os.open('/tmp/f', os.O_CREAT | os.O_WRONLY); os.pwrite(f, b'x', 64 << 20)") == "EFBIG"
    assert refusal("f = os.open('/tmp/f', os.O_CREAT | os.O_WRONLY); os.ftruncate(f, 1 << 40)") == "EFBIG"


def test_a_shell_that_writes_beyond_the_limit_of_one_file_is_killed_for_it(shell: Callable[..., Outcome]) -> None:
    outcome = shell("exec dd if=/dev/zero of=/tmp/f bs=1M seek=64 count=1 2>/dev/null")
    assert (outcome.status, outcome.exit_code) in {("error", -25), ("error", 1)}


def test_the_limit_of_one_file_cannot_be_raised(refusal: Callable[[str], str]) -> None:
    assert (
        refusal(
            "try: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, 1 << 40))\nexcept ValueError: raise OSError(errno.EPERM, '')"
        )
        == "EPERM"
    )


def test_a_sparse_file_takes_no_room_and_is_gone_after(python: Callable[..., Outcome]) -> None:
    sparse = "import os\nfor n in range(200): os.truncate(os.open(f'/tmp/{n}', os.O_CREAT | os.O_WRONLY), 64 << 20)\nprint(os.statvfs('/tmp').f_bfree * 4096 >> 20)"
    assert python(sparse).stdout == "64\n"


def test_a_full_disk_does_not_keep_the_wipe_from_its_work(python: Callable[..., Outcome]) -> None:
    fill = (
        "import os\nfor n in range(80):\n    os.mkdir(f'/tmp/{n}')\n    try: open(f'/tmp/{n}/f', 'wb').write(bytes(1 << 20))\n"
        "    except OSError as error: print(error.errno); break\n"
        "try:\n    for n in range(9000): os.mkdir(f'/tmp/x{n}')\nexcept OSError as error: print(error.errno)"
    )
    outcome = python(fill)
    assert (outcome.status, outcome.stdout) == ("ok", "28\n28\n")


def test_descriptors_are_limited_and_cannot_be_raised(refusal: Callable[[str], str]) -> None:
    assert refusal("while True: os.dup(0)") == "EMFILE"
    assert refusal("while True: os.pipe()") == "EMFILE"
    assert refusal("os.dup2(0, 256)") == "EBADF"
    assert (
        refusal(
            "try: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\nexcept ValueError: raise OSError(errno.EPERM, '')"
        )
        == "EPERM"
    )


def test_descriptors_parked_in_sockets_are_limited_by_memory_and_go_with_the_call(
    python: Callable[..., Outcome],
) -> None:
    park = (
        "import array, os, socket\nleft, right = socket.socketpair()\nparked = 0\ntry:\n    for _ in range(100):\n"
        "        fds = [os.open('/dev/null', os.O_RDONLY) for _ in range(200)]\n"
        "        left.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))], socket.MSG_DONTWAIT)\n"
        "        parked += len(fds)\n        for fd in fds: os.close(fd)\nexcept OSError as error: print(error.errno, parked <= 512)"
    )
    assert python(park).stdout == "109 True\n"


def test_the_image_is_read_only_even_to_its_owners_tricks(refusal: Callable[[str], str]) -> None:
    for deed in (
        "os.utime('/usr/bin', None)",
        "os.truncate('/etc/passwd', 0)",
        "os.unlink('/etc/passwd')",
        "os.mkdir('/usr/x')",
        "os.setxattr('/etc/passwd', 'user.x', b'1')",
    ):
        assert refusal(deed) in {"EROFS", "EACCES"}
