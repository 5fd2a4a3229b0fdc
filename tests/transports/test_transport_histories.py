"""What concurrent clients are told of claims can be explained by one sequence; also over a kill."""

import random
import sqlite3
import threading
import uuid
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trio
from claims import OK, TIMED_OUT, another_client
from google.protobuf.timestamp_pb2 import Timestamp
from linearizability import Operation, assert_linearizable, impossible_after
from server_process import PATIENCE_S, Client, running
from servers import (
    Serving,
    claim_request,
    configuration,
    memory_info,
    replica_request,
    serving_over_tcp,
    worker_request,
)

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CLIENTS = 8
CALLS = 12

# Slots of each source, by device.
SLOTS = {0: 2, 1: 1}

# What is running or has succeeded: (request, device, transport, whether it still runs).
State = frozenset[tuple[str, int, str, bool]]


def step(state: Any, call: Operation) -> Iterable[Hashable]:
    """Yield the state after a call, if it can have had its outcome."""
    verb, what = call.request[:2]
    if verb == "complete":
        for entry in state:
            request, device, transport, runs = entry
            if transport == what and runs:
                kept = {(request, device, transport, False)} if call.request[2] else set()
                yield state - {entry} | kept
                return
        yield state  # again, or one whose request was used for a new attempt
        return
    mine = [entry for entry in state if entry[0] == what]
    if mine:
        if call.outcome == mine[0][1:3]:
            yield state
        return
    used = {device: sum(entry[1] == device and entry[3] for entry in state) for device in SLOTS}
    if call.outcome is None:
        if used == SLOTS:
            yield state
    elif used[call.outcome[0]] < SLOTS[call.outcome[0]]:
        yield state | {(what, *call.outcome, True)}


async def client(store: Serving, number: int, seed: str, calls: list[Operation]) -> None:
    """Claim and complete at random over a connection of its own; write down what came of it."""
    rng, held = random.Random(seed), []
    names = [f"{seed} {n}" for n in range(3)] + [f"shared {n}" for n in range(2)]
    async with another_client(store) as stub:
        for _ in range(CALLS):
            began = trio.current_time()
            outcome: Any
            if held and rng.random() < 0.5:
                transport, succeeds = rng.choice(held), rng.random() < 0.3
                request: Any = ("complete", transport, succeeds)
                ended = wire.CompleteReplicaTransportRequest(
                    transport_id=transport, outcome=1 if succeeds else 2
                )
                outcome = (await stub.CompleteReplicaTransport(ended)).status
                assert outcome == OK
            else:
                name = rng.choice(names)
                request = ("claim", name)
                wait_s = rng.choice([0, 0, 0.005])
                claim = claim_request(wait_s=wait_s, request_id=name)
                answer = await stub.RequestReplicaTransport(claim)
                assert answer.status in {OK, TIMED_OUT}
                outcome = None
                if answer.status == OK:
                    outcome = answer.remote_memory_info.device_id, answer.transport_id
                    held.append(answer.transport_id)
            calls.append(Operation(began, trio.current_time(), request, outcome))


