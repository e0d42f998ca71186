"""The DBOS peer of `metier bench orchestrator`: the same loads as workflows that enqueue steps for a worker in another process, on the same Postgres.

`bench_peers` starts this module twice: as `worker`, and as `client`, which runs the workflows and prints its figures as JSON. Both look every 10 ms
for what is new; the default, every second, would make each step take that long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbos import DBOS

POLL_S = 0.01
QUEUE = "steps"


@DBOS.workflow()
def step(number: int) -> int:
    """One step: the number of those before it, and one."""
    return number + 1


@DBOS.workflow()
def five() -> int:
    """W1: five steps, one after another."""
    number = 0
    for _ in range(5):
        number = DBOS.enqueue_workflow(QUEUE, step, number).get_result(polling_interval_sec=POLL_S)
    return number


@DBOS.workflow()
def fan(width: int) -> int:
    """W2: many steps and a join."""
    asked = [DBOS.enqueue_workflow(QUEUE, step, 0) for _ in range(width)]
    return sum(one.get_result(polling_interval_sec=POLL_S) for one in asked)


def _ms(work: Callable[[], int], times: int, wanted: int) -> list[float]:
    taken: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        if work() != wanted:
            raise SystemExit("a step was lost")
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def measure(idle: int, burst: int, fans: int, width: int) -> dict[str, Any]:
    """Latencies in milliseconds of runs one after another, steps a second of runs at once, and steps that were lost or done again."""
    _ms(five, 3, 5)
    latencies = _ms(five, idle, 5)
    began = time.perf_counter()
    asked = [DBOS.start_workflow(five) for _ in range(burst)]
    lost = sum(5 - one.get_result(polling_interval_sec=POLL_S) for one in asked)
    took = time.perf_counter() - began
    wide = _ms(lambda: fan(width), fans, width)
    wanted = 5 * (3 + idle + burst) + fans * width
    done = DBOS.list_workflows(name=step.__qualname__, load_input=False, load_output=False, limit=wanted + 1000)
    repeated = sum((one.recovery_attempts or 1) - 1 for one in done) + max(0, len(done) - wanted)
    return {
        "w1_ms": latencies,
        "w1_steps_per_s": 5 * burst / took,
        "w2_ms": wide,
        "steps": wanted,
        "lost": lost,
        "repeated": repeated,
    }


def main(role: str, *numbers: str) -> None:
    """Be the worker until the process is ended, or the client."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": os.environ["METIER_BENCH_POSTGRES"],
            "log_level": "ERROR",
            "application_version": "one",
            "executor_id": role,
        }
    )
    DBOS.listen_queues([QUEUE] if role == "worker" else [])
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLL_S)
    if role == "worker":
        Path(os.environ["METIER_READY_FILE"]).touch()
        while True:
            time.sleep(60)
    sys.stdout.write(json.dumps(measure(*map(int, numbers))))
    sys.stdout.flush()
    DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
