"""What came of an evaluation: a folder with the set that was used and one line for each pair of sample and agent.

`metier eval run` appends; `metier models compare`, the fitting of routers and `report` read. The folder:

    eval.json       which evaluation this is
    set.jsonl       the samples, as they were
    results.jsonl   one `Result` a line, in the order in which they came; of a pair that stands here twice the last one counts
    journal.db      where everything ran in one process: its runs, for `metier trace`
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from metier_infra.errors import BadSpec
from metier_infra.words import Failure, Name, Word
from metier_workflows.evaluating.judging import Vote
from metier_workflows.evaluating.samples import LONGEST_LINE, Sample, line_of, read_set

if TYPE_CHECKING:
    from metier_workflows.choosing.matrix import Matrix

HEAD, SET, RESULTS, JOURNAL = "eval.json", "set.jsonl", "results.jsonl", "journal.db"


class Head(Word):
    """Which evaluation a folder holds: its id is in the ids of its runs; `name` is the set's."""

    id: str
    name: str


class Result(Word):
    """What one agent made of one sample.

    `score` is 0 to 1; None where nobody could tell. `digest` is the sample's, so that a line of a sample that was changed since does not count.
    `answer` is the text by which answers agree, empty where there was none. `cost_usd`, `tokens` and `seconds` are the agent's own, `judging_usd` and
    `judging_tokens` those of its judges; where `cost_known` is false the cost is a lower bound. `stamp` is the digest of how the agent behaves. `attempt` counts from 1.
    """

    sample: Name
    digest: str
    agent: Name
    category: str = "general"
    tags: tuple[str, ...] = ()
    scorer: str = "exact"
    score: float | None
    reason: str = ""
    answer: str = ""
    failure: Failure | None = None
    cost_usd: float = 0.0
    cost_known: bool = True
    judging_usd: float = 0.0
    judging_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    votes: tuple[Vote, ...] = ()
    stamp: str = ""
    attempt: int = 1
    run_id: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """Sample and agent."""
        return self.sample, self.agent


@dataclass(frozen=True)
class Evaluated:
    """A set and what came of it; `results` has at most one of each pair, and none of a sample that is not in the set."""

    name: str
    samples: tuple[Sample, ...]
    results: tuple[Result, ...]

    @property
    def agents(self) -> tuple[str, ...]:
        """Who was asked, in the order of the alphabet."""
        return tuple(sorted({one.agent for one in self.results}))


def newest(results: Iterable[Result], samples: Sequence[Sample]) -> tuple[Result, ...]:
    """Of each pair the last result; without those of samples that are not there, or not any more what they were."""
    digests = {one.id: one.digest for one in samples}
    kept = {one.pair: one for one in results if digests.get(one.sample) == one.digest}
    return tuple(kept.values())


def read_evaluated(folder: Path) -> Evaluated:
    """What a folder holds. Raises `BadSpec`."""
    if not (folder / HEAD).is_file():
        raise BadSpec(f"{folder}: no folder of `metier eval run`: there is no {HEAD} in it")
    samples = read_set(folder / SET)
    return Evaluated(read_head(folder).name, samples, newest(read_results(folder / RESULTS), samples))


def read_head(folder: Path) -> Head:
    """Which evaluation it is. Raises `BadSpec`."""
    try:
        return Head.model_validate_json((folder / HEAD).read_bytes())
    except (OSError, ValidationError) as error:
        raise BadSpec(f"{folder / HEAD}: not written by `metier eval run`") from error


def read_results(path: Path) -> list[Result]:
    """The lines of a file of results, without a last one that was not written to its end. Raises `BadSpec` with file and line."""
    try:
        return [_result(line, f"{path}:{number}") for number, line in _whole_lines(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadSpec(f"{path}: cannot be read: {error.strerror}") from error


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if line.endswith(b"\n"):
                yield number, line
            elif len(line) > LONGEST_LINE:
                raise BadSpec(f"{path}:{number}: the line is longer than {LONGEST_LINE} bytes")


def _result(line: bytes, place: str) -> Result:
    try:
        return Result.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "line"
        raise BadSpec(f"{place}: {field}: no result of `metier eval run`: {first['msg']}") from error


def begin(folder: Path, head: Head, samples: Sequence[Sample]) -> None:
    """Make the folder of a new evaluation. What says that it is one is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_set(folder / SET, samples)
    (folder / HEAD).write_text(head.model_dump_json() + "\n", encoding="utf-8")


def write_set(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples, in place of what is there."""
    part = path.with_name(path.name + ".part")
    part.write_text("".join(map(line_of, samples)), encoding="utf-8")
    part.replace(path)


def cut_torn(path: Path) -> None:
    """Take away a last line that was not written to its end, so that the next begins where it should."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        left = os.fstat(file.fileno()).st_size
        while left:
            step = min(left, 1 << 16)
            file.seek(left - step)
            at = file.read(step).rfind(b"\n")
            if at >= 0:
                file.truncate(left - step + at + 1)
                return
            left -= step
        file.truncate(0)


def append(path: Path, result: Result) -> None:
    """Add a line. One that is lost in a power cut is made again of the journal, which has the answer."""
    with path.open("ab") as file:
        file.write(result.model_dump_json().encode() + b"\n")


def matrix_of(evaluated: Evaluated) -> Matrix:
    """Samples by agents, as `choosing` reads it: the tasks are the categories. Samples that nobody was asked are left out; a pair that is not there is NaN."""
    import numpy as np

    from metier_workflows.choosing.matrix import Matrix

    cells = {one.pair: one for one in evaluated.results}
    asked = {sample for sample, _ in cells}
    rows = [one for one in evaluated.samples if one.id in asked]
    table = [[cells.get((row.id, agent)) for agent in evaluated.agents] for row in rows]
    shape = (len(rows), len(evaluated.agents))
    scores = [math.nan if one is None or one.score is None else one.score for row in table for one in row]
    known = any(one.cost_usd > 0 for one in evaluated.results)
    costs = [math.nan if one is None else one.cost_usd for row in table for one in row]
    answers = [one.answer if one else "" for row in table for one in row]
    categories = tuple(row.category for row in rows)
    return Matrix(
        ids=tuple(row.id for row in rows),
        tasks=categories,
        categories=categories,
        texts=tuple(row.text for row in rows),
        models=evaluated.agents,
        scores=np.array(scores, dtype=np.float64).reshape(shape),
        costs=np.array(costs, dtype=np.float64).reshape(shape) if known else None,
        answers=np.array(answers, dtype=np.str_).reshape(shape),
    )


def by_agent(results: Iterable[Result]) -> Mapping[str, list[Result]]:
    """The results of each agent."""
    found: dict[str, list[Result]] = {}
    for one in results:
        found.setdefault(one.agent, []).append(one)
    return found
