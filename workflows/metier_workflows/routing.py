"""From what a node wants to a decision: pure functions. The author's word first, then a router's, then the default; `replayed` makes a kept decision again.

`deciding` calls `decide` for the nodes `route`, `cascade` and `panel`; authors may `choose` by declared skill themselves.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from metier_infra.errors import BadInput, WorkflowBroken
from metier_infra.words import AgentCard, Candidate, Decision, Wanted, stable_id
from metier_workflows.budget import cut, paid_for
from metier_workflows.choosing.router import Asked, Choice, Option, Router, Topology

ROUTER = "declared-skills.v1"
By = Literal["override", "rule", "learned", "default"]
SAFE_BITS = 52
"""A seed is a whole number that JSON carries to the bit everywhere."""


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
            _weighed(cards[name], Option(name, score, float(name in chosen[:1])), category) for name, score in ranked
        ),
    )


def seed_of(run_id: str, *slot: str | int) -> int:
    """Where the randomness of a decision comes from: the same at the same place of the same run, after any crash."""
    return int(stable_id("seed", run_id, *slot), 16) >> (128 - SAFE_BITS)


def on_trial(seed: int, share: float) -> bool:
    """Whether a canary version with this share of the tasks decides for the one with this seed."""
    return int(stable_id("canary", seed), 16) < share * 2**128


@dataclass(frozen=True)
class DeclaredSkills:
    """The router for as long as none was learned: whoever declares the most skill in the category. It knows too little where nobody declares any."""

    cards: Mapping[str, AgentCard]
    enough: float
    version: str = ROUTER

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """The best one alone, where that may be; else all of them."""
        ranked = rank(asked.category, {name: self.cards[name] for name in agents})
        alone = "specialist" in topologies or len(ranked) == 1
        names = tuple(name for name, _ in ranked)
        chosen = names[:1] if alone else names
        return Choice(
            topology=_way(chosen, topologies),
            chosen=chosen,
            weights=_votes(chosen, asked.category, self.cards),
            options=tuple(Option(name, score, float(name == chosen[0])) for name, score in ranked),
            reason="declared skills",
            enough=self.enough,
            confident=ranked[0][1] > 0,
        )


def decide(
    wanted: Wanted, cards: Mapping[str, AgentCard], asked: Asked, router: Router | None = None, *, canary: bool = False
) -> Decision:
    """Whom to ask. Raises `WorkflowBroken` where the author names an agent that is not there, and `BadInput` where the input does.

    A router that raises, or chooses what it may not, knows too little: no run fails by it.
    """
    case = _Case(wanted, cards, asked, _candidates(wanted, cards))
    if wanted.named:
        made = case.declared(wanted.named.agents, wanted.named.why, wanted.named.by)
    elif router is None:
        made = case.unrouted()
    else:
        choice, unsure = _chosen_by(router, asked, case.names, wanted.topologies)
        made = case.learned(choice) if choice else case.default(unsure)
        made = made.model_copy(update={"router": router.version, "canary": canary})
    return _within(made, wanted.cap_usd)


@dataclass(frozen=True)
class _Case:
    """A decision in the making; `names` are the candidates."""

    wanted: Wanted
    cards: Mapping[str, AgentCard]
    asked: Asked
    names: Sequence[str]

    def unrouted(self) -> Decision:
        """What is decided while no router was learned."""
        own = DeclaredSkills(self.cards, self.wanted.enough).choose(self.asked, self.names, self.wanted.topologies)
        if self.wanted.default and not own.confident:
            return self.default("nobody declares a skill")
        return self.declared(own.chosen, own.reason, "rule")

    def default(self, unsure: str) -> Decision:
        """What is decided where a router knows too little: the author's default, or who declares the most skill."""
        if self.wanted.default:
            return self.declared(self.wanted.default, f"{unsure}: the default", "default")
        own = DeclaredSkills(self.cards, self.wanted.enough).choose(self.asked, self.names, self.wanted.topologies)
        return self.declared(own.chosen, f"{unsure}: {own.reason}", "default")

    def declared(self, chosen: Sequence[str], why: str, by: By) -> Decision:
        """A decision for those who are named, each with the skill that it declares."""
        chosen, category = tuple(dict.fromkeys(chosen)), self.asked.category
        ranked = rank(category, {name: self.cards[name] for name in (*self.names, *chosen)})
        named = self.wanted.named.topology if self.wanted.named and len(chosen) > 1 else None
        options = [Option(name, skill, float(name in chosen[:1])) for name, skill in ranked]
        choice = Choice(
            topology=named or _way(chosen, self.wanted.topologies),
            chosen=chosen,
            weights=_votes(chosen, category, self.cards),
            options=tuple(options),
            reason=why,
            enough=self.wanted.enough,
        )
        return self._decision(choice, by)

    def learned(self, choice: Choice) -> Decision:
        """A router's choice; candidates of which it said nothing are there too, so that the choice can be made again."""
        unknown = tuple(
            Option(name, 0.0, 0.0) for name in self.names if name not in {one.agent for one in choice.options}
        )
        return self._decision(replace(choice, options=(*choice.options, *unknown)), "learned")

    def _decision(self, choice: Choice, by: By) -> Decision:
        return Decision(
            category=self.asked.category,
            chosen=choice.chosen,
            topology=choice.topology,
            reason=choice.reason,
            router=ROUTER,
            candidates=tuple(_weighed(self.cards[one.agent], one, self.asked.category) for one in choice.options),
            by=by,
            tenant=self.asked.tenant,
            seed=self.asked.seed,
            weights=choice.weights,
            enough=choice.enough,
        )


