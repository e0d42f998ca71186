"""What will be asked and what will go wrong, drawn from a seed: the same seed, the same schedule. Pure; `harness` carries it out."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["kill", "freeze", "drain", "step", "restart", "drop", "reject", "flush", "full"]
Ask = Literal["chain", "fan", "code"]

ROLES: Mapping[str, Sequence[str]] = {
    "orchestrator": ("orchestrator-1", "orchestrator-2"),
    "agent": ("doer-1", "doer-2", "coder-1", "coder-2", "sayer-1", "sayer-2"),
    "tools": ("tools-1", "tools-2"),
}
"""The processes of each role that can be harmed: everything twice."""
SERVICES = ("kafka", "postgres", "redis")
COMPONENTS = (*ROLES, *SERVICES)
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES: Mapping[Kind, int] = {
    "kill": 25, "drain": 8, "freeze": 6, "step": 4, "drop": 5, "reject": 5, "restart": 3, "flush": 2, "full": 2,
}  # fmt: skip
"""How many of 60 faults are of each kind."""
LASTS_S: Mapping[Kind, tuple[float, float]] = {
    "kill": (0.0, 12.0), "freeze": (4.0, 14.0), "step": (4.0, 14.0), "drop": (1.0, 8.0), "reject": (1.0, 5.0), "full": (1.0, 5.0),
}  # fmt: skip
"""How long what is not over at once lasts, from and to; seconds. A freeze outlasts the lease, some also the broker's session; so do some kills, before the process is started again."""
GAP_S = (1.0, 4.0)
"""From one fault to the next."""
ASKS: Sequence[Ask] = ("chain", "fan", "chain", "fan", "code", "chain", "fan", "chain", "fan", "chain")
"""Which workflow each request asks for, in turn; one in ten runs a program in a sandbox."""
AGAIN = 10
"""One request in so many is published three times."""
POISON = 50
"""With one request in so many comes a record that nobody can read."""


@dataclass(frozen=True)
class Fault:
    """At `at_s` seconds from the start `target` (a process or a service) is harmed, for `for_s` seconds where it is not at once over."""

    at_s: float
    kind: Kind
    target: str
    for_s: float


@dataclass(frozen=True)
class Request:
    """A run that is asked for at `at_s`, `copies` times under one id; `poison`: an unreadable record is published beside it."""

    at_s: float
    name: str
    workflow: Ask
    copies: int
    poison: bytes | None


@dataclass(frozen=True)
class Plan:
    """All of it, in order of time."""

    seed: int
    faults: Sequence[Fault]
    requests: Sequence[Request]


def draw(
    *,
    seed: int,
    runs: int,
    kills: int,
    components: Collection[str] = COMPONENTS,
    kinds: Collection[Kind] = tuple(SHARES),
) -> Plan:
    """The schedule. `kinds` are those that can be had here; faults hit only `components`. The requests come evenly as long as faults do."""
    lot = random.Random(seed)
    times = list(_times(lot, kills))
    possible: list[Kind] = [kind for kind in KINDS if kind in kinds and _targets(kind, components)]
    wanted = _kinds(kills, possible)
    lot.shuffle(wanted)
    aims = {kind: _aims(lot, _targets(kind, components)) for kind in SHARES}
    faults = [
        Fault(at_s, kind, next(aims[kind]), _length(lot, kind)) for at_s, kind in zip(times, wanted, strict=False)
    ]
    step_s = (times[-1] if times else 1.0) / runs
    return Plan(seed, faults, [_request(lot, seed, number, number * step_s) for number in range(runs)])


def _times(lot: random.Random, kills: int) -> Iterator[float]:
    at_s = 2.0
    for _ in range(kills):
        yield round(at_s, 3)
        at_s += lot.uniform(*GAP_S)


def _kinds(kills: int, possible: Sequence[Kind]) -> list[Kind]:
    """So many kinds, each by its share, and each once before any comes twice."""
    shares = _shares(possible)
    return [shares[number % len(shares)] for number in range(kills if shares else 0)]


def _shares(possible: Sequence[Kind]) -> Sequence[Kind]:
    return [kind for turn in range(max(SHARES.values())) for kind in possible if turn < SHARES[kind]]


def _targets(kind: Kind, components: Collection[str]) -> Sequence[str]:
    if kind in {"kill", "freeze", "drain", "step"}:
        return [name for role, names in ROLES.items() if role in components for name in names]
    only: Mapping[Kind, Sequence[str]] = {"flush": ("redis",), "full": ("postgres",)}
    return [name for name in only.get(kind, SERVICES) if name in components]


def _aims(lot: random.Random, targets: Sequence[str]) -> Iterator[str]:
    """Every target in turn, the turns in any order."""
    while targets:
        yield from lot.sample(targets, len(targets))


def _length(lot: random.Random, kind: Kind) -> float:
    return round(lot.uniform(*LASTS_S.get(kind, (0.0, 0.0))), 3)


def _request(lot: random.Random, seed: int, number: int, at_s: float) -> Request:
    copies = 3 if number % AGAIN == 0 else 1
    poison = b"\xff\x00poison" + lot.randbytes(12) if number % POISON == 0 else None
    return Request(at_s, f"{seed}-{number}", ASKS[number % len(ASKS)], copies, poison)
