"""Waiting for a source: what wakes a waiter, what ends one, and that nothing is left behind."""

import purerpc
import pytest
import trio
import trio.testing
from claims import (
    LOADS,
    OK,
    TIMED_OUT,
    TOO_MANY,
    client_with_deadlines,
    nothing_waits,
    parked,
    source,
    start,
    until,
)
from purerpc import StatusCode
from servers import (
    claim_request,
    configuration,
    memory_info,
    pass_time,
    refused,
    serving,
    serving_over_tcp,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

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
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
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
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
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
    async with serving_over_tcp() as store, trio.open_nursery() as nursery:
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
        store.components.queues.stop()
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
