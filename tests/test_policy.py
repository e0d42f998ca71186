"""The policies as tables: view to move; and the view itself. What the loop makes of a move is in test_loop."""

from __future__ import annotations

import ast
import gc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_agents import appraisal, wording
from metier_agents.belief import EARNED, believe
from metier_agents.comparing import LONGEST, same
from metier_agents.outcome import conclude
from metier_agents.policy import Answer, Assess, Move, Offer, Stop, Think, decide
from metier_agents.spec import AgentSpec, Autonomous, Collaborative, MetaReasoned, Policy
from metier_agents.turns import (
    Assessed,
    AssessmentWanted,
    Compared,
    Estimate,
    Message,
    ModelTurn,
    Realised,
    System,
    ToolTurn,
    ToolUse,
    User,
    Valued,
    dump,
    load,
    of_kind,
)
from metier_agents.view import View, see
from metier_infra.rows import ToolRecord, weigh_record
from metier_infra.words import CallId
from metier_tools.tool import ToolResult

PY = ("python",)
AUTONOMOUS = Autonomous(kind="autonomous", threshold=0.8, tries=2)
COLLABORATIVE = Collaborative(kind="collaborative", tries=2)
META = MetaReasoned.model_validate({"kind": "meta_reasoned"})

FRESH = View(useful=PY)
ANSWERED = View(turns=1, answered=True, confidence=0.5, useful=PY)
USED = View(turns=2, offered=PY, results=(True,), useful=PY, confidence=0.5)
FAILED = replace(USED, results=(False,))


def valued(gain: float, tool: str = "python", noise: float = 0.05) -> Valued:
    return appraisal.weigh(META, Estimate(tool=tool, gain=gain, noise=noise), None, 0.0)


def assessed(*tools: Valued, lot: float = 1.0, sure: float | None = None) -> Assessed:
    return Assessed(tools=tools, lot=lot, own_answer=None if sure is None else "41", own_confidence=sure)


@pytest.mark.parametrize(
    ("view", "move"),
    [
        (FRESH, Think()),
        (replace(ANSWERED, confidence=0.8), Answer()),
        (replace(ANSWERED, confidence=0.79), Offer(PY, "auto", wording.UNSURE)),
        (replace(ANSWERED, confidence=None), Offer(PY, "auto", wording.UNSURE)),
        (replace(ANSWERED, useful=()), Answer()),
        (replace(ANSWERED, offered=PY), Answer()),
        (USED, Think(wording.AFTER_TOOLS)),
        (FAILED, Think(wording.AFTER_TOOLS)),
        (replace(ANSWERED, turns=3), Offer(PY, "auto", wording.UNSURE)),
    ],
    ids=["first", "sure", "unsure", "silent", "no tool", "declined", "used", "failed", "unsure again"],
)
def test_autonomous(view: View, move: Move) -> None:
    assert decide(AUTONOMOUS, view) == move


@pytest.mark.parametrize(
    ("view", "move"),
    [
        (FRESH, Offer(PY, "required")),
        (replace(FRESH, useful=()), Think()),
        (USED, Offer(PY, "auto", wording.CROSS_CHECK)),
        (FAILED, Offer(PY, "auto", wording.CROSS_CHECK)),
        (replace(FAILED, useful=()), Think(wording.CROSS_CHECK)),
        (replace(ANSWERED, offered=PY), Offer(PY, "required", wording.MUST_CALL)),
        (replace(ANSWERED, offered=PY, turns=2), Answer()),
        (replace(ANSWERED, useful=()), Answer()),
    ],
    ids=["first", "nothing fits", "check", "check a failure", "withdrawn", "did not call", "insists", "alone"],
)
def test_collaborative(view: View, move: Move) -> None:
    assert decide(COLLABORATIVE, view) == move


@pytest.mark.parametrize(
    ("view", "move"),
    [
        (FRESH, Assess(PY)),
        (replace(FRESH, useful=()), Think()),
        (replace(FRESH, turns=1, assessed=assessed(valued(0.5))), Offer(PY, "auto", wording.SOLVE)),
        (replace(FRESH, turns=1, assessed=assessed(valued(0.0))), Think(wording.SOLVE)),
        (replace(FRESH, turns=1, assessed=assessed()), Think(wording.SOLVE)),
        (replace(USED, assessed=assessed(valued(0.5))), Think(wording.AFTER_TOOLS)),
        (replace(FAILED, assessed=assessed(valued(0.5))), Offer(PY, "auto", wording.FAILED)),
        (replace(FAILED, assessed=assessed(valued(0.5)), useful=()), Think(wording.AFTER_TOOLS)),
        (replace(ANSWERED, assessed=assessed(valued(0.5))), Answer()),
        (replace(ANSWERED, offered=PY, assessed=assessed(valued(0.5))), Answer()),
    ],
    ids=["assess", "no tool", "worth", "not worth", "silent", "used", "again", "withdrawn", "answered", "declined"],
)
def test_meta_reasoned(view: View, move: Move) -> None:
    assert decide(META, view) == move


POOR, BARREN = valued(0.02), valued(0.0)


