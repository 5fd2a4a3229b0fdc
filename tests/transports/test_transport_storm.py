"""Many clients at once, some of which go away: the counters hold at every look and at the end."""

import random
from collections import Counter
from typing import Any

import pytest
import trio
from claims import NOT_FOUND, OK, TIMED_OUT, another_client, until
from servers import Serving, claim_request, memory_info, serving_over_tcp

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CLIENTS = 10
ROUNDS = 25
LIMIT = 2

INVARIANTS = """
SELECT r.current_requests, r.max_concurrency, (SELECT count(*) FROM transports t
       WHERE t.replica_id = r.replica_id AND outcome = 0) FROM replicas r
"""


class Client:
    """Claims, completes, registers again and sometimes cuts its connection off.

    Cut off in the middle of something, it repeats the request and completes it, as a daemon does
    that lost its connection.
    """

    def __init__(self, store: Serving, number: int, seed: int, worker_id: str) -> None:
        self.store = store
        self.rng = random.Random(f"{seed}-{number}")
        self.number = number
        self.worker_id = worker_id
        self.statuses: Counter[int] = Counter()
        self.timed_out: list[str] = []
        self.cut_off = 0
        self.unfinished: Any = None

    async def run(self) -> None:
        left = ROUNDS
        while left or self.unfinished is not None:
            with trio.CancelScope() as scope:
                async with another_client(self.store) as stub:
                    if self.unfinished is not None:
                        await self.claim(stub, self.unfinished)
                    while left:
                        left -= 1
                        if self.rng.random() < 0.15:
                            scope.deadline = trio.current_time() + self.rng.uniform(0.0005, 0.01)
                        await self.act(stub)
                    scope.deadline = float("inf")
            if scope.cancelled_caught:
                self.cut_off += 1

    async def act(self, stub: Any) -> None:
        if self.rng.random() < 0.1:
            info = memory_info(device_id=self.rng.randrange(3))
            await self.store.replica(self.worker_id, max_concurrency=LIMIT, mem_info=info)
        else:
            wait_s = self.rng.choice([0, 0.001, 0.005, 60])
            await self.claim(stub, claim_request(wait_s=wait_s))

    async def claim(self, stub: Any, request: Any) -> None:
        self.unfinished = request
        answer = await stub.RequestReplicaTransport(request)
        self.statuses[answer.status] += 1
        if answer.status == TIMED_OUT:
            self.timed_out.append(request.request_id)
        elif answer.status == OK:
            if self.rng.random() < 0.3:
                again = await stub.RequestReplicaTransport(request)
                assert again.transport_id == answer.transport_id
            ended = wire.CompleteReplicaTransportRequest(
                transport_id=answer.transport_id, outcome=1
            )
            for _ in range(self.rng.choice([1, 1, 2])):
                await stub.CompleteReplicaTransport(ended)
        self.unfinished = None


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_clients_loses_no_slot_and_grants_none_twice(seed: int) -> None:
    print("seed", seed)
    async with serving_over_tcp() as store:
        worker = await store.register("d1")
        for device in range(3):
            info = memory_info(device_id=device)
            await store.replica(worker.worker_id, max_concurrency=LIMIT, mem_info=info)
        clients = [Client(store, n, seed, worker.worker_id) for n in range(CLIENTS)]
        looks = 0
        async with trio.open_nursery() as watching:

            async def watch() -> None:
                nonlocal looks
                while True:
                    for load, limit, open_ in await store.read(INVARIANTS):
                        assert load == open_
                        assert 0 <= load <= limit
                    looks += 1

            watching.start_soon(watch)
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(client.run)
            watching.cancel_scope.cancel()
        await until(store, lambda: not store.components.queues.waiters.queues())
        await until(store, lambda: not len(store.components.handouts))
        statuses = sum((client.statuses for client in clients), Counter())
        print(dict(statuses), "cut off", sum(client.cut_off for client in clients), "looks", looks)
        assert statuses[OK] > 0
        assert statuses[NOT_FOUND] == 0
        assert sum(client.cut_off for client in clients) > 0
        for client in clients:
            for request_id in client.timed_out:
                rows = await store.read(
                    "SELECT outcome FROM transports WHERE request_id = ?", request_id
                )
                assert rows == []
        assert await store.read(INVARIANTS) == [(0, LIMIT, 0)] * 3
        gone = "SELECT count(*) FROM transports WHERE outcome_detail = 'requester_gone'"
        print("given back", await store.read(gone))
