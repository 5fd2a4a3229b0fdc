"""One worker with very many replicas: how long its snapshots take, and what others notice.

    uv run bench/reconcile.py

A second process calls the server all the while: heartbeats, registrations of replicas, counts. A
snapshot is sent of replicas that are new, twice again unchanged (first compared with the rows, then
recognised), after a restart of the server on the same file, and without half of the replicas.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from measuring import global_store, table

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

_SERVICE = "/tensorcast.global_store.v1.ClusterRuntimeService/"
_NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_TIMEOUT_S = 60.0

# Pauses between the calls of the others, in seconds.
_PAUSES = {"WorkerHeartbeat": 0.005, "RegisterReplica": 0.01, "BatchGetReplicaCounts": 0.01}


def _stub(channel: Any, method: str) -> Any:
    return channel.unary_unary(
        _SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=getattr(wire, f"{method}Response").FromString,
    )


def _registration(name: str) -> wire.RegisterWorkerRequest:
    return wire.RegisterWorkerRequest(
        daemon_id=name, node_id=name, node_address=f"{name}.bench", grpc_port=1, p2p_port=2
    )


def _memory_info(name: str, **more: Any) -> common.MemoryInfo:
    return common.MemoryInfo(
        node_id=name,
        node_address=f"{name}.bench",
        node_port=50053,
        memory_size=100,
        memory_type=common.MEMORY_TYPE_RAM,
        **more,
    )


def _inventory(count: int) -> list[common.ReplicaInfo]:
    exported = common.ReplicaTransportMetadata(
        export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
        export_generation=1,
        remote_memory_keys=["k" * 40],
        buffer_sizes=[100],
    )
    hashes = (multihash.encode(number.to_bytes(32, "big")) for number in range(count))
    return [
        common.ReplicaInfo(
            ref=common.ReplicaRef(artifact_id=f"mi2:{each}:{each}"),
            memory_info=_memory_info("large", transport=exported),
            stats=common.ReplicaStats(is_available=True, max_concurrency=4),
        )
        for each in hashes
    ]


async def _call_all_the_while(port: int, pipe: Connection) -> dict[str, list[float]]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = await _stub(channel, "RegisterWorker")(_registration("other"))
        worker_id = answer.worker_id
        requests = {
            "WorkerHeartbeat": wire.WorkerHeartbeatRequest(
                worker_id=worker_id, state_version=1, accepting_new_requests=True
            ),
            "RegisterReplica": wire.RegisterReplicaRequest(
                artifact_id="other",
                worker_id=worker_id,
                max_concurrency=1,
                mem_info=_memory_info("other"),
            ),
            "BatchGetReplicaCounts": wire.BatchGetReplicaCountsRequest(artifact_ids=["other"]),
        }
        seconds: dict[str, list[float]] = {method: [] for method in requests}

        async def repeat(method: str) -> None:
            stub = _stub(channel, method)
            while not pipe.poll():
                began = time.perf_counter()
                await stub(requests[method], timeout=_TIMEOUT_S)
                seconds[method].append(time.perf_counter() - began)
                await asyncio.sleep(_PAUSES[method])

        await asyncio.gather(*map(repeat, requests))
    return seconds


def _others(port: int, pipe: Connection) -> None:
    pipe.send(asyncio.run(_call_all_the_while(port, pipe)))


class _Worker:
    """The worker with very many replicas."""

    def __init__(self) -> None:
        self.worker_id = ""
        self.seq = 0

    def snapshot(self, port: int, what: str, held: list[common.ReplicaInfo]) -> list[object]:
        """Send a snapshot while others call; return the row of the table."""
        ours, theirs = multiprocessing.Pipe()
        others = multiprocessing.Process(target=_others, args=(port, theirs))
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=_NO_LIMIT) as channel:
            if not self.worker_id:
                registered = _stub(channel, "RegisterWorker")(_registration("large"))
                self.worker_id = registered.worker_id
            _stub(channel, "WorkerHeartbeat")(
                wire.WorkerHeartbeatRequest(
                    worker_id=self.worker_id, state_version=1, accepting_new_requests=True
                )
            )
            self.seq += 1
            request = wire.ReconcileWorkerStateRequest(
                worker_id=self.worker_id,
                generation=1,
                request_seq=self.seq,
                inventory=held,
                request_kind=wire.RECONCILE_REQUEST_KIND_SNAPSHOT,
            )
            others.start()
            began = time.perf_counter()
            answer = _stub(channel, "ReconcileWorkerState")(request, timeout=_TIMEOUT_S)
            took = time.perf_counter() - began
        ours.send("enough")
        seconds = ours.recv()
        others.join()
        kind = wire.ReconcileResultKind.Name(answer.result_kind).removeprefix(
            "RECONCILE_RESULT_KIND_"
        )
        p99 = [
            f"{1000 * sorted(times)[int(len(times) * 0.99)]:.0f}" if times else "–"
            for times in seconds.values()
        ]
        return [what, f"{kind} {len(answer.state_changes):,}", f"{took:.2f}", *p99]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=100_000)
    arguments = parser.parse_args()
    held = _inventory(arguments.replicas)
    worker = _Worker()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        db_file = Path(folder) / "store.db"
        with global_store(db_file) as server:
            rows.append(worker.snapshot(server.port, "all new", held))
            rows.append(worker.snapshot(server.port, "unchanged, compared", held))
            rows.append(worker.snapshot(server.port, "unchanged, recognised", held))
        with global_store(db_file) as server:
            rows.append(worker.snapshot(server.port, "after a restart", held))
            rows.append(worker.snapshot(server.port, "half of it gone", held[::2]))
    table(
        ["snapshot", "answer, changes", "seconds", *(f"{name} p99, ms" for name in _PAUSES)], rows
    )


if __name__ == "__main__":
    main()
