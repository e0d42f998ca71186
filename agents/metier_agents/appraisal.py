"""What a tool call is worth: what a model expects of it, against what was measured.

`policy` weighs with it, the loop records its results. Values are counted in right answers:
expected value = gain x success rate - noise - price of time and money. The success rate is the mean of a Beta posterior over the agent's own
calls of the tool in this category, the time their median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metier_agents.spec import MetaReasoned, Policy
from metier_agents.turns import Assessed, Estimate, History, ModelTurn, Realised, ToolTurn, Valued, of_kind
from metier_agents.wording import read_assessment
from metier_infra.rows import ToolRecord
from metier_tools.tool import ToolResult


def assess(policy: Policy, turn: ModelTurn, tools: Sequence[str], records: Mapping[str, ToolRecord]) -> list[Assessed]:
    """The model's assessment in `turn`, weighed tool by tool; nothing under a policy that does not assess."""
    if not isinstance(policy, MetaReasoned):
        return []
    weighed = (
        weigh(policy, estimate, records.get(estimate.tool), turn.cost_usd or 0.0)
        for estimate in read_estimates(turn.text, tools)
    )
    return [Assessed(tools=tuple(weighed))]


def read_estimates(text: str, tools: Sequence[str]) -> list[Estimate]:
    """What a reply says of each of `tools`; one it does not mention, or says nonsense of, gains nothing."""
    said = read_assessment(text)
    return [_estimate(tool, said.get(tool, {})) for tool in tools]


def _estimate(tool: str, said: Mapping[str, object]) -> Estimate:
    seconds = _number(said.get("latency_s"))
    return Estimate(
        tool=tool,
        gain=min(_number(said.get("gain")) or 0.0, 1.0),
        noise=min(_number(said.get("noise")) or 0.0, 1.0),
        latency_s=seconds,
    )


def _number(value: object) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if fits and isinstance(value, int | float) else None


def weigh(policy: MetaReasoned, estimate: Estimate, record: ToolRecord | None, turn_usd: float) -> Valued:
    """An estimate against what was measured; a call also costs the model turn that reads its result."""
    ok, failed = (record.ok, record.failed) if record else (0, 0)
    success = (policy.prior_ok + ok) / (policy.prior_ok + policy.prior_failed + ok + failed)
    seconds = _seconds(policy, estimate, record)
    price = policy.price_per_second * seconds + policy.price_per_usd * turn_usd
    value = estimate.gain * success - estimate.noise - price
    return Valued(estimate=estimate, success=success, seconds=seconds, price=price, value=value)


def _seconds(policy: MetaReasoned, estimate: Estimate, record: ToolRecord | None) -> float:
    if record is not None and record.wall_ms is not None:
        return record.wall_ms / 1000
    return policy.assumed_s if estimate.latency_s is None else estimate.latency_s


def realised(policy: MetaReasoned, valued: Valued, result: ToolResult, turn_usd: float) -> float:
    """What the call was worth, as far as is known when it ended: the gain counts when the tool did its work, and the real time is paid."""
    estimate = valued.estimate
    price = policy.price_per_second * result.wall_ms / 1000 + policy.price_per_usd * turn_usd
    return (estimate.gain if result.ok else 0.0) - estimate.noise - price


def realise(policy: Policy, history: History, turns: Sequence[ToolTurn], turn_usd: float) -> list[Realised]:
    """Predicted beside realised value for each tool call that was made; nothing under a policy that does not assess."""
    if not isinstance(policy, MetaReasoned):
        return []
    last = of_kind(history, Assessed)[-1:]
    predicted = {valued.estimate.tool: valued for assessed in last for valued in assessed.tools}
    return [
        Realised(
            use_id=turn.use_id,
            tool=turn.tool,
            predicted=predicted[turn.tool].value,
            realised=realised(policy, predicted[turn.tool], turn.result, turn_usd),
        )
        for turn in turns
        if turn.tool in predicted and turn.tool_call_id is not None
    ]
