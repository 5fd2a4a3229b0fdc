"""Waiting for a source: what wakes a waiter, what ends one, and that nothing is left behind."""

import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import purerpc
import pytest
import trio
import trio.testing
from claiming import (
    LOADS,
    NOT_FOUND,
    OK,
    OUTCOMES,
    TIMED_OUT,
    TOO_MANY,
    another_client,
    client_with_deadlines,
    parked,
    source,
    start,
    until,
)
from purerpc import StatusCode
from serving import (
    Serving,
    claim_request,
    configuration,
    memory_info,
    pass_time,
    refused,
    serving,
)

from globalstore.api.transports import _request
from globalstore.db import Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.scheduling.transports import _Waiter


def nothing_waits(store: Serving) -> bool:
    queues = store.server.queues
    return not (
        queues._by_request
        or queues._by_requester
        or queues._by_group
        or queues._queues
        or queues._returning
    )


# Hand-over


@pytest.mark.parametrize("outcome", [1, 2, 3, 4])
async def test_a_completion_hands_the_source_on(outcome: int) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        waiter = start(nursery, store)
        await parked(store, 1)
        await store.complete(held.transport_id, outcome)
        assert await waiter.status() == OK
        assert await store.read(LOADS) == [(1,)]
        assert nothing_waits(store)


@pytest.mark.parametrize("change", ["a new replica", "a higher limit", "keys that are valid"])
async def test_a_registration_serves_those_who_wait(change: str) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await source(store)
        await store.claim()
        if change == "keys that are valid":
            nothing = memory_info(device_id=1, remote_memory_keys=[], buffer_sizes=[])
            await store.replica(worker.worker_id, mem_info=nothing)
        waiter = start(nursery, store)
        await parked(store, 1)
        if change == "a higher limit":
            await store.replica(worker.worker_id, max_concurrency=2)
        else:
            await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
        assert await waiter.status() == OK


async def test_a_heartbeat_that_accepts_again_serves_those_who_wait() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await source(store)
        await store.beat(worker.worker_id, accepting_new_requests=False)
        waiter = start(nursery, store)
        await parked(store, 1)
        await store.beat(worker.worker_id, accepting_new_requests=False)
        assert not waiter.ended.is_set()
        await store.beat(worker.worker_id)
        assert await waiter.status() == OK


async def test_a_heartbeat_that_makes_a_worker_fresh_again_serves_those_who_wait(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"heartbeat_timeout": "10s"})
    async with serving(config) as store, trio.open_nursery() as nursery:
        worker = await source(store)
        await pass_time(mock_clock, 10.5)
        waiter = start(nursery, store)
        await parked(store, 1)
        await store.beat(worker.worker_id)
        assert await waiter.status() == OK


async def test_a_worker_that_comes_back_serves_those_who_wait_once_it_confirms() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await source(store)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
        )
        waiter = start(nursery, store)
        await parked(store, 1)
        await store.register("d1")
        await parked(store, 1)
        assert not waiter.ended.is_set()
        await store.replica(worker.worker_id)
        assert await waiter.status() == OK


async def test_an_expiry_hands_the_source_on(mock_clock: trio.testing.MockClock) -> None:
    config = configuration(worker_policy={"transport_ttl": "5s"})
    async with serving(config) as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        waiter = start(nursery, store)
        await parked(store, 1)
        await pass_time(mock_clock, 5)
        assert await waiter.status() == OK


async def test_other_artifacts_and_views_wake_nobody() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await source(store)
        held = await store.claim()
        waiter = start(nursery, store)
        await parked(store, 1)
        await store.replica(worker.worker_id, "other")
        view = memory_info(byte_space={"kind": 2, "id": "v"})
        await store.replica(worker.worker_id, mem_info=view)
        assert not waiter.ended.is_set()
        await store.complete(held.transport_id)
        assert await waiter.status() == OK


# The end of a wait


