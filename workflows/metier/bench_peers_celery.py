"""The Celery peer of `metier bench orchestrator`: the same loads as chains and chords, on a Redis that keeps every write (`appendfsync always`).

`bench_peers` starts its workers (`celery --app metier.bench_peers_celery worker`), and this module as the client, which prints its figures as JSON.
The client waits for results as Celery documents it, on one connection.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from celery import Celery, chain, chord

URL = os.environ.get("METIER_BENCH_REDIS", "redis://127.0.0.1:1/0")
WAIT_S = 120
app = Celery("bench", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=4,
)


def _step(number: int) -> int:
    """One step: the number of those before it, and one."""
    return number + 1


def _join(numbers: list[int]) -> int:
    """How many steps there were."""
    return sum(numbers)


bare = cast("Any", app)
step, join = bare.task(_step, name="step"), bare.task(_join, name="join")
one_after_another, all_then = cast("Any", chain), cast("Any", chord)


def five() -> Any:
    """W1: five steps, one after another."""
    return one_after_another(step.s(0), *[step.s() for _ in range(4)]).apply_async()


def fan(width: int) -> Any:
    """W2: many steps and a join."""
    return all_then([step.s(0) for _ in range(width)])(join.s())


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
    _ms(lambda: five().get(timeout=WAIT_S), 5, 5)
    latencies = _ms(lambda: five().get(timeout=WAIT_S), idle, 5)
    began = time.perf_counter()
    asked = [five() for _ in range(burst)]
    lost = sum(5 - one.get(timeout=WAIT_S) for one in asked)
    took = time.perf_counter() - began
    wide = _ms(lambda: fan(width).get(timeout=WAIT_S), fans, width)
    steps = 5 * (5 + idle + burst) + fans * (width + 1)
    workers: dict[str, dict[str, dict[str, int]]] = bare.control.inspect(timeout=5).stats() or {}
    done = sum(sum(one["total"].values()) for one in workers.values())
    return {
        "w1_ms": latencies,
        "w1_steps_per_s": 5 * burst / took,
        "w2_ms": wide,
        "steps": steps,
        "lost": lost,
        "repeated": done - steps,
    }


def main() -> None:
    """The client: four numbers on the command line, see `measure`. It is not run as a module: tasks are named for theirs."""
    sys.stdout.write(json.dumps(measure(*map(int, sys.argv[1:]))))