@pytest.mark.parametrize(
    ("tool", "lot", "explore", "offers"),
    [
        (POOR, 0.049, 0.05, True),
        (POOR, 0.5, 0.05, False),
        (POOR, 0.049, 0.0, False),
        (POOR, 0.99, 1.0, True),
        (BARREN, 0.0, 1.0, False),
    ],
    ids=["drawn", "not drawn", "never", "always", "nothing expected"],
)
def test_a_tool_that_is_not_worth_it_is_looked_at_in_a_share_of_calls(
    tool: Valued, lot: float, explore: float, offers: bool
) -> None:
    policy = META.model_copy(update={"explore": explore})
    assert tool.value <= 0
    for view, note in ((FRESH, wording.SOLVE), (FAILED, wording.FAILED)):
        move = decide(policy, replace(view, turns=1, assessed=assessed(tool, lot=lot, sure=0.9)))
        assert isinstance(move, Offer) is offers
        assert not offers or move == Offer(PY, "auto", note)


def test_a_tool_is_looked_at_as_often_as_it_may_be_worth_it_after_all() -> None:
    doubtful = ToolRecord(12, 8.0, 4.0, 0.1, 0.1, None, 2.0, ((0.8, 6.0),))
    weighed = appraisal.weigh(META, Estimate(tool="python", gain=0.2, noise=0.05), doubtful, 0.0, 1.0, 0.8)
    assert weighed.value <= 0
    assert 0.05 < weighed.chance < 0.6
    for lot, offers in ((weighed.chance - 0.01, True), (weighed.chance + 0.01, False)):
        view = replace(FRESH, turns=1, assessed=assessed(weighed, lot=lot, sure=0.8), records={"python": doubtful})
        assert isinstance(decide(META, view), Offer) is offers


def test_lots_are_even_and_always_the_same_for_the_same_call() -> None:
    lots = [appraisal.lot(CallId(f"c{n}")) for n in range(2000)]
    assert lots == [appraisal.lot(CallId(f"c{n}")) for n in range(2000)]
    assert all(0 <= one < 1 for one in lots)
    assert sum(one < 0.05 for one in lots) == pytest.approx(100, abs=40)
    assert sum(one < 0.5 for one in lots) == pytest.approx(1000, abs=100)


def test_meta_reasoned_offers_the_best_tool_first_and_leaves_the_others_out() -> None:
    found = assessed(valued(0.2, "shell"), valued(0.6, "python"), valued(0.01, "search"))
    view = View(turns=1, useful=("python", "shell", "search"), assessed=found)
    assert decide(META, view) == Offer(("python", "shell"), "auto", wording.SOLVE)


def measured(ok: float, failed: float, seconds: float, cost_usd: float | None = None) -> ToolRecord:
    return ToolRecord(int(ok + failed), ok, failed, seconds, seconds, cost_usd)


@pytest.mark.parametrize(
    ("record", "offers"),
    [
        (None, True),
        (measured(50, 0, 0.1), True),
        (measured(0, 50, 1.0), False),
        (measured(50, 0, 60.0), False),
    ],
    ids=["unmeasured", "works", "broken", "slow"],
)
def test_meta_reasoned_believes_what_was_measured(record: ToolRecord | None, offers: bool) -> None:
    records = {"python": record} if record else {}
    move = decide(META, View(turns=1, useful=PY, assessed=assessed(valued(0.15)), records=records))
    assert isinstance(move, Offer) is offers


@pytest.mark.parametrize("policy", [AUTONOMOUS, COLLABORATIVE, META], ids=lambda policy: policy.kind)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turns_left": 0}, "turn_limit"),
        ({"usd_left": 0.0}, "cost_limit"),
        ({"refused": 2}, "unoffered_tool"),
        ({"repeats": 3}, "repeated_call"),
    ],
)
def test_a_guard_stops_where_the_model_would_be_asked_again(
    policy: Policy, change: dict[str, int], reason: str
) -> None:
    assert decide(policy, replace(USED, **change)) == Stop(reason)


def test_a_guard_does_not_take_an_answer_away() -> None:
    assert decide(AUTONOMOUS, replace(ANSWERED, confidence=0.9, turns_left=0)) == Answer()


views = st.builds(
    View,
    turns=st.integers(0, 9),
    answered=st.booleans(),
    confidence=st.none() | st.floats(0, 1),
    offered=st.sampled_from([(), PY]),
    results=st.lists(st.booleans(), max_size=3).map(tuple),
    useful=st.sampled_from([(), PY, ("python", "shell")]),
    assessed=st.none()
    | st.builds(assessed, st.floats(0, 1).map(valued), lot=st.floats(0, 1), sure=st.none() | st.floats(0, 1)),
    refused=st.integers(0, 3),
    repeats=st.integers(0, 4),
    turns_left=st.integers(0, 8),
)


@given(views, st.sampled_from([AUTONOMOUS, COLLABORATIVE, META]))
def test_whatever_the_view_only_useful_tools_are_offered_and_the_limit_of_turns_holds(
    view: View, policy: Policy
) -> None:
    move = decide(policy, view)
    if isinstance(move, Offer | Assess):
        assert move.tools
        assert set(move.tools) <= set(view.useful)
    if view.turns_left <= 0:
        assert isinstance(move, Answer | Stop)
    if isinstance(policy, Autonomous) and not view.answered:
        assert not isinstance(move, Offer | Assess)


