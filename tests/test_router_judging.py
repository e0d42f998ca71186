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
from metier_infra.outcomes import Logged
from metier_infra.words import Candidate, Decision, RunId, Task, Wanted
from metier_workflows import router_data, router_judging
from metier_workflows.choosing import stored
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.router import Asked, Choice, Option, Topology

AGENTS = ("strong", "weak")


@dataclass(frozen=True)
class Always:
    """Takes one agent, or both at once."""

    agent: str
    topology: Topology = "specialist"
    version: str = "always-1"

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `Router.choose`."""
        del asked, topologies
        chosen = (self.agent,) if self.topology == "specialist" else tuple(agents)
        options = tuple(Option(one, 0.5, float(one == self.agent)) for one in agents)
        return Choice(self.topology, chosen, (1.0,) * len(chosen), options, "always")


def logged(n: int, chosen: str, score: float, *, wanted: bool = True, topology: Topology = "specialist") -> Logged:
    """A decision by a coin, and what came of it."""
    decision = Decision(
        category="maths", chosen=(chosen,) if topology == "specialist" else AGENTS, topology=topology, reason="a coin",
        router="coin", candidates=tuple(Candidate(agent=one, score=0.5, propensity=0.5) for one in AGENTS), seed=n,
    )  # fmt: skip
    task = Wanted(task=Task(text=f"question {n}", category="maths")) if wanted else None
    return Logged(Kept(f"d{n}", RunId(f"r{n}"), decision, task, float(n)), chosen, score, 1.0)


def coin(n: int = 400) -> list[Logged]:
    """The strong agent is right nine times of ten, the weak one four."""
    rng = np.random.default_rng(1)
    chosen = [AGENTS[int(rng.random() < 0.5)] for _ in range(n)]
    return [logged(k, one, float(rng.random() < (0.9 if one == "strong" else 0.4))) for k, one in enumerate(chosen)]


def judged(router: Always, said: Sequence[Logged], since: float = 0.0) -> router_judging.OnLog:
    return router_judging.on_log(*router_judging.cases(router, said, since=since))


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
    said = [*coin(60), logged(100, "weak", 1.0, wanted=False), logged(101, "strong", 1.0, topology="panel")]
    found, passed_over = router_judging.cases(Always("strong"), said)
    assert (len(found), passed_over) == (60, 2)


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


def test_an_eval_set_tells_whether_it_is_better_than_what_decides() -> None:
    better = router_judging.on_set(Always("strong"), matrix(), baseline=Always("weak", version="old-1"))
    assert better.against == "old-1"
    assert router_judging.verdict(None, better).verdict == "better"
    worse = router_judging.on_set(Always("weak"), matrix())
    assert worse.against == "the best single agent"
    assert router_judging.verdict(None, worse).verdict == "worse"
    same = router_judging.on_set(Always("strong"), matrix())
    assert router_judging.verdict(None, same).verdict == "undecided"


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
