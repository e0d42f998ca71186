"""The one message list of a call: prompt, log and trajectory.

The loop appends to it, models read it, policies look at it, the journal keeps it: each step's body is `dump` of the messages it added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, JsonValue, TypeAdapter

from metier_agents.wording import read_answer
from metier_infra.words import Word
from metier_tools.tool import ToolResult


class System(Word):
    """What the agent is told before the task."""

    tag: Literal["system"] = "system"
    text: str


class User(Word):
    """The task; its exact text comes first, its context (data, not instructions) in a second one."""

    tag: Literal["user"] = "user"
    text: str


class Note(Word):
    """What the policy says to the model between its turns."""

    tag: Literal["note"] = "note"
    text: str


class AssessmentWanted(Word):
    """The policy asks the model what each of these tools would gain."""

    tag: Literal["assessment_wanted"] = "assessment_wanted"
    tools: tuple[str, ...]
    text: str


class Usage(Word):
    """What a provider counted. Of the input `cached_tokens` were read from its cache and `cache_written_tokens` put there, `reasoning_tokens` of the output were thought and not said.

    `estimated`: the provider told nothing, and what was set aside for the request stands in.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    cache_written_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False


class ToolUse(Word):
    """A model's wish to call a tool. `problem`: why its arguments could not be read."""

    id: str
    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    problem: str | None = None


class PassedOver(Word):
    """A model of the chain that was asked, or not even asked, before the one that replied; `code` and sentence say why."""

    model: str
    code: str
    message: str


class ModelTurn(Word):
    """One reply of a model. A model fills the upper fields; the loop stamps the lower ones.

    `model` is the one that replied and `passed_over` those before it in the chain of fallbacks. `refused`: the model, or its provider's filter, declined
    to answer. `cut`: the reply ended at its longest. `cost_usd` is None where the price is not known. `rule_written`: a fixed rule wrote the turn, not the model (recorded models).
    `offered`: the tools that were bound. `asked_again`: the same request was in flight before, at a crash or a cut, so it may be billed twice.
    Times are seconds since the epoch.
    """

    tag: Literal["model"] = "model"
    text: str = ""
    uses: tuple[ToolUse, ...] = ()
    model: str = ""
    usage: Usage | None = None
    cost_usd: float | None = None
    rule_written: bool = False
    refused: bool = False
    cut: bool = False
    passed_over: tuple[PassedOver, ...] = ()

    purpose: Literal["answer", "assessment", "selection"] = "answer"
    offered: tuple[str, ...] = ()
    asked_again: bool = False
    started_at: float = 0.0
    ended_at: float = 0.0

    @property
    def answer(self) -> str:
        """The comparable answer in the text, or the whole text."""
        return read_answer(self.text)[0]

    @property
    def confidence(self) -> float | None:
        """How sure the model says it is, 0 to 1; None when it does not say."""
        return read_answer(self.text)[1]


class ToolTurn(Word):
    """What came of one tool use. `use_id` is the model's id of it, `tool_call_id` the journal's (None: refused, never made)."""

    tag: Literal["tool"] = "tool"
    use_id: str
    tool: str
    result: ToolResult
    tool_call_id: str | None = None


class Estimate(Word):
    """What a model expects of one tool: gain and noise in right answers, latency in seconds, its own price in USD (None: no idea)."""

    tool: str
    gain: float
    noise: float = 0.0
    latency_s: float | None = None
    cost_usd: float | None = None


class Valued(Word):
    """An estimate weighed by the code: expected success rate, seconds and own price of the tool, what they come to, and the expected value.

    `trust` is what was left of the stated gain, as the model's earlier predictions came true. `right` is how likely the answer is right once the tool
    ended ok, `own` how likely the model's own one is (None: it gave none), `chance` how likely the value is more than nothing. All 0 to 1.
    """

    estimate: Estimate
    success: float
    seconds: float
    price: float
    value: float
    cost_usd: float = 0.0
    trust: float = 1.0
    right: float = 1.0
    own: float | None = None
    chance: float = 0.0


class Assessed(Word):
    """The outcome of an assessment. Log only: no model reads it.

    `own_answer` is what the model would answer without a tool, and `own_confidence` how sure it is, 0 to 1; None where it did not say both.
    `lot` is the number between 0 and 1 that the call drew: whether it looks at tools that are not worth it goes by that.
    """

    tag: Literal["assessed"] = "assessed"
    tools: tuple[Valued, ...]
    own_answer: str | None = None
    own_confidence: float | None = None
    lot: float = 1.0


class Realised(Word):
    """What a tool call was predicted to be worth and what it turned out to be. Log only: no model reads it.

    `gain` is what the model stated and `gained` what came of it; both 0 where its own answer was known: `belief` judges by that.
    """

    tag: Literal["realised"] = "realised"
    use_id: str
    tool: str
    predicted: float
    realised: float
    gain: float = 0.0
    gained: float = 0.0


class Compared(Word):
    """The answer after tools beside the model's own from before. Log only: no model reads it.

    `keeps_own`: they differ, no tool that worked was worth its call, and so the own answer stands.
    """

    tag: Literal["compared"] = "compared"
    agreed: bool
    keeps_own: bool = False


Message = Annotated[
    System | User | Note | AssessmentWanted | ModelTurn | ToolTurn | Assessed | Realised | Compared,
    Field(discriminator="tag"),
]
History = Sequence[Message]
_messages: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
M = TypeVar("M", bound=Word)


def dump(messages: Iterable[Message]) -> dict[str, Any]:
    """A step's body for the journal."""
    return {"messages": _messages.dump_python(list(messages), mode="json")}


def load(body: Mapping[str, Any]) -> list[Message]:
    """The messages of a step's body."""
    return _messages.validate_python(body["messages"])


def of_kind(history: History, kind: type[M]) -> list[M]:
    """The messages of one kind, in order."""
    return [message for message in history if isinstance(message, kind)]


def open_uses(history: History) -> tuple[ToolUse, ...]:
    """The tool uses of the last turn, when nothing came of them yet."""
    last = history[-1] if history else None
    return last.uses if isinstance(last, ModelTurn) else ()


def task_text(history: History) -> str:
    """The task's exact text."""
    return next((message.text for message in history if isinstance(message, User)), "")


def spent(history: History) -> tuple[float, bool]:
    """USD that the model's turns cost as far as known, and whether every price was known."""
    costs = [turn.cost_usd for turn in of_kind(history, ModelTurn)]
    return sum(cost for cost in costs if cost is not None), None not in costs
