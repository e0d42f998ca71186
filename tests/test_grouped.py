"""Group commit: what comes together goes together, nobody hears before it is done, and what fails takes nobody with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from metier_infra.grouped import LARGEST_GROUP, Grouped
from metier_infra.testing import Process


class Gone(Exception):
    """Concerns all."""


class Place:
    """Where work is done: `groups` holds what came together; a group waits until it may `go`, work that is negative cannot be done."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.alone: list[int] = []
        self.go = asyncio.Semaphore(0)
        self.more = asyncio.Condition()
        self.gone = False
        self.grouped = Grouped[int, str](self.together, self.one, Gone)

    async def together(self, group: Sequence[int]) -> Sequence[str]:
        async with self.more:
            self.groups.append([*group])
            self.more.notify_all()
        await self.go.acquire()
        if self.gone:
            raise Gone
        if min(group) < 0:
            raise ValueError
        return [str(number) for number in group]

    async def one(self, number: int) -> str:
        self.alone.append(number)
        if number < 0:
            raise ValueError(number)
        return str(number)


async def begun(place: Place, groups: int) -> None:
    async with place.more:
        await place.more.wait_for(lambda: len(place.groups) >= groups)


async def test_what_comes_while_a_group_is_under_way_goes_together_in_the_next() -> None:
    place = Place()
    first = asyncio.create_task(place.grouped.do(1))
    await begun(place, 1)
    others = [asyncio.create_task(place.grouped.do(number)) for number in (2, 3, 4)]
    place.go.release()
    assert await first == "1"
    await begun(place, 2)
    assert not any(task.done() for task in others)
    place.go.release()
    assert await asyncio.gather(*others) == ["2", "3", "4"]
    assert place.groups == [[1], [2, 3, 4]]


async def test_a_group_has_a_most_and_the_rest_comes_after_it_in_order() -> None:
    place = Place()
    for _ in range(3):
        place.go.release()
    wanted = [*range(LARGEST_GROUP + 5)]
    assert await asyncio.gather(*[place.grouped.do(number) for number in wanted]) == [str(n) for n in wanted]
    assert place.groups == [wanted[:LARGEST_GROUP], wanted[LARGEST_GROUP:]]


async def test_one_that_cannot_be_done_fails_alone() -> None:
    place = Place()
    place.go.release()
    found = await asyncio.gather(*[place.grouped.do(number) for number in (1, -2, 3)], return_exceptions=True)
    assert (found[0], found[2]) == ("1", "3")
    assert isinstance(found[1], ValueError)
    assert place.alone == [1, -2, 3]


async def test_what_concerns_all_fails_all_and_is_not_tried_one_by_one() -> None:
    place = Place()
    place.gone = True
    place.go.release()
    found = await asyncio.gather(*[place.grouped.do(number) for number in (1, 2)], return_exceptions=True)
    assert [type(error) for error in found] == [Gone, Gone]
    assert place.alone == []
    place.gone = False
    place.go.release()
    assert await place.grouped.do(5) == "5"


async def test_who_gave_up_before_its_turn_is_left_out_and_the_others_are_served() -> None:
    place = Place()
    first = asyncio.create_task(place.grouped.do(1))
    await begun(place, 1)
    left, stays = asyncio.create_task(place.grouped.do(2)), asyncio.create_task(place.grouped.do(3))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    place.go.release()
    place.go.release()
    assert await asyncio.gather(first, stays) == ["1", "3"]
    assert place.groups == [[1], [3]]


async def test_who_gives_up_during_its_turn_harms_nobody() -> None:
    place = Place()
    left, stays = asyncio.create_task(place.grouped.do(1)), asyncio.create_task(place.grouped.do(2))
    await begun(place, 1)
    left.cancel()
    await asyncio.wait([left])
    place.go.release()
    assert await stays == "2"


async def test_the_end_waits_for_what_is_under_way() -> None:
    place = Place()
    work = asyncio.create_task(place.grouped.do(1))
    await begun(place, 1)
    ending = asyncio.create_task(place.grouped.end())
    await asyncio.sleep(0)
    assert not ending.done()
    place.go.release()
    await ending
    assert work.result() == "1"


async def test_a_group_is_done_by_nobody_in_particular_so_that_no_death_of_who_came_first_takes_the_others_with_it() -> (
    None
):
    # Given a process whose work opens a group, and another that stands in the same
    place = Place()
    first = Process(place.grouped.do(1))
    await begun(place, 1)
    other = asyncio.create_task(place.grouped.do(2))
    # When the first dies
    await first.die()
    place.go.release()
    place.go.release()
    # Then the other's work is done all the same
    async with asyncio.timeout(20):
        assert await other == "2"


async def test_when_a_group_is_ended_from_outside_those_who_wait_are_told() -> None:
    place = Place()
    work = asyncio.create_task(place.grouped.do(1))
    await begun(place, 1)
    doing = next(task for task in asyncio.all_tasks() if "Grouped._work" in str(task.get_coro()))
    doing.cancel()
    with pytest.raises(Gone):
        async with asyncio.timeout(20):
            await work
