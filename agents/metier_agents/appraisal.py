"""What a tool call is worth: what a model expects of it, against what was measured.

`policy` weighs with it, the loop records its results, `record` reads what it goes by. Values are counted in right answers:

    value = gain x trust x success rate - noise - price_per_second x seconds - price_per_usd x (the tool's price + the turn that reads its result)

The model's own numbers are only the prior: each is drawn towards what was measured as calls come in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from metier_agents.spec import MetaReasoned, Policy
from metier_agents.turns import Assessed, Estimate, History, ModelTurn, Realised, ToolTurn, Valued, of_kind
from metier_agents.wording import read_assessment
from metier_infra.rows import ToolRecord, fading
from metier_tools.tool import ToolResult

TAIL = 0.3
"""Share of the p90 in an expected latency; the rest is the median.

What is paid for is the mean. Swanson's rule makes it of the quantiles 10, 50 and 90 by 0.3, 0.4 and 0.3; a latency has a floor, so the
median stands for the lowest too. So a hang in one call of ten is paid for, and a single freak is not.
"""


def assess(
    policy: Policy,
    turn: ModelTurn,
    tools: Sequence[str],
    records: Mapping[str, ToolRecord],
    judged: Sequence[Realised] = (),
) -> list[Assessed]:
    """The model's assessment in `turn`, weighed tool by tool; nothing under a policy that does not assess.

    `judged` is what became of the agent's earlier predictions in this category, newest first.
    """
    if not isinstance(policy, MetaReasoned):
        return []
    believed = trust(policy, judged, records)
    weighed = (
        weigh(policy, estimate, records.get(estimate.tool), turn.cost_usd or 0.0, believed)
        for estimate in read_estimates(turn.text, tools)
    )
    return [Assessed(tools=tuple(weighed))]


def read_estimates(text: str, tools: Sequence[str]) -> list[Estimate]:
    """What a reply says of each of `tools`; one it does not mention, or says nonsense of, gains nothing."""
    said = read_assessment(text)
    return [_estimate(tool, said.get(tool, {})) for tool in tools]


def _estimate(tool: str, said: Mapping[str, object]) -> Estimate:
    return Estimate(
        tool=tool,
        gain=min(_number(said.get("gain")) or 0.0, 1.0),
        noise=min(_number(said.get("noise")) or 0.0, 1.0),
        latency_s=_number(said.get("latency_s")),
        cost_usd=_number(said.get("cost_usd")),
    )


def _number(value: object) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if fits and isinstance(value, int | float) else None


def weigh(
    policy: MetaReasoned, estimate: Estimate, record: ToolRecord | None, turn_usd: float, believed: float = 1.0
) -> Valued:
    """An estimate against what was measured. `turn_usd` is what the turn that reads the result will cost, `believed` a `trust`."""
    record, success = record or ToolRecord(), success_of(policy, record)
    seconds = _mixed(policy, record.weight, _first(estimate.latency_s, policy.assumed_s), typical_s(record))
    usd = _mixed(policy, record.weight, _first(estimate.cost_usd, policy.assumed_usd), record.cost_usd)
    price = policy.price_per_second * seconds + policy.price_per_usd * (usd + turn_usd)
    value = estimate.gain * believed * success - estimate.noise - price
    return Valued(
        estimate=estimate, success=success, seconds=seconds, price=price, value=value, cost_usd=usd, trust=believed
    )


def typical_s(record: ToolRecord) -> float | None:
    """The time that a call is expected to take by what was measured, in seconds; see `TAIL`."""
    if record.latency_p50_s is None or record.latency_p90_s is None:
        return None
    return (1 - TAIL) * record.latency_p50_s + TAIL * record.latency_p90_s


def _mixed(policy: MetaReasoned, weight: float, prior: float, measured: float | None) -> float:
    """The prior counts as many calls as the Beta prior does, what was measured as many as it is worth."""
    calls = policy.prior_ok + policy.prior_failed
    return prior if measured is None else (calls * prior + weight * measured) / (calls + weight)


def _first(stated: float | None, assumed: float) -> float:
    return assumed if stated is None else stated


def trust(policy: MetaReasoned, judged: Sequence[Realised], records: Mapping[str, ToolRecord]) -> float:
    """How much of a stated gain to believe, 0 to 1: the gains that came true over those predicted, `prior_worth` added to both.

    `judged` is newest first. What is predicted is the stated gain by the tool's measured success rate as it is now: that a tool fails is in its
    record already and would count twice. What is left is the model's own: it expects most of a tool where it fails. It shrinks, never inflates.
    """
    weighed = list(zip(fading(len(judged), policy.half_life), judged, strict=True))
    gained = sum(weight * one.gained for weight, one in weighed)
    predicted = sum(weight * one.gain * (records.get(one.tool, ToolRecord()).success or 0.0) for weight, one in weighed)
    return min(1.0, (policy.prior_worth + gained) / (policy.prior_worth + predicted))


def success_of(policy: MetaReasoned, record: ToolRecord | None) -> float:
    """The success rate to expect: the mean of the Beta posterior."""
    ok, weight = (record.ok, record.weight) if record else (0.0, 0.0)
    return (policy.prior_ok + ok) / (policy.prior_ok + policy.prior_failed + weight)


def realised(policy: MetaReasoned, valued: Valued, result: ToolResult, turn_usd: float) -> float:
    """What the call was worth, as far as is known when it ended.

    The stated gain counts when the tool did its work, and the real time is paid; its own price, which a result does not tell, as expected.
    """
    price = policy.price_per_second * result.wall_ms / 1000 + policy.price_per_usd * (valued.cost_usd + turn_usd)
    return gained(valued, result) - valued.estimate.noise - price


def gained(valued: Valued, result: ToolResult) -> float:
    """The stated gain when the tool did its work, else nothing. Whether the answer became right, nobody knows yet."""
    return valued.estimate.gain if result.ok else 0.0


def realise(policy: Policy, history: History, turns: Sequence[ToolTurn], turn_usd: float) -> list[Realised]:
    """Predicted beside realised value for each tool call that the tool took; nothing under a policy that does not assess."""
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
            gain=predicted[turn.tool].estimate.gain,
            gained=gained(predicted[turn.tool], turn.result),
        )
        for turn in turns
        if turn.tool in predicted and turn.tool_call_id is not None and turn.result.status != "refused"
    ]
