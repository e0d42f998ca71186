"""The Celery worker of a tool runner: a process of its own, whose forked children only carry calls to the runner's process.

`serve` starts `work`; it hands on by `relay`. Here is no container, no key and no tracer.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from typing import Any

import structlog
from celery import signals
from celery.exceptions import Reject

from metier_infra.errors import LaneGone
from metier_infra.words import Word
from metier_tools.celery_app import TASK, Config, make_app
from metier_tools.relay import Order, RelayClient

log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1


class WorkerConfig(Word):
    """What the worker process is told on its standard input: nothing secret stands in its arguments or environment."""

    lane: Config
    relay: str
    concurrency: int
    kinds: tuple[str, ...]
    parent: int


def work() -> None:
    """The worker process: reads its `WorkerConfig` from standard input, consumes until SIGTERM, then ends what it has."""
    config = WorkerConfig.model_validate_json(sys.stdin.buffer.read())
    die_with_parent(signal.SIGKILL, config.parent)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )
    # Celery warns of root because of pickle and of tasks' own code; here it carries JSON, and runs nothing.
    warnings.filterwarnings("ignore", message=".*superuser privileges", category=UserWarning)
    worker(config).start()


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """The kernel sends us this signal when our parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


class _Child:
    """What each forked child of the worker holds: its line to the runner."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._relay: RelayClient | None = None

    def carry(self, order: Order) -> None:
        """Carry a call to the runner. One that cannot be carried goes back to its queue."""
        try:
            self._relay = self._relay or RelayClient(self._address)
            self._relay.bring(order)
        except (OSError, LaneGone) as error:
            self._relay = None
            raise Reject(str(error), requeue=True) from error


def worker(config: WorkerConfig) -> Any:
    """The Celery worker, wired to the runner's process."""
    app, own_pid, children = make_app(config.lane), os.getpid(), dict[int, _Child]()

    def carry(call: object, reply_list: object) -> None:
        if isinstance(call, str) and isinstance(reply_list, str):
            child = children.setdefault(os.getpid(), _Child(config.relay))
            child.carry(Order(call=call, reply_list=reply_list))
        else:
            log.warning("not a tool call", action="drop")

    def ready(**_: object) -> None:
        RelayClient(config.relay).say_ready()

    def forked(**_: object) -> None:
        die_with_parent(signal.SIGKILL, own_pid)

    app.task(name=TASK)(carry)
    signals.worker_ready.connect(ready, weak=False)
    signals.worker_process_init.connect(forked, weak=False)
    signals.setup_logging.connect(_own_logging, weak=False)
    return app.Worker(
        pool="prefork",
        concurrency=config.concurrency,
        queues=[config.lane.queue(kind) for kind in config.kinds],
        optimization="fair",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )


def _own_logging(**_: object) -> None:
    """Logging is set up by `work`; Celery must not do it again."""
