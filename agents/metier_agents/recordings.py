"""Real models' recorded answers to real queries: one gzipped JSON object a line, read once per process.

`recorded_model` answers from it; the demo and the benches draw queries from `evaluation()` and price models alone with it.
The *calibration half* are the queries whose sha256(id) begins with an even byte, the *evaluation half* the others: what an agent says
of itself is measured on the one and shown on the other, so no verdict on a query leaks into how it is answered.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from metier_infra.errors import BadSpec


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """What one model answered: the answer (None: none could be parsed), the benchmark's verdict (0 or 1), an estimated price in USD."""

    answer: str | None
    score: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class RecordedQuery:
    """One query, and every model's answer to it. `gold` is the right answer; None where nobody found it."""

    id: str
    task: str
    category: str
    text: str
    gold: str | None
    answers: Mapping[str, RecordedAnswer]

    @property
    def calibrates(self) -> bool:
        """Whether the query belongs to the calibration half."""
        return hashlib.sha256(self.id.encode()).digest()[0] % 2 == 0


class Recordings:
    """The queries of one file, found by exact text."""

    def __init__(self, queries: tuple[RecordedQuery, ...]) -> None:
        self.queries = queries
        self.models = tuple(sorted({model for query in queries for model in query.answers}))
        self._by_text = {query.text: query for query in queries}

    def find(self, text: str) -> RecordedQuery | None:
        """The query with exactly this text."""
        return self._by_text.get(text)

    def calibration(self) -> tuple[RecordedQuery, ...]:
        """The half on which accuracy is measured."""
        return tuple(query for query in self.queries if query.calibrates)

    def evaluation(self) -> tuple[RecordedQuery, ...]:
        """The half that demos and benches draw from."""
        return tuple(query for query in self.queries if not query.calibrates)

    def accuracy(self, model: str, category: str) -> float:
        """The model's share of right answers in the category's calibration half; 0 when there is none."""
        return self._accuracies.get((model, category), 0.0)

    @cached_property
    def _accuracies(self) -> Mapping[tuple[str, str], float]:
        scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for query in self.calibration():
            for model, recorded in query.answers.items():
                scores[model, query.category].append(recorded.score)
        return {key: sum(found) / len(found) for key, found in scores.items()}


@cache
def read_recordings(path: Path) -> Recordings:
    """The recordings in `path`, read once. Raises `BadSpec` when it is not such a file."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return Recordings(tuple(_query(json.loads(line)) for line in lines))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadSpec(f"{path}: not a file of recordings: {' '.join(str(error).split())}") from error


def _query(data: Any) -> RecordedQuery:
    answers = {
        model: RecordedAnswer(found["answer"], float(found["score"]), float(found["cost_usd"]))
        for model, found in data["answers"].items()
    }
    return RecordedQuery(data["id"], data["task"], data["category"], data["text"], data["gold"], answers)
