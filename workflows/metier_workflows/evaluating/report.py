"""What an evaluation says: how good each agent is, in all and by segment, and whether that is good enough. Pure.

`metier eval run` shows it and ends by it. Intervals and tests are those of `choosing.statistics`, at 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from metier_workflows.choosing import statistics
from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.statistics import Difference, Estimate
from metier_workflows.evaluating.results import Evaluated, Result, by_agent

SIGNIFICANT = 0.05
"""A corrected p below it makes a worse result a regression."""
Kind = Literal["all", "category", "tag"]


@dataclass(frozen=True)
class Row:
    """One agent on one segment: all samples, those of a category, or those with a tag.

    Attributes:
        score: the mean score of those that are known, with its interval; None where none is.
        asked: pairs that were asked; `failed` and `unknown` of them gave no answer, or one that nobody could judge.
        cost_usd: what the agent took in all; a lower bound where `cost_known` is false. `judging_usd` is what its judges took.
        seconds: the median of what an answer took.
    """

    agent: str
    kind: Kind
    segment: str
    score: Estimate | None
    asked: int
    failed: int
    unknown: int
    cost_usd: float
    cost_known: bool
    judging_usd: float
    tokens: int
    seconds: float


def rows(evaluated: Evaluated) -> list[Row]:
    """Every agent on everything, then on each category, then on each tag."""
    categories = sorted({one.category for one in evaluated.results})
    tags = sorted({tag for one in evaluated.results for tag in one.tags})
    segments: list[tuple[Kind, str, Callable[[Result], bool]]] = [
        ("all", "all", lambda _: True),
        *(("category", name, _in_category(name)) for name in categories),
        *(("tag", name, _with_tag(name)) for name in tags),
    ]
    return [
        _row(agent, kind, name, chosen)
        for kind, name, belongs in segments
        for agent, found in sorted(by_agent(evaluated.results).items())
        if (chosen := [one for one in found if belongs(one)])
    ]


def _in_category(name: str) -> Callable[[Result], bool]:
    return lambda one: one.category == name


def _with_tag(name: str) -> Callable[[Result], bool]:
    return lambda one: name in one.tags


def _row(agent: str, kind: Kind, segment: str, found: Sequence[Result]) -> Row:
    return Row(
        agent=agent,
        kind=kind,
        segment=segment,
        score=statistics.mean(_scores(found)),
        asked=len(found),
        failed=sum(one.failure is not None for one in found),
        unknown=sum(one.score is None for one in found),
        cost_usd=sum(one.cost_usd for one in found),
        cost_known=all(one.cost_known for one in found),
        judging_usd=sum(one.judging_usd for one in found),
        tokens=sum(one.tokens for one in found),
        seconds=median(one.seconds for one in found),
    )


def _scores(found: Iterable[Result]) -> Floats:
    return np.array([math.nan if one.score is None else one.score for one in found], dtype=np.float64)


@dataclass(frozen=True)
class Compared:
    """An agent now and in a baseline, on the samples that both have; `difference` is now less then, `p` corrected for the number of agents.

    None where they have no sample in common of which both scores are known.
    """

    agent: str
    difference: Difference | None
    p: float = 1.0

    @property
    def regressed(self) -> bool:
        """Whether it is significantly worse now."""
        return self.difference is not None and self.difference.value < 0 and self.p < SIGNIFICANT


def compared(now: Iterable[Result], then: Iterable[Result]) -> list[Compared]:
    """Each agent against the baseline: paired by sample (a sample that was changed is another one), corrected by Holm over agents."""
    before = {(*one.pair, one.digest): one for one in then}
    found = {agent: _difference(results, before) for agent, results in sorted(by_agent(now).items())}
    tested = [name for name, one in found.items() if one is not None]
    corrected = statistics.holm([one.p for one in found.values() if one is not None])
    ps = dict(zip(tested, corrected, strict=True))
    return [Compared(name, one, ps.get(name, 1.0)) for name, one in found.items()]


def _difference(now: Iterable[Result], before: Mapping[tuple[str, str, str], Result]) -> Difference | None:
    pairs = [(one, then) for one in now if (then := before.get((*one.pair, one.digest)))]
    both = [pair for pair in pairs if pair[0].score is not None and pair[1].score is not None]
    return statistics.paired(_scores(one for one, _ in both), _scores(then for _, then in both)) if both else None


def below(results: Iterable[Result], least: float) -> dict[str, float]:
    """The agents whose mean score is under the bar, and that score. A score that nobody could tell counts 0 here: it is no pass."""
    means = {name: sum(one.score or 0.0 for one in found) / len(found) for name, found in by_agent(results).items()}
    return {name: mean for name, mean in sorted(means.items()) if mean < least}


def faults(
    results: Sequence[Result], *, left: int, least: float | None, against: Sequence[Compared] | None
) -> list[str]:
    """Why a check by `metier eval run` fails, in sentences; none where it passes, and none where nothing was to be checked. `against` is None without a baseline.

    Where there is a bar or a baseline, an evaluation that did not come to its end fails: half a set passes more easily than all of it. So does one that
    has nothing in common with its baseline: that would pass whatever it came to.
    """
    if least is None and against is None:
        return []
    low = below(results, least) if least is not None else {}
    return [
        *([f"{left} pairs were not asked, so nothing can be said of the whole set"] if left else []),
        *(f"{name}: a score of {mean:.4f} is below {least:g}" for name, mean in low.items()),
        *(_regression(one) for one in against or () if one.regressed),
        *(["nothing here can be compared with the baseline"] if against is not None and not _known(against) else []),
    ]


def _known(against: Sequence[Compared]) -> bool:
    return any(one.difference is not None for one in against)


def uncompared(against: Sequence[Compared]) -> list[str]:
    """The agents of which the baseline tells nothing, where it does of others."""
    return [one.agent for one in against if one.difference is None] if _known(against) else []


def _regression(one: Compared) -> str:
    difference = one.difference
    return (
        f"{one.agent}: {difference.value:+.4f} against the baseline on {difference.n} samples, p = {one.p:.4f}"
        if difference
        else ""
    )


def mixed(results: Iterable[Result]) -> list[str]:
    """The agents that behaved by several versions of themselves, because they were changed between one part of the evaluation and another."""
    stamps = {name: {one.stamp for one in found if one.stamp} for name, found in by_agent(results).items()}
    return sorted(name for name, seen in stamps.items() if len(seen) > 1)


def document(evaluated: Evaluated, *, left: int, against: Sequence[Compared], wrong: Sequence[str]) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "set": evaluated.name,
        "samples": len(evaluated.samples),
        "asked": len(evaluated.results),
        "left": left,
        "rows": [asdict(row) for row in rows(evaluated)],
        "baseline": [asdict(one) | {"regressed": one.regressed} for one in against],
        "faults": list(wrong),
        "ok": not wrong,
    }
