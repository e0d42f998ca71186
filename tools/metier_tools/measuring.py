"""What containers are measured by: each call's wait for one, and how its program was ended. The names are in `metier_infra.metrics`."""

from __future__ import annotations

from metier_infra import metrics
from metier_tools.sandbox import Held, Outcome

KILLED = frozenset({"timeout", "oom", "output_cut", "died"})


def held(found: Held) -> None:
    """A call got its container."""
    metrics.record(metrics.SANDBOX_WAIT, found.wait_ms / 1000, {metrics.COLD: found.cold})
    if found.cold:
        metrics.record(metrics.SANDBOX_BOOT, found.boot_ms / 1000)


def ran(outcome: Outcome) -> None:
    """Its program ended."""
    if outcome.status in KILLED:
        metrics.add(metrics.SANDBOX_KILLS, 1, {metrics.CAUSE: outcome.status})


def tested(missing: int) -> None:
    """The container engine was asked for proof that it keeps every limit; so many it does not."""
    metrics.level(metrics.SELFTEST, int(missing == 0))
