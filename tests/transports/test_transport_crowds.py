"""Waiters of a great many artifacts at once do not fill the database's queue."""

import threading
from collections import Counter

import trio
import trio.testing
from servers import a_call, claim_request, configuration, pass_time, serving

from globalstore.api.runtime.transports import _request
from globalstore.db import Runner
from globalstore.db.limits import WRITE_QUEUE_MAX
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime.transports import Miss

ARTIFACTS = 2 * WRITE_QUEUE_MAX


async def test_requests_for_more_artifacts_than_the_database_queues_are_all_answered() -> None:
    answers: Counter[object] = Counter()
    async with serving(runner=Runner.THREADS) as store:

        async def ask(artifact_id: str) -> None:
            request = _request(claim_request(artifact_id))
            answers[await store.components.queues.request(request, 0, a_call())] += 1

        async with trio.open_nursery() as nursery:
            for number in range(ARTIFACTS):
                nursery.start_soon(ask, f"model-{number}")
    assert answers == {Miss.NO_REPLICA: ARTIFACTS}


async def test_a_worker_that_comes_back_serves_those_who_wait_for_each_of_its_artifacts() -> None:
    held = 300
    async with serving(runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        for number in range(held):
            await store.replica(worker.worker_id, f"model-{number}")
        await store.beat(worker.worker_id, accepting_new_requests=False)
        granted: list[object] = []

        async def ask(artifact_id: str) -> None:
            request = _request(claim_request(artifact_id))
            granted.append(await store.components.queues.request(request, 3600, a_call()))

        for number in range(held):
            nursery.start_soon(ask, f"model-{number}")
        while sum(w.attempted for w in store.components.queues.waiters) < held:
            await store.components.store.read(lambda tx: None)
        await store.beat(worker.worker_id)
        while len(granted) < held:
            await store.components.store.read(lambda tx: None)
        assert await store.read("SELECT min(current_requests) FROM replicas") == [(1,)]
        assert not store.components.queues.waiters.queues()


async def test_five_thousand_waiters_cost_no_thread_and_no_polling(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"heartbeat_timeout": "3600s"})
    async with serving(config, runner=Runner.THREADS) as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, max_concurrency=1)
        held = await store.claim()
        queues, threads = store.components.queues, threading.active_count()
        granted: list[object] = []

        async def wait(number: int) -> None:
            group = None
            if number % 2:
                group = wire.TransportSchedulingGroup(
                    group_id=f"g{number % 50}", group_kind="k", part_id=str(number), total_parts=99
                )
            request = _request(claim_request(scheduling_group=group))
            granted.append(await queues.request(request, 36000, a_call()))

        for number in range(5000):
            nursery.start_soon(wait, number)
        while sum(w.attempted for w in queues.waiters) < 5000:
            await store.components.store.read(lambda tx: None)
        # Threads of earlier tests may end meanwhile.
        assert threading.active_count() <= threads

        def operations() -> int:
            return store.components.store.statistics().operations

        # Time passes, and nothing of theirs reaches the database.
        before = operations()
        await pass_time(mock_clock, 50)
        assert operations() - before <= 5  # what other parts write now and then
        # Heartbeats cost nothing, and a completion what one pass costs.
        before = operations()
        for _ in range(20):
            await store.beat(worker.worker_id)
        assert operations() == before
        await store.complete(held.transport_id)
        while not granted:
            await store.components.store.read(lambda tx: None)
        await trio.testing.wait_all_tasks_blocked()
        assert len(granted) == 1
        assert operations() - before <= 3
        nursery.cancel_scope.cancel()