# ---- worth


PRICED = MetaReasoned.model_validate(
    {"kind": "meta_reasoned", "price_per_second": 0.01, "price_per_usd": 2.0, "prior_ok": 1, "prior_failed": 1}
)


def test_worth_is_what_a_right_tool_adds_less_what_one_that_misleads_takes_and_the_price() -> None:
    found = appraisal.weigh(PRICED, Estimate(tool="python", gain=0.6, noise=0.1), measured(5, 1, 2.0), 0.02)
    assert (found.success, found.seconds, found.price) == (6 / 8, 2.0, pytest.approx(0.06))
    assert found.right == pytest.approx(0.9, abs=0.1)
    assert found.value == pytest.approx(0.75 * (found.right * 0.6 - (1 - found.right) * 0.4) - 0.06)


@pytest.mark.parametrize(
    ("stated", "record", "seconds", "usd"),
    [
        ({}, ToolRecord(), 2.0, 0.0),
        ({"latency_s": 5.0, "cost_usd": 0.1}, ToolRecord(), 5.0, 0.1),
        ({"latency_s": 5.0, "cost_usd": 0.1}, measured(2, 0, 1.0, 0.3), 3.0, 0.2),
        ({"latency_s": 5.0, "cost_usd": 0.1}, measured(0, 2, 1.0), 3.0, 0.1),
        ({}, measured(198, 0, 1.0, 0.3), 1.01, 0.297),
        ({"latency_s": 0.0}, ToolRecord(8, 8, 0, 1.0, 11.0), 3.2, 0.0),
    ],
    ids=["nothing", "stated", "as much measured", "no price told", "much measured", "a tail"],
)
def test_a_models_own_numbers_are_the_prior_and_give_way_to_what_was_measured(
    stated: dict[str, float], record: ToolRecord, seconds: float, usd: float
) -> None:
    found = appraisal.weigh(PRICED, Estimate.model_validate({"tool": "python", "gain": 0.5, **stated}), record, 0.02)
    assert (found.seconds, found.cost_usd) == (pytest.approx(seconds), pytest.approx(usd))
    assert found.price == pytest.approx(0.01 * seconds + 2.0 * (usd + 0.02))


def judged(*pairs: tuple[float, float], tool: str = "python") -> list[Realised]:
    return [
        Realised(use_id="u", tool=tool, predicted=0.0, realised=0.0, gain=gain, gained=gained) for gain, gained in pairs
    ]


HIT, MISS = (0.5, 0.5), (0.5, 0.0)
HALF = {"python": measured(5e5, 5e5, 1.0)}
BROKEN = {"python": measured(0, 1e6, 1.0)}
WHOLE = {"python": measured(1e6, 0, 1.0)}


@pytest.mark.parametrize(
    ("pairs", "records", "trust"),
    [
        ([], {}, 1.0),
        ([MISS], {}, 1.0),
        ([HIT] * 9, {}, 1.0),
        ([HIT] * 9, WHOLE, 1.0),
        ([HIT, MISS] * 9, HALF, 1.0),
        ([MISS] * 9, BROKEN, 1.0),
        ([MISS], WHOLE, 2 / 2.5),
        ([MISS] * 4, WHOLE, 2 / 4),
        ([HIT, MISS], WHOLE, 2.5 / 3),
        ([(1.0, 0.0), (0.2, 0.2)] * 5, HALF, 3 / 5),
        ([(1.0, 1.0), (0.2, 0.0)] * 5, HALF, 1.0),
        ([(0.5, 0.2)] * 1000, WHOLE, 0.4),
        ([(0.0, 0.0)] * 9, WHOLE, 1.0),
    ],
    ids=[
        "nothing judged",
        "tool unknown",
        "all came true",
        "of a tool that works",
        "a tool half works",
        "a tool is broken",
        "a miss",
        "four",
        "half",
        "expects most where it fails",
        "expects most where it works",
        "two fifths of it",
        "expects nothing",
    ],
)
def test_a_stated_gain_is_believed_as_far_as_earlier_ones_came_true_beyond_what_the_tools_record_says(
    pairs: list[tuple[float, float]], records: dict[str, ToolRecord], trust: float
) -> None:
    policy = META.model_copy(update={"half_life": 1e6})
    assert appraisal.trust(policy, judged(*pairs), records) == pytest.approx(trust, abs=0.003)


def test_trust_goes_by_the_record_of_the_tool_that_was_used() -> None:
    records = {**WHOLE, "shell": BROKEN["python"]}
    assert appraisal.trust(META, judged(MISS, tool="shell"), records) == pytest.approx(1.0, abs=1e-5)
    assert appraisal.trust(META, judged(MISS, tool="python"), records) == pytest.approx(2 / 2.5)