@pytest.mark.parametrize("mode", ["LEGACY", "SOURCE_BALANCE", "GROUP_DISPATCH"])
async def test_concurrent_claims_and_completions_are_linearizable(mode: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    config = configuration(worker_policy={"transport_scheduler": {"mode": mode}})
    for round_number in range(4):
        async with serving_over_tcp(config) as store:
            worker = await store.register()
            for device, slots in SLOTS.items():
                info = memory_info(device_id=device)
                await store.replica(worker.worker_id, mem_info=info, max_concurrency=slots)
            calls: list[Operation] = []
            async with trio.open_nursery() as nursery:
                for number in range(CLIENTS):
                    words = f"{seed} {round_number} {number}"
                    nursery.start_soon(client, store, number, words, calls)
            assert_linearizable(calls, frozenset(), step)
            granted = [each for each in calls if each.request[0] == "claim" and each.outcome]
            assert granted
            assert len(granted) < len(calls)


def test_the_check_refuses_histories_that_cannot_be() -> None:
    def claim(began: float, name: str, outcome: Any) -> Operation:
        return Operation(began, began + 1, ("claim", name), outcome)

    start: State = frozenset()
    two = [claim(0, "a", (1, "t")), claim(2, "b", (1, "u"))]
    assert impossible_after(two, start, step) == 1  # one slot, granted twice
    assert impossible_after([claim(0, "a", None)], start, step) == 0  # busy, though all is free
    moved = [claim(0, "a", (1, "t")), claim(2, "a", (0, "u"))]
    assert impossible_after(moved, start, step) == 1  # one request, two transports
    ended = Operation(2, 3, ("complete", "t", False), OK)
    again = [claim(0, "a", (1, "t")), ended, claim(4, "a", (1, "u"))]
    assert impossible_after(again, start, step) is None


# Killed in the middle of it.

OPEN = """
SELECT r.device_id, r.current_requests, r.max_concurrency,
    (SELECT count(*) FROM transports t WHERE t.replica_id = r.replica_id AND outcome = 0)
FROM replicas r ORDER BY 1
"""


class Claimer(threading.Thread):
    """Claims and completes over a connection of its own until that breaks; remembers answers.

    Each call that was answered is counted in ``answered``, each grant also in ``granted_by_all``.
    """

    def __init__(
        self,
        port: int,
        seed: int,
        granted_by_all: threading.Semaphore,
        answered: threading.Semaphore,
    ) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.rng = random.Random(seed)
        self._granted_by_all = granted_by_all
        self._answered = answered
        self.granted: dict[str, str] = {}
        self.ended: set[str] = set()
        self.unsure: set[str] = set()

    def run(self) -> None:
        with Client(self.port) as client:
            try:
                while True:
                    self.act(client)
                    self._answered.release()
            except grpc.RpcError:
                return

    def act(self, client: Client) -> None:
        running = sorted(set(self.granted) - self.ended - self.unsure)
        if running and self.rng.random() < 0.6:
            transport = self.rng.choice(running)
            self.unsure.add(transport)
            client.runtime(
                "CompleteReplicaTransport",
                wire.CompleteReplicaTransportRequest(transport_id=transport, outcome=1),
            )
            self.ended.add(transport)
            return
        request = claim_request(request_id=str(uuid.uuid4()))
        answer = client.runtime("RequestReplicaTransport", request)
        if answer.status == OK:
            self.granted[answer.transport_id] = request.request_id
            self._granted_by_all.release()


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_kill_all_that_was_answered_holds_and_the_counters_are_right(
    seed: int, tmp_path: Path
) -> None:
    print("seed", seed)
    file = tmp_path / "store.db"
    rng = random.Random(seed)
    claimers: list[Claimer] = []
    for _ in range(3):
        with running(tmp_path, database={"db_file": str(file)}) as process:
            with Client(process.port) as admin:
                worker = admin.runtime("RegisterWorker", worker_request()).worker_id
                for device, slots in SLOTS.items():
                    info = memory_info(device_id=device)
                    request = replica_request(worker, mem_info=info, max_concurrency=slots)
                    admin.runtime("RegisterReplica", request)
                # Grants whose answers were lost hold their slots still.
                window = wire.QueryTransportWindowRequest(
                    created_at_start=Timestamp(), created_at_end=Timestamp(seconds=1 << 33)
                )
                for row in admin.runtime("QueryTransportWindow", window).rows:
                    if row.status == "in_progress":
                        ended = wire.CompleteReplicaTransportRequest(
                            transport_id=row.transport_id, outcome=1
                        )
                        assert admin.runtime("CompleteReplicaTransport", ended).status == OK
                        for each in claimers:
                            each.ended |= {row.transport_id} & each.granted.keys()
            granted, answered = threading.Semaphore(0), threading.Semaphore(0)
            new = [
                Claimer(process.port, rng.randrange(2**32), granted, answered)
                for _ in range(CLIENTS)
            ]
            for each in new:
                each.start()
            for _ in range(25):
                assert granted.acquire(timeout=PATIENCE_S)
            while answered.acquire(blocking=False):
                pass
            for _ in range(rng.randrange(50)):
                assert answered.acquire(timeout=PATIENCE_S)
            process.child.kill()
            process.wait()
            for each in new:
                each.join(30)
                assert not each.is_alive()
            claimers += new
            found = tmp_path / "found.db"
            with sqlite3.connect(file) as database, sqlite3.connect(found) as copy:
                database.backup(copy)
                outcomes = {
                    str(uuid.UUID(bytes=row[0])): row[1:]
                    for row in copy.execute(
                        "SELECT transport_id, outcome, request_id FROM transports"
                    )
                }
                for _, load, limit, running_now in copy.execute(OPEN):
                    assert load == running_now
                    assert 0 <= load <= limit
            for each in claimers:
                for transport, request_id in each.granted.items():
                    assert outcomes[transport][1] == request_id
                    if transport in each.ended:
                        assert outcomes[transport][0] == 1
                    elif transport not in each.unsure:
                        assert outcomes[transport][0] == 0
    assert sum(len(each.granted) for each in claimers) > 50
