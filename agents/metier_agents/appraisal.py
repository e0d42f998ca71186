"""What a tool call is worth: what a model expects of it, against what was measured.

`policy` weighs with it, the loop records its results, `record` reads what it goes by. Values are counted in right answers:

    value = success x (right x gain x trust - (1 - right) x loss) - price_per_second x seconds - price_per_usd x (the tool's price + the turn that reads it)

`right` is how likely the answer is right once the tool ended ok, as `belief` has it. A right tool adds `gain`, one that misleads takes `loss`: an answer
that the model had right on its own. It is the expected value of information (Howard 1966), with what can go wrong counted. The model's own numbers
are only the prior: each is drawn towards what was measured as calls come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from metier_agents.belief import believe
from metier_agents.comparing import same
from metier_agents.spec import AgentSpec, MetaReasoned, Policy
from metier_agents.turns import Assessed, Compared, Estimate, History, ModelTurn, Realised, ToolTurn, Valued, of_kind
from metier_agents.wording import read_assessment, read_own
from metier_infra.rows import ToolRecord, fading
from metier_infra.words import CallId, stable_id
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
    call_id: CallId | None = None,
) -> list[Assessed]:
    """The model's assessment in `turn`, weighed tool by tool; nothing under a policy that does not assess.

    `judged` is what became of the agent's earlier predictions in this category, newest first. `call_id` draws the lot; without one, the blank.
    """
    if not isinstance(policy, MetaReasoned):
        return []
    believed, own = trust(policy, judged, records), read_own(turn.text)
    answer, sure = own or (None, None)
    weighed = (
        weigh(policy, estimate, records.get(estimate.tool), turn.cost_usd or 0.0, believed, sure)
        for estimate in read_estimates(turn.text, tools)
    )
    drawn = 1.0 if call_id is None else lot(call_id)
    return [Assessed(tools=tuple(weighed), own_answer=answer, own_confidence=sure, lot=drawn)]


def lot(call_id: CallId) -> float:
    """The number that a call draws, evenly between 0 and 1: always the same for the same call."""
    return int(stable_id("lot", call_id)[:12], 16) / 16**12


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
    policy: MetaReasoned,
    estimate: Estimate,
    record: ToolRecord | None,
    turn_usd: float,
    believed: float = 1.0,
    sure: float | None = None,
) -> Valued:
    """An estimate against what was measured.

    `turn_usd` is what the turn that reads the result will cost, `believed` a `trust`, `sure` the confidence in the model's own answer (None: it gave none).
    Where there is one, a tool that is not worth it takes nothing, as the own answer stands (`compare`), so no more than its price is lost.
    """
    record, success = record or ToolRecord(), success_of(policy, record)
    seconds = _mixed(policy, record.weight, _first(estimate.latency_s, policy.assumed_s), typical_s(record))
    usd = _mixed(policy, record.weight, _first(estimate.cost_usd, policy.assumed_usd), record.cost_usd)
    price = policy.price_per_second * seconds + policy.price_per_usd * (usd + turn_usd)
    belief, adds = believe(policy, estimate.noise, record), gross(estimate.gain * believed, sure)
    expected = success * belief.mean(adds)
    return Valued(
        estimate=estimate,
        success=success,
        seconds=seconds,
        price=price,
        value=(expected if sure is None else max(0.0, expected)) - price,
        cost_usd=usd,
        trust=believed,
        right=belief.right,
        own=None if sure is None else sure * belief.earned,
        chance=belief.chance(lambda right, earned: success * adds(right, earned) > price),
    )


def gross(gain: float, sure: float | None) -> Callable[[float, float], float]:
    """What a call that worked adds, for each (right, earned) of a `Belief`.

    A model that earns less than its confidence leaves more to gain, and the tool the same share of that; more than is left nobody gains.
    Where it gave no answer of its own, it would have been right as often as its gain leaves it.
    """
    if sure is None:
        return lambda right, _: right * gain - (1 - right) * (1 - gain)
    share = min(1.0, gain / (1 - sure)) if sure < 1 else float(gain > 0)
    return lambda right, earned: right * share * (1 - earned * sure) - (1 - right) * earned * sure


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

    `judged` is newest first, and says something only of calls in which the model gave no answer of its own. What is predicted is the stated gain by the tool's measured success rate as it is now: that a tool fails is in its
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


def settle(spec: AgentSpec, history: History) -> list[Realised | Compared]:
    """What the tool calls of an assessed call were worth, and the comparison of its answers: once it is answered, and once only."""
    turns, last = of_kind(history, ModelTurn), of_kind(history, Assessed)[-1:]
    policy, answered = spec.policy, bool(turns) and turns[-1].purpose == "answer" and not turns[-1].uses
    if not isinstance(policy, MetaReasoned) or not last or not answered or of_kind(history, Realised):
        return []
    compared = compare(last[0], history, turns[-1].answer, keeps=spec.retrieval is None)
    told = realise(policy, last[0], of_kind(history, ToolTurn), turns[-1].cost_usd or 0.0, compared)
    return [*told, *([compared] if told and compared else [])]


def compare(assessed: Assessed, history: History, answer: str, *, keeps: bool = True) -> Compared | None:
    """The answer after tools beside the model's own; None when there is none of its own, or no tool worked.

    The own one stands where they differ and no tool that worked was worth its call: it was offered only to be looked at. The same reckoning that
    did not offer the tool finds the own answer the likelier one. A tool that was worth it stays what it is: no considered answer is overridden.
    """
    if assessed.own_answer is None or not worked(history):
        return None
    agreed, values = same(assessed.own_answer, answer), {one.estimate.tool: one.value for one in assessed.tools}
    worth = any(values.get(turn.tool, 0.0) > 0 for turn in worked(history))
    return Compared(agreed=agreed, keeps_own=keeps and not agreed and not worth)


def worked(history: History) -> list[ToolTurn]:
    """The tool calls that ended well."""
    return [turn for turn in of_kind(history, ToolTurn) if turn.result.ok and turn.tool_call_id is not None]


def realise(
    policy: MetaReasoned, assessed: Assessed, turns: Sequence[ToolTurn], turn_usd: float, compared: Compared | None
) -> list[Realised]:
    """Predicted beside realised value for each tool call that the tool took. `turn_usd` is what the turn that read the results cost."""
    predicted = {valued.estimate.tool: valued for valued in assessed.tools}
    return [
        Realised(
            use_id=turn.use_id,
            tool=turn.tool,
            predicted=predicted[turn.tool].value,
            realised=realised(policy, predicted[turn.tool], turn.result, turn_usd, compared),
            gain=predicted[turn.tool].estimate.gain if assessed.own_answer is None else 0.0,
            gained=predicted[turn.tool].estimate.gain if assessed.own_answer is None and turn.result.ok else 0.0,
        )
        for turn in turns
        if turn.tool in predicted and turn.tool_call_id is not None and turn.result.status != "refused"
    ]


def realised(
    policy: MetaReasoned, valued: Valued, result: ToolResult, turn_usd: float, compared: Compared | None = None
) -> float:
    """What the call was worth, as far as is known: nobody says which answer was right.

    The real time is paid; the tool's own price, which a result does not tell, as expected. A call that failed adds nothing.
    """
    price = policy.price_per_second * result.wall_ms / 1000 + policy.price_per_usd * (valued.cost_usd + turn_usd)
    return (_came_of(valued, compared) if result.ok else 0.0) - price


def _came_of(valued: Valued, compared: Compared | None) -> float:
    """What a call that worked added: how much likelier right the answer is than the model's own, which is nought where they agree.

    Of two answers that differ at most one is right: the tool's at odds of right x (1 - own), the other at (1 - right) x own, neither at the rest.
    """
    if valued.own is None or compared is None:
        return gross(valued.estimate.gain, None)(valued.right, 1.0)
    if compared.agreed or compared.keeps_own:
        return 0.0
    return (valued.right - valued.own) / (1 - valued.right * valued.own)
