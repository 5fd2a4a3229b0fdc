"""Much is written slice by slice: others get their turn, a guard ends it, nothing runs ahead."""

from functools import partial

import ledger
import pytest
import trio

from globalstore.db import Ready, Snapshot, Transaction, repeat_in_slices, write_in_slices


def adding(*names: str) -> list[partial[str]]:
    return [partial(ledger.add, name=name) for name in names]


def present(tx: Snapshot) -> list[str]:
    return [name for (name,) in tx.all("SELECT name FROM entry ORDER BY name")]


async def test_slices_are_written_in_order_and_what_they_return_is_handed_on(new_store):
    returned: list[str] = []

    async def take_in(name: str) -> None:
        returned.append(name)

    async with new_store() as store:
        slices = [*adding("a"), Ready("no transaction"), *adding("b")]
        assert await write_in_slices(store, slices, on_written=take_in)
        assert returned == ["a", "no transaction", "b"]
        assert await store.read(present) == ["a", "b"]


async def test_a_guard_is_asked_inside_each_transaction_and_ends_the_rest(new_store):
    async with new_store() as store:
        slices = adding("a", "b", "c", "d")
        assert not await write_in_slices(store, slices, guard=lambda tx: len(present(tx)) < 2)
        assert await store.read(present) == ["a", "b"]


async def test_a_slice_that_fails_ends_the_rest_and_raises_its_own_error(new_store):
    def fail(tx: Transaction) -> str:
        raise ledger.Refusal("no")

    async with new_store() as store:
        with pytest.raises(ledger.Refusal):
            await write_in_slices(store, [*adding("a"), fail, *adding("c")])
        assert await store.read(present) == ["a"]


async def test_what_fails_to_take_a_result_in_ends_the_rest_and_raises_its_own_error(new_store):
    async def fail(name: str) -> None:
        raise ledger.Refusal(name)

    async with new_store() as store:
        with pytest.raises(ledger.Refusal, match="a"):
            await write_in_slices(store, adding(*"abcdefghijkl"), on_written=fail)
        assert len(await store.read(present)) < 12


async def test_slices_that_cannot_be_made_raise_their_own_error(new_store):
    def slices():
        yield from adding("a")
        raise ZeroDivisionError

    async with new_store() as store:
        with pytest.raises(ZeroDivisionError):
            await write_in_slices(store, slices())
        assert await store.read(present) == ["a"]


async def test_when_cancelled_what_has_begun_is_whole_and_nothing_else_begins(new_store):
    async with new_store() as store:
        with trio.CancelScope() as scope:

            def slices():
                yield from adding("a")
                scope.cancel()
                yield from adding("b", "c")

            await write_in_slices(store, slices())
        assert scope.cancelled_caught
        assert await store.read(present) == ["a"]


async def test_others_are_written_between_two_slices(new_store):
    async with new_store() as store:

        async def write_between(name: str) -> None:
            await store.write(ledger.add, f"{name}, and then")

        await write_in_slices(store, adding("a"), on_written=write_between)
        assert await store.read(present) == ["a", "a, and then"]


async def test_an_operation_is_repeated_until_it_did_less(new_store):
    left = [3, 3, 1]

    async with new_store() as store:
        done = [n async for n in repeat_in_slices(store, lambda tx: left.pop(0), until_below=3)]
        assert done == [3, 3, 1]
