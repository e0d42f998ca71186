"""Judging a router version by a log and by an eval set, and fitting one on outcomes. Pure.

Not here: that the intervals hold (`test_off_policy.py`), nor who may be promoted (`test_routers.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from metier_infra.decisions import Kept
from metier_infra.errors import BadSettings, RouterBroken
from metier_infra.outcomes import Answered, Logged
from metier_infra.words import AgentCard, Candidate, Decision, RunId, Task, Wanted
from metier_workflows import router_data, router_judging
from metier_workflows.choosing import stored
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.router import Asked, Choice, Option, Router, Serving, Standing, Topology
from metier_workflows.deciding import Deciding
from metier_workflows.routing import seed_of
from metier_workflows.ways import chances, way

AGENTS = ("strong", "weak")


@dataclass(frozen=True)
class Always:
    """Takes one agent, or both at once."""

    agent: str
    topology: Topology = "specialist"
    version: str = "always-1"

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `Router.choose`."""
        del asked
        topology: Topology = self.topology if self.topology in topologies else "specialist"
        chosen = (self.agent,) if topology == "specialist" else tuple(agents)
        options = tuple(Option(one, 0.5, float(one == self.agent)) for one in agents)
        return Choice(topology, chosen, (1.0,) * len(chosen), options, "always")


def logged(n: int, chosen: str, score: float, *, wanted: bool = True, topology: Topology = "specialist") -> Logged:
    """A decision by a coin, and what came of it."""
    decision = Decision(
        category="maths", chosen=(chosen,) if topology == "specialist" else AGENTS, topology=topology, reason="a coin",
        router="coin", candidates=tuple(Candidate(agent=one, score=0.5, propensity=0.5) for one in AGENTS), seed=n,
    )  # fmt: skip
    task = Wanted(task=Task(text=f"question {n}", category="maths")) if wanted else None
    return Logged(Kept(f"d{n}", RunId(f"r{n}"), decision, task, float(n)), chosen, score, 1.0)


def answered(*given: Logged) -> list[Answered]:
    return [Answered(one.kept, one.score, one.weight) for one in given]


def coin(n: int = 400) -> list[Answered]:
    """The strong agent is right nine times of ten, the weak one four."""
    rng = np.random.default_rng(1)
    chosen = [AGENTS[int(rng.random() < 0.5)] for _ in range(n)]
    return answered(
        *(logged(k, one, float(rng.random() < (0.9 if one == "strong" else 0.4))) for k, one in enumerate(chosen))
    )


def judged(
    router: Router, said: Sequence[Answered], since: float = 0.0, others: Sequence[Router] = ()
) -> router_judging.OnLog:
    return router_judging.on_log(*router_judging.cases(router, said, since=since, others=others))


def matrix(n: int = 300, *, strong: float = 0.9, weak: float = 0.4) -> Matrix:
    rng = np.random.default_rng(2)
    scores = (rng.random((n, 2)) < [strong, weak]).astype(float)
    names = tuple(f"q{k}" for k in range(n))
    return Matrix(names, ("t",) * n, ("maths",) * n, names, AGENTS, scores)


@pytest.mark.parametrize(("agent", "verdict", "value"), [("strong", "better", 0.9), ("weak", "worse", 0.4)])
def test_the_log_of_a_coin_tells_the_better_agent_from_the_worse(agent: str, verdict: str, value: float) -> None:
    found = judged(Always(agent), coin())
    assert found.passed_over == 0
    assert found.estimates.doubly_robust is not None
    assert found.estimates.doubly_robust.low <= value <= found.estimates.doubly_robust.high
    told = router_judging.verdict(found, None)
    assert told.verdict == verdict
    assert "points" in told.why
    assert told.judged


def test_what_cannot_be_used_is_counted_and_passed_over() -> None:
    weak = replace(logged(102, "strong", 0.0), weight=0.2)
    said = [
        *coin(60),
        *answered(logged(100, "weak", 1.0, wanted=False), logged(101, "strong", 1.0, topology="panel"), weak),
    ]
    found, passed_over = router_judging.cases(Always("strong"), said)
    assert (len(found), passed_over) == (60, 3)


def test_decisions_from_before_the_fit_do_not_judge_it() -> None:
    found, passed_over = router_judging.cases(Always("strong"), coin(400), since=390.0)
    assert (len(found), passed_over) == (10, 390)
    told = router_judging.verdict(judged(Always("strong"), coin(400), since=390.0), None)
    assert told.verdict == "unjudged"
    assert not told.judged
    assert "are needed" in told.why