def _candidates(wanted: Wanted, cards: Mapping[str, AgentCard]) -> tuple[str, ...]:
    there = f"there are: {', '.join(sorted(cards)) or 'none'}"
    named = wanted.named.agents if wanted.named else ()
    if wanted.named and wanted.named.by == "override" and (gone := _gone(named, cards)):
        raise BadInput(f"the input asks for {gone}, which no agent is called; {there}")
    parts = {
        f"the rule {wanted.named.why!r}" if wanted.named else "": named,
        "the default": wanted.default,
        "the node": wanted.among,
    }
    for who, names in parts.items():
        if gone := _gone(names, cards):
            raise WorkflowBroken(f"no agent is called {gone}, which {who} names; {there}")
    names = tuple(sorted({*(wanted.among or cards), *named}))
    if not names or (wanted.named and not named):
        raise WorkflowBroken("a decision has nobody to choose among")
    return names


def _gone(names: Sequence[str], cards: Mapping[str, AgentCard]) -> str:
    return ", ".join(map(repr, sorted({*names} - cards.keys())))


def _chosen_by(
    router: Router, asked: Asked, names: Sequence[str], topologies: Collection[Topology]
) -> tuple[Choice | None, str]:
    """The router's choice, if it is sure and makes one that can be followed; else why not."""
    try:
        choice = router.choose(asked, names, topologies)
        misfit = _misfit(choice, names, topologies)
    except Exception as error:  # whatever breaks in a version, the author's default is there
        return None, f"{router.version} broke ({type(error).__name__})"
    if misfit:
        return None, f"{router.version} broke ({misfit})"
    return (choice, "") if choice.confident else (None, f"{router.version} is not sure ({choice.reason})")


def _misfit(choice: Choice, names: Collection[str], topologies: Collection[Topology]) -> str:
    """Why a choice cannot be followed; empty where it can."""
    if not choice.confident:
        return ""
    strangers = {*choice.chosen, *(one.agent for one in choice.options)} - {*names}
    if not choice.chosen or strangers or len({*choice.chosen}) < len(choice.chosen):
        return "it chose nobody, a stranger, or somebody twice"
    if len(choice.weights) != len(choice.chosen) or not all(0 <= weight < math.inf for weight in choice.weights):
        return "its weights fit nobody"
    alone = choice.topology == "specialist"
    may = choice.topology in topologies or (alone and len(names) == 1)
    if not may or alone != (len(choice.chosen) == 1):
        return f"it chose a {choice.topology} of {len(choice.chosen)}"
    return ""


def _way(chosen: Sequence[str], topologies: Collection[Topology]) -> Topology:
    if len(chosen) == 1:
        return "specialist"
    return "cascade" if "panel" not in topologies and "cascade" in topologies else "panel"


def _votes(chosen: Sequence[str], category: str, cards: Mapping[str, AgentCard]) -> tuple[float, ...]:
    """Each member's declared skill; 1 for each, where one of them declares none."""
    skills = tuple(cards[name].skills.get(category, 0.0) for name in chosen)
    return skills if all(skills) else (1.0,) * len(chosen)


def _weighed(card: AgentCard, option: Option, category: str) -> Candidate:
    return Candidate(
        agent=card.name,
        score=option.score,
        propensity=option.propensity,
        stamp=card.stamp,
        cost_usd=option.cost_usd,
        policy=card.policy,
        reasoning=card.reasoning,
        retrieval=card.retrieval,
        skill=card.skills.get(category, 0.0),
    )


def _within(decision: Decision, cap_usd: float | None) -> Decision:
    """The decision with as many of its agents, the first ones, as the cap pays for, by what they are thought to cost; one at the least."""
    if cap_usd is None:
        return decision
    costs = {one.agent: one.cost_usd or 0.0 for one in decision.candidates}
    sofar = accumulate(costs.get(name, 0.0) for name in decision.chosen)
    paid = max(1, sum(one <= cap_usd for one in sofar))
    return cut(decision, paid, f"the cap of ${cap_usd:g} pays for {paid} of {len(decision.chosen)}")


def replayed(decision: Decision, wanted: Wanted, routers: Collection[Router] = ()) -> Decision | None:
    """The decision, made again from what was wanted, its seed, and its router's version among `routers`; None where that is not there.

    What the agents declared is read off the candidates, what the run's limits paid for is taken as it was, and who else was on trial or watched, and did not decide,
    stays as it is.
    """
    router = next((one for one in routers if one.version == decision.router), None)
    if router is None and decision.router != ROUTER:
        return None
    asked = Asked(wanted.task.text, wanted.task.category, decision.tenant, decision.seed)
    cards = {name: AgentCard(name=name, model="", policy="") for name in wanted.default}
    cards |= {one.agent: _card(one, decision.category) for one in decision.candidates}
    made = decide(wanted, cards, asked, router, canary=decision.canary)
    made = made if decision.paid is None else paid_for(made, decision.paid)
    kept = {"shadows": decision.shadows, "share": decision.share, "other": decision.other}
    return made.model_copy(update=kept)


def _card(one: Candidate, category: str) -> AgentCard:
    return AgentCard(
        name=one.agent,
        model="",
        policy=one.policy,
        skills={category: one.score if one.skill is None else one.skill},
        stamp=one.stamp,
        reasoning=one.reasoning,
        retrieval=one.retrieval,
    )
