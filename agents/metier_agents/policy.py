"""Policies: pure functions of a view to a move. The loop carries the move out; what is not offered is not bound.

    autonomous      think alone; tools only under the confidence threshold, withdrawn after each use
    collaborative   tools first, one must be called when any fits; then a cross-check; then the answer
    meta_reasoned   assess the tools; offer those whose expected value is positive, now and then another to look at it; then the answer

A tool's expected value comes from `appraisal`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, assert_never

from metier_agents import wording
from metier_agents.appraisal import weigh
from metier_agents.spec import Autonomous, Collaborative, MetaReasoned, Policy
from metier_agents.turns import Valued
from metier_agents.view import View

ToolChoice = Literal["none", "auto", "required"]
REFUSALS = 2
REPEATS = 3
MALFORMED = 3


@dataclass(frozen=True)
class Answer:
    """The last answer stands."""


@dataclass(frozen=True)
class Think:
    """Ask the model with no tools bound; `note` is said to it first."""

    note: str | None = None


@dataclass(frozen=True)
class Offer:
    """Ask the model with these tools bound."""

    tools: tuple[str, ...]
    choice: ToolChoice = "auto"
    note: str | None = None


@dataclass(frozen=True)
class Assess:
    """Ask the model what each of these tools would gain; none is bound."""

    tools: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """A guard ends the loop."""

    reason: str


Move: TypeAlias = Answer | Think | Offer | Assess | Stop


def decide(policy: Policy, view: View) -> Move:
    """The next move. Of an answer that was broken off the policy is not asked: `review` is. A guard stops the loop where the policy would have asked the model again."""
    move = Answer() if view.broken_off else _wished(policy, view)
    if isinstance(move, Answer):
        return move
    reason = guard(view)
    return Stop(reason) if reason else move


def guard(view: View) -> str | None:
    """Why the model must not be asked again, or None."""
    checks = {
        "turn_limit": view.turns_left <= 0,
        "token_limit": view.tokens_left is not None and view.tokens_left <= 0,
        "cost_limit": view.usd_left is not None and view.usd_left <= 0,
        "malformed": view.malformed >= MALFORMED,
        "unoffered_tool": view.refused >= REFUSALS,
        "repeated_call": view.repeats >= REPEATS,
        "ping_pong": view.ping_pong,
    }
    return next((reason for reason, hit in checks.items() if hit), None)


def _wished(policy: Policy, view: View) -> Move:
    match policy:
        case Autonomous():
            return autonomous(policy, view)
        case Collaborative():
            return collaborative(view)
        case MetaReasoned():
            return meta_reasoned(policy, view)
        case _:
            assert_never(policy)


def autonomous(policy: Autonomous, view: View) -> Move:
    """Think alone first and after each use of tools; an offer that the model declined is its answer."""
    if not view.answered:
        return Think(wording.AFTER_TOOLS if view.results else None)
    sure = view.confidence is not None and view.confidence >= policy.threshold
    if sure or view.offered or not view.useful:
        return Answer()
    return Offer(view.useful, "auto", wording.UNSURE)


def collaborative(view: View) -> Move:
    """Call first; look at the results together, with tools still at hand; then answer."""
    if view.results:
        return Offer(view.useful, "auto", wording.CROSS_CHECK) if view.useful else Think(wording.CROSS_CHECK)
    if view.turns == 0:
        return Offer(view.useful, "required") if view.useful else Think()
    if view.turns == 1 and view.offered and view.useful:
        return Offer(view.useful, "required", wording.MUST_CALL)
    return Answer()


def meta_reasoned(policy: MetaReasoned, view: View) -> Move:
    """Assess the tools that fit, offer what is worth it, and weigh again after a failure."""
    if view.answered:
        return Answer()
    if view.assessed is None:
        return Assess(view.useful) if view.useful else Think()
    worth = () if any(view.results) else _offered(policy, view)
    if worth:
        return Offer(worth, "auto", wording.FAILED if view.results else wording.SOLVE)
    return Think(wording.AFTER_TOOLS if view.results else wording.SOLVE)


def _offered(policy: MetaReasoned, view: View) -> tuple[str, ...]:
    """The tools that are worth it, best first, weighed with the newest records; after them those that this call only looks at."""
    if view.assessed is None:
        return ()
    weighed = [
        weigh(
            policy,
            valued.estimate,
            view.records.get(valued.estimate.tool),
            view.turn_usd,
            valued.trust,
            view.assessed.own_confidence,
        )
        for valued in view.assessed.tools
        if valued.estimate.tool in view.useful
    ]
    ranked = sorted(weighed, key=lambda valued: -valued.value)
    lot = view.assessed.lot
    return tuple(valued.estimate.tool for valued in ranked if valued.value > 0 or _looks(policy, valued, lot))


def _looks(policy: MetaReasoned, valued: Valued, lot: float) -> bool:
    """Whether a call that drew `lot` looks at a tool that is not worth it: as often as it may be worth it after all, and never less than `explore`.

    So doubt is settled soon, and a tool that was mended is noticed. It is Thompson's sampling (1933) for what would otherwise be left. A tool of which
    the model expects nothing is not looked at.
    """
    share = max(policy.explore, valued.chance) if policy.explore else 0.0
    return lot < share and valued.estimate.gain > 0
