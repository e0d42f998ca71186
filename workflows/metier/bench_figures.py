"""What `bench_sandbox` makes of its measurements: spreads, rates, ratios, and which targets are met. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Sense = Literal["<=", ">="]
TARGETS: Mapping[str, tuple[Sense, float]] = {
    "warm_to_docker_exec": ("<=", 1 / 15),
    "warm_to_subprocess": ("<=", 1.0),
    "cold_to_docker_run": ("<=", 0.65),
    "pooled_p50_ms": ("<=", 8.0),
    "calls_per_s_1": (">=", 300.0),
    "calls_per_s_8": (">=", 500.0),
    "idle_pss_mb": ("<=", 8.0),
    "close_s": ("<=", 1.0),
    "cancel_ms": ("<=", 1000.0),
}
RATIOS: Mapping[str, tuple[str, str]] = {
    "warm_to_docker_exec": ("warm", "docker_exec"),
    "warm_to_subprocess": ("warm", "subprocess"),
    "cold_to_docker_run": ("cold", "docker_run"),
    "cold_and_gone_to_docker_run": ("cold_and_gone", "docker_run"),
}


@dataclass(frozen=True)
class Spread:
    """How long `n` calls took, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    n: int


@dataclass(frozen=True)
class Target:
    """A promise and what became of it; None where nothing could be measured."""

    name: str
    value: float | None
    sense: Sense
    bound: float
    met: bool | None


@dataclass(frozen=True)
class Memory:
    """What an idle container costs the host, in MB; None for what may not be read.

    Attributes:
        pss_mb: its PID 1's share, PSS of /proc/PID/smaps_rollup: its own pages, and its part of those that containers share.
        private_mb: of these its own pages, which is what one more container adds.
        shim_pss_mb: the share of the engine's own process beside it.
        cgroup_mb: what its cgroup is charged with.
    """

    pss_mb: float | None
    private_mb: float | None
    shim_pss_mb: float | None
    cgroup_mb: float | None


@dataclass(frozen=True)
class Report:
    """All figures of one run. `not_measured` says why, for each that is missing."""

    machine: Mapping[str, str | float]
    ways: Mapping[str, Spread]
    rates: Mapping[str, float]
    ratios: Mapping[str, float | None]
    memory: Memory | None
    close_s: float
    cancel_ms: float | None
    targets: Sequence[Target]
    not_measured: Mapping[str, str]

    @property
    def met(self) -> bool:
        """Whether each target was measured and met."""
        return all(target.met is True for target in self.targets)


def report(
    machine: Mapping[str, str | float],
    spreads: Mapping[str, Spread],
    rates: Mapping[str, float],
    memory: Memory | None,
    closed_s: Sequence[float],
    stopped_ms: Sequence[float],
    missing: Mapping[str, str],
) -> Report:
    """All that was measured, and what follows from it; of pools closed and calls stopped the median counts."""
    close_s, cancel_ms = quantile(closed_s, 50), quantile(stopped_ms, 50) if stopped_ms else None
    pss_mb = memory.pss_mb if memory else None
    figures = {
        **ratios(spreads),
        **rates,
        "pooled_p50_ms": spreads["pooled"].p50_ms,
        "idle_pss_mb": pss_mb,
        "close_s": close_s,
        "cancel_ms": cancel_ms,
    }
    if pss_mb is None:
        missing = {**missing, "memory": "the containers' processes are not in this host's /proc, or not ours to read"}
    return Report(machine, spreads, rates, ratios(spreads), memory, close_s, cancel_ms, judge(figures), missing)


def quantile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that `percent` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(taken_s: Sequence[float]) -> Spread:
    """Seconds in, milliseconds out."""
    p50, p95, p99 = (round(1000 * quantile(taken_s, percent), 3) for percent in (50, 95, 99))
    return Spread(p50, p95, p99, len(taken_s))


def rate(calls: int, bursts_s: Sequence[float]) -> float:
    """Calls a second over all bursts, of so many calls and so many seconds each."""
    return round(calls * len(bursts_s) / sum(bursts_s), 1)


def ratios(spreads: Mapping[str, Spread]) -> dict[str, float | None]:
    """Of the medians; None where one of the two ways was not measured."""
    return {
        name: round(spreads[ours].p50_ms / spreads[theirs].p50_ms, 4) if {ours, theirs} <= spreads.keys() else None
        for name, (ours, theirs) in RATIOS.items()
    }


def judge(figures: Mapping[str, Any], targets: Mapping[str, tuple[Sense, float]] = TARGETS) -> list[Target]:
    """Each target beside its figure."""
    return [
        Target(name, figures.get(name), sense, bound, met(figures.get(name), sense, bound))
        for name, (sense, bound) in targets.items()
    ]


def met(value: float | None, sense: Sense, bound: float) -> bool | None:
    """Whether a figure keeps its bound; None for a figure that there is not."""
    if value is None:
        return None
    return value <= bound if sense == "<=" else value >= bound
