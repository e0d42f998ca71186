"""Eval cases out of what happened: the tasks of runs, and what is known to be right of them. Pure; `metier eval capture` reads the journal for it.

What is right is taken from a person's word alone: an explicit outcome of at least `RIGHT`, and none that speaks against it. Where there is no such word the
sample is marked `todo`, with the agents' answers beside it, and does not run before a person has completed it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from metier_infra.outcomes import Outcome
from metier_infra.rows import Call, Run
from metier_workflows.evaluating import judging
from metier_workflows.evaluating.numbers import written
from metier_workflows.evaluating.samples import Provenance, Sample, derived_id
from metier_workflows.evaluating.scorers import Exact, Numeric

RIGHT = 0.9
"""An answer of which somebody said so, 0 to 1, is what is expected from now on."""
TO_COMPLETE = "write what is right as `expected`, or a `scorer` that needs no such thing (what agents answered stands under provenance)"
LONGEST_KEPT = 4_000
"""Characters of an answer that are kept as provenance."""
TAG = "captured"
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Traced:
    """A run, its calls and what was said about it."""

    run: Run
    calls: Sequence[Call]
    said: Sequence[Outcome]


def samples_of(traced: Traced) -> list[Sample]:
    """A sample for each task that the run's agents were given; tasks of judges are none."""
    tasks: dict[str, list[Call]] = {}
    for call in traced.calls:
        if call.task.category != judging.CATEGORY and call.task.text.strip():
            tasks.setdefault(derived_id(call.task.text, call.task.category, call.task.context), []).append(call)
    return [_sample(name, calls, traced, alone=len(tasks) == 1) for name, calls in tasks.items()]


def new(found: Iterable[Sample], known: Iterable[Sample]) -> list[Sample]:
    """Those that ask something else than what is known, each once. Of two that ask the same, the one that needs no person stays."""
    have = {derived_id(one.text, one.category, one.context) for one in known}
    kept: dict[str, Sample] = {}
    for one in found:
        if one.id not in have and (one.id not in kept or (kept[one.id].todo and not one.todo)):
            kept[one.id] = one
    return list(kept.values())


def _sample(name: str, calls: Sequence[Call], traced: Traced, *, alone: bool) -> Sample:
    right = _right(calls, traced, alone=alone)
    expected, word = right or (None, None)
    answers = {call.agent: call.answer.text[:LONGEST_KEPT] for call in calls if call.answer}
    return Sample(
        id=name,
        text=calls[0].task.text,
        expected=expected,
        scorer=Numeric() if expected is not None and _is_number(expected) else Exact(),
        category=_category(calls[0].task.category),
        context=calls[0].task.context,
        tags=(TAG,),
        todo="" if right else TO_COMPLETE,
        provenance=Provenance(
            run_id=traced.run.run_id,
            workflow=traced.run.workflow,
            call_ids=tuple(call.call_id for call in calls),
            answers=answers,
            outcome=word.score if word else None,
            outcome_by=word.by if word else "",
        ),
    )


def _category(told: str) -> str:
    """As a set may have it: a node may name it as it likes."""
    return _CONTROL.sub(" ", told).strip()[:100] or "general"


def _right(calls: Sequence[Call], traced: Traced, *, alone: bool) -> tuple[str, Outcome] | None:
    """What is right, and whose word that is. A word about the whole run is of this task only where the run had no other (`alone`)."""
    words = [one for one in traced.said if one.kind == "explicit" and not one.orphan]
    for call in calls:
        about = [one for one in words if one.agent == call.agent]
        if call.answer and call.answer.text.strip() and _agreed(about):
            return call.answer.text.strip(), about[0]
    about = [one for one in words if not one.agent]
    whole = _whole(traced.run, calls) if alone and _agreed(about) else ""
    return (whole, about[0]) if whole else None


def _agreed(about: Sequence[Outcome]) -> bool:
    return bool(about) and all(one.score >= RIGHT for one in about)


def _whole(run: Run, calls: Sequence[Call]) -> str:
    """The run's own answer: what its result calls so, or the answer that all its agents gave."""
    told = (run.result or {}).get("answer")
    told = told.get("text") if isinstance(told, dict) else told  # what a node that chooses makes
    if isinstance(told, str) and told.strip():
        return told.strip()
    texts = {call.answer.text.strip() for call in calls if call.answer}
    return texts.pop() if len(texts) == 1 else ""


def _is_number(text: str) -> bool:
    """A number alone, without a unit: with one, what a scorer of numbers leaves out might matter."""
    number = written(text)
    return number is not None and not number[1]