def test_what_several_agents_together_would_answer_is_not_in_the_log() -> None:
    told = router_judging.verdict(judged(Always("strong", "panel"), coin()), None)
    assert told.verdict == "unjudged"
    assert "never chosen" in told.why


# ---- the whole decision: one agent, or several together


RIGHT = {"specialist": 0.4, "panel": 0.9}
"""How often the weak agent is right alone, and both are together."""


async def tried(n: int, *, promoted: Router | None, canary: Router, share: float, seed: int = 0) -> list[Answered]:
    """The log of a version on trial beside another, where what came of it hangs on how the agents were asked."""
    rng, found = np.random.default_rng(seed), list[Answered]()
    cards = {name: AgentCard(name=name, model="", policy="", skills={"maths": at}) for at, name in enumerate(AGENTS, 1)}
    deciding = Deciding(Standing(Serving(promoted=promoted, canary=canary, share=share)))
    for k in range(n):
        wanted = Wanted(task=Task(text=f"question {k}", category="maths"))
        made = await deciding.decide(wanted, cards, tenant="default", seed=seed_of(f"r{seed}-{k}"))
        kept = Kept(f"d{k}", RunId(f"r{k}"), made, wanted, float(k))
        found.append(Answered(kept, float(rng.random() < RIGHT[made.topology]), 1.0))
    return found


SINGLE, BOTH = Always("weak", version="single"), Always("strong", "panel", version="both")


@pytest.mark.parametrize(("router", "topology"), [(SINGLE, "specialist"), (BOTH, "panel")])
@pytest.mark.parametrize("declared", [False, True])
async def test_a_trial_tells_what_several_agents_together_are_worth_and_what_one_is(
    router: Always, topology: str, *, declared: bool
) -> None:
    """Which of two versions decides is drawn, so both ways of asking had a known chance, whoever decides beside the one on trial."""
    said = await tried(400, promoted=None if declared else SINGLE, canary=BOTH, share=0.4)
    found = judged(router, said, others=[SINGLE, BOTH])
    estimate = found.estimates.doubly_robust
    assert (found.passed_over, found.estimates.lost) == (0, 0.0)
    assert estimate is not None
    assert estimate.low < RIGHT[topology] < estimate.high
    assert estimate.high - estimate.low < 0.2
    assert found.estimates.gain is not None
    assert (found.estimates.gain.low > 0) == (topology == "panel")


async def test_where_the_other_version_of_a_trial_is_gone_nothing_is_made_up() -> None:
    said = await tried(400, promoted=SINGLE, canary=BOTH, share=0.4)
    told = router_judging.verdict(judged(BOTH, said), None)
    assert told.verdict == "unjudged"
    assert "never chosen" in told.why


async def test_the_interval_of_a_topologys_value_holds_the_truth_as_often_as_it_says() -> None:
    """95 % over 200 logs of a trial: the estimates weigh topologies as they weigh agents."""
    said = await tried(30, promoted=SINGLE, canary=BOTH, share=0.3)
    found, _ = router_judging.cases(BOTH, said, others=[SINGLE, BOTH])
    ways = {"specialist" if len(one) == 1 else "panel": one for one in found[0].then}
    assert len({case.taken for case in found}) == 2
    for case in found:
        assert dict(case.then) == pytest.approx({ways["panel"]: 0.3, ways["specialist"]: 0.7})
    case = found[0]
    held, rng = 0, np.random.default_rng(3)
    for _ in range(200):
        drawn = [
            replace(case, taken=ways[name], score=float(rng.random() < RIGHT[name]))
            for name in rng.choice(["panel", "specialist"], 300, p=[0.3, 0.7])
        ]
        told = router_judging.on_log(drawn, 0).estimates.doubly_robust
        assert told is not None
        held += told.low <= RIGHT["panel"] <= told.high
    assert held >= 186


def panel(*weights: float, enough: float = 2 / 3) -> Decision:
    names = tuple("abcdefgh"[: len(weights)])
    return Decision(
        category="maths", chosen=names, topology="panel", reason="a plan", router="r", weights=weights, enough=enough,
        candidates=tuple(Candidate(agent=one, score=0.5, propensity=float(one == "a")) for one in names),
    )  # fmt: skip


