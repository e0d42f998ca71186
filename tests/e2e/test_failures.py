"""What goes wrong around a run: the engine gone, the database restarted, files and settings that do not fit. Nothing is lost, and each
is a sentence or a typed event. Ports in use and a second `make up` are in test_local_stack.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest

from .conftest import SLOW, Fleet, echo_agents, new_fleet, until
from .cuts import Relay
from .test_crash import in_flight

STACK = Path(__file__).parents[2] / "infra" / "local" / "stack.py"
FIVE: dict[str, object] = {"question": "?", "answers": []}


@pytest.fixture
def engine(tmp_path: Path) -> Generator[tuple[Relay, str]]:
    """The container engine behind a relay that can be cut, and its address."""
    real = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    relay = Relay(tmp_path / "engine.sock", real)
    yield relay, f"unix://{tmp_path / 'engine.sock'}"
    relay.close()


def test_the_engine_gone_in_mid_run_delays_the_run(
    services: Mapping[str, str], tmp_path: Path, engine: tuple[Relay, str]
) -> None:
    relay, address = engine
    more = {
        "METIER_AGENTS": str(echo_agents(tmp_path, SLOW)),
        "METIER_WORKFLOWS": "metier.examples.five",
        "DOCKER_HOST": address,
    }
    with new_fleet(services, tmp_path, **more) as fleet:
        # Given a run with a tool call in flight
        fleet.start_all("echo")
        fleet.request("five", FIVE, "engine")
        until(lambda: in_flight(fleet, "engine"), "a tool call in flight")
        # When the engine goes, and comes back once the runner has noticed
        relay.cut()
        until(
            lambda: "engine" in fleet.roles["tools"].log.read_text() + fleet.roles["echo"].log.read_text(),
            "the loss is told",
        )
        relay.mend()
        # Then the run ends well, and nobody died
        assert fleet.terminal("engine")["result"] == {**FIVE, "answers": ["42"] * 5}
        assert all(role.process.poll() is None for role in fleet.roles.values())
        assert "Traceback" not in fleet.roles["tools"].log.read_text()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Generator[Path]:
    """A Postgres that only this test uses: the state folder of a stack of its own."""
    state = tmp_path / "stack"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METIER_")}
    up = [sys.executable, str(STACK), "up", "--only", "postgres", "--state", str(state), "--ports", "auto"]
    subprocess.run(up, env=environment, check=True, capture_output=True)
    yield state
    subprocess.run(
        [sys.executable, str(STACK), "down", "--wipe", "--state", str(state)], check=True, capture_output=True
    )


def test_postgres_restarted_in_mid_run_delays_the_run(
    services: Mapping[str, str], tmp_path: Path, own_postgres: Path
) -> None:
    def stack(*words: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("METIER_")}
        words = (words[0], *words[1:], "--state", str(own_postgres))
        subprocess.run([sys.executable, str(STACK), *words], env=environment, check=True, capture_output=True)

    lines = (own_postgres / "env").read_text().splitlines()
    url = next(
        line.partition("METIER_POSTGRES_URL=")[2].strip("'\"") for line in lines if "METIER_POSTGRES_URL=" in line
    )
    more = {"METIER_AGENTS": str(echo_agents(tmp_path, SLOW)), "METIER_WORKFLOWS": "metier.examples.five"}
    with new_fleet({**services, "METIER_POSTGRES_URL": url}, tmp_path, **more) as fleet:
        # Given a run with a tool call in flight
        fleet.start_all("echo")
        fleet.request("five", FIVE, "postgres")
        until(lambda: in_flight(fleet, "postgres"), "a tool call in flight")
        # When the database dies and comes back
        stack("kill", "postgres")
        until(lambda: "does not answer" in fleet.roles["echo"].log.read_text(), "the loss is told")
        stack("start", "postgres")
        # Then the run ends well, and nobody died
        assert fleet.terminal("postgres")["result"] == {**FIVE, "answers": ["42"] * 5}
        assert all(role.process.poll() is None for role in fleet.roles.values())


@pytest.fixture
def bare(tmp_path: Path) -> Fleet:
    """A fleet with no service: what commands say before they reach any."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("METIER_", "DOCKER_HOST", "OPENAI_"))
    }
    return Fleet({**inherited, "METIER_SQLITE_PATH": str(tmp_path / "journal.db")}, tmp_path, "")


SENTENCES: list[tuple[list[str], dict[str, str], str]] = [
    (["orchestrator"], {}, "METIER_KAFKA_BOOTSTRAP is not set"),
    (["agent", "coder"], {}, "METIER_KAFKA_BOOTSTRAP is not set"),
    (["tools"], {}, "METIER_REDIS_URL is not set"),
    (["dev"], {"DOCKER_HOST": "unix:///nowhere/docker.sock"}, "no container engine answers at"),
    (["runs", "list"], {"METIER_KAFKA_BOOTSTRAPS": "x"}, "did you mean METIER_KAFKA_BOOTSTRAP?"),
    (["runs", "list"], {"METIER_LEASE_S": "-1"}, "METIER_LEASE_S"),
    (["migrate"], {"METIER_POSTGRES_URL": "postgresql://nobody@127.0.0.1:1/x"}, "127.0.0.1:1 does not answer"),
    (["topics"], {"METIER_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "Kafka at 127.0.0.1:1 does not answer"),
    (["demo", "--live", "coder"], {}, "AGENT=PROVIDER:MODEL"),
    (["demo", "--live", "nobody=openai:x"], {}, "no agent is called 'nobody'"),
    (["demo", "--live", "coder=acme:x"], {}, "acme"),
    (["publish", "specialists", "{"], {}, "not JSON"),
    (["publish", "specialists", "[]"], {}, "JSON object"),
]


@pytest.mark.parametrize(("words", "environment", "says"), SENTENCES)
def test_a_command_that_cannot_work_says_why(
    bare: Fleet, words: list[str], environment: dict[str, str], says: str
) -> None:
    done = bare.metier(*words, **environment)
    assert done.returncode in {1, 2}, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_file_with_an_unknown_field_names_file_line_and_field(bare: Fleet, tmp_path: Path) -> None:
    folder = echo_agents(tmp_path, SLOW)
    (folder / "echo.yaml").write_text((folder / "echo.yaml").read_text() + "tmperature: 1\n")
    done = bare.metier("dev", METIER_AGENTS=str(folder))
    assert done.returncode == 2
    assert "echo.yaml:6" in done.stderr
    assert "tmperature" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_provider_package_names_the_extra(services: Mapping[str, str], bare: Fleet) -> None:
    hidden = bare.folder / "hidden"
    (hidden / "langchain_openai").mkdir(parents=True)
    (hidden / "langchain_openai" / "__init__.py").write_text(
        "raise ImportError(\"No module named 'langchain_openai'\")\n"
    )
    image = {"METIER_SANDBOX_IMAGE": services["METIER_SANDBOX_IMAGE"], "PYTHONPATH": str(hidden)}
    engine = {"DOCKER_HOST": os.environ["DOCKER_HOST"]} if "DOCKER_HOST" in os.environ else {}
    done = bare.metier("demo", "--queries", "1", "--live", "coder=openai:gpt-5", **image, **engine)
    assert done.returncode == 2
    assert "metier[openai]" in done.stderr
    assert "Traceback" not in done.stderr
