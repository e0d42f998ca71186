"""Whose turn it is: tenants alike whatever one of them publishes, priority within a tenant, no starvation, limits. Counted in turns; no clock.

Not here: what limits hold over all replicas; `test_admission` has that, on a real database.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_infra.errors import BadSpec
from metier_workflows.tenants import Tenant, Tenants, load_tenants
from metier_workflows.turns import AGEING, REMEMBERED, Turns


def queue(*waiting: tuple[str, str, int], limit: int = 1, **tenants: Tenant) -> Turns[str]:
    """Runs that wait: name, tenant and priority of each."""
    turns = Turns[str](limit, Tenants(tenants=tenants))
    for key, tenant, priority in waiting:
        turns.wait(key, tenant, priority)
    return turns


def taken(turns: Turns[str], count: int) -> list[str]:
    """The next so many, one after another: each ends before the next begins."""
    found: list[str] = []
    for _ in range(count):
        key = turns.next()
        assert key is not None
        found.append(key)
        turns.over(key)
    return found


def many(tenant: str, count: int, priority: int = 5) -> list[tuple[str, str, int]]:
    return [(f"{tenant}{n}", tenant, priority) for n in range(count)]


def test_of_one_tenant_the_first_goes_first() -> None:
    assert taken(queue(*many("a", 5)), 5) == ["a0", "a1", "a2", "a3", "a4"]


def test_of_one_tenant_higher_priority_goes_first() -> None:
    turns = queue(("low", "a", 0), ("mid", "a", 5), ("high", "a", 9), ("mid too", "a", 5))
    assert taken(turns, 4) == ["high", "mid", "mid too", "low"]


def test_what_is_urgent_passes_a_backlog_of_any_length() -> None:
    turns = queue(*many("a", 2000, priority=0))
    taken(turns, 50)
    turns.wait("urgent", "a", 1)
    assert taken(turns, 1) == ["urgent"]


def test_low_priority_does_not_starve_while_higher_never_ends() -> None:
    turns = queue(("low", "a", 3))
    turns.wait("high0", "a", 5)
    order: list[str] = []
    for n in range(1, 3 * AGEING):
        order += taken(turns, 1)
        turns.wait(f"high{n}", "a", 5)
    assert order.index("low") == 2 * AGEING


def test_a_tenant_that_publishes_a_thousand_does_not_delay_anothers_ten_by_more_than_twice() -> None:
    # Given one tenant's thousand, and then another's ten
    turns = queue(*many("big", 1000), *many("small", 10))
    # When turns are given; then the small one's are over after twice as many as it would need alone
    assert sum(key.startswith("small") for key in taken(turns, 20)) == 10


def test_that_holds_for_one_that_comes_when_many_turns_were_given() -> None:
    turns = queue(*many("big", 1000))
    taken(turns, 500)
    for key, tenant, priority in many("small", 10):
        turns.wait(key, tenant, priority)
    assert sum(key.startswith("small") for key in taken(turns, 20)) == 10


def test_nobody_saves_turns_up_while_away() -> None:
    # Given one tenant that had a turn long ago
    turns = queue(*many("a", 1), *many("b", 1000))
    taken(turns, 500)
    # When it comes back with many; then the other still has every second turn
    for n in range(100):
        turns.wait(f"again{n}", "a", 5)
    assert 9 <= sum(key.startswith("b") for key in taken(turns, 20)) <= 11


def test_nobody_gets_more_by_waiting_one_at_a_time() -> None:
    turns, count = queue(*many("b", 100), ("a", "a", 5), a=Tenant(weight=0.25)), Counter[str]()
    for _ in range(50):
        (key,) = taken(turns, 1)
        count[key[0]] += 1
        if key == "a":
            turns.wait("a", "a", 5)
    assert count == {"b": 40, "a": 10}


@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 2.0, 4.0]) for name in "abcd"}),
)
def test_while_they_wait_tenants_get_turns_by_weight(waiting: list[str], weights: dict[str, float]) -> None:
    """Of any two that wait all the time, neither is ahead by more than a turn of each: the bound of the cited paper."""
    turns = Turns[str](1, Tenants(tenants={name: Tenant(weight=weight) for name, weight in weights.items()}))
    for n, tenant in enumerate(waiting):
        turns.wait(f"{tenant}{n}", tenant, 5)
    had, left = Counter[str](), Counter(waiting)
    while any(left.values()):
        (key,) = taken(turns, 1)
        had[key[0]] += 1
        left[key[0]] -= 1
        wait = [name for name in "abcd" if left[name] > 0]
        for one in wait:
            for other in wait:
                ahead = had[one] / weights[one] - had[other] / weights[other]
                assert ahead <= 1 / weights[one] + 1 / weights[other]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=80), st.integers(1, 5), st.data())
def test_whatever_comes_and_goes_each_has_one_turn_and_no_limit_is_passed(
    runs: list[tuple[str, int]], limit: int, data: st.DataObject
) -> None:
    tenants = Tenants(tenants={"a": Tenant(runs=1), "b": Tenant(runs=2)})
    turns, waiting, having = Turns[int](limit, tenants), set[int](), set[int]()
    had: list[int] = []
    for key, (tenant, priority) in enumerate(runs):
        turns.wait(key, tenant, priority)
        waiting.add(key)
        if data.draw(st.booleans()) and having | waiting:
            gone = data.draw(st.sampled_from(sorted(having | waiting)))
            turns.over(gone)
            had += [gone] if gone in waiting else []
            having.discard(gone)
            waiting.discard(gone)
        while (now := turns.next()) is not None:
            had.append(now)
            waiting.remove(now)
            having.add(now)
        under_way = Counter(runs[one][0] for one in having)
        assert len(having) <= limit
        assert under_way["a"] <= 1
        assert under_way["b"] <= 2
    while having:
        turns.over(having.pop())
        while (now := turns.next()) is not None:
            had.append(now)
            having.add(now)
    assert sorted(had) == list(range(len(runs)))
    assert len(turns) == 0


def test_a_tenant_at_its_limit_keeps_nobody_else_waiting() -> None:
    turns = queue(*many("a", 3), *many("b", 2), limit=10, a=Tenant(runs=1))
    assert [turns.next() for _ in range(4)] == ["a0", "b0", "b1", None]
    turns.over("a0")
    assert turns.next() == "a1"


def test_what_was_refused_waits_where_it_stood_until_its_tenant_is_open() -> None:
    turns = queue(*many("a", 2), *many("b", 1), limit=10)
    assert turns.next() == "a0"
    turns.refused("a0")
    assert [turns.next(), turns.next()] == ["b0", None]
    turns.open("b")
    assert turns.next() is None
    turns.open("a")
    assert [turns.next(), turns.next()] == ["a0", "a1"]


def test_a_refusal_costs_its_tenant_no_turn_and_holds_no_place() -> None:
    turns = queue(*many("a", 5), *many("b", 5), limit=1)
    for _ in range(3):
        assert turns.next() == "a0"
        turns.refused("a0")
        turns.open()
    assert taken(turns, 4) == ["a0", "b0", "a1", "b1"]


def test_what_waits_no_more_gets_no_turn_and_what_is_unknown_is_over() -> None:
    turns = queue(*many("a", 3))
    turns.over("a1")
    turns.over("never here")
    assert taken(turns, 2) == ["a0", "a2"]
    assert turns.next() is None


def test_tenants_that_have_nothing_here_are_forgotten() -> None:
    turns = Turns[str](1)
    for n in range(3 * REMEMBERED):
        turns.wait(f"{n}", f"tenant{n}", 5)
        taken(turns, 1)
    assert turns.known <= REMEMBERED


def test_a_file_says_what_each_tenant_may_take_and_what_the_others(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants:\n  shop: {runs: 20, queued: 500, weight: 2}\nothers: {runs: 5}\n")
    found = load_tenants(path)
    assert found.of("shop") == Tenant(runs=20, queued=500, weight=2)
    assert found.of("somebody") == Tenant(runs=5)
    assert Tenants().of("default") == Tenant(runs=None, queued=None, weight=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenants:\n  shop:\n    run: 2\n", "3: tenants.shop.run: unknown field; did you mean runs?"),
        ("tenants:\n  shop: {runs: 0}\n", "2: tenants.shop.runs: input should be greater than or equal to 1"),
        ("others:\n  weight: .inf\n", "2: others.weight: input should be a finite number"),
        ("others: {weight: 0}\n", "1: others.weight: input should be greater than 0"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_line_and_field(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(text)
    with pytest.raises(BadSpec) as refused:
        load_tenants(path)
    assert str(refused.value) == f"{path}:{said}"


def test_what_had_its_turn_before_goes_before_all_of_its_tenant_that_had_none() -> None:
    turns = queue(("first", "a", 9), ("second", "a", 5))
    turns.wait("begun", "a", 0, begun=True)
    turns.wait("other", "b", 5)

    assert taken(turns, 4) == ["begun", "other", "first", "second"]
