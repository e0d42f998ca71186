"""Secrets: what a program can learn of the host, of the runner, and of the calls before it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable

import pytest

from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Outcome, Request

ENVIRONMENT = {"PATH", "HOME", "USER", "LANG", "HOSTNAME", "LC_CTYPE"}


def test_the_environment_is_ours_and_nothing_of_the_hosts(
    python: Callable[..., Outcome], shell: Callable[..., Outcome]
) -> None:
    names = json.loads(python("import json, os; print(json.dumps(dict(os.environ)))").stdout)
    assert set(names) <= ENVIRONMENT
    assert "METIER" not in json.dumps(names)
    assert {line.partition("=")[0] for line in shell("exec env").stdout.splitlines()} <= ENVIRONMENT | {"PWD", "OLDPWD"}


def test_no_value_of_the_hosts_environment_is_in_the_container(
    python: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = f"marker-{uuid.uuid4().hex}"
    monkeypatch.setenv("METIER_ABUSE_SECRET", marker)
    seen = python(
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):\n    try: print(open(path).read())\n    except OSError: pass"
    )
    assert "METIER" not in seen.stdout.replace("METIER_SANDBOX", "")
    assert marker not in seen.stdout


def test_the_hosts_processes_and_users_are_not_seen(python: Callable[..., Outcome]) -> None:
    assert (
        python("import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[0], os.getppid())").stdout
        == "1 1\n"
    )
    assert (
        str(os.getpid())
        not in python("import os; print(*[p for p in os.listdir('/proc') if p.isdigit()][2:])").stdout.split()
    )
    assert (
        python("import pwd; print([u.pw_name for u in pwd.getpwall() if u.pw_passwd not in ('x', '*', '!')])").stdout
        == "[]\n"
    )


def test_no_file_in_the_image_holds_a_key_or_a_setting_of_ours(shell: Callable[..., Outcome]) -> None:
    found = shell(
        "find / -xdev \\( -name '*.pem' ! -path /usr/lib/ssl/cert.pem -o -name 'id_*' -o -name '.env' -o -name '.netrc' -o -name '.git' -o -name '*.key' -o -name 'shadow' \\) 2>/dev/null;"
        " grep -rlsE 'METIER_|BEGIN [A-Z ]*PRIVATE KEY' /etc /work /usr/lib/ssl 2>/dev/null", 30.0
    )  # fmt: skip
    assert found.stdout == ""


SCAN = """
import sys
def split(text): return [half.encode() for half in text.split('|')]
found = []
memory = open('/proc/self/mem', 'rb', 0)
for line in open('/proc/self/maps'):
    span, rights = line.split()[:2]
    if 'r' not in rights or '[v' in line: continue
    start, end = (int(part, 16) for part in span.split('-'))
    try: memory.seek(start); data = memory.read(end - start)
    except OSError: continue
    for left, right in {pairs}:
        if left.encode() + right.encode() in data: found.append(left)
    del data
print(sorted(set(found)))
"""
"""Looks for words in its own memory that its own source holds only in halves."""
LEFT, RIGHT = "a-word-that-", "nobody-else-says"


def test_the_next_call_does_not_find_the_last_ones_source_in_its_memory(python: Callable[..., Outcome]) -> None:
    assert python(f"secret = '{LEFT}{RIGHT}'").status == "ok"
    assert python(SCAN.format(pairs=[(LEFT, RIGHT)])).stdout == "[]\n"


def test_the_next_call_does_not_find_a_shells_source_in_its_memory(
    python: Callable[..., Outcome], shell: Callable[..., Outcome]
) -> None:
    assert shell(f"secret='{LEFT}{RIGHT}'").status == "ok"
    assert python(SCAN.format(pairs=[(LEFT, RIGHT)])).stdout == "[]\n"


@pytest.mark.parametrize("size", [0, 400, 5000, 60_000, 300_000])
def test_the_next_call_does_not_find_the_last_ones_output_in_its_memory(
    python: Callable[..., Outcome], size: int
) -> None:
    said = python(f"import os\nos.write(1, b'.' * {size} + b'{LEFT}' + b'{RIGHT}')")
    assert said.stdout.endswith(LEFT + RIGHT) or size >= 256 * 1024
    assert python(SCAN.format(pairs=[(LEFT, RIGHT)])).stdout == "[]\n"


def test_the_next_call_does_not_find_the_last_ones_errors_in_its_memory(python: Callable[..., Outcome]) -> None:
    assert python(f"import os\nos.write(2, b'{LEFT}' + b'{RIGHT}')").stderr == LEFT + RIGHT
    assert python(SCAN.format(pairs=[(LEFT, RIGHT)])).stdout == "[]\n"


def test_the_scan_finds_what_is_there(python: Callable[..., Outcome]) -> None:
    assert python(f"kept = '{LEFT}{RIGHT}'\n" + SCAN.format(pairs=[(LEFT, RIGHT)])).stdout == f"['{LEFT}']\n"


def test_new_memory_is_empty(python: Callable[..., Outcome]) -> None:
    python("x = b'" + LEFT + RIGHT + "' * 1_000_000")
    fresh = "import mmap\nm = mmap.mmap(-1, 64 << 20)\nprint(m.read(64 << 20).count(0) == 64 << 20)"
    assert python(fresh).stdout == "True\n"


def test_two_leases_see_nothing_of_one_another(sandbox: DockerSandbox, python: Callable[..., Outcome]) -> None:
    other = f"other-{uuid.uuid4()}"
    leave = "import os, socket, time, fcntl\nopen('/tmp/mine', 'w').write('x'); s = socket.socket(socket.AF_UNIX); s.bind('\\0mine'); s.listen()\nfcntl.flock(open('/etc/passwd'), fcntl.LOCK_EX)\n"
    look = "import os, socket, fcntl\nprint(os.path.exists('/tmp/mine'), '@mine' in open('/proc/net/unix').read())\nfcntl.flock(os.open('/etc/passwd', os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with sandbox.hold(other, 30) as held:
        assert held.run(Request("python", leave + "os.write(1, b'set')", 5.0)).stdout == "set"
        assert python(look).stdout == "False False\n"
    sandbox.release(other)


def test_random_numbers_differ_from_call_to_call_and_from_lease_to_lease(
    sandbox: DockerSandbox, python: Callable[..., Outcome]
) -> None:
    draw = "import os, random, secrets, ssl, tempfile, uuid\nprint(random.random(), os.urandom(9).hex(), secrets.token_hex(9), uuid.uuid4(), ssl.RAND_bytes(9).hex(), next(tempfile._get_candidate_names()), sep='|')"
    drawn = [python(draw).stdout.strip().split("|") for _ in range(4)]
    other = f"other-{uuid.uuid4()}"
    with sandbox.hold(other, 30) as held:
        drawn.append(held.run(Request("python", draw, 5.0)).stdout.strip().split("|"))
    sandbox.release(other)
    assert [len(set(column)) for column in zip(*drawn, strict=True)] == [5] * 6