def test_trust_comes_back_as_misses_are_forgotten() -> None:
    policy = META.model_copy(update={"half_life": 2.0})
    trusts = [appraisal.trust(policy, judged(*[(1.0, 1.0)] * n, *[(1.0, 0.0)] * 5), WHOLE) for n in range(9)]
    assert trusts == sorted(trusts)
    assert trusts[0] < 0.5
    assert trusts[-1] > 0.9


def test_what_a_model_predicted_falsely_shrinks_its_gain_and_may_end_the_offer() -> None:
    said = ModelTurn(text='{"python": {"gain": 0.3, "noise": 0.05}}')
    for pairs, offers in (((), True), (judged(*[MISS] * 12), False)):
        (found,) = appraisal.assess(META, said, PY, WHOLE, pairs)
        move = decide(META, View(turns=1, useful=PY, assessed=found, records=WHOLE))
        assert isinstance(move, Offer) is offers


def test_a_price_that_the_model_states_is_read_and_paid() -> None:
    (found,) = appraisal.read_estimates('{"python": {"gain": 0.3, "cost_usd": 0.25, "latency_s": 7}}', PY)
    assert (found.cost_usd, found.latency_s) == (0.25, 7.0)
    (unsaid,) = appraisal.read_estimates('{"python": {"gain": 0.3, "cost_usd": "cheap"}}', PY)
    assert unsaid.cost_usd is None


OWN = '"own_answer": "41", "own_confidence": 0.4, '
SAID = '{%s"python": {"gain": 0.6, "noise": 0.1, "cost_usd": 0.05}}'


def answered(text: str, own: str = OWN, status: str = "ok") -> list[Message]:
    """A call under the meta-reasoned policy: assessed, one tool call that ended so, answered."""
    said = ModelTurn(text=SAID % own, purpose="assessment")
    called = ModelTurn(uses=(USE,), offered=PY)
    found = appraisal.assess(PRICED, said, PY, {})
    return [User(text="u"), said, *found, called, tool_turn(status), ModelTurn(text=text, cost_usd=0.02)]


WEIGHS = AgentSpec.model_validate(
    {
        "name": "a",
        "model": "scripted:x",
        "policy": {**PRICED.model_dump()},
        "tools": [{"name": "python"}],
    }
)
PRICE = 2.0 * (0.05 + 0.02)


@pytest.mark.parametrize(
    ("status", "counted", "gained"),
    [("ok", True, 0.6), ("error", True, 0.0), ("timeout", True, 0.0), ("refused", False, 0.0)],
)
def test_what_a_call_was_worth_is_judged_unless_the_tool_never_ran(status: str, counted: bool, gained: float) -> None:
    history = answered("ANSWER: 42", own="", status=status)
    valued = of_kind(history, Assessed)[0].tools[0]
    worth = valued.right * 0.6 - (1 - valued.right) * 0.4 if status == "ok" else 0.0
    found = appraisal.settle(WEIGHS, history)
    assert [(one.predicted, one.realised, one.gain, one.gained) for one in of_kind(found, Realised)] == [
        (valued.value, pytest.approx(worth - PRICE), 0.6, gained)
    ] * counted
    assert of_kind(found, Compared) == []


@pytest.mark.parametrize(
    ("status", "answer", "agreed"),
    [("ok", "41", True), ("ok", "42", False), ("error", "42", None), ("refused", "42", None)],
)
def test_where_a_model_gave_its_own_answer_a_call_is_judged_by_whether_they_agree(
    status: str, answer: str, agreed: bool | None
) -> None:
    history = answered(f"ANSWER: {answer}", status=status)
    valued = of_kind(history, Assessed)[0].tools[0]
    assert valued.own is not None
    found = appraisal.settle(WEIGHS, history)
    worth = (valued.right - valued.own) / (1 - valued.right * valued.own) if agreed is False else 0.0
    assert [one.agreed for one in of_kind(found, Compared)] == ([] if agreed is None else [agreed])
    assert [(one.realised, one.gain, one.gained) for one in of_kind(found, Realised)] == [
        (pytest.approx(worth - PRICE), 0.0, 0.0)
    ] * (status != "refused")


def test_what_became_of_a_call_is_told_once_and_not_before_it_is_answered() -> None:
    history = answered("ANSWER: 42")
    assert appraisal.settle(WEIGHS, history[:-1]) == []
    told = appraisal.settle(WEIGHS, history)
    assert [one.tag for one in told] == ["realised", "compared"]
    assert appraisal.settle(WEIGHS, [*history, *told]) == []
    assert appraisal.settle(WEIGHS, [*history, *told, ModelTurn(text="ANSWER: 43")]) == []


def test_over_agreement_and_disagreement_the_realised_value_is_on_average_the_predicted_one() -> None:
    valued = appraisal.weigh(PRICED, Estimate(tool="python", gain=0.6, noise=0.1), WHOLE["python"], 0.0, 1.0, 0.4)
    assert valued.own is not None
    agree, ok = valued.right * valued.own, ToolResult(status="ok", wall_ms=1000 * valued.seconds)
    came = [appraisal.realised(PRICED, valued, ok, 0.0, Compared(agreed=agreed)) for agreed in (True, False)]
    assert agree * came[0] + (1 - agree) * came[1] == pytest.approx(valued.value, abs=0.01)


