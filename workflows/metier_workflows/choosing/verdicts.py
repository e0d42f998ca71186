"""The verdict in one sentence: commoditised or specialised? Pure rules over the figures of `segments`; `comparison` calls it.

In a category, the first that fits:

    one model      fewer than two models are ranked
    specialised    another model is better here than the one that is best on all queries
    one leads      the best one here is better than each other
    too few        some cannot be told from the best one, nor are they shown to be within the margin of it
    shared lead    some are within the margin of the best one, and the others are behind
    commoditised   all are within the margin of the best one, and an oracle over them gains no more than the margin
    complementary  all are within the margin of the best one, and an oracle gains more: they are right on different queries

*Better* is p < 0.05 after Holm's correction over all pairs in all categories. *Within the margin* is the whole 95 % interval of the difference. On all
queries the same holds, but *specialised* is that it is so in some category, and Holm's correction is over all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from metier_workflows.choosing.segments import Contrast, Segment
from metier_workflows.choosing.statistics import Estimate

Kind = Literal["one model", "specialised", "one leads", "too few", "shared lead", "commoditised", "complementary"]
NAMED = 3
"""So many models a sentence names; more are counted."""


@dataclass(frozen=True)
class Verdict:
    """`models` are those that it is about: the one that leads, those that share the lead, or those that are better than the best on all."""

    kind: Kind
    models: tuple[str, ...]
    sentence: str


def judge(segment: Segment, overall: str, margin: float) -> Verdict:
    """Of one category. `overall` is the model that is best on all; a difference of `margin` does not matter."""
    if len(segment.ranked) < 2:
        only = "only one model has" if segment.ranked else "no model has"
        return Verdict("one model", segment.ranked, f"Nothing to compare: {only} scores for half of these queries.")
    ahead = [one for one in segment.against(overall) if one.significant and one.difference.value > 0]
    if ahead:
        return Verdict("specialised", tuple(one.first for one in ahead), _specialised(segment, ahead))
    return _of_levels(segment, margin)


def judge_all(whole: Segment, kinds: Sequence[Kind], gain: Estimate | None, margin: float) -> Verdict:
    """Of all queries. `kinds` are those of the categories, `gain` is what choosing by category gives above the best model."""
    plain = judge(whole, "", margin)
    if plain.kind == "one model" or len(kinds) < 2:
        return plain
    best, told, elsewhere = whole.ranked[0], f"{_gain(gain)}{_headroom(whole.headroom)}", kinds.count("specialised")
    if elsewhere:
        where = f"Specialised: in {elsewhere} of {len(kinds)} categories another model is better than {best}, the best on all."
        return Verdict("specialised", plain.models, f"{where}{told}")
    return replace(plain, sentence=f"{plain.sentence} In no category is another shown to be better than {best}.{told}")


def _of_levels(segment: Segment, margin: float) -> Verdict:
    """Where nobody beats the best on all. Who has no query in common with the best one cannot be told from it."""
    best, others = segment.ranked[0], segment.against(segment.ranked[0])
    behind = {one.first for one in others if one.significant and one.difference.value < 0}
    near = [one for one in others if one.first not in behind]
    group = tuple(name for name in segment.ranked if name not in behind)
    if group == (best,):
        return Verdict("one leads", group, _leads(segment))
    if len(others) + 1 < len(segment.ranked) or any(_beyond(one.difference, margin) for one in near):
        return Verdict("too few", group, _too_few(segment, group, near, margin))
    if len(near) < len(others):
        return Verdict("shared lead", group, _shared(segment, group, margin))
    if segment.headroom is None or segment.headroom.value <= margin:
        return Verdict("commoditised", group, _commoditised(segment, group, margin))
    return Verdict("complementary", group, _complementary(segment, margin))


def _beyond(found: Estimate, margin: float) -> bool:
    return max(-found.low, found.high) > margin


# ---- sentences


def _specialised(segment: Segment, ahead: Sequence[Contrast]) -> str:
    one, others = ahead[0], [other.first for other in ahead[1:]]
    more = f" Better than that one {'is' if len(others) == 1 else 'are'} {listed(others)} too." if others else ""
    return f"Specialised: {one.first}{_right(segment, one.first)} is {points(one.difference)} better than {one.second}, the best on all.{more}"


def _leads(segment: Segment) -> str:
    first, second = segment.ranked[:2]
    ahead = next(one for one in segment.against(second) if one.first == first)
    return f"One leads: {first}{_right(segment, first)} is {points(ahead.difference)} ahead of {second}, {'the other one' if len(segment.ranked) == 2 else 'the next'}."


def _too_few(segment: Segment, group: Sequence[str], near: Sequence[Contrast], margin: float) -> str:
    behind = len(segment.ranked) - len(group)
    rest = f"; {'the other one is' if behind == 1 else f'the other {behind} are'} behind" if behind else ""
    need = max((_needed(one.difference, margin) for one in near), default=0)
    told = f" About {need:,} would tell whether they are {_margin(margin)} apart." if need else ""
    return f"Too few samples ({segment.queries:,}) to say which of {listed(group)} is best{rest}.{told}"


def _needed(found: Estimate, margin: float) -> int:
    """Rows at which the interval is as wide as the margin, so that it cannot hold both 0 and the margin; to two digits."""
    rows = found.n * ((found.high - found.low) / margin) ** 2
    unit = int(f"1{'0' * (len(str(int(rows))) - 2)}")
    return math.ceil(rows / unit) * unit


def _shared(segment: Segment, group: Sequence[str], margin: float) -> str:
    behind = len(segment.ranked) - len(group)
    others = "The other one is" if behind == 1 else f"The other {behind} are"
    return f"A shared lead: {listed(group)} are within {_margin(margin)} of the best. {others} behind.{_cheapest(segment, group)}"


def _commoditised(segment: Segment, group: Sequence[str], margin: float) -> str:
    if not any(one.accuracy and one.accuracy.value for one in segment.standings):
        return f"Commoditised: {_every(group)} are never right here. Look at these queries, and at how answers to them are scored, first."
    gain = f", and an oracle would gain {points(segment.headroom)}" if segment.headroom else ""
    return f"Commoditised: {_every(group)} are within {_margin(margin)} of the best{gain}.{_cheapest(segment, group)}"


def _complementary(segment: Segment, margin: float) -> str:
    gain = f": an oracle would gain {points(segment.headroom)}" if segment.headroom else ""
    return f"Complementary: {_every(segment.ranked)} are within {_margin(margin)} of the best, but right on different queries{gain}."


def _every(group: Sequence[str]) -> str:
    return "both" if len(group) == 2 else f"all {len(group)}"


def _cheapest(segment: Segment, group: Sequence[str]) -> str:
    """Nothing unless the cost of each is known."""
    costs = {name: one.value for name in group if (one := segment.standing(name).cost_usd)}
    if len(costs) < len(group):
        return ""
    name = min(costs, key=lambda one: costs[one])
    dear = 1000 * costs[name]
    return f" The cheapest of them is {name}: ${f'{dear:,.2f}' if dear >= 0.1 else f'{dear:.2g}'} per 1,000 queries."


def _gain(gain: Estimate | None) -> str:
    if gain is None:
        return ""
    what = "loses" if gain.high < 0 else "gains" if gain.low > 0 else "changes nothing that shows:"
    return f" Choosing by category {what} {points(gain)}."


def _headroom(headroom: Estimate | None) -> str:
    return f" An oracle would gain {points(headroom)}." if headroom else ""


def _right(segment: Segment, model: str) -> str:
    found = segment.standing(model).accuracy
    return f" ({100 * found.value:.1f} % right)" if found else ""


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; of many the first, and how many more."""
    shown = [*names] if len(names) <= NAMED + 1 else [*names[:NAMED], f"{len(names) - NAMED} more"]
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else "".join(shown)


def points(found: Estimate) -> str:
    """`1.9 points [1.2 to 2.6]`."""
    value, low, high = (
        f"{100 * one:.1f}".replace("-0.0", "0.0").replace("-", "\u2212") for one in (found.value, found.low, found.high)
    )
    return f"{value} points [{low} to {high}]"


def _margin(margin: float) -> str:
    return f"{100 * margin:g} points"
