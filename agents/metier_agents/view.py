"""What a policy sees: a frozen view of a call, worked out from its message list.

The loop builds it before each move; `policy` decides on it and on nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metier_agents.purse import Left, Purse
from metier_agents.spec import AgentSpec
from metier_agents.turns import Assessed, History, Message, ModelTurn, ToolTurn, of_kind
from metier_agents.wording import read_assessment
from metier_infra.rows import ToolRecord


@dataclass(frozen=True)
class View:
    """The state of a call.

    Attributes:
        turns: model turns so far, assessments among them.
        answered: the last turn is a model's answer without tool uses.
        broken_off: that answer is none: the model, or its provider's filter, declined, or it was cut at its longest.
        confidence: of the last answer; None when the model did not say.
        offered: tools that were bound in the last model turn.
        results: whether each tool use of the last turn went well; empty when the last turn is a model's.
        useful: tools that fit the category and may still be offered in this call.
        records: what was measured of the useful tools for this agent and category.
        assessed: what the last assessment came to; None before any.
        turn_usd: known cost of the last model turn; 0 when unknown.
        refused: uses of tools that were not offered.
        repeats: how often the most repeated identical tool use was made.
        ping_pong: the last four uses go to and fro between two.
        malformed: how much of what the model wrote could not be read.
        turns_left, calls_left: what the limits still allow.
        tokens_left: what the limit on tokens still allows; None: no limit.
        usd_left: what the money limit still allows; None: no limit.
    """

    turns: int = 0
    answered: bool = False
    broken_off: bool = False
    confidence: float | None = None
    offered: tuple[str, ...] = ()
    results: tuple[bool, ...] = ()
    useful: tuple[str, ...] = ()
    records: Mapping[str, ToolRecord] = field(default_factory=dict[str, ToolRecord])
    assessed: Assessed | None = None
    turn_usd: float = 0.0
    refused: int = 0
    repeats: int = 0
    ping_pong: bool = False
    malformed: int = 0
    turns_left: int = 8
    calls_left: int = 6
    tokens_left: int | None = None
    usd_left: float | None = None


def see(
    history: History,
    spec: AgentSpec,
    category: str,
    records: Mapping[str, ToolRecord],
    left: Left | None = None,
) -> View:
    """The view of a call of `spec` whose message list is `history`; `left` is what its purse holds (None: it spent what is in the list)."""
    left = left or _left(history, spec)
    turns, tools = of_kind(history, ModelTurn), of_kind(history, ToolTurn)
    last = turns[-1] if turns else ModelTurn()
    assessments = of_kind(history, Assessed)
    results = _results(history)
    answered = bool(turns) and last.purpose == "answer" and not last.uses
    return View(
        turns=len(turns),
        answered=answered,
        broken_off=answered and (last.refused or last.cut),
        confidence=last.confidence,
        offered=last.offered,
        results=results,
        useful=_useful(tools, spec, category) if left.tool_calls > 0 else (),
        records=records,
        assessed=assessments[-1] if assessments else None,
        turn_usd=last.cost_usd or 0.0,
        refused=sum(use.tool not in turn.offered for turn in turns for use in turn.uses),
        repeats=max(Counter(_uses(turns)).values(), default=0),
        ping_pong=_ping_pong(_uses(turns)),
        malformed=_malformed(turns),
        turns_left=spec.limits.turns - len(turns),
        calls_left=left.tool_calls,
        tokens_left=left.tokens,
        usd_left=left.usd,
    )


def _left(history: History, spec: AgentSpec) -> Left:
    purse = Purse(spec.limits)
    purse.replay(history)
    return purse.left


def fitting(spec: AgentSpec, category: str) -> tuple[str, ...]:
    """The agent's tools that suit the category."""
    return tuple(tool.name for tool in spec.tools if tool.fitting(category))


def _useful(tools: Sequence[ToolTurn], spec: AgentSpec, category: str) -> tuple[str, ...]:
    failures = Counter(turn.tool for turn in tools if not turn.result.ok)
    return tuple(name for name in fitting(spec, category) if failures[name] < spec.policy.tries)


def _results(history: Sequence[Message]) -> tuple[bool, ...]:
    """The tool results after the last model turn."""
    found: list[bool] = []
    for message in reversed(history):
        if isinstance(message, ModelTurn):
            break
        if isinstance(message, ToolTurn):
            found.append(message.result.ok)
    return tuple(reversed(found))


def _uses(turns: Sequence[ModelTurn]) -> list[str]:
    """Each tool use with its arguments, in order."""
    return [f"{use.tool} {json.dumps(use.arguments, sort_keys=True)}" for turn in turns for use in turn.uses]


def _ping_pong(uses: Sequence[str]) -> bool:
    """Whether the last four uses are two, one after the other and again: A, B, A, B."""
    last = uses[-4:]
    return len(last) == 4 and last[:2] == last[2:] and last[0] != last[1]


def _malformed(turns: Sequence[ModelTurn]) -> int:
    """How much of what the model wrote could not be read: arguments of tools, and assessments."""
    arguments = sum(use.problem is not None for turn in turns for use in turn.uses)
    return arguments + sum(turn.purpose == "assessment" and not read_assessment(turn.text) for turn in turns)
