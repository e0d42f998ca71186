"""The local stack, run as people run it: the command line, real processes, a state folder of its own per test.

Not tested here: installing from nothing (CI does, on a fresh machine) and Kafka (`make test` starts it by this stack).
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import docker
import pytest

STACK = Path(__file__).parents[1] / "infra/local/stack.py"
ROLES = ("orchestrator", "reasoner", "coder", "careful", "tools")
OURS = ("METIER_", "DOCKER_")


class Stack:
    """One state folder and the command line for it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith(OURS)}

    def begin(self, command: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        line = [sys.executable, str(STACK), command, "--state", str(self.state), *words]
        environment = self.environment | variables
        return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def call(self, command: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        with self.begin(command, *words, **variables) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def up(self, only: str, *words: str, **variables: str) -> str:
        done = self.call("up", "--only", only, "--ports", "auto", *words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def env(self) -> dict[str, str]:
        lines = self.call("env").stdout.splitlines()
        return dict(line.removeprefix("export ").split("=", 1) for line in lines)

    def pid(self, name: str) -> int:
        return int((self.state / f"run/{name}.pid").read_text().split()[0])

    def say_to_redis(self, words: str) -> str:
        host, port = re.findall(r"//(.*):(\d+)", self.env()["METIER_REDIS_URL"])[0]
        with socket.create_connection((host, int(port)), 5) as connection:
            connection.sendall(f"{words}\r\n".encode())
            return connection.recv(100).decode()


@pytest.fixture
def stack(tmp_path: Path) -> Generator[Stack]:
    made = Stack(tmp_path / "state")
    yield made
    made.call("down", "--wipe")
    assert not made.state.exists()


def runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] not in ("", "Z", "X")


def stand_in(folder: Path, *, failing: str = "") -> str:
    """Return a program that stands in for `metier`, with one role that dies at its start if asked."""
    program = folder / "metier"
    program.write_text(
        "#!/bin/sh\n"
        'echo "$METIER_INSTANCE does $* with $METIER_REDIS_URL"\n'
        'case "$1" in\n'
        "  migrate|topics) exit 0;;\n"
        f'  "{failing}") echo "there is no such queue" >&2; exit 3;;\n'
        "esac\n"
        'touch "$METIER_READY_FILE"\n'
        "exec sleep 600\n"
    )
    program.chmod(0o755)
    return str(program)


def test_a_second_up_leaves_what_is_up_alone(stack: Stack) -> None:
    assert "redis        ready on redis://127.0.0.1:" in stack.up("redis")
    before = stack.pid("redis")

    assert "redis        already up on redis://127.0.0.1:" in stack.up("redis")
    assert stack.pid("redis") == before
    assert stack.say_to_redis("PING") == "+PONG\r\n"


def test_two_ups_at_once_start_one_server(stack: Stack) -> None:
    both = [stack.begin("up", "--only", "redis", "--ports", "auto") for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already up" in text for text in said) == [False, True]


def test_after_sigkill_up_recovers_and_no_data_is_lost(stack: Stack) -> None:
    stack.up("redis,postgres")
    assert stack.say_to_redis("SET color green") == "+OK\r\n"
    for name in ("redis", "postgres"):
        stack.call("kill", name)
        assert not runs(stack.pid(name))

    said = stack.up("redis,postgres")

    assert said.count("ready on") == 2
    assert stack.say_to_redis("GET color") == "$5\r\ngreen\r\n"


def test_our_own_env_in_the_shell_does_not_keep_a_service_down(stack: Stack) -> None:
    stack.up("redis")
    stack.call("kill", "redis")

    assert "ready on" in stack.up("redis", **stack.env())


def test_a_service_named_in_the_environment_is_used_and_not_started(stack: Stack) -> None:
    said = stack.up("redis", METIER_REDIS_URL="redis://cache.example:6379/3")

    assert "redis        using redis://cache.example:6379/3" in said
    assert not (stack.state / "run/redis.pid").exists()
    found = stack.env()
    assert len(found.pop("METIER_GRANT_KEY")) == 64
    assert found == {"METIER_REDIS_URL": "redis://cache.example:6379/3"}


def test_a_port_in_use_is_one_sentence_and_nothing_is_started(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = stack.call("up", "--only", "postgres,redis", "--ports", "auto", METIER_LOCAL_REDIS_PORT=port)

    assert done.returncode == 1
    assert done.stderr.startswith(f"stack: Port {port} for redis is in use by pid {os.getpid()} (")
    assert done.stderr.endswith("): set METIER_LOCAL_REDIS_PORT to another port.\n")
    assert done.stderr.count("\n") == 1
    assert not list(stack.state.glob("run/*.pid"))


def test_a_strange_process_under_a_recorded_number_is_neither_trusted_nor_ended(stack: Stack) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        (stack.state / "run").mkdir(parents=True)
        (stack.state / "run/redis.pid").write_text(f"{stranger.pid} 1\n")
        assert re.search(r"redis +down", stack.call("status").stdout)

        stack.call("down")

        assert stranger.poll() is None
        stranger.kill()


def test_a_zombie_is_not_taken_for_a_running_service(stack: Stack) -> None:
    with subprocess.Popen(["true"]) as zombie:
        while runs(zombie.pid):
            pass
        born = Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (stack.state / "run").mkdir(parents=True)
        (stack.state / "run/redis.pid").write_text(f"{zombie.pid} {born}\n")

        assert "ready on" in stack.up("redis")
        assert stack.pid("redis") != zombie.pid


def test_an_engine_works_from_a_deep_folder_and_is_gone_with_all_its_containers(tmp_path: Path) -> None:
    deep = Stack(tmp_path / ("deep" * 20) / "state")
    deep.up("docker")
    env = deep.env()
    engine = docker.DockerClient(base_url=env["DOCKER_HOST"])
    command = ["python3", "-c", "import time; print('hello', flush=True); time.sleep(20)", str(tmp_path)]
    sandbox = engine.containers.run(env["METIER_SANDBOX_IMAGE"], command, detach=True, network_mode="none")
    assert next(iter(sandbox.logs(stream=True))) == b"hello\n"
    annex = (deep.state / "annex").read_text().strip()

    deep.call("kill", "docker")
    deep.call("down", "--wipe")

    processes = subprocess.run(["ps", "-ww", "-eo", "command="], capture_output=True, text=True, check=True).stdout
    assert not [line for line in processes.splitlines() if str(tmp_path) in line or annex in line]
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert not deep.state.exists()
    assert not Path(annex).exists()


def test_all_roles_are_up_before_up_returns_and_gone_after_down(stack: Stack, tmp_path: Path) -> None:
    said = stack.up("redis", "--roles", "--program", stand_in(tmp_path))

    pids = [stack.pid(name) for name in ("redis", *ROLES)]
    assert [name for name in ROLES if re.search(f"^{name} +ready on", said, re.MULTILINE)] == list(ROLES)
    assert all(runs(pid) for pid in pids)
    url = stack.env()["METIER_REDIS_URL"]
    assert (stack.state / "log/coder.log").read_text() == f"coder does agent coder with {url}\n"

    stack.call("down")

    assert not any(runs(pid) for pid in pids)
    assert not list(stack.state.glob("run/*"))


def test_a_role_that_dies_at_its_start_is_quoted_and_everything_is_taken_down(stack: Stack, tmp_path: Path) -> None:
    (stack.state / "run").mkdir(parents=True)
    (stack.state / "run/tools.ready").touch()  # from an earlier life: it must not be believed

    program = stand_in(tmp_path, failing="tools")
    done = stack.call("up", "--only", "redis", "--ports", "auto", "--roles", "--program", program)

    assert done.returncode == 1
    assert "stack: tools ended while starting" in done.stderr
    assert done.stderr.endswith("\n    there is no such queue\n")
    assert not list(stack.state.glob("run/*.pid"))
    assert stack.call("env").returncode == 1


def test_run_ends_as_its_command_did_and_stops_only_what_it_started(stack: Stack) -> None:
    words = ("--only", "redis", "--ports", "auto", "--", "sh", "-c", 'echo "$METIER_REDIS_URL"; exit 7')
    done = stack.call("run", *words)
    assert done.returncode == 7
    assert done.stdout.startswith("redis://127.0.0.1:")
    assert not list(stack.state.glob("run/*.pid"))

    stack.up("redis")
    assert stack.call("run", *words).returncode == 7
    assert runs(stack.pid("redis"))


def test_being_told_to_end_again_and_again_does_not_cut_short_the_stopping_of_services(stack: Stack) -> None:
    process = stack.begin("run", "--only", "redis", "--ports", "auto", "--", "sh", "-c", "echo $$; exec sleep 600")
    assert process.stdout
    pids = [int(process.stdout.readline()), stack.pid("redis")]

    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)

    assert not any(runs(pid) for pid in pids)


def test_an_interrupted_run_stops_its_command_and_its_services(stack: Stack) -> None:
    process = stack.begin("run", "--only", "redis", "--ports", "auto", "--", "sh", "-c", "echo $$; exec sleep 600")
    assert process.stdout
    pids = [int(process.stdout.readline()), stack.pid("redis")]

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)

    assert process.returncode == 128 + signal.SIGTERM
    assert not any(runs(pid) for pid in pids)
