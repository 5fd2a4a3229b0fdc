"""Whether the published mix of a busy cluster is served, and how fast.

16 workers: a heartbeat every 0.1 s, a snapshot of 50 replicas every 0.5 s, the states of 64 chunks
every 0.5 s; 32 clients that resolve a key 20 times a second. Together 864 calls a second. The
client is that of ``wire_load``, in a process of its own: one that costs as much as the server would
be measured instead of it. Each caller makes its calls at even times from a random start, the next
one not before the last was answered; the time that a call takes counts from when it was due, and a
call that was due and not made counts as not served.
"""

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from google.protobuf.message import Message
from measuring import global_store, table
from wire_load import Load, LoadClient, Slot, Wanted, call_once

from globalstore.daemon import Held, Identity, Inventory
from globalstore.daemon.cursor import Cursor
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

_RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
_CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
_WORKERS = 16
_REPLICAS = 50
_CLIENTS = 32

# Chunks of an artifact, how many of them one sync is about, and what it says of each.
_CHUNKS = 1000
_CHUNKS_SYNCED = 64
_STATES = (
    wire.CHUNK_STATE_LOCKED_TX,
    wire.CHUNK_STATE_COLD,
    wire.CHUNK_STATE_EVICTED,
    wire.CHUNK_STATE_HOT,
)

# Calls a second of each worker, or client.
_RATES = {
    "WorkerHeartbeat": 10,
    "ReconcileWorkerState": 2,
    "BatchUpdateChunkStates": 2,
    "ResolveKeyMapping": 20,
}

_INDEX = b'{"a":[0,100,[100],[1],"U8",0]}'


class _Worker:
    """A daemon's side of its calls."""

    def __init__(self, number: int, port: int) -> None:
        name = f"d{number}"
        self._identity = Identity(name, f"n-{name}", f"{name}.bench", 50052, 50053)
        self._inventory = Inventory(self._identity)
        self._cursor = Cursor()
        self._held = [
            self._inventory.put(Held(f"model-{each}", 100, "k" * 40)) for each in range(_REPLICAS)
        ]
        encoded = call_once(port, _RUNTIME + "RegisterWorker", self._registration())
        answer = wire.RegisterWorkerResponse.FromString(encoded)
        self._worker_id = answer.worker_id
        self._cursor.registered(answer)
        self.answered(call_once(port, _RUNTIME + "ReconcileWorkerState", self.snapshot()))

    def _registration(self) -> bytes:
        identity = self._identity
        return wire.RegisterWorkerRequest(
            daemon_id=identity.daemon_id,
            node_id=identity.node_id,
            node_address=identity.node_address,
            grpc_port=identity.grpc_port,
            p2p_port=identity.p2p_port,
        ).SerializeToString()

    def heartbeat(self) -> bytes:
        return wire.WorkerHeartbeatRequest(
            worker_id=self._worker_id,
            state_version=self._cursor.state_version,
            accepting_new_requests=True,
            state_checksum=self._inventory.checksum(),
        ).SerializeToString()

    def snapshot(self) -> bytes:
        request = self._cursor.request(
            self._worker_id, self._identity.daemon_id, self._inventory.snapshot()
        )
        return request.SerializeToString()

    def answered(self, encoded: bytes) -> None:
        """Take in the answer to a snapshot."""
        answer = wire.ReconcileWorkerStateResponse.FromString(encoded)
        kind = wire.ReconcileResultKind.Name(answer.result_kind)
        assert kind in {"RECONCILE_RESULT_KIND_APPLIED", "RECONCILE_RESULT_KIND_NOOP"}, kind
        self._cursor.answered(answer)

    def chunk_sync(self) -> bytes:
        held, first = random.choice(self._held), random.randrange(_CHUNKS)
        return wire.BatchUpdateChunkStatesRequest(
            worker_id=self._worker_id,
            node_id=self._identity.node_id,
            updates=[
                wire.ChunkStateUpdate(
                    artifact_id=held.artifact_id, chunk_idx=chunk, state=random.choice(_STATES)
                )
                for chunk in range(first, first + _CHUNKS_SYNCED)
            ],
        ).SerializeToString()