# ---- belief: what agreement tells


def compared(agreed: float, differed: float, sure: float = 0.8, failed: float = 0.0) -> ToolRecord:
    return ToolRecord(1, agreed + differed, failed, 1.0, 1.0, None, agreed, ((sure, differed),) if differed else ())


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
def test_before_anything_was_compared_a_model_is_believed_as_to_noise(noise: float) -> None:
    found = believe(META, noise, ToolRecord())
    assert found.right == pytest.approx(1 - noise, abs=0.12)
    assert found.earned == pytest.approx(EARNED[0] / sum(EARNED), abs=0.02)
    assert sum(mass for _, _, mass in found.points) == pytest.approx(1)


@pytest.mark.parametrize(
    ("record", "low", "high"),
    [
        (compared(64, 16), 0.95, 1.0),
        (compared(32, 8), 0.95, 1.0),
        (compared(0, 40), 0.0, 0.1),
        (compared(24, 26, failed=50), 0.5, 0.75),
        (compared(16, 24, sure=0.4), 0.9, 1.0),
        (compared(0, 40, sure=0.05), 0.7, 1.0),
    ],
    ids=["always right", "fewer", "never right", "fails and lies", "of a weak model", "who knows nothing"],
)
def test_how_likely_a_tool_is_right_is_read_off_agreement_with_the_models_own_answers(
    record: ToolRecord, low: float, high: float
) -> None:
    assert low <= believe(META, 0.05, record).right <= high


def test_how_often_a_tool_fails_in_sight_says_nothing_of_its_answers() -> None:
    assert believe(META, 0.05, compared(9, 9, failed=50)) == believe(META, 0.05, compared(9, 9))


def test_a_model_that_claims_a_little_too_much_is_not_held_against_the_tool_and_one_that_never_agrees_is() -> None:
    little, never = believe(META, 0.05, compared(40, 10, 0.9)), believe(META, 0.05, compared(0, 40, 0.9))
    assert (little.right > 0.93, never.right < 0.1) == (True, True)
    assert believe(META, 0.05, compared(40, 30, 0.9)).earned < little.earned - 0.005


counts = st.floats(0, 60)


@given(counts, counts, st.floats(0.05, 1), st.floats(0, 1))
def test_agreement_speaks_for_a_tool_and_disagreement_against_it(
    agreed: float, differed: float, sure: float, noise: float
) -> None:
    now = believe(META, noise, compared(agreed, differed, sure)).right
    assert believe(META, noise, compared(agreed + 1, differed, sure)).right >= now - 1e-9
    one_more = replace(compared(agreed, differed, sure), differed=((sure, differed + 1),))
    assert believe(META, noise, one_more).right <= now + 1e-9


@given(counts, counts, st.floats(0, 0.9))
def test_the_surer_the_model_was_the_more_a_disagreement_speaks_against_the_tool(
    agreed: float, differed: float, sure: float
) -> None:
    found = [believe(META, 0.1, compared(agreed, differed + 1, one)).right for one in (sure, sure + 0.1)]
    assert found[1] <= found[0] + 1e-9


def test_a_tool_that_lies_is_offered_until_its_answers_have_differed_too_often() -> None:
    said = ModelTurn(text='{"own_answer": "41", "own_confidence": 0.8, "python": {"gain": 0.2, "noise": 0.05}}')
    worths: list[bool] = []
    for differed in (0, 1, 2, 4, 8, 16):
        (found,) = appraisal.assess(META, said, PY, {"python": compared(0, differed)})
        worths.append(found.tools[0].value > 0)
    assert worths == sorted(worths, reverse=True)
    assert worths[0]
    assert not worths[4]


def test_where_a_model_has_its_own_answer_a_tool_that_misleads_costs_no_more_than_its_price() -> None:
    for sure, floor in ((0.8, True), (None, False)):
        found = appraisal.weigh(META, Estimate(tool="python", gain=0.2, noise=0.05), compared(0, 40), 0.01, 1.0, sure)
        assert (found.value == -found.price) is floor
        assert found.value < 0


@pytest.mark.parametrize(
    ("gain", "sure", "worth"),
    [(0.2, 0.8, 0.2), (0.9, 0.8, 0.2), (0.1, 0.8, 0.1), (0.0, 0.8, 0.0), (0.5, 1.0, 0.0), (0.0, 1.0, 0.0)],
)
def test_a_gain_is_at_most_what_the_models_own_answer_leaves(gain: float, sure: float, worth: float) -> None:
    gross = appraisal.gross(gain, sure)
    assert gross(1.0, 1.0) == pytest.approx(worth)
    assert gross(1.0, 0.5) == pytest.approx(worth / (1 - sure) * (1 - sure / 2) if sure < 1 else 0.5 * (gain > 0))
    assert gross(0.0, 0.5) == pytest.approx(-sure / 2)


# ---- which answer stands


