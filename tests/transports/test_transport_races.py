"""A waiter is granted or withdrawn, never both, whatever happens in the same instant."""

import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from claims import (
    LOADS,
    NOT_FOUND,
    OK,
    OUTCOMES,
    TIMED_OUT,
    all_received,
    another_client,
    nothing_waits,
    parked,
    source,
    start,
    until,
)
from servers import (
    Serving,
    claim_request,
    serving,
    serving_over_tcp,
)

from globalstore.api.runtime.transports import _request
from globalstore.db import Runner, Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.scheduling.grants import _name
from globalstore.scheduling.waiters import Waiter

# Either granted or withdrawn, never both


@asynccontextmanager
async def held_up(store: Serving) -> AsyncIterator[None]:
    """Keep the database from running anything until the block ends."""
    running, go_on = trio.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        trio.from_thread.run_sync(running.set)
        assert go_on.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.components.store.write, hold)
        await running.wait()
        try:
            yield
        finally:
            go_on.set()


async def test_a_grant_that_commits_after_the_client_has_gone_is_given_back() -> None:
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        claim = start(nursery, store, request_id="r", apart=True)
        await parked(store, 1)
        await store.components.store.write(
            lambda tx: tx.run("UPDATE replicas SET max_concurrency = 2")
        )
        async with held_up(store):
            store.components.queues.worker_routable()
            waiter = store.components.queues.waiters.of_request("r")
            await until(store, lambda: waiter.deciding)
            claim.scope.cancel()
            await until(store, lambda: not waiter.callers)
        await until(store, lambda: all_received(store))
        assert await store.read(OUTCOMES) == [(0, ""), (4, "requester_gone")]
        assert await store.read(LOADS) == [(1,)]
        await store.complete(held.transport_id)
        assert (await store.claim(request_id="r")).status == OK


async def test_a_caller_that_goes_in_the_instant_of_its_grant_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(runner=Runner.THREADS) as store:
        await source(store)
        with trio.CancelScope() as scope:
            notify = Waiter.notify

            def told_and_gone(waiter: Waiter) -> None:
                notify(waiter)
                scope.cancel()

            monkeypatch.setattr(Waiter, "notify", told_and_gone)
            await store.claim()
        assert scope.cancelled_caught
        await until(store, lambda: all_received(store))
        assert await store.read(OUTCOMES) == [(4, "requester_gone")]


async def test_a_repeat_is_not_answered_with_a_grant_that_is_being_given_back() -> None:
    async with serving(runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        await source(store)
        claim = start(nursery, store, request_id="r")
        handout = store.components.handouts.of(_name(_request(claim.request)))
        returned = handout.returned = trio.Event()
        assert (await store.claim(request_id="other", wait_s=0)).status == OK
        assert len(store.components.queues) == 0
        handout.returned = None
        returned.set()
        await parked(store, 1)
        assert not claim.ended.is_set()
        nursery.cancel_scope.cancel()


async def test_a_deadline_that_passes_while_a_grant_is_made_gets_the_grant(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        claim = start(nursery, store, request_id="r", wait_s=0.2)
        await parked(store, 1)
        await store.components.store.write(
            lambda tx: tx.run("UPDATE replicas SET max_concurrency = 2")
        )
        async with held_up(store):
            store.components.queues.worker_routable()
            waiter = store.components.queues.waiters.of_request("r")
            await until(store, lambda: waiter.deciding)
            mock_clock.jump(0.2)
            await trio.testing.wait_all_tasks_blocked()
            assert not claim.ended.is_set()
        assert await claim.status() == OK


async def test_a_deadline_that_passes_while_a_pass_finds_nothing_ends_the_wait_after_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        claim = start(nursery, store, request_id="r", wait_s=0.2)
        await parked(store, 1)
        async with held_up(store):
            store.components.queues.worker_routable()
            waiter = store.components.queues.waiters.of_request("r")
            await until(store, lambda: waiter.deciding)
            mock_clock.jump(0.2)
            await trio.testing.wait_all_tasks_blocked()
            assert not claim.ended.is_set()
        assert await claim.status() == TIMED_OUT


@pytest.mark.parametrize("seed", range(3))
async def test_no_timed_out_request_owns_a_transport_and_no_slot_is_lost(
    mock_clock: trio.testing.MockClock, seed: int
) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    async with serving(runner=Runner.THREADS) as store:
        await source(store)
        counts = {OK: 0, TIMED_OUT: 0}
        for _ in range(12):
            held = await store.claim()
            assert held.status == OK
            async with trio.open_nursery() as nursery:
                claims = [start(nursery, store, wait_s=1) for _ in range(3)]
                await parked(store, 3)
                # The deadline of all three and the completion fall into one instant.
                if rng.random() < 0.5:
                    nursery.start_soon(store.complete, held.transport_id)
                    for _ in range(rng.randrange(12)):
                        await trio.lowlevel.checkpoint()
                    mock_clock.jump(1)
                else:
                    mock_clock.jump(1)
                    nursery.start_soon(store.complete, held.transport_id)
            for claim in claims:
                counts[claim.answer.status] += 1
                rows = await store.read(
                    "SELECT outcome FROM transports WHERE request_id = ?", claim.request.request_id
                )
                assert rows == ([(0,)] if claim.answer.status == OK else [])
                if claim.answer.status == OK:
                    await store.complete(claim.answer.transport_id)
            assert await store.read(LOADS) == [(0,)]
        print(counts)
        assert counts[TIMED_OUT] > 0


# Many


async def test_a_thousand_waiters_are_served_one_after_the_other_as_slots_come_free() -> None:
    count, slots = 1100, 50
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        await source(store, slots=slots)
        held = [(await store.claim()).transport_id for _ in range(slots)]
        served: list[int] = []
        # A connection carries 256 calls at a time.
        stubs: list[Any] = [await nursery.start(_keep_client, store) for _ in range(count // 200)]

        async def wait(number: int, stub: Any) -> None:
            answer = await stub.RequestReplicaTransport(claim_request(wait_s=3600))
            assert answer.status == OK
            served.append(number)
            await stub.CompleteReplicaTransport(
                wire.CompleteReplicaTransportRequest(transport_id=answer.transport_id, outcome=1)
            )

        async with trio.open_nursery() as waiting:
            for number in range(count):
                waiting.start_soon(wait, number, stubs[number % len(stubs)])
            await parked(store, count)
            for transport_id in held:
                await store.complete(transport_id)
        assert sorted(served) == list(range(count))
        assert await store.read(LOADS) == [(0,)]
        assert await store.read("SELECT count(*) FROM transports") == [(count + slots,)]
        assert nothing_waits(store)
        nursery.cancel_scope.cancel()


async def _keep_client(
    store: Serving, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
) -> None:
    async with another_client(store) as stub:
        task_status.started(stub)
        await trio.sleep_forever()


async def test_a_thousand_waiters_learn_at_once_that_there_is_nothing_left() -> None:
    count = 1000
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        replica = await store.replica(worker.worker_id)
        await store.claim()
        stubs = [await nursery.start(_keep_client, store) for _ in range(5)]
        statuses = []

        async def wait(stub: Any) -> None:
            answer = await stub.RequestReplicaTransport(claim_request(wait_s=3600))
            statuses.append(answer.status)

        async with trio.open_nursery() as waiting:
            for number in range(count):
                waiting.start_soon(wait, stubs[number % 5])
            await parked(store, count)
            await store.runtime.UnregisterReplica(
                wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica.replica_id)
            )
        assert statuses == [NOT_FOUND] * count
        assert nothing_waits(store)
        nursery.cancel_scope.cancel()
