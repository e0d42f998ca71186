"""Judges a router version before it may decide: on decisions that were logged, as if it had made them, and on an eval set. `metier routers judge` calls it. Pure.

Of the log those decisions count whose answer somebody judged and whose chances are known. The whole decision is what is weighed (`ways`): which agents, and how they are
asked. If the version was fitted from outcomes, only decisions since then count: of those before, it has seen the answers.

Of what a judgement can tell nothing (no eval set was named, or too small a one; too thin a log), what an earlier one found stands, and the verdict says of when it is. So
nobody takes a verdict back by not looking.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal, cast

import numpy as np
from pydantic import JsonValue

from metier_infra.outcomes import Answered
from metier_infra.routers import Verdict
from metier_infra.words import Decision
from metier_workflows.choosing import off_policy
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.off_policy import Estimate, Estimates, Logged
from metier_workflows.choosing.router import Asked, Router, Topology
from metier_workflows.choosing.trial import asking, follow
from metier_workflows.router_data import SURE
from metier_workflows.routing import replayed
from metier_workflows.ways import Way, chances, chances_then, way

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

    `refused`: why nothing is said; None where it is. `name` is the set's.
    """

    rows: int
    against: str
    refused: str | None = None
    value: float | None = None
    baseline: float | None = None
    gain: Estimate | None = None
    name: str = ""


@dataclass(frozen=True)
class Case:
    """A decision and what came of it. `taken` is how it was made, `then` with which chances it might have been, `again` with which chances the version would make each.

    `model` is how right the version thinks that each way is, `score` how right the answer was; both 0 to 1.
    """

    taken: Way
    then: Mapping[Way, float]
    again: Mapping[Way, float]
    model: Mapping[Way, float]
    score: float


def cases(
    router: Router, said: Sequence[Answered], *, since: float = 0.0, others: Collection[Router] = ()
) -> tuple[list[Case], int]:
    """What can be judged of a log since then (seconds since the epoch), and how many decisions of it cannot. `others` are versions that may have been on trial, or beside one."""
    recent = (one for one in said if one.kept.at >= since and one.weight >= SURE)
    found = [case for one in recent if (case := _case(router, one, others))]
    return found, len(said) - len(found)


def _case(router: Router, one: Answered, others: Collection[Router]) -> Case | None:
    made, wanted = one.kept.decision, one.kept.wanted
    if wanted is None:
        return None
    then, taken = chances_then(made, wanted, others), way(made)
    now = replayed(made.model_copy(update={"router": router.version}), wanted, [router])
    again = chances(now) if now else dict[Way, float]()
    if now is None or not again or not then.get(taken):
        return None
    return Case(taken, then, again, {each: _thought(now, each) for each in {**then, **again}}, one.score)


def _thought(now: Decision, each: Way) -> float:
    """How right a way is thought to be: of several agents, as right as the best of them, for want of anything better."""
    members = each if len(each) == 1 else cast("tuple[str, ...]", each[1])
    scores = (one.score for one in now.candidates if one.agent in members)
    return min(1.0, max([0.0, *scores]))


def on_log(found: Sequence[Case], passed_over: int) -> OnLog:
    """What these decisions say of the version."""
    place = {each: n for n, each in enumerate(dict.fromkeys(each for case in found for each in case.model))}
    shape = (len(found), len(place))
    then, again, model = np.zeros(shape), np.zeros(shape), np.full(shape, 0.5)
    for row, case in enumerate(found):
        for table, known in ((then, case.then), (again, case.again), (model, case.model)):
            table[row, [place[each] for each in known]] = list(known.values())
    chosen = np.array([place[case.taken] for case in found], dtype=np.intp)
    scores = np.array([case.score for case in found], dtype=np.float64)
    return OnLog(off_policy.estimate(Logged(then, chosen, scores, again, model)), passed_over)


def on_set(router: Router, matrix: Matrix, *, baseline: Router | None = None, same: bool = False) -> OnSet:
    """What an eval set says of a version, against `baseline`, or the agent that is best over the whole set.

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
    """Of the answer that would be taken, query by query: of several agents, where answers are known; where it knows too little, of the best single agent."""
    ways: set[Topology] = {"specialist"} if matrix.answers is None else {"specialist", "cascade", "panel"}
    best, found = _best(matrix), np.empty(len(matrix))
    for row in range(len(matrix)):
        choice = router.choose(Asked(matrix.texts[row], matrix.categories[row], seed=row), matrix.models, ways)
        found[row] = follow(choice, asking(matrix, row)).score if choice.confident else matrix.scores[row, best]
    return found


def _baseline(baseline: Router | None, matrix: Matrix) -> Floats:
    return _scores(baseline, matrix) if baseline else matrix.scores[:, _best(matrix)]


def _best(matrix: Matrix) -> int:
    """Of whom anything is known."""
    known = ~np.isnan(matrix.scores)
    sums, rows = np.nansum(matrix.scores, axis=0), known.sum(axis=0)
    return int(np.divide(sums, rows, out=np.full(len(rows), -1.0), where=rows > 0).argmax())


@dataclass(frozen=True)
class Earlier:
    """What was found out before, and when; seconds since the epoch."""

    report: Verdict
    at: float


def verdict(log: OnLog | None, sets: OnSet | None, before: Earlier | None = None) -> Verdict:
    """What both say together: worse, if one of them shows it; better, if one does and the other does not speak against it. Of what is silent now, the earlier finding counts."""
    found = {"log": log.estimates.gain if log else None, "set": sets.gain if sets else None}
    figures, gains, words = {"log": _figures(log), "set": _figures(sets)}, list[Estimate](), list[str]()
    for part, gain in found.items():
        kept = _kept(before, part) if gain is None else None
        known = gain or (_gain(kept) if kept else None)
        if known is None:
            continue
        figures[part] = kept or figures[part]
        gains.append(known)
        words.append(f"{_signed(known)} on {_named(part, figures[part])}{_of(kept)}")
    refused = [one for one in (log.estimates.refused if log else None, sets.refused if sets else None) if one]
    why = "; ".join([*words, *refused]) or "neither a log nor an eval set was given"
    return Verdict(verdict=_word(gains), why=why, figures=figures)


def _kept(before: Earlier | None, part: str) -> dict[str, JsonValue] | None:
    """The figures of an earlier judgement's log or set, where they say something, with the time at which they were found."""
    figures = before.report.figures.get(part) if before else None
    if before is None or not isinstance(figures, dict) or _gain(figures) is None:
        return None
    return {"judged_at": before.at, **figures}


def _gain(figures: Mapping[str, JsonValue]) -> Estimate | None:
    inside = figures.get("estimates", figures)
    gain = inside.get("gain") if isinstance(inside, dict) else None
    if not isinstance(gain, dict):
        return None
    ends = [gain.get(name) for name in ("value", "low", "high")]
    value, low, high = (float(end) if isinstance(end, int | float) else math.nan for end in ends)
    return None if math.isnan(value + low + high) else Estimate(value, low, high)


def _named(part: str, figures: JsonValue) -> str:
    name = figures.get("name") if part == "set" and isinstance(figures, dict) else ""
    return f"the eval set{f' {name}' if name else ''}" if part == "set" else "the log"


def _of(kept: Mapping[str, JsonValue] | None) -> str:
    """When an earlier finding was made, and against what."""
    at = kept.get("judged_at") if kept else None
    if kept is None or not isinstance(at, int | float):
        return ""
    against = f" against {kept['against']}" if kept.get("against") else ""
    return f"{against}, as it was judged on {datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


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
