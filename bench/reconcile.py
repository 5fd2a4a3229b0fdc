"""One worker with very many replicas: how long its snapshots take, and what others notice.

    uv run bench/reconcile.py

A second process calls the server all the while: heartbeats, registrations of replicas, counts. A
snapshot is sent of replicas that are new, twice again unchanged (first compared with the rows, then
recognised), after a restart of the server on the same file, and without half of the replicas.
"""

import argparse
import tempfile
import time
from pathlib import Path

import grpc
from measuring import global_store, table
from others import NO_LIMIT, PAUSES, TIMEOUT_S, memory_info, others, registration, stub

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash


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
            memory_info=memory_info("large", transport=exported),
            stats=common.ReplicaStats(is_available=True, max_concurrency=4),
        )
        for each in hashes
    ]


class _Worker:
    """The worker with very many replicas."""

    def __init__(self) -> None:
        self.worker_id = ""
        self.seq = 0

    def snapshot(self, port: int, what: str, held: list[common.ReplicaInfo]) -> list[object]:
        """Send a snapshot while others call; return the row of the table."""
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=NO_LIMIT) as channel:
            if not self.worker_id:
                registered = stub(channel, "RegisterWorker")(registration("large"))
                self.worker_id = registered.worker_id
            stub(channel, "WorkerHeartbeat")(
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
            with others(port) as p99:
                began = time.perf_counter()
                reconcile = stub(channel, "ReconcileWorkerState")
                answer = reconcile(request, timeout=TIMEOUT_S)
                while answer.result_kind == wire.RECONCILE_RESULT_KIND_RETRY_LATER:
                    # On a slow machine it may take longer than the server goes on at a time.
                    time.sleep(answer.retry_after_ms / 1000)
                    answer = reconcile(request, timeout=TIMEOUT_S)
                took = time.perf_counter() - began
        kind = wire.ReconcileResultKind.Name(answer.result_kind).removeprefix(
            "RECONCILE_RESULT_KIND_"
        )
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
    table(["snapshot", "answer, changes", "seconds", *(f"{name} p99, ms" for name in PAUSES)], rows)


if __name__ == "__main__":
    main()
