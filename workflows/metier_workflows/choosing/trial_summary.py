"""The figures of several splits as means and standard deviations. Pure; `metier eval routing` prints what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, cast

from metier_workflows.choosing.trial import Seed


@dataclass(frozen=True)
class Spread:
    """A mean over splits and the standard deviation between them; 0 where there is one split."""

    mean: float
    sd: float


Summary = Mapping[tuple[str, ...], Spread]
"""By the path to a figure, such as `("ways", "single", "accuracy")`."""


def summary(seeds: Sequence[Seed]) -> Summary:
    """Every figure that all of the splits have."""
    each = [dict(_figures(asdict(one))) for one in seeds]
    shared = [path for path in each[0] if all(path in one for one in each)]
    return {path: _spread([one[path] for one in each]) for path in shared}


def nested(found: Summary) -> dict[str, Any]:
    """The same as a tree, as JSON wants it."""
    tree: dict[str, Any] = {}
    for path, spread in found.items():
        place = tree
        for step in path[:-1]:
            place = place.setdefault(step, {})
        place[path[-1]] = asdict(spread)
    return tree


def _figures(told: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for name, value in told.items():
        if isinstance(value, (int, float)) and name != "seed":
            yield (*path, name), float(value)
        elif isinstance(value, dict):
            yield from _figures(cast("dict[str, Any]", value), (*path, name))


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0)
