"""The policies as tables: view to move; and the view itself. What the loop makes of a move is in test_loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_agents import appraisal, wording
from metier_agents.policy import Answer, Assess, Move, Offer, Stop, Think, decide
from metier_agents.spec import AgentSpec, Autonomous, Collaborative, MetaReasoned, Policy
from metier_agents.turns import (
    AssessmentWanted,
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
)
from metier_agents.view import View, see
from metier_infra.rows import ToolRecord, weigh_record
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
        (replace(FRESH, turns=1, assessed=(valued(0.5),)), Offer(PY, "auto", wording.SOLVE)),
        (replace(FRESH, turns=1, assessed=(valued(0.0),)), Think(wording.SOLVE)),
        (replace(FRESH, turns=1, assessed=()), Think(wording.SOLVE)),
        (replace(USED, assessed=(valued(0.5),)), Think(wording.AFTER_TOOLS)),
        (replace(FAILED, assessed=(valued(0.5),)), Offer(PY, "auto", wording.FAILED)),
        (replace(FAILED, assessed=(valued(0.5),), useful=()), Think(wording.AFTER_TOOLS)),
        (replace(ANSWERED, assessed=(valued(0.5),)), Answer()),
        (replace(ANSWERED, offered=PY, assessed=(valued(0.5),)), Answer()),
    ],
    ids=["assess", "no tool", "worth", "not worth", "silent", "used", "again", "withdrawn", "answered", "declined"],
)
def test_meta_reasoned(view: View, move: Move) -> None:
    assert decide(META, view) == move


def test_meta_reasoned_offers_the_best_tool_first_and_leaves_the_others_out() -> None:
    assessed = (valued(0.2, "shell"), valued(0.6, "python"), valued(0.01, "search"))
    view = View(turns=1, useful=("python", "shell", "search"), assessed=assessed)
    assert decide(META, view) == Offer(("python", "shell"), "auto", wording.SOLVE)


def measured(ok: float, failed: float, seconds: float, cost_usd: float | None = None) -> ToolRecord:
    return ToolRecord(int(ok + failed), ok, failed, seconds, seconds, cost_usd)


@pytest.mark.parametrize(
    ("record", "offers"),
    [
        (None, True),
        (measured(50, 0, 0.1), True),
        (measured(0, 50, 0.1), False),
        (measured(50, 0, 60.0), False),
    ],
    ids=["unmeasured", "works", "broken", "slow"],
)
def test_meta_reasoned_believes_what_was_measured(record: ToolRecord | None, offers: bool) -> None:
    records = {"python": record} if record else {}
    move = decide(META, View(turns=1, useful=PY, assessed=(valued(0.15),), records=records))
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
    assessed=st.none() | st.lists(st.floats(0, 1).map(valued), max_size=2).map(tuple),
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


def test_worth_is_gain_times_success_minus_noise_minus_price() -> None:
    found = appraisal.weigh(PRICED, Estimate(tool="python", gain=0.5, noise=0.1), measured(5, 1, 2.0), 0.02)
    assert (found.success, found.seconds, found.price) == (6 / 8, 2.0, pytest.approx(0.06))
    assert found.value == pytest.approx(0.5 * 0.75 - 0.1 - 0.06)


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
    said = ModelTurn(text='{"python": {"gain": 0.1, "noise": 0.05}}')
    for pairs, offers in (((), True), (judged(*[MISS] * 8), False)):
        (assessed,) = appraisal.assess(META, said, PY, WHOLE, pairs)
        assert assessed.tools[0].value == pytest.approx(0.1 * assessed.tools[0].trust - 0.05 - 0.002, abs=1e-5)
        move = decide(META, View(turns=1, useful=PY, assessed=assessed.tools, records=WHOLE))
        assert isinstance(move, Offer) is offers


def test_a_price_that_the_model_states_is_read_and_paid() -> None:
    (found,) = appraisal.read_estimates('{"python": {"gain": 0.3, "cost_usd": 0.25, "latency_s": 7}}', PY)
    assert (found.cost_usd, found.latency_s) == (0.25, 7.0)
    (unsaid,) = appraisal.read_estimates('{"python": {"gain": 0.3, "cost_usd": "cheap"}}', PY)
    assert unsaid.cost_usd is None


@pytest.mark.parametrize(
    ("status", "counted", "gained"),
    [("ok", True, 0.5), ("error", True, 0.0), ("timeout", True, 0.0), ("refused", False, 0.0)],
)
def test_what_a_call_was_worth_is_judged_unless_the_tool_never_ran(status: str, counted: bool, gained: float) -> None:
    said = ModelTurn(text='{"python": {"gain": 0.5, "noise": 0.1, "cost_usd": 0.05}}')
    (assessed,) = appraisal.assess(PRICED, said, PY, {})
    found = appraisal.realise(PRICED, [assessed], [tool_turn(status)], 0.02)
    assert [(one.predicted, one.realised, one.gain, one.gained) for one in found] == [
        (assessed.tools[0].value, pytest.approx(gained - 0.1 - 2.0 * 0.07), 0.5, gained)
    ] * counted


outcomes = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60)


def value_of(policy: MetaReasoned, outcomes: list[tuple[bool, float]]) -> float:
    """What a tool is worth after calls that went well or not, each with the gain that was stated of it; the newest first."""
    rows = [{"ok": int(ok), "wall_ms": 2000.0, "cost_usd": None} for ok, _ in outcomes]
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
        rows = [{"ok": int(ok), "wall_ms": 1.0, "cost_usd": None} for ok in outcomes]
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