@pytest.mark.parametrize(
    ("answer", "value", "status", "keeps", "stands"),
    [
        ("42", 0.1, "ok", None, "42"),
        ("42", -0.1, "ok", None, "41"),
        ("41.0", -0.1, "ok", None, "41.0"),
        ("42", -0.1, "error", None, "42"),
        ("42", -0.1, "ok", False, "42"),
    ],
    ids=["worth it", "looked at", "agrees", "did not work", "answers from sources"],
)
def test_the_own_answer_stands_against_a_tool_that_was_only_looked_at(
    answer: str, value: float, status: str, keeps: bool | None, stands: str
) -> None:
    history = answered(f"ANSWER: {answer}\nCONFIDENCE: 0.9", status=status)
    at = next(n for n, one in enumerate(history) if isinstance(one, Assessed))
    weighed = of_kind(history, Assessed)[0]
    changed = weighed.model_copy(update={"tools": (weighed.tools[0].model_copy(update={"value": value}),)})
    history[at] = changed
    told = appraisal.settle(WEIGHS, history)
    if keeps is not None:
        told = [one for one in [appraisal.compare(changed, history, answer, keeps=keeps)] if one]
    found = conclude([*history, *told], WEIGHS)
    assert (found.text, found.confidence, found.stopped) == (stands, 0.4 if stands == "41" else 0.9, "answered")


outcomes = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60)


def value_of(policy: MetaReasoned, outcomes: list[tuple[bool, float]]) -> float:
    """What a tool is worth after calls that went well or not, each with the gain that was stated of it; the newest first."""
    rows = [
        {"ok": int(ok), "wall_ms": 2000.0, "cost_usd": None, "agreed": None, "own_confidence": None}
        for ok, _ in outcomes
    ]
    record = weigh_record(rows, policy.half_life)
    trust = appraisal.trust(policy, judged(*[(gain, gain * ok) for ok, gain in outcomes]), {"python": record})
    return appraisal.weigh(policy, Estimate(tool="python", gain=0.7, noise=0.1), record, 0.0, trust).value


@given(outcomes, st.data(), st.floats(1, 500))
def test_a_failure_in_place_of_a_success_never_raises_a_value(
    outcomes: list[tuple[bool, float]], data: st.DataObject, half_life: float
) -> None:
    policy = META.model_copy(update={"half_life": half_life})
    turned, at = [*outcomes], data.draw(st.integers(0, len(outcomes) - 1))
    turned[at] = (False, outcomes[at][1])
    assert value_of(policy, turned) <= value_of(policy, outcomes) + 1e-12


@given(st.lists(st.booleans(), max_size=60), st.floats(1, 500))
def test_one_more_failure_never_raises_the_success_rate_to_expect(outcomes: list[bool], half_life: float) -> None:
    def expected(outcomes: list[bool]) -> float:
        rows = [{"ok": int(ok), "wall_ms": 1.0, "cost_usd": None, "agreed": None} for ok in outcomes]
        return appraisal.success_of(META, weigh_record(rows, half_life))

    assert expected([False, *outcomes]) <= expected(outcomes) + 1e-12


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30), st.integers(0, 100), st.integers(0, 100))
def test_trust_is_a_share(pairs: list[tuple[float, float]], ok: int, failed: int) -> None:
    assert 0 < appraisal.trust(META, judged(*pairs), {"python": measured(ok, failed, 1.0)}) <= 1


@pytest.mark.parametrize(
    ("text", "gain", "noise"),
    [
        ('{"python": {"gain": 0.3, "noise": 0.1}}', 0.3, 0.1),
        ('Sure!\n```json\n{"python": {"gain": 0.3}}\n```', 0.3, 0.0),
        ('{"python": {"gain": "lots"}}', 0.0, 0.0),
        ('{"python": {"gain": 40, "noise": -1}}', 1.0, 0.0),
        ('{"python": {"gain": true}}', 0.0, 0.0),
        ('{"python": 1}', 0.0, 0.0),
        ('{"shell": {"gain": 0.3}}', 0.0, 0.0),
        ("[1, 2]", 0.0, 0.0),
        ("I cannot say.", 0.0, 0.0),
        ("}{", 0.0, 0.0),
        ('{"python": {"gain": NaN}}', 0.0, 0.0),
    ],
)
def test_an_assessment_is_read_as_hostile_text(text: str, gain: float, noise: float) -> None:
    assert appraisal.read_estimates(text, PY) == [Estimate(tool="python", gain=gain, noise=noise)]


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        ("ANSWER: 42\nCONFIDENCE: 0.9", "42", 0.9),
        ("Let me think.\nANSWER: 'a b'\nCONFIDENCE: 0.95\n", "'a b'", 0.95),
        ("ANSWER: 42\nCONFIDENCE: 90%", "42", 0.9),
        ("**ANSWER:** 42\n**CONFIDENCE:** 0.9\nHope that helps!", "42", 0.9),
        ("ANSWER: 42", "42", None),
        ("ANSWER: 42\nCONFIDENCE: high", "42", None),
        ("ANSWER: 42\nCONFIDENCE: 7", "42", None),
        ("ANSWER: 42\nCONFIDENCE: 0.5.1", "42", None),
        ("ANSWER: line one\nline two\nCONFIDENCE: 0.5", "line one\nline two", 0.5),
        ("ANSWER: 1\nCONFIDENCE: 0.1\nNo, wait.\nANSWER: 2\nCONFIDENCE: 0.8", "2", 0.8),
        ("ANSWER: \nCONFIDENCE: 0.000", "", 0.0),
        ("  forty-two ", "forty-two", None),
        ("", "", None),
    ],
)
def test_a_reply_is_read(text: str, answer: str, confidence: float | None) -> None:
    assert wording.read_answer(text) == (answer, confidence)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), st.floats(0, 1))
