"""Prices and the file they stand in: what a reply costs, what a request may come to, and what a wrong file is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_agents.model import ScriptedModel
from metier_agents.model_table import Known, ModelTable, Price, read_known, read_table
from metier_agents.prices import Priced, cost, dearest, estimate, unpriced
from metier_agents.spec import AgentSpec
from metier_agents.turns import Assessed, Message, ModelTurn, System, ToolTurn, ToolUse, Usage, User
from metier_infra.errors import BadSpec
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult

SHIPPED = Path(__file__).parents[1] / "agents/metier_agents/models.yaml"
PYTHON = BUILTIN.specs(["python"])


def price(input: float = 2.0, output: float = 10.0, cached: float | None = None) -> Price:
    return Price.model_validate({"model": "m", "input": input, "output": output, "cached_input": cached})


def spec(model: str, *fallbacks: str, cost_usd: float | None = 1.0) -> AgentSpec:
    fields = {"name": "a", "model": model, "fallbacks": fallbacks, "policy": {"kind": "collaborative"}}
    return AgentSpec.model_validate({**fields, "limits": {"cost_usd": cost_usd}})


# ---- what a reply costs


@pytest.mark.parametrize(
    ("charged", "usage", "usd"),
    [
        (price(), Usage(input_tokens=1_000_000, output_tokens=0), 2.0),
        (price(), Usage(input_tokens=0, output_tokens=1_000_000), 10.0),
        (price(cached=0.5), Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=400_000), 1.4),
        (price(), Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=400_000), 2.0),
        (price(cached=0.0), Usage(input_tokens=100, output_tokens=0, cached_tokens=900), 0.0),
        (price(), Usage(input_tokens=0, output_tokens=1_000_000, reasoning_tokens=600_000), 10.0),
        (price(0, 0), Usage(input_tokens=5, output_tokens=5), 0.0),
        (price(0, 0), None, 0.0),
        (price(0, 0, 1.0), None, None),
        (price(), None, None),
        (None, Usage(input_tokens=5, output_tokens=5), None),
        (None, None, None),
    ],
)
def test_a_reply_costs_what_was_counted_and_what_is_not_known_is_not_nothing(
    charged: Price | None, usage: Usage | None, usd: float | None
) -> None:
    assert cost(charged, usage) == (None if usd is None else pytest.approx(usd))


@pytest.mark.parametrize(("own", "usd"), [(None, 12.0), (0.25, 0.25), (0.0, 0.0)])
async def test_a_reply_that_says_its_own_cost_keeps_it(own: float | None, usd: float) -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    model = Priced(ScriptedModel([ModelTurn(text="42", usage=usage, cost_usd=own)]), price())
    turn = await model.ask([User(text="?")], tools=(), tool_choice="none", deadline=0)
    assert turn.cost_usd == usd


async def test_a_reply_of_a_model_without_a_price_has_no_cost() -> None:
    model = Priced(ScriptedModel([ModelTurn(text="42", usage=Usage(input_tokens=1, output_tokens=1))]), None)
    turn = await model.ask([User(text="?")], tools=(), tool_choice="none", deadline=0)
    assert turn.cost_usd is None


# ---- what a request may come to


def test_what_is_put_into_the_cache_has_a_price_of_its_own() -> None:
    price = Price.model_validate({"model": "m", "input": 4.0, "cached_input": 1.0, "cache_write": 5.0, "output": 0.0})
    usage = Usage(input_tokens=100, output_tokens=0, cached_tokens=30, cache_written_tokens=50)
    assert cost(price, usage) == pytest.approx((20 * 4 + 30 * 1 + 50 * 5) / 1e6)
    assert dearest(price, 100, 0) == pytest.approx(100 * 5 / 1e6)
    assert cost(price.model_copy(update={"cache_write": None}), usage) == pytest.approx((70 * 4 + 30 * 1) / 1e6)


def test_the_dearest_is_all_read_at_the_higher_price_and_all_written() -> None:
    assert dearest(price(cached=0.5), 1_000_000, 100_000) == pytest.approx(3.0)
    assert dearest(price(cached=4.0), 1_000_000, 0) == pytest.approx(4.0)
    assert dearest(None, 1, 1) is None


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 50), st.floats(0, 50))
def test_no_reply_costs_more_than_the_dearest(
    read: int, written: int, cached: float, charged: float, from_cache: float
) -> None:
    asked = price(charged, 3.0, from_cache)
    usage = Usage(input_tokens=read, output_tokens=written, cached_tokens=int(read * cached))
    paid, most = cost(asked, usage), dearest(asked, read, written)
    assert paid is not None
    assert most is not None
    assert paid <= most * (1 + 1e-9)


def test_a_prompt_is_taken_for_a_token_in_three_bytes_and_a_frame_for_each_message() -> None:
    assert estimate((), [User(text="x" * 300)], (), 50).tokens == 100 + 16 + 50
    assert estimate((), [User(text="中" * 100)], (), 0).tokens == 100 + 16
    assert estimate((), [User(text="x"), System(text="")], (), 0).tokens == 1 + 32
    assert estimate((), [], (), 7).tokens == 7


def test_all_that_a_model_reads_is_counted_and_what_it_does_not_read_is_not() -> None:
    use = ToolUse(id="1", tool="python", arguments={"code": "y" * 300})
    result = ToolTurn(use_id="1", tool="python", result=ToolResult(status="ok", stdout="z" * 300))
    begun: list[Message] = [User(text="?")]
    sizes = [
        estimate((), [*begun, *more], (), 0).tokens
        for more in ([], [ModelTurn(uses=(use,))], [ModelTurn(uses=(use,)), result])
    ]
    assert sizes[1] - sizes[0] >= 116
    assert sizes[2] - sizes[1] == 116
    assert estimate((), [*begun, Assessed(tools=())], (), 0).tokens <= sizes[0] + 16
    bound = estimate((), begun, PYTHON, 0).tokens - sizes[0]
    assert bound * 3 >= len(json.dumps([PYTHON[0].name, PYTHON[0].description, PYTHON[0].parameters]))


def test_it_is_never_less_than_what_was_counted_before_and_what_came_since() -> None:
    counted = ModelTurn(text="x" * 30, usage=Usage(input_tokens=5_000, output_tokens=10))
    history: list[Message] = [User(text="?"), counted, User(text="y" * 30)]
    assert estimate((), history, (), 100).tokens == 5_000 + 2 * (10 + 16) + 100
    guess = counted.model_copy(update={"usage": Usage(input_tokens=5_000, output_tokens=10, estimated=True)})
    assert estimate((), [history[0], guess, history[2]], (), 0).tokens < 100
    small = counted.model_copy(update={"usage": Usage(input_tokens=1, output_tokens=1)})
    assert estimate((), [User(text="z" * 3_000), small], (), 0).tokens > 1_000


def test_a_chain_sets_aside_the_dearest_of_its_models_and_nothing_is_known_unless_all_is() -> None:
    history = [User(text="x" * 3_000_000)]
    cheap, dear = estimate([price(1, 1)], history, (), 0), estimate([price(1, 1), price(5, 1)], history, (), 0)
    assert cheap.usd == pytest.approx(1, rel=1e-3)
    assert dear.usd == pytest.approx(5, rel=1e-3)
    assert estimate([price(), None], history, (), 0).usd is None
    assert estimate([], history, (), 0).usd is None


# ---- a limit on money


def test_models_without_a_price_are_named_where_money_is_limited() -> None:
    known = read_known()
    assert unpriced(spec("openai:gpt-5", "openai:nosuch", "x:y", "x:y"), known) == ("openai:nosuch", "x:y")
    assert unpriced(spec("openai:nosuch", cost_usd=None), known) == ()
    assert unpriced(spec("recorded:gpt-4o", "scripted:a.yaml"), known) == ()


# ---- the file


def test_the_file_that_ships_has_dated_prices_that_are_said_to_be_assumed_and_no_limits() -> None:
    table = read_table(SHIPPED)
    assert table.prices is not None
    assert table.prices.source.startswith("assumed:")
    assert table.prices.as_of.year >= 2025
    assert "EVERY PRICE HERE IS AN ASSUMPTION" in SHIPPED.read_text(encoding="utf-8")
    assert table.limits == ()
    assert all(0 < one.input < one.output for one in table.prices.usd_per_million)
    assert all(one.cached_input is not None and one.cached_input < one.input for one in table.prices.usd_per_million)


@pytest.mark.parametrize(
    ("model", "input_usd"),
    [
        ("openai:gpt-5", 1.25),
        ("openai:gpt-5-2025-08-07", 1.25),
        ("openai:gpt-5-mini-2025-08-07", 0.25),
        ("anthropic:claude-haiku-4-5-20251001", 1.0),
        ("openai:gpt-5.9-ultra", None),
        ("openai:gpt-5-pro", None),
        ("openai:gpt-4.1-nano", None),
        ("azure_openai:gpt-5", None),
        ("gpt-5", None),
    ],
)
def test_only_a_model_that_is_meant_has_a_shipped_price(model: str, input_usd: float | None) -> None:
    found = read_known().price(model)
    assert (found and found.input) == input_usd


OWN = """
prices:
  as_of: 2026-11-01
  source: our contract
  usd_per_million:
    - {model: "openai:gpt-5", input: 0.9, output: 7}
    - {model: "openai:qwen*", input: 0, output: 0}
