"""From what a node wants to a decision: who decides, by table; that a kept decision can be made again; versions on trial and watched ones. Not here: asking (`waits/test_choosers`)."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_infra.errors import BadInput, WorkflowBroken
from metier_infra.words import AgentCard, Decision, Named, Shadow, Stamp, Task, Wanted
from metier_workflows.budget import paid_for
from metier_workflows.choosing.router import Asked, Choice, Option, Router, Serving, Standing, Topology
from metier_workflows.deciding import Deciding
from metier_workflows.routing import ROUTER, decide, on_trial, replayed, seed_of

HUNG_S = 60.0


def card(name: str, **skills: float) -> AgentCard:
    stamp = Stamp(agent=name, digest=f"d-{name}", safety="strict@2")
    return AgentCard(name=name, model="m", policy="autonomous", skills=skills, stamp=stamp, reasoning="deep", retrieval="synthesise")  # fmt: skip


CARDS = {one.name: one for one in (card("a", math=0.9), card("b", math=0.6, code=0.8), card("c"))}
SURE = Choice("panel", ("b", "c"), (0.4, 0.3), (Option("b", 0.7, 0.75, 0.01), Option("c", 0.6, 0.25, 0.02)), "they complement each other", 0.9)  # fmt: skip


@dataclass(frozen=True)
class Says:
    """A router that always says the same, or raises it."""

    choice: Choice | Exception
    version: str = "learned.v7"

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        if isinstance(self.choice, Exception):
            raise self.choice
        return self.choice


def wanted(**more: Any) -> Wanted:
    return Wanted(task=Task(text="2 + 2?", category="math"), **more)


def asked(want: Wanted, seed: int = 7, tenant: str = "shop") -> Asked:
    return Asked(want.task.text, want.task.category, tenant, seed)


def made(want: Wanted, router: Router | None = None, **more: Any) -> Decision:
    return decide(want, CARDS, asked(want), router, **more)


RULED = Named(by="rule", agents=("c", "a"), why="sums are easy")


@pytest.mark.parametrize(
    ("want", "router", "chosen", "by", "topology", "why"),
    [
        (wanted(named=RULED.model_copy(update={"by": "override"})), Says(SURE), ("c", "a"), "override", "panel", "sums are easy"),
        (wanted(named=RULED), Says(SURE), ("c", "a"), "rule", "panel", "sums are easy"),
        (wanted(), Says(SURE), ("b", "c"), "learned", "panel", "they complement each other"),
        (wanted(default=("c",)), Says(replace(SURE, confident=False)), ("c",), "default", "specialist", "learned.v7 is not sure (they complement each other): the default"),
        (wanted(), Says(replace(SURE, confident=False)), ("a",), "default", "specialist", "learned.v7 is not sure (they complement each other): declared skills"),
        (wanted(default=("c", "b")), Says(ValueError("x")), ("c", "b"), "default", "panel", "learned.v7 broke (ValueError): the default"),
        (wanted(), None, ("a",), "rule", "specialist", "declared skills"),
        (wanted(default=("c",)), None, ("a",), "rule", "specialist", "declared skills"),
        (wanted(among=("c",), default=("b",)), None, ("b",), "default", "specialist", "nobody declares a skill: the default"),
        (wanted(among=("c", "b"), topologies=("panel",)), None, ("b", "c"), "rule", "panel", "declared skills"),
        (wanted(topologies=("cascade",)), None, ("a", "b", "c"), "rule", "cascade", "declared skills"),
    ],
    ids=["override", "rule", "learned", "abstains", "abstains, no default", "breaks", "nobody learned", "no need of a default", "no skill", "panel", "cascade"],
)  # fmt: skip
def test_the_authors_word_goes_first_then_the_router_then_the_default(
    want: Wanted, router: Router | None, chosen: tuple[str, ...], by: str, topology: str, why: str
) -> None:
    found = made(want, router)
    assert (found.chosen, found.by, found.topology, found.reason) == (chosen, by, topology, why)
    assert (found.tenant, found.seed, found.category) == ("shop", 7, "math")
    learned = router is not None and want.named is None
    assert found.router == ("learned.v7" if learned else ROUTER)


def test_one_decision_tells_agents_with_what_they_are_their_votes_and_everybody_who_was_weighed() -> None:
    found = made(wanted(), Says(SURE))
    assert (found.weights, found.enough) == ((0.4, 0.3), 0.9)
    assert [(one.agent, one.score, one.propensity, one.cost_usd) for one in found.candidates] == [
        ("b", 0.7, 0.75, 0.01),
        ("c", 0.6, 0.25, 0.02),
        ("a", 0.0, 0.0, None),
    ]
    first = found.candidates[0]
    assert (first.policy, first.reasoning, first.retrieval) == ("autonomous", "deep", "synthesise")
    assert first.stamp == CARDS["b"].stamp


def test_votes_are_by_declared_skill_unless_somebody_declares_none() -> None:
    assert made(wanted(named=RULED.model_copy(update={"agents": ("a", "b")}))).weights == (0.9, 0.6)
    assert made(wanted(named=RULED)).weights == (1.0, 1.0)


@pytest.mark.parametrize(
    "choice",
    [
        replace(SURE, chosen=()),
        replace(SURE, chosen=("b", "b")),
        replace(SURE, chosen=("b", "stranger")),
        replace(SURE, options=(Option("stranger", 1, 1),)),
        replace(SURE, weights=(1.0,)),
        replace(SURE, weights=(1.0, float("nan"))),
        replace(SURE, weights=(1.0, -1.0)),
        replace(SURE, topology="specialist"),
        replace(SURE, topology="cascade"),
        replace(SURE, chosen=("b",), weights=(1.0,)),
    ],
)
def test_a_choice_that_cannot_be_followed_is_not(choice: Choice) -> None:
    found = made(wanted(topologies=("specialist", "panel"), default=("c",)), Says(choice))
    assert (found.chosen, found.by) == (("c",), "default")
    assert "broke" in found.reason


def test_who_is_named_and_not_there_is_the_authors_or_the_inputs_mistake() -> None:
    named = Named(by="override", agents=("nobody",), why="w")
    with pytest.raises(BadInput, match=r"asks for 'nobody', which no agent is called; there are: a, b, c"):
        made(wanted(named=named))
    mistakes = {"the node": wanted(among=("nobody",)), "the default": wanted(default=("nobody",)), "the rule 'w'": wanted(named=named.model_copy(update={"by": "rule"}))}  # fmt: skip
    for who, want in mistakes.items():
        with pytest.raises(WorkflowBroken, match=f"no agent is called 'nobody', which {who} names; there are: a, b, c"):
            made(want)
    with pytest.raises(WorkflowBroken, match="nobody to choose among"):
        made(wanted(named=RULED.model_copy(update={"agents": ()})))


def test_under_a_cap_as_many_are_chosen_as_it_pays_for_and_one_at_least() -> None:
    assert made(wanted(cap_usd=0.03), Says(SURE)).chosen == ("b", "c")
    cut = made(wanted(cap_usd=0.029), Says(SURE))
    assert (cut.chosen, cut.weights, cut.topology) == (("b",), (0.4,), "specialist")
    assert cut.reason == "they complement each other; the cap of $0.029 pays for 1 of 2"
    assert [one.propensity for one in cut.candidates] == [0.75, 0.25, 0.0]
    assert made(wanted(cap_usd=0.001), Says(SURE)).chosen == ("b",)


@dataclass(frozen=True)
class Draws:
    """A router that makes everything of what it is asked."""

    version: str = "learned.v9"

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        drawn = seed_of(asked.text, asked.category, asked.tenant, asked.seed, *agents)
        ways = sorted(topologies)
        way = ways[drawn % len(ways)]
        size = 1 if way == "specialist" or len(agents) == 1 else 2 + drawn % (len(agents) - 1)
        chosen = tuple(agents[(drawn + n) % len(agents)] for n in range(size))
        options = tuple(Option(name, drawn / 2**52, 1 / len(chosen), 0.01 * size) for name in chosen)
        return Choice(way, chosen, tuple(0.1 + drawn % 7 for _ in chosen), options, f"drew {drawn}", confident=drawn % 3 > 0)  # fmt: skip


NAMES = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
WANTED = st.builds(
    Wanted,
    task=st.builds(Task, text=st.text(min_size=1), category=st.sampled_from(["math", "code", "general"])),
    among=NAMES,
    topologies=st.sampled_from([("specialist", "cascade", "panel"), ("cascade",), ("panel",)]),
    named=st.none()
    | st.builds(
        Named, by=st.sampled_from(["rule", "override"]), agents=NAMES.filter(bool), why=st.text(), topology=st.sampled_from([None, "cascade"])
    ),
    default=NAMES,
    enough=st.floats(0, 1),
    cap_usd=st.none() | st.floats(0.001, 0.1),
)  # fmt: skip


@given(WANTED, st.integers(0, 2**52 - 1), st.booleans(), st.booleans(), st.none() | st.integers(1, 3))
def test_whatever_was_decided_can_be_made_again_to_the_bit_from_what_is_kept(
    want: Wanted, seed: int, learned: bool, canary: bool, paid: int | None
) -> None:
    router = Draws() if learned else None
    found = decide(want, CARDS, asked(want, seed), router, canary=learned and canary)
    found = found if paid is None else paid_for(found, paid)
    kept = Decision.model_validate_json(found.model_dump_json())
    again = replayed(kept, Wanted.model_validate_json(want.model_dump_json()), [Draws("learned.v8"), Draws()])
    assert again == found
    assert again is not None
    assert again.model_dump_json() == found.model_dump_json()


def test_a_decision_of_a_version_that_is_gone_cannot_be_made_again_and_one_that_was_changed_shows() -> None:
    found = made(wanted(), Draws())
    assert replayed(found, wanted(), []) is None
    assert replayed(found.model_copy(update={"seed": 8}), wanted(), [Draws()]) != found
    forged = found.model_copy(update={"chosen": ("c",), "weights": (1.0,)})
    assert replayed(forged, wanted(), [Draws()]) == found


def test_a_seed_depends_on_run_and_place_alone_and_json_carries_it_to_the_bit() -> None:
    seeds = {seed_of(f"run{n}", "task", "what", 1) for n in range(200)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**52 for seed in seeds)
    assert seed_of("run1", "task", "what", 1) in seeds
    assert seed_of("run1", "task", "what", 2) not in seeds


def test_a_version_on_trial_decides_for_its_share_of_the_tasks_and_always_for_the_same() -> None:
    seeds = [seed_of(f"run{n}", "t", "w", 1) for n in range(2000)]
    tenth = [seed for seed in seeds if on_trial(seed, 0.1)]
    assert 140 < len(tenth) < 260  # of 2,000, 200 are expected; the bounds are 4.5 standard deviations away
    assert all(on_trial(seed, 0.3) for seed in tenth)
    assert not any(on_trial(seed, 0.0) for seed in seeds)
    assert all(on_trial(seed, 1.0) for seed in seeds)


async def decided(serving: Serving, *, shadow_s: float = HUNG_S, tenant: str = "shop", **more: Any) -> Decision:
    routers = Standing(tenants={"shop": serving})
    return await Deciding(routers, shadow_s).decide(wanted(**more), CARDS, tenant=tenant, seed=5)


async def test_the_promoted_version_decides_the_one_on_trial_in_its_place_and_of_each_tenant_its_own() -> None:
    other = Says(replace(SURE, chosen=("c", "b")), "learned.v8")
    assert (await decided(Serving(promoted=Says(SURE)))).router == "learned.v7"
    trial = await decided(Serving(promoted=Says(SURE), canary=other, share=1.0))
    assert (trial.router, trial.canary, trial.chosen) == ("learned.v8", True, ("c", "b"))
    held = await decided(Serving(promoted=Says(SURE), canary=other, share=0.0))
    assert (held.router, held.canary) == ("learned.v7", False)
    assert (await decided(Serving(promoted=Says(SURE)), tenant="other")).router == ROUTER


async def test_while_a_version_is_on_trial_a_decision_says_for_how_many_tasks_and_who_would_have_decided_else() -> None:
    other = Says(replace(SURE, chosen=("c", "b")), "learned.v8")
    for share, stands, told in ((1.0, Says(SURE), "learned.v7"), (0.0, Says(SURE), "learned.v8"), (1.0, None, ROUTER)):
        found = await decided(Serving(promoted=stands, canary=other, share=share))
        assert (found.share, found.other) == (share, told)
        assert replayed(found, wanted(), [Says(SURE), other]) == found
    named = await decided(Serving(canary=other, share=0.5), named=Named(by="rule", agents=("a",), why="so"))
    alone = await decided(Serving(promoted=Says(SURE)))
    assert (named.share, named.other) == (alone.share, alone.other) == (0.0, "")


async def test_what_watched_versions_say_is_kept_and_not_followed_and_one_that_breaks_says_nothing() -> None:
    watched = (Says(replace(SURE, chosen=("c", "b")), "w1"), Says(RuntimeError("x"), "w2"), Says(replace(SURE, confident=False), "w3"))  # fmt: skip
    found = await decided(Serving(promoted=Says(SURE), shadows=watched))
    assert (found.chosen, found.router) == (("b", "c"), "learned.v7")
    assert found.shadows == (Shadow(router="w1", topology="panel", chosen=("c", "b")),)
    assert (await decided(Serving(shadows=watched), named=RULED)).shadows == ()


async def test_a_watched_version_that_is_slow_holds_nothing_up_and_is_not_asked_again_before_it_has_answered() -> None:
    let, entered = threading.Event(), threading.Semaphore(0)

    class Slow(Says):
        def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
            entered.release()
            assert let.wait(HUNG_S)
            return super().choose(asked, agents, topologies)

    deciding = Deciding(Standing(Serving(promoted=Says(SURE), shadows=(Slow(SURE, "slow"),))), 0.001)
    for seed in range(3):
        found = await deciding.decide(wanted(), CARDS, tenant="shop", seed=seed)
        assert (found.chosen, found.shadows) == (("b", "c"), ())
    let.set()
    assert entered.acquire(timeout=HUNG_S)
    assert not entered.acquire(blocking=False)