def test_what_is_written_is_read(answer: str, confidence: float) -> None:
    if "ANSWER:" not in answer and "CONFIDENCE:" not in answer:
        found, sure = wording.read_answer(wording.write_answer(answer, confidence))
        assert found == answer.strip()
        assert sure == pytest.approx(confidence, abs=0.001)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ('{"own_answer": "42", "own_confidence": 0.7}', ("42", 0.7)),
        ('Well:\n{"own_answer": " 42 ", "own_confidence": 1}', ("42", 1.0)),
        ('{"own_answer": 42, "own_confidence": 0}', ("42", 0.0)),
        ('{"own_answer": [1, "a"], "own_confidence": 0.5}', ('[1, "a"]', 0.5)),
        ('{"own_answer": "{}}", "own_confidence": 0.5, "python": {"gain": 1}}', ("{}}", 0.5)),
        ('{"own_answer": "42"}', None),
        ('{"own_confidence": 0.5}', None),
        ('{"own_answer": null, "own_confidence": 0.5}', None),
        ('{"own_answer": "", "own_confidence": 0.5}', None),
        ('{"own_answer": "42", "own_confidence": "high"}', None),
        ('{"own_answer": "42", "own_confidence": true}', None),
        ('{"own_answer": "42", "own_confidence": 1.1}', None),
        ('{"own_answer": "42", "own_confidence": NaN}', None),
        ('{"own_answer": "' + "x" * 20_001 + '", "own_confidence": 0.5}', None),
        ('{"own_answer": ' + "[" * 5000 + ', "own_confidence": 0.5}', None),
        ("I cannot say.", None),
    ],
)
def test_a_models_own_answer_is_read_as_hostile_text(text: str, own: tuple[str, float] | None) -> None:
    assert wording.read_own(text) == own


def test_an_assessment_keeps_the_models_own_answer_and_the_lot() -> None:
    said = ModelTurn(text='{"own_answer": "42", "own_confidence": 0.7, "python": {"gain": 0.2}}')
    (found,) = appraisal.assess(META, said, PY, {}, (), CallId("c"))
    assert (found.own_answer, found.own_confidence, found.lot) == ("42", 0.7, appraisal.lot(CallId("c")))
    assert found.tools[0].own == pytest.approx(0.7 * EARNED[0] / sum(EARNED), abs=0.02)
    (silent,) = appraisal.assess(META, ModelTurn(text='{"python": {"gain": 0.2}}'), PY, {})
    assert (silent.own_answer, silent.own_confidence, silent.tools[0].own, silent.lot) == (None, None, None, 1.0)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("42", "42", True),
        ("42", " 42.0\n", True),
        ("'ab'", '"ab"', True),
        ("'ab'", "ab", True),
        ("'ab'", "'Ab'", False),
        ("'ab'", "Ab", False),
        ("[1, 2]", "[1,2]", True),
        ("{1: 'a', 2: 'b'}", "{2: 'b', 1: 'a'}", True),
        ("(1,)", "[1]", False),
        ("'42'", "42", False),
        ("Paris", "paris ", True),
        ("the  Loire", "The Loire", True),
        ("Paris", "Lyon", False),
        ("", "", True),
        ("None", "null", False),
        ("[" * 3000, "[" * 3000, True),
        ("-" * 5000 + "1", "-" * 5001 + "1", False),
        ("1" * (LONGEST + 1), "1" * (LONGEST + 1), True),
        ("{[]: 1}", "{[]: 1}", True),
        ("[" + "1," * 6000 + "]", "[" + "1, " * 6000 + "]", False),
        ("0" * 5000 + "1", "2", False),
    ],
)
def test_two_answers_say_the_same(one: str, other: str, agree: bool) -> None:
    assert same(one, other) is agree
    assert same(other, one) is agree


def test_a_literal_is_read_though_a_finaliser_of_the_garbage_collector_parses_meanwhile() -> None:
    def collected(phase: str, _found: object) -> None:
        below(20) if phase == "start" else None

    def below(depth: int) -> None:
        below(depth - 1) if depth else ast.parse("1")

    often = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        assert same("[" + "1, {}, " * 20 + "]", "[" + "1, {},  " * 20 + "]")
    finally:
        gc.set_threshold(*often)
        gc.callbacks.remove(collected)


# ---- whatever the model does


