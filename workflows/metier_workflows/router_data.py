"""What routers are fitted on: matrices of the user's own outcomes, and what tells one set of rows from another. `metier routers` calls it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from metier_infra.errors import BadSettings
from metier_infra.outcomes import Logged
from metier_workflows.choosing.matrix import Matrix

SURE = 0.5
"""Outcomes that count less than this teach a router nothing: a retry or a dissent says too little of who was right."""


def of_outcomes(said: Sequence[Logged]) -> Matrix:
    """Decisions by agents: what is known of how right each was; NaN where it was not asked, or nobody said. Decisions whose task was not kept are left out."""
    known = [one for one in said if one.text and one.weight >= SURE]
    rows = {one.kept.decision_id: n for n, one in enumerate({one.kept.decision_id: one for one in known}.values())}
    firsts = list({one.kept.decision_id: one for one in known}.values())
    agents = sorted({one.agent for one in known})
    columns = {agent: n for n, agent in enumerate(agents)}
    scores = np.full((len(rows), len(agents)), np.nan)
    for one in known:
        scores[rows[one.kept.decision_id], columns[one.agent]] = one.score
    categories = tuple(one.category for one in firsts)
    return Matrix(tuple(rows), categories, categories, tuple(one.text for one in firsts), tuple(agents), scores)


def digest(matrix: Matrix) -> str:
    """12 hex characters that change with any change of the rows, the models or what is known of them."""
    words = json.dumps([matrix.ids, matrix.categories, matrix.texts, matrix.models]).encode()
    return hashlib.sha256(words + np.nan_to_num(matrix.scores, nan=-1.0).tobytes()).hexdigest()[:12]


def as_agents(matrix: Matrix, names: Mapping[str, str]) -> Matrix:
    """The columns of these models only, each under its agent's name; all, under their own, where none is named. Raises `BadSettings`."""
    if not names:
        return matrix
    if gone := [model for model in names.values() if model not in matrix.models]:
        raise BadSettings(f"there is no column {', '.join(gone)}; there are: {', '.join(matrix.models)}")
    return replace(matrix.of(list(names.values())), models=tuple(names))
