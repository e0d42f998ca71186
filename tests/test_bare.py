"""Images without Python: one command in a container of its own, what cannot be had there, and that nothing outlives a killed runner."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from metier_infra.errors import MissingService
from metier_infra.settings import SandboxSettings
from metier_tools import owner
from metier_tools.bare import judge, spoken
from metier_tools.docker_engine import Ended
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.limits import USERS
from metier_tools.profile import Egress, Profile
from metier_tools.sandbox import Outcome, Recipe, Request, Server
from metier_tools.warden import Warden


@pytest.fixture(scope="module")
def sandbox() -> Generator[DockerSandbox]:
    image = os.environ["METIER_SANDBOX_IMAGE"]
    opened = DockerSandbox(SandboxSettings.model_validate({"image": image, "pool": 0, "limit": 4}))
    yield opened
    opened.close()


def run(sandbox: DockerSandbox, image: str, request: Request) -> Outcome:
    with sandbox.hold("bare", 20, Recipe(Profile(name="bare", image=image))) as held:
        return held.run(request)


def command(*argv: str, stdin: bytes = b"", timeout_s: float = 5.0) -> Request:
    return Request("command", "", timeout_s, argv=argv, stdin=stdin)


def test_a_command_runs_with_its_words_and_its_input(sandbox: DockerSandbox, bare_image: str) -> None:
    words = ("printf", "%s|", "a b", "it's", "$HOME", "two\nlines", "")
    assert run(sandbox, bare_image, command(*words)).stdout == "a b|it's|$HOME|two\nlines||"
    counted = run(sandbox, bare_image, command("wc", "-c", stdin=b"x" * 100_000))
    assert (counted.status, counted.stdout) == ("ok", "100000\n")


def test_every_end_of_a_command_is_an_outcome(sandbox: DockerSandbox, bare_image: str) -> None:
    ends = {
        "exit": command("sh", "-c", "echo out; echo err >&2; exit 3"),
        "signal": command("sh", "-c", "sh -c 'kill -9 $$'; exit $?"),
        "none": command("no-such-program"),
        "time": command("sleep", "30", timeout_s=0.5),
        "flood": command("yes"),
    }
    found = {name: run(sandbox, bare_image, request) for name, request in ends.items()}
    assert {name: (one.status, one.exit_code) for name, one in found.items()} == {
        "exit": ("error", 3),
        "signal": ("error", -9),
        "none": ("error", 127),
        "time": ("timeout", None),
        "flood": ("output_cut", None),
    }
    assert (found["exit"].stdout, found["exit"].stderr) == ("out\n", "err\n")
    assert found["flood"].truncated


def test_a_command_that_is_ended_from_outside_has_died(sandbox: DockerSandbox, bare_image: str) -> None:
    with sandbox.hold("ended", 20, Recipe(Profile(name="bare", image=bare_image))) as held:
        threading.Timer(0.5, held.stop).start()
        outcome = held.run(command("sh", "-c", "echo half; sleep 20; echo whole", timeout_s=30))
    assert (outcome.status, outcome.exit_code, outcome.stdout) == ("died", None, "half\n")


def test_there_is_one_warden_however_many_ask_for_it_at_once() -> None:
    warden = Warden("nobody", None)
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(warden.post) for _ in range(32)]
        for one in asked:
            one.result(10)
    said = subprocess.run(
        ["pgrep", "-f", "metier_tools.warden nobody"], capture_output=True, text=True, check=False
    ).stdout
    warden.call_off()
    assert len(said.split()) == 1


def test_each_call_has_a_container_of_its_own(sandbox: DockerSandbox, bare_image: str) -> None:
    recipe = Recipe(Profile(name="bare", image=bare_image))
    seen: list[str] = []
    for _ in range(2):
        with sandbox.hold("own", 20, recipe) as held:
            seen.append(held.container)
            assert held.run(command("sh", "-c", "ls /tmp; touch /tmp/left")).stdout == ""
    assert len(set(seen)) == 2


def test_the_walls_are_the_same(sandbox: DockerSandbox, bare_image: str) -> None:
    script = "id -u; touch /x 2>&1; cat /proc/self/status | grep -E '^(CapEff|NoNewPrivs|Seccomp):'"
    seen = run(sandbox, bare_image, command("sh", "-c", script)).stdout
    assert int(seen.split()[0]) in USERS
    assert "Read-only file system" in seen
    assert "CapEff:\t0000000000000000" in seen
    assert "NoNewPrivs:\t1" in seen
    assert "Seccomp:\t2" in seen


@pytest.mark.parametrize(
    "wants",
    [
        Request("python", "print(1)", 5),
        Request("command", "", 5, argv=("ls",), files={"a": b"1"}),
        Request("command", "", 5, argv=("ls",), take=("a",)),
        Request("command", "", 5, argv=("ls",), environment={"TOKEN": "secret"}),
    ],
    ids=["a program", "files in", "files out", "secrets"],
)
def test_what_needs_our_pid_1_is_refused(sandbox: DockerSandbox, bare_image: str, wants: Request) -> None:
    outcome = run(sandbox, bare_image, wants)
    assert (outcome.status, "no /usr/bin/python3" in outcome.stderr) == ("refused", True)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Profile(name="net", egress=Egress(hosts=("api.example.com",)))),
        Recipe(Profile(name="key"), Server("s", ("sh",), (("TOKEN", "secret"),))),
    ],
    ids=["network", "a server's secrets"],
)
def test_a_container_that_would_need_our_pid_1_is_not_made(
    sandbox: DockerSandbox, bare_image: str, recipe: Recipe
) -> None:
    there = Recipe(recipe.profile.model_copy(update={"image": bare_image}), recipe.server)
    with pytest.raises(MissingService, match="neither network nor secrets"), sandbox.hold("refused", 20, there):
        pass


SERVER = """printf '%s\\n' '{"jsonrpc":"2.0","method":"notifications/x"}'
while IFS= read -r line; do
  case "$line" in
    *'"tools/list"'*) id=${line#*'"id": '}; id=${id%%[,\\}]*}
      printf '{"jsonrpc":"2.0","id":%s,"result":{"tools":[{"name":"t","description":"d","inputSchema":{"type":"object"}}]}}\\n' "$id" ;;
    *'"initialize"'*) id=${line#*'"id": '}; id=${id%%[,\\}]*}
      printf '{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}}\\n' "$id" ;;
    *'"server/discover"'*) id=${line#*'"id": '}; id=${id%%[,\\}]*}
      printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\\n' "$id" ;;
  esac
done
while :; do sleep 1; done
"""


def test_a_server_in_such_an_image_is_spoken_to(sandbox: DockerSandbox, bare_image: str) -> None:
    recipe = Recipe(Profile(name="bare", image=bare_image), Server("s", ("sh", "-c", SERVER)))
    assert [spec.name for spec in sandbox.definitions(recipe)] == ["s__t"]


HOLDER = """
import os, sys
from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.limits import USERS
from metier_tools.profile import Profile
from metier_tools.sandbox import Recipe, Request
box = DockerSandbox(SandboxSettings(image=os.environ["METIER_SANDBOX_IMAGE"], pool=0, limit=4))
with box.hold("busy", 10, Recipe(Profile(name="bare", image=sys.argv[1]))) as held:
    print(box.owner, flush=True)
    held.run(Request("command", "", 300, argv=("sh", "-c", "trap '' TERM HUP INT PIPE; while :; do :; done")))
"""


def test_a_command_that_nobody_tells_to_end_is_ended_after_its_runner_was_killed(bare_image: str) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, bare_image], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    bearer = holder.stdout.readline().strip()
    assert until(lambda: bearer in containers(), 10)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert until(lambda: bearer not in containers(), 60)


def containers() -> list[str]:
    line = ["docker", "ps", "-a", "--format", f'{{{{.Label "{owner.LABEL}"}}}}']
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()


def until(ready: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not ready() and time.monotonic() < end:
        time.sleep(0.1)
    return ready()


@pytest.mark.parametrize(
    ("code", "memory", "said"),
    [(0, True, ("ok", 0)), (3, False, ("error", 3)), (137, True, ("oom", -9)), (139, False, ("error", -11))],
)
def test_one_word_for_each_end(code: int, memory: bool, said: tuple[str, int]) -> None:
    assert judge(Ended.model_validate({"Running": False, "ExitCode": code, "OOMKilled": memory})) == said


def test_words_reach_the_command_as_they_are() -> None:
    said = spoken(command("a", "b'c", "d\ne"))
    assert said == b"exec a 'b'\"'\"'c' 'd'\"$n\"'e'\n"
