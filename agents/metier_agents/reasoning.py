"""Ways of reasoning, as pure functions: when to reflect once more, and which of several answers to choose.

The loop asks `reflect` before it takes an answer; `explorations` chooses with the rest.

Reflecting until the answer settles: Madaan et al. 2023, "Self-Refine". The answer given most often among independent explorations: Wang et al.
2022, "Self-Consistency". A check of each candidate: Cobbe et al. 2021, "Training Verifiers". A judge of all: Zheng et al. 2023, "Judging LLM-as-a-Judge".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from metier_agents import wording
from metier_agents.spec import AgentSpec, Deep
from metier_agents.turns import History, ModelTurn, Note, of_kind
from metier_infra.words import Answer

VERDICT: Mapping[str, Any] = {
    "title": "verdict",
    "type": "object",
    "properties": {"why": {"type": "string"}, "right": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["why", "right"],
    "additionalProperties": False,
}
CHOICE: Mapping[str, Any] = {
    "title": "choice",
    "type": "object",
    "properties": {"why": {"type": "string"}, "best": {"type": "integer", "minimum": 1}},
    "required": ["why", "best"],
    "additionalProperties": False,
}
_numbers: TypeAdapter[float] = TypeAdapter(float)


def comparable(answer: str) -> str:
    """The answer as it is compared with others: white space and case apart."""
    return " ".join(answer.split()).casefold()


def reflect(history: History, spec: AgentSpec) -> str | None:
    """What to say to a model that is to think its answer over once more; None when it has settled, or reflected often enough."""
    if not isinstance(spec.reasoning, Deep):
        return None
    done = sum(note.text == wording.REFLECT for note in of_kind(history, Note))
    answers = [turn.answer for turn in of_kind(history, ModelTurn) if turn.purpose == "answer" and not turn.uses]
    settled = done > 0 and comparable(answers[-1]) == comparable(answers[-2])
    return None if settled or done >= spec.reasoning.rounds else wording.REFLECT


def groups(answers: Sequence[Answer]) -> list[list[int]]:
    """The answers that agree, by their places: the largest group first; of equal ones the surer, then the earlier."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        found[comparable(answer.text)].append(place)
    return sorted(found.values(), key=lambda group: (-len(group), -_sure(answers, group), group[0]))


def _sure(answers: Sequence[Answer], group: Sequence[int]) -> float:
    return sum(answers[place].confidence or 0.0 for place in group)


def surest(answers: Sequence[Answer], group: Sequence[int]) -> int:
    """Of answers that agree, the one whose model is surest; the first of equals."""
    return max(group, key=lambda place: (answers[place].confidence or 0.0, -place))


def read_verdict(text: str) -> float | None:
    """How likely a checked answer is right, 0 to 1; None when the reply cannot be read."""
    value = _field(text, "right")
    return value if value is not None and 0 <= value <= 1 else None


def read_choice(text: str, among: int) -> int | None:
    """Which of the candidates, counted from 0, a judge prefers; None when the reply names none of them."""
    value = _field(text, "best")
    return int(value) - 1 if value is not None and value == int(value) and 1 <= value <= among else None


def _field(text: str, name: str) -> float | None:
    begin, end = text.find("{"), text.rfind("}")
    try:
        data = json.loads(text[begin : end + 1])
        number = _numbers.validate_python(data[name], strict=True)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError):
        return None
    return number if abs(number) < 1e9 else None
