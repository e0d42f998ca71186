"""What a call may spend: set aside before, settled after, by however many lines of thought at once."""

from __future__ import annotations

from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_agents.purse import Exhausted, Need, Purse
from metier_agents.spec import Limits
from metier_agents.turns import ModelTurn, ToolTurn, Usage
from metier_tools.tool import ToolResult


def purse(**limits: float) -> Purse:
    return Purse(Limits.model_validate(limits))


def cost(usd: float | None = None, tokens: int | None = None) -> ModelTurn:
    usage = None if tokens is None else Usage(input_tokens=tokens, output_tokens=0)
    return ModelTurn(cost_usd=usd, usage=usage)


def test_a_request_that_might_cost_more_than_is_left_is_not_made() -> None:
    mine = purse(cost_usd=1.0, tokens=100)
    with pytest.raises(Exhausted, match="cost_limit"), mine.reserved(Need(1, 1.01)):
        raise AssertionError
    with pytest.raises(Exhausted, match="token_limit"), mine.reserved(Need(101, 0.1)):
        raise AssertionError
    assert (mine.left.usd, mine.left.tokens) == (1.0, 100)


def test_what_is_set_aside_is_missing_for_others_until_it_is_settled() -> None:
    mine = purse(cost_usd=1.0)
    with mine.reserved(Need(0, 0.7)), pytest.raises(Exhausted), mine.reserved(Need(0, 0.4)):
        raise AssertionError
    mine.settle(cost(0.2))
    with mine.reserved(Need(0, 0.7)):
        assert mine.left.usd == pytest.approx(0.1)


def test_a_request_that_failed_costs_nothing_and_one_that_was_lost_all_that_was_set_aside() -> None:
    mine = purse(cost_usd=1.0, tokens=100)
    with suppress(RuntimeError), mine.reserved(Need(10, 0.5)):
        raise RuntimeError
    assert (mine.left.usd, mine.left.tokens) == (1.0, 100)
    mine.lose(Need(10, 0.5))
    assert (mine.left.usd, mine.left.tokens) == (0.5, 90)


def test_an_unknown_price_is_not_taken_for_a_limit_that_is_reached() -> None:
    mine = purse(cost_usd=1.0)
    with mine.reserved(Need(10, None)):
        mine.settle(cost(None, 10))
    assert mine.left.usd == 1.0


def test_only_tool_calls_that_were_made_count() -> None:
    mine = purse(tool_calls=2)
    refused, done = (
        ToolTurn(use_id="u", tool="t", result=ToolResult(status="ok"), tool_call_id=made) for made in (None, "x")
    )
    with mine.calling(5) as granted:
        assert granted == 2
        with mine.calling(1) as none:
            assert none == 0
    mine.settle_calls([refused, done])
    assert mine.left.tool_calls == 1


def test_what_was_recorded_before_a_crash_is_spent_after_it() -> None:
    mine = purse(cost_usd=1.0, tokens=100, tool_calls=2)
    mine.replay([cost(0.25, 30), ToolTurn(use_id="u", tool="t", result=ToolResult(status="ok"), tool_call_id="x")])
    assert (mine.left.usd, mine.left.tokens, mine.left.tool_calls) == (0.75, 70, 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30), st.integers(1, 5))
def test_however_requests_overlap_no_more_is_spent_than_the_limit(
    wanted: list[tuple[float, float]], at_once: int
) -> None:
    """Each request settles at no more than was set aside for it; `at_once` of them are open at a time."""
    mine, spent = purse(cost_usd=2.0), 0.0
    for start in range(0, len(wanted), at_once):
        settled: list[float] = []
        with ExitStack() as open_requests:
            for need, share in wanted[start : start + at_once]:
                with suppress(Exhausted):
                    open_requests.enter_context(mine.reserved(Need(0, need)))
                    settled.append(need * share)
        for usd in settled:
            mine.settle(cost(usd))
        spent += sum(settled)
        assert spent <= 2.0 + 1e-9
