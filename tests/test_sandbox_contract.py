"""The sandbox port, over every adapter: the scripted one, and Docker on a real engine. What only Docker can show is in test_docker_sandbox."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from metier_infra.errors import LaneGone
from metier_infra.settings import SandboxSettings
from metier_tools.docker_sandbox import DockerSandbox
from metier_tools.sandbox import Held, Outcome, Request, Sandbox, ScriptedSandbox


def script(request: Request) -> Outcome:
    """Means the few programs below as Python would."""
    match request.source.split():
        case ["print(6*7)"]:
            return Outcome("ok", 0, "42\n")
        case ["1/0"]:
            return Outcome("error", 1, stderr="ZeroDivisionError: division by zero")
        case ["while", "True:", "pass"]:
            time.sleep(request.timeout_s)
            return Outcome("timeout", -9)
        case _:
            time.sleep(0.3)
            return Outcome("ok", 0)


def docker() -> DockerSandbox:
    return DockerSandbox(
        SandboxSettings.model_validate({"image": os.environ["METIER_SANDBOX_IMAGE"], "pool": 1, "limit": 3})
    )


@pytest.fixture(scope="module", params=[lambda: ScriptedSandbox(script), docker], ids=["scripted", "docker"])
def sandbox(request: pytest.FixtureRequest) -> Generator[Sandbox]:
    make: Callable[[], Sandbox] = request.param
    opened = make()
    yield opened
    opened.close()


def run(sandbox: Sandbox, lease: str, source: str, timeout_s: float = 5.0) -> tuple[Held, Outcome]:
    with sandbox.hold(lease, 20) as held:
        return held, held.run(Request("python", source, timeout_s))


def test_the_check_passes(sandbox: Sandbox) -> None:
    sandbox.check()


@pytest.mark.parametrize(
    ("source", "status", "code", "out", "err"),
    [
        ("print(6*7)", "ok", 0, "42\n", ""),
        ("1/0", "error", 1, "", "ZeroDivisionError"),
        ("while True: pass", "timeout", -9, "", ""),
    ],
)
def test_every_end_of_a_program_is_an_outcome(
    sandbox: Sandbox, source: str, status: str, code: int, out: str, err: str
) -> None:
    _, outcome = run(sandbox, "ends", source, 0.5)
    assert (outcome.status, outcome.exit_code, outcome.stdout, outcome.truncated) == (status, code, out, False)
    assert err in outcome.stderr


def test_a_lease_keeps_its_container_and_no_two_share_one(sandbox: Sandbox) -> None:
    first, again, other = (run(sandbox, lease, "print(6*7)")[0] for lease in ("one", "one", "two"))
    assert first.container == again.container != other.container
    assert not again.cold
    assert first.image.startswith("sha256:")


def test_calls_of_one_lease_run_one_after_another(sandbox: Sandbox) -> None:
    run(sandbox, "queue", "print(6*7)")
    began = time.monotonic()
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(run, sandbox, "queue", "import time; time.sleep(0.3)") for _ in range(3)]
        held = [call.result()[0] for call in calls]
    assert time.monotonic() - began >= 0.9
    assert len({one.container for one in held}) == 1
    assert sum(one.wait_ms >= 250 for one in held) == 2


def test_a_wait_for_a_lease_in_use_ends(sandbox: Sandbox) -> None:
    began = time.monotonic()
    with sandbox.hold("busy", 20), pytest.raises(LaneGone), sandbox.hold("busy", 0.2):
        pass
    assert time.monotonic() - began < 10


def test_a_lease_can_be_released_twice_or_without_being_held(sandbox: Sandbox) -> None:
    run(sandbox, "short", "print(6*7)")
    sandbox.release("short")
    sandbox.release("short")
    sandbox.release("never")
    assert run(sandbox, "short", "print(6*7)")[1].status == "ok"


def test_a_release_waits_for_the_call_in_hand(sandbox: Sandbox) -> None:
    outcomes: list[Outcome] = []
    with sandbox.hold("working", 20) as held:
        releasing = threading.Thread(target=sandbox.release, args=("working",))
        releasing.start()
        outcomes.append(held.run(Request("python", "print(6*7)", 5)))
    releasing.join(5)
    assert not releasing.is_alive()
    assert outcomes[0].status == "ok"


@pytest.mark.parametrize("make", [lambda: ScriptedSandbox(script), docker], ids=["scripted", "docker"])
def test_a_closed_sandbox_takes_no_calls(make: Callable[[], Sandbox]) -> None:
    sandbox = make()
    sandbox.close()
    sandbox.close()
    with pytest.raises(LaneGone), sandbox.hold("late", 5):
        pass
