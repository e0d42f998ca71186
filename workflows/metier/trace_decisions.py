"""A run's decisions and what came of it, as nodes of its trace. `trace` puts them in."""

from __future__ import annotations

from metier.terminal import shown
from metier.trace_tree import TraceNode, short, since_ms
from metier_infra.outcomes import Outcome
from metier_infra.words import Candidate, Decision


def decided(decision: Decision) -> TraceNode:
    """Whom a node asked, who was weighed and why, and by which version."""
    scores = ", ".join(map(_candidate, decision.candidates))
    told = [
        decision.category,
        decision.reason,
        f"scores: {scores}",
        *_votes(decision),
        f"router {decision.router}{_trial(decision)}",
        f"by {decision.by}, seed {decision.seed}",
        *(f"{one.router}, watched, would ask {', '.join(one.chosen)}" for one in decision.shadows),
    ]
    return TraceNode(kind="decision", name=f"{decision.topology}: {', '.join(decision.chosen)}", note="; ".join(told))


def _votes(decision: Decision) -> list[str]:
    """What each of several weighs, and how much of that behind one answer is enough."""
    if len(decision.chosen) < 2:
        return []
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(decision.chosen, decision.weights, strict=False))
    return [f"votes: {weights}; {decision.enough:.0%} is enough"]


def _trial(decision: Decision) -> str:
    on = "on trial" if decision.canary else f"{decision.other} on trial" if decision.share else ""
    share = f" for {decision.share:.0%} of the tasks" if decision.share else ""
    return f", {on}{share}" if on else ""


def _candidate(one: Candidate) -> str:
    """Who was weighed: how good, with which chance, and together with what."""
    bundle = one.stamp.safety if one.stamp else ""
    parts = [part for part in (one.policy, one.reasoning, one.retrieval, bundle) if part and part != "plain"]
    cost = [] if one.cost_usd is None else [f"${one.cost_usd:.6f}"]
    return f"{one.agent} {one.score:.2f} ({', '.join([f'chance {one.propensity:.2f}', *cost, *parts])})"


def said(zero: float, one: Outcome) -> TraceNode:
    """What was said of the run, or of a part of it; that of its own panels at no time."""
    about = one.agent or (f"decision {one.decision_id[:12]}" if one.decision_id else "run")
    counts = "an orphan" if one.orphan else f"counts {one.counts:.2g}"
    note = f"{one.kind} by {one.by}, {counts}{f': {shown(one.note)}' if one.note else ''}"
    at_ms = since_ms(zero, one.said_at) if one.said_at else None
    return TraceNode(kind="outcome", name=f"{about} {one.score:.2f}", at_ms=at_ms, note=short(note, 200))