def _repeat(
    rate: float, path: str, make: Callable[[], bytes], answered: Callable[[bytes], None] | None
) -> Slot:
    """Call so many times a second, at even distances from a random start."""
    due = time.perf_counter() + random.random() / rate
    while True:
        answer = yield Wanted(path, make(), due)
        if answered is not None:
            answered(answer)
        due += 1 / rate


def _make_key(port: int, artifact_id: str) -> None:
    """Point a key at an artifact, after making that something to point at."""
    described = common.ArtifactDescriptor(
        artifact_id=artifact_id, index_multihash=multihash.of(_INDEX)
    )
    requests: list[tuple[str, Message]] = [
        (
            "UpsertArtifactMetadata",
            wire.UpsertArtifactMetadataRequest(descriptor=described, canonical_index_data=_INDEX),
        ),
        (
            "UpsertKeyMapping",
            wire.UpsertKeyMappingRequest(key=f"key of {artifact_id}", artifact_id=artifact_id),
        ),
    ]
    for method, request in requests:
        call_once(port, _CATALOG + method, request.SerializeToString())


def _resolve() -> bytes:
    key = f"key of model-{random.randrange(_REPLICAS)}"
    return wire.ResolveKeyMappingRequest(key=key).SerializeToString()


def _slots(workers: list[_Worker], times: float) -> Iterator[list[Slot]]:
    """Yield the callers that share a connection, as daemons and clients have one each."""
    for worker in workers:
        calls: list[tuple[str, Callable[[], bytes], Callable[[bytes], None] | None]] = [
            ("WorkerHeartbeat", worker.heartbeat, None),
            ("ReconcileWorkerState", worker.snapshot, worker.answered),
            ("BatchUpdateChunkStates", worker.chunk_sync, None),
        ]
        yield [
            _repeat(_RATES[method] * times, _RUNTIME + method, make, answered)
            for method, make, answered in calls
        ]
    for _ in range(_CLIENTS):
        method = "ResolveKeyMapping"
        yield [_repeat(_RATES[method] * times, _CATALOG + method, _resolve, None)]


def _run(port: int, times: float, seconds: float, pipe: Connection) -> None:
    workers = [_Worker(number, port) for number in range(_WORKERS)]
    for number in range(_REPLICAS):
        _make_key(port, f"model-{number}")
    with LoadClient(port, _slots(workers, times)) as client:
        pipe.send("ready")
        pipe.send(client.run(seconds))


def _quantiles(seconds: list[float]) -> str:
    values = sorted(seconds)
    return " / ".join(
        f"{values[len(values) * share // 100] * 1e3:.1f}" if values else "–"
        for share in (50, 95, 99)
    )


def measure(times: float, seconds: float) -> Iterator[list[object]]:
    """Yield the rows of one load: one per method, and their sum."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as name,
        global_store(Path(name) / "store.db") as server,
    ):
        client = context.Process(target=_run, args=(server.port, times, seconds, there))
        client.start()
        there.close()  # so that a client that fails is noticed
        try:
            here.recv()
            cpu_s, began = server.cpu_s(), time.perf_counter()
            load: Load = here.recv()
            cpu_s = (server.cpu_s() - cpu_s) / (time.perf_counter() - began)
        finally:
            client.join()
    offered = {
        method: rate * times * (_CLIENTS if method == "ResolveKeyMapping" else _WORKERS)
        for method, rate in _RATES.items()
    }
    for method, rate in offered.items():
        latencies = load.latencies.get(method, [])
        served = min(1.0, len(latencies) / (rate * seconds))
        yield [f"{times:g} ×", method, f"{rate:,.0f}", f"{served:.1%}", _quantiles(latencies), "–"]
    total = sum(offered.values())
    served = min(1.0, load.calls / (total * seconds))
    yield [f"{times:g} ×", "all", f"{total:,.0f}", f"{served:.1%}", "–", f"{cpu_s:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    arguments = parser.parse_args()
    rows = [row for times in arguments.times for row in measure(times, arguments.seconds)]
    table(
        ["load", "method", "offered/s", "served", "ms p50 / p95 / p99", "server, share of a core"],
        rows,
    )


if __name__ == "__main__":
    main()
