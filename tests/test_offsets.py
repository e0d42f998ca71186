"""Which offset may be committed: whatever the order of finishing, nothing unfinished is ever behind the commit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metier_infra.offsets import Offsets


def taken(*offsets: int) -> Offsets:
    found = Offsets()
    for offset in offsets:
        found.take(offset)
    return found


def test_nothing_taken_gives_nothing_to_commit() -> None:
    assert Offsets().committable == 0


def test_the_first_unfinished_record_holds_the_commit_back() -> None:
    offsets = taken(5, 6, 7)
    offsets.finish(7)
    offsets.finish(6)
    assert offsets.committable == 5
    offsets.finish(5)
    assert offsets.committable == 8


def test_gaps_in_the_log_are_no_unfinished_records() -> None:
    offsets = taken(3, 9)
    offsets.finish(3)
    assert offsets.committable == 9
    offsets.finish(9)
    assert offsets.committable == 10


def test_a_consumer_that_was_sent_back_is_noticed() -> None:
    offsets = taken(3, 4)
    assert [offsets.rewound(offset) for offset in (3, 4, 5)] == [True, True, False]


@given(st.data())
def test_a_commit_never_passes_what_is_unfinished_and_never_lags_behind_it(data: st.DataObject) -> None:
    log = sorted(data.draw(st.sets(st.integers(min_value=0, max_value=200), min_size=1, max_size=40)))
    order = data.draw(st.permutations(log))
    offsets, open_ones = taken(*log), set(log)
    before = offsets.committable
    for offset in order:
        offsets.finish(offset)
        open_ones.discard(offset)
        assert offsets.committable == min(open_ones, default=log[-1] + 1)
        assert offsets.committable >= before
        assert offsets.in_hand == len(open_ones)
        before = offsets.committable
