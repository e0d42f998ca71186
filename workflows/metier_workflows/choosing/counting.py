"""Means and counts of scores of which some are not known. The modules of the learning core share them; they hand on to nobody."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing.matrix import Floats

PULLS = np.geomspace(2.0, 1000.0, 32)
"""How many outcomes a record at the level above may be worth: from hardly more than one to more than a category mostly has. Before anything is seen each is as likely as the next."""
TINY = 1e-12


def known_mean(scores: Floats, axis: int) -> Floats:
    """The mean of what is known along an axis; 0 where nothing is."""
    known = ~np.isnan(scores)
    mean: Floats = np.nansum(scores, axis=axis) / np.maximum(known.sum(axis=axis), 1)
    return mean


def counted(scores: Floats, groups: NDArray[np.int64], width: int) -> tuple[Floats, Floats]:
    """Right and all of the known scores, groups by models; rows of a group below 0 are in none."""
    scores, groups = scores[groups >= 0], groups[groups >= 0]
    known = ~np.isnan(scores)
    right, count = (np.zeros((width, scores.shape[1])) for _ in range(2))
    np.add.at(right, groups, np.where(known, scores, 0.0))
    np.add.at(count, groups, known)
    return right, count


def beside(scores: Floats) -> Floats:
    """Each score less the mean of what is known of its query: that a query is hard for all favours nobody. What is not known stays NaN."""
    return np.asarray(scores - known_mean(scores, 1)[:, None], np.float64)


def likely_pull(likely: Floats) -> float:
    """The mean, on a log scale, over all `PULLS`, each as it is likely (nats): with few labels the single most likely one is as good as random."""
    weights = np.exp(likely - likely.max())
    return float(np.exp(weights @ np.log(PULLS) / weights.sum()))
