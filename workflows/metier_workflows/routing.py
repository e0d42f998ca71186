"""Which agents to ask: pure functions from declared skills to a decision. Called by workflows; `decide` publishes what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metier_infra.words import AgentCard, Candidate, Decision

ROUTER = "declared-skills.v1"


def rank(category: str, cards: Mapping[str, AgentCard]) -> list[tuple[str, float]]:
    """Agents by declared skill in `category`, best first; ties go to the name. An undeclared skill counts 0."""
    return sorted(
        ((name, card.skills.get(category, 0.0)) for name, card in cards.items()), key=lambda pair: (-pair[1], pair[0])
    )


def choose(
    category: str, cards: Mapping[str, AgentCard], *, size: int, reason: str, among: Sequence[str] | None = None
) -> Decision:
    """The `size` most skilled agents (of `among`, when given), certain to be chosen: the choice is deterministic."""
    ranked = rank(category, {name: card for name, card in cards.items() if among is None or name in among})
    chosen = tuple(name for name, _ in ranked[:size])
    return Decision(
        category=category,
        chosen=chosen,
        topology="specialist" if len(chosen) == 1 else "panel",
        reason=reason,
        router=ROUTER,
        candidates=tuple(
            Candidate(agent=name, score=score, propensity=float(name in chosen), stamp=cards[name].stamp)
            for name, score in ranked
        ),
    )