limits:
  - {model: "openai:gpt-5*", requests_per_minute: 500}
  - {model: "openai:*", tokens_per_minute: 1000, burst_s: 10}
patience: {tries: 4}
"""


def test_a_users_file_comes_before_the_one_that_ships_and_takes_nothing_from_it(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(OWN)
    known = read_known(path)
    found = {model: known.price(model) for model in ("openai:gpt-5", "openai:qwen3-8b", "openai:gpt-4o")}
    assert {model: one and one.input for model, one in found.items()} == {
        "openai:gpt-5": 0.9,
        "openai:qwen3-8b": 0,
        "openai:gpt-4o": 2.5,
    }
    limits = [known.limit(model) for model in ("openai:gpt-5-mini", "openai:o3", "anthropic:claude")]
    assert [one and one.burst_s for one in limits] == [60, 10, None]
    assert (known.patience.tries, known.patience.wait_s, known.breaker.failures) == (4, 5.0, 5)


def test_the_file_in_the_how_to_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/how-to/limit-and-price-models.md").read_text(encoding="utf-8")
    path = tmp_path / "models.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    known = read_known(path)
    local = known.price("ollama:qwen3")
    assert local is not None
    assert cost(local, None) == 0.0
    assert known.limit("openai:gpt-5") is not None


def test_the_first_table_that_says_anything_of_a_thing_holds() -> None:
    first = ModelTable.model_validate({"breaker": {"failures": 2}})
    second = ModelTable.model_validate({"breaker": {"failures": 9}, "patience": {"tries": 7}})
    known = Known(first, second)
    assert (known.breaker.failures, known.patience.tries) == (2, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prices: {source: x, usd_per_million: []}", ":1: prices.as_of: this field is missing"),
        (
            "prices:\n  as_of: 2026-01-01\n  source: x\n  usd_per_million:\n    - {model: m, inptu: 1, output: 1}",
            ":5: prices.usd_per_million.0.inptu: unknown field; did you mean input?",
        ),
        (
            "prices:\n  as_of: 2026-01-01\n  source: x\n  usd_per_million:\n    - {model: m, input: -1, output: 1}",
            ":5: prices.usd_per_million.0.input: input should be greater than or equal to 0",
        ),
        (
            "prices:\n  as_of: 2026-01-01\n  source: x\n  usd_per_million:\n    - {model: m, input: .nan, output: 1}",
            ":5: prices.usd_per_million.0.input: input should be",
        ),
        ("limits:\n  - model: 'openai:*'", ":2: limits.0: needs requests_per_minute, tokens_per_minute or both"),
        (
            "limits:\n  - {model: m, requests_per_minute: 0}",
            ":2: limits.0.requests_per_minute: input should be greater",
        ),
        ("limits:\n  - {model: m, rpm: 1}", ":2: limits.0.rpm: unknown field"),
        ("breaker: {failure: 1}", ":1: breaker.failure: unknown field; did you mean failures?"),
        ("patience: {tries: 0}", ":1: patience.tries: input should be greater"),
        ("price: {}", ":1: price: unknown field; did you mean prices?"),
        ("- 1", ":1: expected the fields prices, limits, breaker or patience"),
    ],
)
def test_a_wrong_file_is_told_its_line_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(BadSpec) as caught:
        read_known(path)
    assert str(caught.value).startswith(f"{path}{says}")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="cannot be read"):
        read_known(tmp_path / "nosuch.yaml")
