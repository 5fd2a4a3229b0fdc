"""Waiters of a great many artifacts at once do not fill the database's queue."""

from collections import Counter

import trio
from serving import claim_request, serving

from globalstore.api.transports import _request
from globalstore.db.limits import WRITE_QUEUE_MAX
from globalstore.registry.transports import Miss

ARTIFACTS = 2 * WRITE_QUEUE_MAX


async def test_requests_for_more_artifacts_than_the_database_queues_are_all_answered() -> None:
    answers: Counter[object] = Counter()
    async with serving() as store:

        async def ask(artifact_id: str) -> None:
            request = _request(claim_request(artifact_id))
            answers[await store.server.queues.request(request, 0)] += 1

        async with trio.open_nursery() as nursery:
            for number in range(ARTIFACTS):
                nursery.start_soon(ask, f"model-{number}")
    assert answers == {Miss.NO_REPLICA: ARTIFACTS}


async def test_a_worker_that_comes_back_serves_those_who_wait_for_each_of_its_artifacts() -> None:
    held = 300
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        for number in range(held):
            await store.replica(worker.worker_id, f"model-{number}")
        await store.beat(worker.worker_id, accepting_new_requests=False)
        granted: list[object] = []

        async def ask(artifact_id: str) -> None:
            granted.append(
                await store.server.queues.request(_request(claim_request(artifact_id)), 3600)
            )

        for number in range(held):
            nursery.start_soon(ask, f"model-{number}")
        while sum(w.attempted for w in store.server.queues._by_request.values()) < held:
            await store.server.store.read(lambda tx: None)
        await store.beat(worker.worker_id)
        while len(granted) < held:
            await store.server.store.read(lambda tx: None)
        assert await store.read("SELECT min(current_requests) FROM replicas") == [(1,)]
        assert not store.server.queues._queues
