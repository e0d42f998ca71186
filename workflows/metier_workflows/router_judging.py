"""Judges a router version before it may decide: on decisions that were logged, as if it had made them, and on an eval set. `metier routers judge` calls it. Pure.

Of the log those decisions count that went to one agent, whose chances were written down and whose outcome is known. If the version was fitted from
outcomes, only decisions since then: of those before, it has seen the answers. What it would do other than to ask one agent is not known from such a log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, cast

import numpy as np
from pydantic import JsonValue

from metier_infra.outcomes import Logged as Said
from metier_infra.routers import Verdict
from metier_infra.words import Decision
from metier_workflows.choosing import off_policy
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.off_policy import Estimate, Estimates, Logged
from metier_workflows.choosing.router import Asked, Router
from metier_workflows.routing import replayed

FEWEST_ROWS = 50
"""An eval set with fewer samples carries no judgement."""
Word = Literal["better", "worse", "undecided", "unjudged"]


@dataclass(frozen=True)
class OnLog:
    """What the log says. `passed_over` decisions could not be used."""

    estimates: Estimates
    passed_over: int


@dataclass(frozen=True)
class OnSet:
    """What an eval set says: the version's mean score, that of whatever it is compared with, and by how much it is better.

    `refused`: why nothing is said; None where it is.
    """

    rows: int
    against: str
    refused: str | None = None
    value: float | None = None
    baseline: float | None = None
    gain: Estimate | None = None


@dataclass(frozen=True)
class Case:
    """A decision as it was made, as the version would make it, and what came of it: how right who was asked was, 0 to 1."""

    made: Decision
    again: Decision
    score: float


def cases(router: Router, said: Sequence[Said], *, since: float = 0.0) -> tuple[list[Case], int]:
    """What can be judged of a log since then (seconds since the epoch), and how many decisions of it cannot."""
    found, seen = list[Case](), set[str]()
    for one in said:
        seen.add(one.kept.decision_id)
        case = _case(router, one) if one.kept.at >= since else None
        found += [case] if case else []
    return found, len(seen) - len(found)


def _case(router: Router, one: Said) -> Case | None:
    made, wanted = one.kept.decision, one.kept.wanted
    if wanted is None or made.topology != "specialist" or made.chosen != (one.agent,) or one.propensity <= 0:
        return None
    again = replayed(made.model_copy(update={"router": router.version}), wanted, [router])
    return Case(made, again, one.score) if again else None


def on_log(found: Sequence[Case], passed_over: int) -> OnLog:
    """What these decisions say of the version."""
    agents = sorted({one.agent for case in found for one in case.made.candidates})
    place = {name: n for n, name in enumerate(agents)}
    shape = (len(found), len(agents) + 1)
    chances, new, model = np.zeros(shape), np.zeros(shape), np.full(shape, 0.5)
    for row, case in enumerate(found):
        for one in case.made.candidates:
            chances[row, place[one.agent]] = one.propensity
        _fill(case.again, new[row], model[row], place)
    chosen = np.array([place[case.made.chosen[0]] for case in found], dtype=np.intp)
    scores = np.array([case.score for case in found], dtype=np.float64)
    return OnLog(off_policy.estimate(Logged(chances, chosen, scores, new, model)), passed_over)


def _fill(again: Decision, new: Floats, model: Floats, place: dict[str, int]) -> None:
    """How likely the version would choose each, and what it thinks that each scores. Several agents together are one more choice, which the log never made."""
    for one in again.candidates:
        if one.agent in place:
            model[place[one.agent]] = min(1.0, max(0.0, one.score))
            new[place[one.agent]] = one.propensity if again.topology == "specialist" else 0.0
    new[-1] = 1 - new[:-1].sum()


def on_set(router: Router, matrix: Matrix, *, baseline: Router | None = None, same: bool = False) -> OnSet:
    """What an eval set says of a version that asks one agent for each sample, against `baseline`, or the agent that is best over the whole set.

    `same`: the version was fitted on this set, and so is not judged by it.
    """
    against = baseline.version if baseline else "the best single agent"
    if same:
        return OnSet(len(matrix), against, "it was fitted on this set, and so is not judged by it")
    if len(matrix) < FEWEST_ROWS:
        return OnSet(len(matrix), against, f"{len(matrix)} samples are too few; {FEWEST_ROWS} are needed")
    ours, theirs = _scores(router, matrix), _baseline(baseline, matrix)
    known = ~np.isnan(ours) & ~np.isnan(theirs)
    rows = int(known.sum())
    if rows < FEWEST_ROWS:
        return OnSet(rows, against, f"{rows} samples have a score of whom it would ask; {FEWEST_ROWS} are needed")
    gaps = ours[known] - theirs[known]
    gain = off_policy.bounded_mean(gaps, -1.0, 1.0, off_policy.threshold(rows), (-1.0, 1.0))
    return OnSet(rows, against, None, float(ours[known].mean()), float(theirs[known].mean()), gain)


def _scores(router: Router, matrix: Matrix) -> Floats:
    """Of whom it would ask first, query by query; where it knows too little, of the best single agent."""
    place = {name: n for n, name in enumerate(matrix.models)}
    best = _best(matrix)
    found = np.empty(len(matrix))
    for row in range(len(matrix)):
        choice = router.choose(
            Asked(matrix.texts[row], matrix.categories[row], seed=row), matrix.models, {"specialist"}
        )
        found[row] = matrix.scores[row, place[choice.chosen[0]] if choice.confident else best]
    return found


def _baseline(baseline: Router | None, matrix: Matrix) -> Floats:
    return _scores(baseline, matrix) if baseline else matrix.scores[:, _best(matrix)]


def _best(matrix: Matrix) -> int:
    return int(np.nanmean(matrix.scores, axis=0).argmax())


def verdict(log: OnLog | None, sets: OnSet | None) -> Verdict:
    """What both say together: worse, if one of them shows it; better, if one does and the other does not speak against it."""
    gains = {"the log": log.estimates.gain if log else None, "the eval set": sets.gain if sets else None}
    refused = [one for one in (log.estimates.refused if log else None, sets.refused if sets else None) if one]
    words = [f"{_signed(gain)} on {name}" for name, gain in gains.items() if gain]
    why = "; ".join([*words, *refused]) or "neither a log nor an eval set was given"
    figures = {"log": _figures(log), "set": _figures(sets)}
    return Verdict(verdict=_word([gain for gain in gains.values() if gain]), why=why, figures=figures)


def _word(gains: Sequence[Estimate]) -> Word:
    if not gains:
        return "unjudged"
    if any(one.high < 0 for one in gains):
        return "worse"
    return "better" if any(one.low > 0 for one in gains) else "undecided"


def _signed(gain: Estimate) -> str:
    return f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def _figures(found: OnLog | OnSet | None) -> JsonValue:
    """As JSON carries them; None where nothing is known."""
    return cast("JsonValue", _plain(asdict(found))) if found else None


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in cast("dict[object, object]", value).items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
