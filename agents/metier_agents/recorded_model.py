"""`recorded:<model>`: a real model's recorded answer to a real query, with no key and no network. `open_model` makes it.

What is real: the answer's text, its verdict and its price come from the recordings. The rules, which are fixed and decide the rest:

1. The query is looked up by the exact text of the first user message; a miss is `ModelFailed`.
2. A plain turn gives the recorded answer in the form that live models are asked for. Its confidence is the model's accuracy in the query's
   category over the calibration half of the recordings, never the query's own verdict. No recorded answer: an empty one, confidence 0.
3. When the tool `python` is offered, the query is code (it has a [PYTHON] block that ends in `assert … == ??`), and no tool result is ok
   yet, the turn calls `python` with that block and a `print(repr(…))` of the asserted expression.
4. When a tool result is ok, the answer is its output, with `RULE_CONFIDENCE`.
5. An assessment gives the recorded answer and its confidence by rule 2 (none where nothing was recorded). It says of `python` on a code query:
   gain 1 - confidence, noise 0.05; of any other tool or query: gain 0, noise 0.05.
6. Turns by rules 3 to 5 are marked `rule_written`.
7. Every turn costs what the recorded answer cost: an estimate from list prices of the day, and for rule-written turns an upper one.

The same messages and tools always give the same turn.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from metier_agents.model import PLAIN, Options
from metier_agents.policy import ToolChoice
from metier_agents.recordings import RecordedQuery, Recordings
from metier_agents.turns import AssessmentWanted, History, ModelTurn, ToolTurn, ToolUse, of_kind, task_text
from metier_agents.wording import write_answer
from metier_infra.errors import BadSpec, ModelFailed
from metier_tools.tool import ToolSpec

CODE_TOOL = "python"
NOISE = 0.05
RULE_CONFIDENCE = 0.99
"""A fixed number. Running the code by rule 3 gave exactly the right answer for 800 of the 800 code queries when it was measured."""


class RecordedModel:
    """One model of the recordings. Raises `BadSpec` with the nearest names when it is not among them."""

    def __init__(self, recordings: Recordings, model: str) -> None:
        if model not in recordings.models:
            near = difflib.get_close_matches(model, recordings.models, n=3, cutoff=0.4) or recordings.models
            raise BadSpec(f"there are no recordings of the model {model!r}; there are of: {', '.join(near)}")
        self.name = f"recorded:{model}"
        self._model = model
        self._recordings = recordings

    async def ask(
        self,
        messages: History,
        *,
        tools: Sequence[ToolSpec],
        tool_choice: ToolChoice,
        deadline: float,
        options: Options = PLAIN,
    ) -> ModelTurn:
        """See `Model.ask`."""
        del deadline, options
        query = self._recordings.find(task_text(messages))
        if query is None:
            raise ModelFailed(f"{self.name} has no recording of this task: {task_text(messages)[:80]!r}")
        offered = tool_choice != "none" and any(tool.name == CODE_TOOL for tool in tools)
        turn = self._turn(query, messages, offered)
        return turn.model_copy(update={"model": self.name, "cost_usd": query.answers[self._model].cost_usd})

    def _turn(self, query: RecordedQuery, messages: History, offered: bool) -> ModelTurn:
        last = messages[-1]
        if isinstance(last, AssessmentWanted):
            return ModelTurn(text=self._assessment(query, last.tools), rule_written=True)
        outputs = [turn.result.stdout for turn in of_kind(messages, ToolTurn) if turn.result.ok]
        if outputs:
            return ModelTurn(text=write_answer(outputs[-1].strip(), RULE_CONFIDENCE), rule_written=True)
        code = code_of(query.text) if offered else None
        if code is not None:
            use_id = f"use-{len(of_kind(messages, ModelTurn))}"
            return ModelTurn(uses=(ToolUse(id=use_id, tool=CODE_TOOL, arguments={"code": code}),), rule_written=True)
        return ModelTurn(text=self._answer(query))

    def _answer(self, query: RecordedQuery) -> str:
        answer = query.answers[self._model].answer
        return write_answer("", 0.0) if answer is None else write_answer(answer, self._confidence(query))

    def _confidence(self, query: RecordedQuery) -> float:
        return self._recordings.accuracy(self._model, query.category)

    def _assessment(self, query: RecordedQuery, tools: Sequence[str]) -> str:
        sure, answer = self._confidence(query), query.answers[self._model].answer
        own = {} if answer is None else {"own_answer": answer, "own_confidence": sure}
        gain = 1 - sure if code_of(query.text) else 0.0
        return json.dumps(own | {tool: {"gain": gain if tool == CODE_TOOL else 0.0, "noise": NOISE} for tool in tools})


def code_of(text: str) -> str | None:
    """The program that answers a code query: its block, then `print(repr(…))` of the asserted expression. None: not a code query."""
    block = text.partition("[PYTHON]\n")[2].partition("\n[/PYTHON]")[0]
    body, found, assertion = block.rpartition("\nassert ")
    expression, asks, rest = assertion.rpartition(" == ??")
    return f"{body}\nprint(repr({expression}))\n" if found and asks and not rest.strip() else None