def test_panels_whose_votes_would_always_end_alike_are_one_way_and_others_are_not() -> None:
    one = way(panel(2.0, 1.5, 1.2))
    assert one == way(panel(2.1, 1.5, 1.3)), "the same two outvote the third, and only all three are enough"
    assert one != way(panel(3.0, 1.5, 1.2)), "the first outvotes the others"
    assert one != way(panel(2.0, 1.2, 1.5)), "the third outvotes the second"
    assert one != way(panel(2.0, 1.5, 1.2, enough=0.5)), "two are enough"
    assert way(panel(1, 1, 1)) == way(panel(0, 0, 0)), "weights that are nothing are alike"
    assert one != way(panel(2.0, 1.5, 1.2).model_copy(update={"topology": "cascade"}))
    assert one != way(panel(2.0, 1.5, 1.2).model_copy(update={"chosen": ("b", "a", "c")}))


def test_of_many_members_weights_that_are_not_the_same_are_another_way() -> None:
    weights = [1.0 + at / 100 for at in range(7)]
    assert way(panel(*weights)) == way(panel(*weights))
    assert way(panel(*weights)) != way(panel(*weights[:-1], 1.07))


def test_the_chance_of_several_agents_together_is_known_where_it_is_certain() -> None:
    made = panel(1, 1)
    assert chances(made) == {way(made): 1.0}
    drawn = tuple(one.model_copy(update={"propensity": 0.5}) for one in made.candidates)
    assert chances(made.model_copy(update={"candidates": drawn})) == {}


def test_an_eval_set_tells_whether_it_is_better_than_what_decides() -> None:
    better = router_judging.on_set(Always("strong"), matrix(), baseline=Always("weak", version="old-1"))
    assert better.against == "old-1"
    assert router_judging.verdict(None, better).verdict == "better"
    worse = router_judging.on_set(Always("weak"), matrix())
    assert worse.against == "the best single agent"
    assert router_judging.verdict(None, worse).verdict == "worse"
    same = router_judging.on_set(Always("strong"), matrix())
    assert router_judging.verdict(None, same).verdict == "undecided"


def test_a_version_that_asks_several_is_judged_on_an_eval_set_by_the_answer_that_would_be_taken() -> None:
    """The strong agent is right on the even rows, the two weak ones agree on what is right on all of them."""
    even = np.arange(100) % 2 == 0
    scores = np.column_stack([even, np.ones(100), np.ones(100)]).astype(float)
    said = np.where(scores > 0, "right", "wrong")
    names, kinds = tuple(f"q{k}" for k in range(100)), ("maths",) * 100
    rows = Matrix(names, kinds, kinds, names, ("strong", "weak", "other"), scores, answers=said)
    together, alone = Always("strong", "panel"), Always("strong")
    assert router_judging.on_set(together, rows, baseline=alone).value == 1.0
    assert router_judging.on_set(together, rows, baseline=alone).baseline == 0.5
    silent = replace(rows, answers=None)
    assert router_judging.on_set(alone, silent).value == 0.5


def test_an_agent_of_whom_nothing_is_known_is_not_the_best_single_one() -> None:
    rows = replace(matrix(), scores=np.column_stack([np.full(300, np.nan), matrix().scores[:, 1]]))
    found = router_judging.on_set(Always("weak"), rows)
    assert (found.baseline, found.gain and found.gain.value) == (found.value, 0.0)


def test_a_version_is_not_judged_by_what_it_was_fitted_on_nor_by_too_little() -> None:
    assert router_judging.on_set(Always("strong"), matrix(), same=True).refused is not None
    assert router_judging.on_set(Always("strong"), matrix(30)).refused == "30 samples are too few; 50 are needed"
    holes = replace(matrix(), scores=np.where(np.arange(300)[:, None] < 40, matrix().scores, np.nan))
    holes.scores[:2] = 1.0
    found = router_judging.on_set(Always("strong"), holes)
    assert found.rows == 40
    assert found.refused is not None


def test_worse_on_one_is_worse() -> None:
    log = judged(Always("strong"), coin())
    assert router_judging.verdict(log, router_judging.on_set(Always("weak"), matrix())).verdict == "worse"
    assert router_judging.verdict(None, None).verdict == "unjudged"


DAY = 86_400.0


