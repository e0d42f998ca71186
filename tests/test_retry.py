"""Back-off: the arithmetic as a table, and the loop that obeys it with delays of zero."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_infra.errors import BusGone, FencedOff, RetryLater
from metier_infra.retry import Backoff, persist

AT_ONCE = Backoff(first_s=0, attempts=4)


@pytest.mark.parametrize(
    ("failures", "wished", "delay"),
    [
        (1, None, 0.1),
        (2, None, 0.2),
        (3, None, 0.4),
        (4, None, 0.5),
        (100_000, None, 0.5),
        (1, 7.0, 7.0),
        (1, -3.0, 0.0),
    ],
)
def test_delays_double_up_to_the_ceiling_unless_the_error_wishes_otherwise(
    failures: int, wished: float | None, delay: float
) -> None:
    assert Backoff(first_s=0.1, ceiling_s=0.5).delay(failures, wished) == pytest.approx(delay)


@given(st.integers(min_value=1, max_value=10**9))
def test_without_a_count_of_attempts_it_never_gives_up_and_never_overflows(failures: int) -> None:
    delay = Backoff().delay(failures)
    assert delay is not None
    assert 0 < delay <= Backoff().ceiling_s


def test_the_last_attempt_has_no_delay_after_it() -> None:
    assert [Backoff(attempts=3).delay(n) is None for n in (1, 2, 3, 4)] == [False, False, True, True]


def failing(times: int, error: Exception) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    tries: list[int] = []

    async def work() -> str:
        tries.append(len(tries) + 1)
        if len(tries) <= times:
            raise error
        return "done"

    return work, tries


async def test_work_is_tried_until_it_succeeds() -> None:
    work, tries = failing(3, BusGone("away"))
    assert await persist("work", work, AT_ONCE) == "done"
    assert tries == [1, 2, 3, 4]


async def test_giving_up_raises_the_last_error_itself() -> None:
    error = BusGone("away")
    work, tries = failing(9, error)
    with pytest.raises(BusGone) as caught:
        await persist("work", work, AT_ONCE)
    assert caught.value is error
    assert len(tries) == 4


@pytest.mark.parametrize("error", [FencedOff("taken"), ValueError("defect")])
async def test_what_cannot_get_better_is_not_tried_again(error: Exception) -> None:
    work, tries = failing(1, error)
    with pytest.raises(type(error)):
        await persist("work", work, AT_ONCE)
    assert tries == [1]


async def test_the_wish_of_the_error_is_obeyed() -> None:
    """The back-off alone would wait an hour."""
    work, _ = failing(1, RetryLater("limit", after_s=0))
    async with asyncio.timeout(10):
        assert await persist("work", work, Backoff(first_s=3600, ceiling_s=3600)) == "done"


async def test_waiting_can_be_cancelled() -> None:
    tried = asyncio.Event()

    async def work() -> None:
        tried.set()
        raise BusGone("away")

    waiting = asyncio.create_task(persist("work", work, Backoff(first_s=3600, ceiling_s=3600)))
    await tried.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
