"""A stall of our own is noticed, measured, and made known before anybody is expired."""

import pytest
import trio
import trio.testing

from globalstore.liveness.stalls import StallDetector


async def test_lateness_is_published_once_a_second(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    seen: list[float] = []
    stalls = StallDetector(seen.append)
    nursery.start_soon(stalls.run)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(0.25 + 3)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(4):
        mock_clock.jump(0.25)
        await trio.testing.wait_all_tasks_blocked()
    assert seen == pytest.approx([3, 0], abs=1e-9)


async def test_a_stall_is_told_to_everybody_who_holds_deadlines(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    delays: list[float] = []
    stalls = StallDetector()
    stalls.subscribe(delays.append)
    nursery.start_soon(stalls.run)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(10):
        mock_clock.jump(0.25)
        await trio.testing.wait_all_tasks_blocked()
    assert delays == []
    mock_clock.jump(40)
    await trio.testing.wait_all_tasks_blocked()
    assert delays == pytest.approx([39.75])


async def test_whoever_asks_first_after_a_stall_is_told_of_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    delays: list[float] = []
    stalls = StallDetector()
    stalls.subscribe(delays.append)
    mock_clock.jump(10)
    assert stalls.check()
    assert delays == pytest.approx([9.75])
    assert not stalls.check()
