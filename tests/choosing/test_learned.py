"""A learned router as it is asked, kept and taught: what a choice depends on, that bytes bring it back, and what it does not know.

Not here: what fitting finds (`test_fitting.py`).
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from metier_infra.errors import BadSpec
from metier_workflows.choosing.fitting import fit
from metier_workflows.choosing.learned import LearnedRouter, Outcome, propensities
from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.plans import Plan
from metier_workflows.choosing.router import Asked, Topology
from metier_workflows.choosing.router_files import load

from .kit import PEERS, SPECIALISTS, drawn

ANY: frozenset[Topology] = frozenset({"specialist", "cascade", "panel"})
ONE: frozenset[Topology] = frozenset({"specialist"})
ALL = ("m0", "m1", "m2", "m3")


@pytest.fixture(scope="module")
def together() -> LearnedRouter:
    return fit(drawn(PEERS))


@pytest.fixture(scope="module")
def apart() -> LearnedRouter:
    return fit(drawn(SPECIALISTS, answers=False))


def asked(category: str = "kind 0", seed: int = 0) -> Asked:
    return Asked("task 7", category, seed=seed)


def test_a_router_comes_back_from_its_bytes_to_the_bit(together: LearnedRouter, apart: LearnedRouter) -> None:
    for router in (together, apart, replace(apart, explores=True)):
        again = load(router.dump())

        assert again.dump() == router.dump()
        assert again.version == router.version
        for seed in range(20):
            assert again.choose(asked(seed=seed), ALL[:3], ANY) == router.choose(asked(seed=seed), ALL[:3], ANY)


def test_a_version_is_another_one_for_any_other_behaviour(together: LearnedRouter) -> None:
    assert together.plans is not None
    other = (
        together.priced(together.rate * 2),
        replace(together, explores=True),
        together.with_plans(together.votes, (Plan((0,), 1.0), *together.plans[1:])),
        together.after([Outcome("m0", "kind 0", 1.0)]),
    )

    assert len({together.version, *(one.version for one in other)}) == 5


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"form": 99, "embedder": "hashed-512"}',
    ],
    ids=["nothing", "a list", "no fields", "no text", "another form"],
)
def test_bytes_that_are_no_router_are_refused(broken: bytes) -> None:
    with pytest.raises(BadSpec, match="no router"):
        load(broken)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", ["m0"]),
        ("categories", ["kind 0"]),
        ("best", 9),
        ("changed", [[0, 7]]),
        ("changed", [[7, 0]]),
        ("plans", [[[0], 1.0]]),
        ("plans", [[[9], 1.0]] * 3),
        ("plans", [[list[int](), 1.0]] * 3),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(together: LearnedRouter, field: str, value: object) -> None:
    stored = json.loads(together.dump()) | {field: value}

    with pytest.raises(BadSpec, match=r"do not fit|plans"):
        load(json.dumps(stored).encode())


class Mine:
    """An embedder of a user's own."""

    name = "mine-1"
    width = 2

    def embed(self, text: str) -> Floats:
        return np.array([float(len(text)), 1.0])


def test_a_router_with_an_embedder_of_ones_own_is_only_loaded_with_it() -> None:
    router = fit(drawn(SPECIALISTS, answers=False), embedder=Mine())

    with pytest.raises(BadSpec, match="mine-1, which has to be given"):
        load(router.dump())
    assert load(router.dump(), Mine()).version == router.version


def test_a_choice_is_a_cascade_a_panel_or_one_agent_as_it_may_be(together: LearnedRouter) -> None:
    cascade = together.choose(asked(), ALL, ANY)
    panel = together.choose(asked(), ALL, {"specialist", "panel"})
    one = together.choose(asked(), ALL, ONE)

    assert (cascade.topology, panel.topology, one.topology) == ("cascade", "panel", "specialist")
    assert cascade.chosen == panel.chosen
    assert len(cascade.chosen) == len(cascade.weights) > 2
    assert 0 < cascade.enough <= 1
    assert len(one.chosen) == 1
    assert "they complement each other, and those whose errors go together share a vote" in cascade.reason
    assert "complement" not in one.reason


def test_agents_that_are_not_there_are_left_out_of_a_plan(together: LearnedRouter) -> None:
    whole = together.choose(asked(), ALL, ANY)

    fewer = together.choose(asked(), [one for one in ALL if one != whole.chosen[0]], ANY)

    assert whole.chosen[0] not in fewer.chosen
    assert together.choose(asked(), ["m1"], ANY).chosen == ("m1",)


def test_an_agent_that_it_does_not_know_is_never_chosen_and_alone_makes_it_unsure(apart: LearnedRouter) -> None:
    mixed = apart.choose(asked(), ["new", "m1", "m0"], ANY)
    alone = apart.choose(asked(), ["new"], ANY)

    assert mixed.confident
    assert {one.agent for one in mixed.options} == {"m0", "m1"}
    assert not alone.confident
    assert "none of the agents" in alone.reason


def test_a_category_that_it_does_not_know_makes_it_unsure(together: LearnedRouter, apart: LearnedRouter) -> None:
    for router in (together, apart):
        choice = router.choose(asked("never seen"), ALL[:3], ANY)

        assert not choice.confident
        assert "'never seen'" in choice.reason


def test_without_exploring_the_seed_changes_nothing(apart: LearnedRouter) -> None:
    assert len({apart.choose(asked(seed=seed), ALL[:3], ONE).chosen for seed in range(50)}) == 1


def test_exploring_draws_agents_as_often_as_it_says() -> None:
    unsure = replace(fit(drawn(np.full((1, 3), 0.6), prices=False, answers=False)), explores=True)

    choices = [unsure.choose(asked(seed=seed), ALL[:3], ONE) for seed in range(2000)]

    said = {one.agent: one.propensity for one in choices[0].options}
    assert sum(said.values()) == pytest.approx(1)
    assert {one.options for one in choices} == {choices[0].options}
    for agent, share in said.items():
        drawn_share = sum(one.chosen == (agent,) for one in choices) / len(choices)
        assert drawn_share == pytest.approx(share, abs=5 * np.sqrt(0.25 / 2000))
    assert sum(share > 0 for share in said.values()) > 1


def test_propensities_are_all_with_the_best_where_nothing_is_drawn() -> None:
    assert propensities(np.array([0.1, 0.9, 0.9]), None).tolist() == [0, 1, 0]


def test_outcomes_make_another_router_and_leave_this_one(apart: LearnedRouter) -> None:
    before = apart.dump()

    after = apart.after([Outcome("m1", "kind 0", 1.0)] * 400 + [Outcome("m0", "kind 0", 0.0)] * 400)

    assert apart.dump() == before
    assert apart.choose(asked(), ALL[:3], ONE).chosen == ("m0",)
    assert after.choose(asked(), ALL[:3], ONE).chosen == ("m1",)


def test_outcomes_that_it_cannot_place_teach_it_nothing(apart: LearnedRouter) -> None:
    after = apart.after([Outcome("new", "kind 0", 1.0), Outcome("m0", "never seen", 1.0)])

    assert after.version == apart.version


def test_a_model_that_changed_leaves_the_plans(together: LearnedRouter) -> None:
    leader = together.choose(asked(), ALL, ANY).chosen[0]

    after = together.after([Outcome(leader, "kind 0", 0.0)] * 200)

    assert leader not in after.choose(asked(), ALL, ANY).chosen
