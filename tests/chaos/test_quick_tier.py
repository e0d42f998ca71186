"""The delivery promises under many faults at once: the quick tier of `metier chaos`, as a command, by a seed that nobody tried before.

Not here: the nightly tier (`make chaos`), which is the same command with more runs and faults.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys

import pytest

from metier.chaos import checks


@pytest.mark.timeout(1800)
def test_five_hundred_runs_under_sixty_faults_keep_every_promise() -> None:
    # Given a seed; when it fails, it is told, and gives the same faults again
    seed = secrets.randbelow(1_000_000)
    words = [sys.executable, "-m", "metier", "chaos", "--runs", "500", "--kills", "60", "--seed", str(seed), "--json"]

    done = subprocess.run(words, capture_output=True, text=True, check=False)

    assert done.returncode == 0, f"seed {seed}: {done.stdout}\n{done.stderr[-40_000:]}"
    figures = json.loads(done.stdout)
    assert (figures["runs"], sum(figures["faults"].values())) == (500, 60)
    assert [figures[name] for name in checks.CHECKS] == [0] * len(checks.CHECKS)
    assert figures["exits"] == 0, done.stderr[-40_000:]
    assert figures["executions_per_effect"] >= 1.0
