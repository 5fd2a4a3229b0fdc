"""Memory and file size with many replicas, each with one 40-byte memory key; and the start.

    uv run bench/memory.py

The last figure is that of a server whose page caches are full: it has counted the replicas of every
artifact and registered new ones for a while.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from calls import RUNTIME, register_worker, registrations
from measuring import Child, global_store, table
from populating import PER_ARTIFACT, populated
from wire_load import LoadClient, call_each

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# Artifacts counted by one call: some 50 ms of a reader with a thousand replicas each.
COUNTED_AT_ONCE = 50


def read_a_little(server: Child) -> None:
    """Ask for ten pages of replicas and for the counts of a few artifacts."""
    call_each(server.port, RUNTIME + "ListReplicasV2", [b""] * 10)
    count_replicas(server, 3)


def count_replicas(server: Child, artifacts: int) -> None:
    """Ask how many replicas each of the first artifacts has."""
    ids = [f"model-{number}" for number in range(artifacts)]
    requests = [
        wire.BatchGetReplicaCountsRequest(artifact_ids=ids[start : start + COUNTED_AT_ONCE])
        for start in range(0, artifacts, COUNTED_AT_ONCE)
    ]
    call_each(
        server.port,
        RUNTIME + "BatchGetReplicaCounts",
        [request.SerializeToString() for request in requests],
    )


def register(server: Child, seconds: float) -> None:
    """Register new replicas of new artifacts for a while."""
    worker_id, numbers = register_worker(server.port, 0), itertools.count(10**9)
    slots = [registrations(worker_id, numbers) for _ in range(64)]
    with LoadClient(server.port, [slots]) as client:
        client.run(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of registrations at the end")
    arguments = parser.parse_args()
    count = arguments.replicas
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "store.db"
        populated(path, count)
        size = path.stat().st_size
        began = time.monotonic()
        with global_store(path) as server:
            started = time.monotonic() - began
            resident = [server.resident_bytes()]
            read_a_little(server)
            resident.append(server.resident_bytes())
            count_replicas(server, count // PER_ARTIFACT)
            register(server, arguments.seconds)
            resident.append(server.resident_bytes())
    table(
        [
            "replicas",
            "file bytes per replica",
            "start, s",
            "resident MB after start",
            "after a few reads",
            "with full page caches",
        ],
        [
            [
                f"{count:,}",
                f"{size / count:.0f}",
                f"{started:.1f}",
                *(f"{measured / 1e6:.0f}" for measured in resident),
            ]
        ],
    )


if __name__ == "__main__":
    main()