async def test_a_wait_ends_at_its_own_time_in_whole_milliseconds(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        request = claim_request()
        request.wait_timeout_dur.FromNanoseconds(100_999_999)
        statuses = []

        async def wait() -> None:
            statuses.append((await store.runtime.RequestReplicaTransport(request)).status)

        nursery.start_soon(wait)
        await parked(store, 1)
        mock_clock.jump(0.099)
        await trio.testing.wait_all_tasks_blocked()
        assert statuses == []
        mock_clock.jump(0.001)
        await until(store, lambda: statuses)
        assert statuses == [TIMED_OUT]
        assert nothing_waits(store)
        await store.complete(held.transport_id)
        assert await store.read(LOADS) == [(0,)]


async def test_the_answer_comes_a_little_before_the_callers_own_deadline(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        client = await client_with_deadlines(store, nursery)
        answers = []

        async def wait() -> None:
            answers.append(
                await client.call(
                    "runtime",
                    "RequestReplicaTransport",
                    claim_request(wait_s=3600),
                    timeout_s=2,
                    repeatable=False,
                )
            )

        nursery.start_soon(wait)
        await parked(store, 1)
        await pass_time(mock_clock, 1.9)
        assert answers == []
        mock_clock.jump(0.05)
        await until(store, lambda: answers)
        assert answers[0].status == TIMED_OUT
        nursery.cancel_scope.cancel()


async def test_a_deadline_shorter_than_the_margin_is_one_immediate_attempt(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        client = await client_with_deadlines(store, nursery)
        answer = await client.call(
            "runtime",
            "RequestReplicaTransport",
            claim_request(wait_s=3600),
            timeout_s=0.04,
            repeatable=False,
        )
        assert answer.status == TIMED_OUT
        nursery.cancel_scope.cancel()


async def test_a_lost_connection_withdraws_its_waiters_and_frees_all_they_held() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        group = wire.TransportSchedulingGroup(
            group_id="g", group_kind="k", part_id="p", total_parts=1
        )
        claim = start(
            nursery, store, apart=True, scheduling_group=group, requester_worker_id="somebody"
        )
        await parked(store, 1)
        claim.scope.cancel()
        await until(store, lambda: nothing_waits(store))
        await store.complete(held.transport_id)
        assert await store.read(LOADS) == [(0,)]
        assert await store.read("SELECT count(*) FROM transports") == [(1,)]


async def test_a_stopping_server_ends_its_waiters_as_unavailable() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        waiters = [start(nursery, store) for _ in range(5)]
        await parked(store, 5)
        store.server.queues.stop()
        for waiter in waiters:
            with pytest.raises(purerpc.RpcFailedError) as caught:
                await waiter.result()
            assert caught.value.status.status_code is StatusCode.UNAVAILABLE
        async with refused(StatusCode.UNAVAILABLE, "shutting down"):
            await store.claim()


@pytest.mark.parametrize("graceful", [False, True])
async def test_a_requester_that_is_lost_waits_no_longer_unless_it_said_goodbye(
    graceful: bool,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        requester = await store.register("d2")
        waiter = start(nursery, store, requester_worker_id=requester.worker_id)
        await parked(store, 1)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(
                worker_id=requester.worker_id, is_graceful_shutdown=graceful
            )
        )
        await store.complete(held.transport_id)
        assert await waiter.status() == (OK if graceful else TIMED_OUT)
        assert await store.read(LOADS) == [(int(graceful),)]


async def test_more_waiters_than_configured_are_refused_at_once() -> None:
    scheduler = {"transport_scheduler": {"max_waiters": 3}}
    config = configuration(worker_policy=scheduler)
    async with serving(config) as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        waiters = []
        for number in range(3):
            waiters.append(start(nursery, store, request_id=f"r{number}"))
            await parked(store, number + 1)
        assert (await store.claim(wait_s=3600)).status == TOO_MANY
        joined = start(nursery, store, request_id="r0")
        await store.complete(held.transport_id)
        assert await waiters[0].status() == await joined.status() == OK
        assert (await store.claim()).status == TIMED_OUT
        nursery.cancel_scope.cancel()


# Either granted or withdrawn, never both


@asynccontextmanager
async def held_up(store: Serving) -> AsyncIterator[None]:
    """Keep the database from running anything until the block ends."""
    running, go_on = trio.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        trio.from_thread.run_sync(running.set)
        assert go_on.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.server.store.write, hold)
        await running.wait()
        try:
            yield
        finally:
            go_on.set()


async def test_a_grant_that_commits_after_the_client_has_gone_is_given_back() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        held = await store.claim()
        claim = start(nursery, store, request_id="r", apart=True)
        await parked(store, 1)
        await store.server.store.write(lambda tx: tx.run("UPDATE replicas SET max_concurrency = 2"))
        async with held_up(store):
            store.server.queues.worker_routable()
            waiter = store.server.queues._by_request["r"]
            await until(store, lambda: waiter.settling)
            claim.scope.cancel()
            await until(store, lambda: waiter.callers == 0)
        await until(store, lambda: nothing_waits(store))
        assert await store.read(OUTCOMES) == [(0, ""), (4, "requester_gone")]
        assert await store.read(LOADS) == [(1,)]
        await store.complete(held.transport_id)
        assert (await store.claim(request_id="r")).status == OK


async def test_a_caller_that_goes_in_the_instant_of_its_grant_gives_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as store:
        await source(store)
        with trio.CancelScope() as scope:
            notify = _Waiter.notify

            def told_and_gone(waiter: _Waiter) -> None:
                notify(waiter)
                scope.cancel()

            monkeypatch.setattr(_Waiter, "notify", told_and_gone)
            await store.server.queues.request(_request(claim_request()), 0)
        assert scope.cancelled_caught
        await until(store, lambda: nothing_waits(store))
        assert await store.read(OUTCOMES) == [(4, "requester_gone")]


async def test_a_repeat_is_not_answered_with_a_grant_that_is_being_given_back() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        returned = store.server.queues._returning["r"] = trio.Event()
        claim = start(nursery, store, request_id="r")
        assert (await store.claim(request_id="other", wait_s=0)).status == OK
        assert len(store.server.queues) == 0
        del store.server.queues._returning["r"]
        returned.set()
        await parked(store, 1)
        assert not claim.ended.is_set()
        nursery.cancel_scope.cancel()


async def test_a_deadline_that_passes_while_a_grant_is_made_gets_the_grant(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        claim = start(nursery, store, request_id="r", wait_s=0.2)
        await parked(store, 1)
        await store.server.store.write(lambda tx: tx.run("UPDATE replicas SET max_concurrency = 2"))
        async with held_up(store):
            store.server.queues.worker_routable()
            waiter = store.server.queues._by_request["r"]
            await until(store, lambda: waiter.settling)
            mock_clock.jump(0.2)
            await trio.testing.wait_all_tasks_blocked()
            assert not claim.ended.is_set()
        assert await claim.status() == OK


async def test_a_deadline_that_passes_while_a_pass_finds_nothing_ends_the_wait_after_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await source(store)
        await store.claim()
        claim = start(nursery, store, request_id="r", wait_s=0.2)
        await parked(store, 1)
        async with held_up(store):
            store.server.queues.worker_routable()
            waiter = store.server.queues._by_request["r"]
            await until(store, lambda: waiter.settling)
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
    async with serving() as store:
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
    async with serving() as store, trio.open_nursery() as nursery:
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
    async with serving() as store, trio.open_nursery() as nursery:
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
