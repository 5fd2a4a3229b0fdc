"""The process is killed while many clients hold and report; what was answered holds afterwards."""

import signal
import threading
from pathlib import Path
from typing import Any

import grpc
from server_process import PATIENCE_S, Client, running

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tier_wire

ROUNDS = 2
CLIENTS = 8
TIERS = "/tensorcast.memory_tier.v1.MemoryTierService/"


def tier_call(client: Client, method: str, request: Any) -> Any:
    call = client.channel.unary_unary(
        TIERS + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(tier_wire, f"{method}Response").FromString,
    )
    return call(request, timeout=PATIENCE_S)


class Holder:
    """A daemon that takes shards of its own, reports chunks and asks for memory, until cut off.

    ``answered`` gets a turn of each holder that was answered.
    """

    def __init__(self, number: int, answered: threading.Semaphore) -> None:
        self._answered = answered
        self.name = f"holder-{number}"
        self.shards = [number * 10 + each for each in range(3)]
        self.leases: dict[int, Any] = {}
        self.chunks = 0
        self.wishes: dict[str, str] = {}
        self.answers = 0

    def work(self, port: int, ttl_ms: int) -> None:
        try:
            with Client(port) as client:
                while True:
                    self._turn(client, ttl_ms)
        except grpc.RpcError as error:
            assert error.code() in {  # noqa: PT017
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            }, error

    def _turn(self, client: Client, ttl_ms: int) -> None:
        for shard in self.shards:
            answer = client.runtime(
                "AcquireShardHomeLease",
                wire.AcquireShardHomeLeaseRequest(
                    shard_id=shard, holder_daemon_id=self.name, ttl_ms=ttl_ms
                ),
            )
            assert answer.acquired
            before = self.leases.get(shard)
            if before is not None:
                assert answer.lease.lease_generation == before.lease_generation
                assert answer.lease.lease_token == before.lease_token
            self.leases[shard] = answer.lease
        updates = [
            wire.ChunkStateUpdate(
                artifact_id=self.name, chunk_idx=self.chunks + n, state=wire.CHUNK_STATE_HOT
            )
            for n in range(300)
        ]
        client.runtime(
            "BatchUpdateChunkStates",
            wire.BatchUpdateChunkStatesRequest(node_id=self.name, updates=updates),
        )
        self.chunks += len(updates)
        request_id = f"r{self.answers}"
        wish = tier_wire.RequestMemoryTierLeaseRequest(
            node_id=self.name, artifact_id="model", chunk_ids=[1], request_id=request_id
        )
        self.wishes[request_id] = tier_call(client, "RequestMemoryTierLease", wish).lease.lease_id
        self.answers += 1
        self._answered.release()

    def check(self, client: Client) -> None:
        """What was answered before the crash is there; what was not is there wholly or not."""
        for shard, lease in self.leases.items():
            request = wire.GetShardHomeLeaseRequest(shard_id=shard)
            route = client.runtime("GetShardHomeLease", request).lease
            assert (route.holder_daemon_id, route.lease_generation) == (self.name, 1)
            assert route.expires_at.ToMicroseconds() >= lease.expires_at.ToMicroseconds()
            stranger = wire.AcquireShardHomeLeaseRequest(
                shard_id=shard, holder_daemon_id="stranger", ttl_ms=60_000
            )
            assert not client.runtime("AcquireShardHomeLease", stranger).acquired
        register = wire.RegisterWorkerRequest(
            daemon_id=f"w-{self.name}",
            node_id=self.name,
            node_address=f"{self.name}.example",
            grpc_port=1,
            p2p_port=2,
        )
        client.runtime("RegisterWorker", register)
        query = wire.QueryChunkLocationsRequest(artifact_id=self.name)
        found = [each.chunk_idx for each in client.runtime("QueryChunkLocations", query).locations]
        assert found in (list(range(self.chunks)), list(range(self.chunks + 300)))
        self.chunks = len(found)
        for request_id, lease_id in self.wishes.items():
            again = tier_wire.RequestMemoryTierLeaseRequest(
                node_id=self.name, artifact_id="other", chunk_ids=[1], request_id=request_id
            )
            assert tier_call(client, "RequestMemoryTierLease", again).lease.lease_id == lease_id


def test_what_was_answered_outlives_kill_9(tmp_path: Path) -> None:
    path = {"db_file": str(tmp_path / "store.db")}
    answered = threading.Semaphore(0)
    holders = [Holder(number, answered) for number in range(CLIENTS)]
    for round_ in range(ROUNDS):
        with running(tmp_path, database=path) as process:
            threads = [
                threading.Thread(target=holder.work, args=(process.port, 600_000))
                for holder in holders
            ]
            for thread in threads:
                thread.start()
            for _ in range(40 + 7 * round_):
                assert answered.acquire(timeout=PATIENCE_S)
            process.signal(signal.SIGKILL)
            process.wait()
            for thread in threads:
                thread.join(PATIENCE_S)
                assert not thread.is_alive()
            while answered.acquire(blocking=False):
                pass  # answered after the kill was decided
        with running(tmp_path, database=path) as process, Client(process.port) as client:
            for holder in holders:
                holder.check(client)


def test_a_generation_outlives_expiry_and_kill_9(tmp_path: Path) -> None:
    path = {"db_file": str(tmp_path / "store.db")}
    for generation in range(1, 4):
        with running(tmp_path, database=path) as process, Client(process.port) as client:
            request = wire.AcquireShardHomeLeaseRequest(
                shard_id=1, holder_daemon_id=f"d{generation}", ttl_ms=1
            )
            answer = client.runtime("AcquireShardHomeLease", request)
            assert answer.acquired
            assert answer.lease.lease_generation == generation
            process.signal(signal.SIGKILL)
