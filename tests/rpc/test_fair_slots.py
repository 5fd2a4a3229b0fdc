"""Places that many want: addresses take turns, and no cancelled wait takes or loses one."""

import random

import trio
from trio.testing import wait_all_tasks_blocked

from globalstore.rpc.fair_slots import FairSlots


async def test_an_address_with_many_calls_does_not_keep_another_waiting():
    slots, order = FairSlots(1), []
    await slots.acquire("busy")

    async def use(address: str, name: str) -> None:
        await slots.acquire(address)
        order.append(name)
        slots.release()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(use, "busy", f"busy {number}")
            await wait_all_tasks_blocked()
        nursery.start_soon(use, "other", "other")
        await wait_all_tasks_blocked()
        assert slots.waiting == 6
        slots.release()
    assert order == ["busy 0", "other", "busy 1", "busy 2", "busy 3", "busy 4"]
    assert (slots.busy, slots.waiting) == (0, 0)


async def test_who_goes_on_is_before_others_of_its_address_and_behind_other_addresses():
    slots, order = FairSlots(1), []
    await slots.acquire("a")

    async def use(address: str, name: str, goes_on: bool) -> None:
        await slots.acquire(address, goes_on=goes_on)
        order.append(name)
        slots.release()

    async with trio.open_nursery() as nursery:
        for address, name, goes_on in (
            ("a", "a new", False), ("b", "b", False), ("a", "a goes on", True),
        ):  # fmt: skip
            nursery.start_soon(use, address, name, goes_on)
            await wait_all_tasks_blocked()
        slots.release()
    assert order == ["a goes on", "b", "a new"]


async def test_a_cancelled_wait_takes_no_place_and_leaves_the_others_theirs():
    slots = FairSlots(1)
    await slots.acquire("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await slots.acquire("b")
    assert scope.cancelled_caught
    with trio.move_on_after(0) as patience:
        await slots.acquire("a")
    assert patience.cancelled_caught
    assert (slots.busy, slots.waiting) == (1, 0)
    slots.release()
    assert slots.acquire_nowait()


async def test_how_long_somebody_has_waited_is_known(autojump_clock):
    slots = FairSlots(1)
    await slots.acquire("a")
    assert slots.waited_since > trio.current_time()
    with trio.move_on_after(5):
        await slots.acquire("b")
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.acquire, "b")
        await trio.sleep(3)
        assert slots.waited_since == began
        slots.release()
    assert slots.waited_since > trio.current_time()


async def test_however_waits_end_there_are_as_many_places_as_before():
    seed = 11
    print("seed", seed)
    dice, slots, using = random.Random(seed), FairSlots(3), 0

    async def use() -> None:
        nonlocal using
        with trio.CancelScope() as scope:
            if dice.random() < 0.4:
                nursery.start_soon(cancel, scope, dice.randrange(20))
            await slots.acquire(dice.randrange(4))
            using += 1
            assert using <= 3
            try:
                for _ in range(dice.randrange(4)):
                    await trio.lowlevel.checkpoint()
            finally:
                using -= 1
                slots.release()

    async def cancel(scope: trio.CancelScope, turns: int) -> None:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(use)
            await trio.lowlevel.checkpoint()
    assert (slots.busy, slots.waiting, using) == (0, 0, 0)
