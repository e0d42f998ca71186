"""The delivery promises under many faults at once, by `metier chaos` as a command, and the proof that its checks can fail. `make long` runs it.

Not here: the nightly tier (`make chaos`), which is the same command with more runs and faults.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from metier import configuration
from metier.chaos import checks
from metier.chaos.harness import Setting, carry_out
from metier.chaos.plan import Ask, Plan, Request

BROKEN = Path(__file__).with_name("broken.py")
ALONE = ("orchestrator-1", "doer-1", "coder-1", "sayer-1", "tools-1")
"""The fewest processes that can end every run."""
TWELVE: Sequence[Ask] = ("chain",) * 12
"""Enough that every partition has some."""


@pytest.mark.timeout(900)
def test_five_hundred_runs_under_sixty_faults_keep_every_promise() -> None:
    # Given a seed that nobody tried before; when it fails, it is told, and gives the same faults again
    seed = secrets.randbelow(1_000_000)
    words = [sys.executable, "-m", "metier", "chaos", "--runs", "500", "--kills", "60", "--seed", str(seed), "--json"]

    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"seed {seed}: {done.stdout}\n{done.stderr[-6000:]}"
    figures = json.loads(done.stdout)
    assert (figures["runs"], sum(figures["faults"].values())) == (500, 60)
    assert [figures[name] for name in checks.CHECKS] == [0] * len(checks.CHECKS)
    assert figures["executions_per_effect"] >= 1.0


def requests(*workflows: Ask, copies: int = 1) -> list[Request]:
    return [Request(0.0, f"m{number}", workflow, copies, None) for number, workflow in enumerate(workflows)]


MUTATIONS: list[tuple[str, tuple[str, ...], dict[str, str], list[Request], str]] = [
    ("dedup", ALONE, {}, requests("chain", "chain", copies=3), "doubled_terminal"),
    (
        "fencing",
        (*ALONE, "orchestrator-2"),
        {"orchestrator-1": "run.leased=freeze:30@1"},
        [
            *requests(*TWELVE),
            Request(60.0, "late", "chain", 1, None),
        ],  # which keeps all up until the frozen one went on
        "doubled_results",
    ),
    ("sync_durability", ALONE, {"orchestrator-1": "call.sent=crash@2"}, requests("chain"), "doubled_results"),
    ("outbox", ALONE, {"orchestrator-1": "run.told=crash@1"}, requests("chain"), "lost"),
    (
        "offset_tracking",
        ALONE,
        {"orchestrator-1": "request.consumed=sleep:3@1;request.accepted=crash@1"},
        requests(*TWELVE),
        "lost",
    ),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("mechanism", "names", "failpoints", "asked", "red"), MUTATIONS, ids=[mutation[0] for mutation in MUTATIONS]
)
async def test_without_one_of_its_mechanisms_the_suite_goes_red(
    mechanism: str, names: tuple[str, ...], failpoints: dict[str, str], asked: list[Request], red: str
) -> None:
    # Given a crash, a freeze or a duplicate that the whole product stands (see below), when one mechanism is taken out of it
    launch = (sys.executable, str(BROKEN), mechanism)
    setting = Setting(names=names, failpoints=failpoints, launch=launch, patience_s=15.0)
    broken = await carry_out(configuration.configure(), Plan(0, [], asked), setting)
    # Then the checks go red
    assert broken.wrong[red], broken.figures