class Stubborn:
    """Plays a call without a loop: gives a policy the view, the model any wish that hypothesis has, and notes what was offered."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.spec = AgentSpec.model_validate(
            {"name": "a", "model": "scripted:x", "policy": policy.model_dump(), "tools": [{"name": "python"}]}
        )
        self.history: list[Message] = [User(text="u")]
        self.asked: list[tuple[Move, View]] = []

    def play(self, wishes: list[ModelTurn]) -> None:
        """Ask until the policy is content; a use is carried out only when it was offered."""
        for wish in wishes:
            view = see(self.history, self.spec, "code", {})
            move = decide(self.policy, view)
            if isinstance(move, Answer | Stop):
                return
            self.asked.append((move, view))
            offered = move.tools if isinstance(move, Offer) else ()
            self.history.append(wish.model_copy(update={"offered": offered}))
            for use in wish.uses:
                ran = use.tool in offered
                status = "error" if use.arguments.get("code") == "fails" else "ok"
                self.history.append(
                    tool_turn(status) if ran else tool_turn("refused").model_copy(update={"tool_call_id": None})
                )


def wish(answers: float | str | None, code: str) -> ModelTurn:
    """A turn that answers with such a confidence, or for None one that calls."""
    if answers is None:
        return ModelTurn(uses=(ToolUse(id="1", tool="python", arguments={"code": code}),))
    return ModelTurn(text=f"ANSWER: 1\nCONFIDENCE: {answers}")


wishes = st.lists(
    st.builds(
        wish, st.sampled_from([None, None, 0.1, 0.79, 0.8, 1.0, "?"]), st.sampled_from(["fails", "works", "other"])
    ),
    max_size=8,
)


@given(wishes)
def test_whatever_an_autonomous_agents_model_does_tools_come_only_after_an_unsure_answer_and_go_after_each_use(
    wishes: list[ModelTurn],
) -> None:
    played = Stubborn(AUTONOMOUS)
    played.play(wishes)
    assert not played.asked or played.asked[0][0] == Think()
    for n, (move, view) in enumerate(played.asked):
        if isinstance(move, Offer):
            assert view.answered
            assert view.confidence is None or view.confidence < AUTONOMOUS.threshold
            assert not isinstance(played.asked[n - 1][0], Offer)


@given(wishes)
def test_whatever_a_collaborative_agents_model_does_its_first_turns_must_call_and_results_are_checked_together(
    wishes: list[ModelTurn],
) -> None:
    played = Stubborn(COLLABORATIVE)
    played.play(wishes)
    for n, (move, view) in enumerate(played.asked):
        if n == 0:
            assert move == Offer(PY, "required")
        elif n == 1 and view.answered:
            assert move == Offer(PY, "required", wording.MUST_CALL)
        else:
            assert view.results
            assert isinstance(move, Offer | Think)
            assert move.note == wording.CROSS_CHECK


# ---- the view and the list


SPEC = AgentSpec.model_validate(
    {
        "name": "a",
        "model": "scripted:x",
        "policy": {"kind": "autonomous"},
        "tools": [{"name": "python", "fits": ["code"]}, {"name": "shell"}],
        "limits": {"turns": 4, "tool_calls": 3, "cost_usd": 0.5},
    }
)
USE = ToolUse(id="1", tool="python", arguments={"code": "1"})


def tool_turn(status: str = "ok", tool: str = "python") -> ToolTurn:
    return ToolTurn(use_id="1", tool=tool, result=ToolResult.model_validate({"status": status}), tool_call_id="t")


def test_a_view_of_a_list() -> None:
    history: list[Message] = [
        System(text="s"),
        User(text="u"),
        ModelTurn(text="ANSWER: 1\nCONFIDENCE: 0.5", cost_usd=0.1),
        ModelTurn(uses=(USE, USE), offered=("python",), cost_usd=0.2),
        tool_turn("error"),
        tool_turn("ok"),
    ]
    view = see(history, SPEC, "code", {})
    assert (view.turns, view.answered, view.results, view.offered) == (2, False, (False, True), PY)
    assert (view.turns_left, view.calls_left, view.usd_left) == (2, 1, pytest.approx(0.2))
    assert (view.repeats, view.refused, view.useful) == (2, 0, ("python", "shell"))


def test_a_tool_is_useful_where_it_fits_until_it_failed_too_often_or_no_call_is_left() -> None:
    turn = ModelTurn(uses=(USE,), offered=("python",))
    assert see([User(text="u")], SPEC, "math", {}).useful == ("shell",)
    assert see([User(text="u"), turn, tool_turn("timeout")], SPEC, "code", {}).useful == ("python", "shell")
    assert see([User(text="u"), turn, tool_turn("timeout"), turn, tool_turn("died")], SPEC, "code", {}).useful == (
        "shell",
    )
    assert see([User(text="u"), *[turn, tool_turn()] * 3], SPEC, "code", {}).useful == ()


def test_an_assessment_is_no_answer_and_an_unoffered_use_is_counted() -> None:
    assessed = ModelTurn(text="{}", purpose="assessment")
    assert not see([User(text="u"), AssessmentWanted(tools=PY, text="?"), assessed], SPEC, "code", {}).answered
    assert see([User(text="u"), ModelTurn(uses=(USE,), offered=("shell",))], SPEC, "code", {}).refused == 1


def test_a_list_survives_the_journal() -> None:
    history: list[Message] = [User(text="u"), ModelTurn(uses=(USE,), offered=PY), tool_turn("oom")]
    assert load(dump(history)) == history
