"""What a cancelled caller is told, and what was done for it: never two different things."""

import random
import threading
import time

import ledger
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from globalstore.db import Closed, Lane, OutcomeUnknown, Site, Store, StoreOptions

SEED = 20_240_611


async def _reached(gate) -> None:
    assert await trio.to_thread.run_sync(gate.reached.wait, 30)


async def test_a_waiting_operation_is_withdrawn_at_once(gate, nursery):
    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate) as store:
        gate.shut()
        nursery.start_soon(store.write, ledger.add, "first")
        await _reached(gate)
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write(ledger.add, "cancelled before")
        assert scope.cancelled_caught
        with trio.move_on_after(0.001) as scope:
            await store.write(ledger.add, "cancelled while waiting")
        assert scope.cancelled_caught
        assert store.statistics().waiting_normal == 0
        gate.open()
        await store.write(ledger.add, "last")
        assert await store.read(ledger.names) == ["first", "last"]


async def test_a_running_operation_is_waited_for_and_answered(gate, nursery):
    seen = []

    async def caller(scope):
        with scope:
            seen.append(await store.write(ledger.add, "a"))
            seen.append("before the checkpoint")
            await trio.lowlevel.checkpoint()
            seen.append("after it")

    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate) as store:
        gate.shut()
        scope = trio.CancelScope()
        nursery.start_soon(caller, scope)
        await _reached(gate)
        scope.cancel()
        await wait_all_tasks_blocked()
        assert seen == []
        gate.open()
        await store.write(ledger.nothing)
        await wait_all_tasks_blocked()
        assert seen == ["a", "before the checkpoint"]
        assert scope.cancelled_caught
        assert await store.read(ledger.names) == ["a"]


async def test_a_cancelled_reader_leaves_at_once_even_while_its_query_runs(nursery, gate):
    gate.site = Site.READER_SNAPSHOT
    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate) as store:
        gate.shut()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_reached, gate, scope)
            await store.read(ledger.names)
        assert scope.cancelled_caught
        gate.open()
        assert await store.read(ledger.names) == []


async def _cancel_when_reached(gate, scope) -> None:
    await _reached(gate)
    scope.cancel()


async def test_thousands_of_random_cancellations_lose_double_or_hide_nothing(new_store):
    print("seed", SEED)
    dice = random.Random(SEED)
    answered, cancelled, events = [], [], []

    async def caller(name, patience_s):
        with trio.move_on_after(patience_s):
            answered.append(await store.write(ledger.add, name))
            return
        cancelled.append(name)

    async with new_store(on_commit=events.extend) as store:
        for wave in range(20):
            async with trio.open_nursery() as nursery:
                for i in range(200):
                    name = f"{wave} {i}"
                    nursery.start_soon(caller, name, dice.choice((0, dice.expovariate(200))))
        stored = await store.read(ledger.names)
    assert sorted(stored) == sorted(answered) == sorted(events)
    assert not set(stored) & set(cancelled)
    assert len(answered) + len(cancelled) == 4000
    assert cancelled


async def test_cancellations_in_the_middle_of_groups_tell_the_truth():
    """Groups slow enough that callers are cancelled while theirs runs, not only before."""
    print("seed", SEED)
    dice = random.Random(SEED)
    answered, cancelled, late = [], [], []

    def slow_disk(site: Site) -> None:
        if site is Site.BEFORE_COMMIT:
            time.sleep(0.003)

    async def caller(name, patience_s):
        with trio.move_on_after(patience_s) as scope:
            answered.append(await store.write(ledger.add, name))
            if scope.cancel_called:
                late.append(name)
            return
        cancelled.append(name)

    async with Store(None, migrations=ledger.MIGRATIONS, at_site=slow_disk) as store:
        async with trio.open_nursery() as nursery:
            for i in range(4000):
                nursery.start_soon(caller, f"{i}", dice.uniform(0, 0.3))
                if i % 50 == 0:
                    await trio.lowlevel.checkpoint()
        stored = await store.read(ledger.names)
    assert sorted(stored) == sorted(answered)
    assert not set(stored) & set(cancelled)
    assert len(answered) + len(cancelled) == 4000
    assert late, "no caller was cancelled while its group ran"


async def test_a_storm_of_cancellations_leaves_an_empty_queue(gate, nursery):
    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate) as store:
        gate.shut()
        nursery.start_soon(store.write, ledger.add, "first")
        await _reached(gate)
        for _ in range(5):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as callers:
                    for i in range(3000):
                        callers.start_soon(store.write, ledger.add, f"{i}")
                    await wait_all_tasks_blocked()
                    assert store.statistics().waiting_normal == 3000
                    scope.cancel()
            assert store.statistics().waiting_normal == 0
        gate.open()
        await store.write(ledger.add, "last")
        assert await store.read(ledger.names) == ["first", "last"]


async def test_a_cancelled_caller_does_not_wait_for_a_dead_disk(gate, nursery):
    outcomes = []

    async def waiting():
        try:
            await store.write(ledger.add, "queued")
        except Closed as error:
            outcomes.append(error)

    options = StoreOptions(stall_timeout_s=0.02)
    async with Store(None, migrations=ledger.MIGRATIONS, at_site=gate, options=options) as store:
        gate.site = Site.BEFORE_COMMIT
        gate.shut()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_reached, gate, scope)
            nursery.start_soon(_queue_behind, gate, nursery, waiting)
            with pytest.raises(OutcomeUnknown):
                await store.write(ledger.add, "a", lane=Lane.CONTROL)
        assert store.failed.is_set()
        await wait_all_tasks_blocked()
        assert "has not answered" in str(outcomes[0])
        gate.open()


async def _queue_behind(gate, nursery, waiting) -> None:
    await _reached(gate)
    nursery.start_soon(waiting)


async def test_closing_does_not_wait_for_a_dead_disk():
    release, stuck = threading.Event(), threading.Event()

    def dead_disk(site: Site) -> None:
        if site is Site.BEFORE_CLOSE:
            stuck.set()
            release.wait(30)

    options = StoreOptions(close_timeout_s=0.02)
    store = Store(None, migrations=ledger.MIGRATIONS, at_site=dead_disk, options=options)
    async with store:
        await store.write(ledger.add, "a")
    assert stuck.is_set()
    assert isinstance(store.failure, OutcomeUnknown)
    release.set()