def test_of_what_is_silent_now_an_earlier_finding_stands_and_says_of_when_it_is() -> None:
    # Given a version that an eval set showed to be worse, and a log that shows it to be better
    worse = replace(
        router_judging.on_set(Always("weak"), matrix(), baseline=Always("strong", version="old-1")), name="monday"
    )
    first = router_judging.verdict(None, worse)
    assert first.why.endswith("on the eval set monday")
    before = router_judging.Earlier(first, at=DAY)
    # When it is judged without a set, or with one that tells nothing
    for sets in (None, router_judging.on_set(Always("weak"), matrix(30))):
        again = router_judging.verdict(judged(Always("strong"), coin()), sets, before)
        # Then it is still worse, and both are told
        assert again.verdict == "worse"
        assert "on the log; " in again.why
        assert "on the eval set monday against old-1, as it was judged on 1970-01-02" in again.why
        kept = again.figures["set"]
        assert isinstance(kept, dict)
        assert (kept["name"], kept["judged_at"], kept["rows"]) == ("monday", DAY, 300)
    assert again.why.endswith("30 samples are too few; 50 are needed")
    # and later still, when the log tells nothing either, both are of the days when they were found
    later = router_judging.verdict(None, None, router_judging.Earlier(again, at=3 * DAY))
    assert later.verdict == "worse"
    assert "on the log, as it was judged on 1970-01-04; " in later.why
    assert "as it was judged on 1970-01-02" in later.why


def test_a_set_that_tells_something_takes_the_place_of_an_earlier_one() -> None:
    worse = router_judging.verdict(None, router_judging.on_set(Always("weak"), matrix()))
    better = router_judging.on_set(Always("strong"), matrix(), baseline=Always("weak"))
    assert router_judging.verdict(None, better, router_judging.Earlier(worse, at=DAY)).verdict == "better"


def test_an_earlier_judgement_that_told_nothing_or_cannot_be_read_is_none() -> None:
    nothing = router_judging.verdict(None, None)
    for report in (
        nothing,
        nothing.model_copy(update={"figures": {"set": {"gain": {"value": None, "low": "x"}}, "log": 7}}),
    ):
        told = router_judging.verdict(None, None, router_judging.Earlier(report, at=DAY))
        assert (told.verdict, told.why) == ("unjudged", "neither a log nor an eval set was given")


def test_outcomes_become_a_matrix_of_what_is_known() -> None:
    weak_label = replace(logged(7, "weak", 0.0), weight=0.2)
    found = router_data.of_outcomes([logged(1, "weak", 0.25), logged(2, "strong", 1.0), weak_label, logged(3, "weak", 1.0, wanted=False)])  # fmt: skip
    assert (found.ids, found.models) == (("d1", "d2"), ("strong", "weak"))
    assert found.texts == ("question 1", "question 2")
    np.testing.assert_array_equal(found.scores, [[np.nan, 0.25], [1.0, np.nan]])


def test_a_digest_changes_with_what_is_known() -> None:
    one = matrix()
    other = replace(one, scores=1 - one.scores)
    assert router_data.digest(one) == router_data.digest(matrix())
    assert router_data.digest(one) != router_data.digest(other)


def test_columns_are_named_for_agents() -> None:
    found = router_data.as_agents(matrix(), {"coder": "weak"})
    assert found.models == ("coder",)
    assert router_data.as_agents(matrix(), {}).models == AGENTS
    with pytest.raises(BadSettings, match="no column gone; there are: strong, weak"):
        router_data.as_agents(matrix(), {"coder": "gone"})


def test_a_version_that_was_stored_chooses_as_it_did() -> None:
    fitted = stored.fit(matrix(), {"source": "matrix", "rows": 300}, by="ann", explores=True)
    again = stored.fit(matrix(), {"source": "another"}, by="bob", explores=True)
    assert fitted.known.version == again.known.version, "the same rows and seed give the same version"
    router = stored.load(fitted)
    choice = router.choose(Asked("question 5", "maths", seed=3), AGENTS, {"specialist"})
    assert choice.chosen == ("strong",)
    assert router.version == fitted.known.version
    plain = stored.fit(matrix(), {}, by="ann")
    assert plain.known.version != fitted.known.version, "one that explores is another version"


def test_a_version_that_cannot_be_read_is_broken() -> None:
    fitted = stored.fit(matrix(), {}, by="ann")
    garbage = replace(fitted, body=b"{}")
    with pytest.raises(RouterBroken, match="not what was stored"):
        stored.load(garbage)
    known = fitted.known.model_copy(update={"digest": router_digest(b"{}")})
    with pytest.raises(RouterBroken, match="cannot be read here"):
        stored.load(replace(garbage, known=known))
    renamed = fitted.known.model_copy(update={"version": "learned-other"})
    with pytest.raises(RouterBroken, match="calls itself"):
        stored.load(replace(fitted, known=renamed))


def router_digest(body: bytes) -> str:
    from metier_infra.routers import digest_of

    return digest_of("learned", body)
