"""Keepalives of very many shard leases, in batches of different sizes.

    uv run bench/leases.py

One daemon holds all leases; their shards are random numbers, so that neighbours in a batch are
nowhere near each other in the database. It extends all of them again and again, one batch after the
other, while a second process calls the server some 300 times a second.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from measuring import Child, global_store, table
from others import NO_LIMIT, PAUSES, TIMEOUT_S, others, stub
from wire_load import call_each

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

_ACQUIRE = "/tensorcast.global_store.v1.ClusterRuntimeService/AcquireShardHomeLease"
_TTL_MS = 3_600_000


def _acquired(port: int, count: int) -> list[wire.ShardHomeLease]:
    """Return so many leases of random shards."""
    requests = [
        wire.AcquireShardHomeLeaseRequest(
            shard_id=random.getrandbits(64), holder_daemon_id="holder", ttl_ms=_TTL_MS
        )
        for _ in range(count)
    ]
    encoded = [request.SerializeToString() for request in requests]
    call_each(port, _ACQUIRE, encoded)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        # Asking again gives the same lease.
        acquire = stub(channel, "AcquireShardHomeLease")
        return [acquire(request).lease for request in requests]


def _batches(leases: list[wire.ShardHomeLease], size: int) -> list[Any]:
    batches = []
    for start in range(0, len(leases), size):
        batch = wire.BatchKeepaliveShardHomeLeasesRequest(ttl_ms=_TTL_MS)
        for lease in leases[start : start + size]:
            batch.leases.add(
                shard_id=lease.shard_id,
                lease_generation=lease.lease_generation,
                lease_token=lease.lease_token,
            )
        batches.append(batch)
    return batches


def _row(server: Child, leases: list[wire.ShardHomeLease], size: int, rounds: int) -> list[object]:
    batches = _batches(leases, size)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=NO_LIMIT) as channel:
        keep = stub(channel, "BatchKeepaliveShardHomeLeases")
        seconds: list[float] = []
        with others(server.port) as figures:
            cpu_s, began = server.cpu_s(), time.perf_counter()
            for _ in range(rounds):
                for batch in batches:
                    sent = time.perf_counter()
                    answer = keep(batch, timeout=TIMEOUT_S)
                    seconds.append(time.perf_counter() - sent)
                    assert all(outcome.ok for outcome in answer.outcomes)
            passed_s = time.perf_counter() - began
            cpu_s = server.cpu_s() - cpu_s
    extended = len(leases) * rounds
    return [
        f"{size:,}",
        f"{1000 * median(seconds):.1f}",
        f"{extended / passed_s:,.0f}",
        f"{1e6 * cpu_s / extended:.1f}",
        *figures,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leases", type=int, default=10_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, global_store(Path(folder) / "s.db") as server:
        leases = _acquired(server.port, arguments.leases)
        rows = [_row(server, leases, size, arguments.rounds) for size in arguments.sizes]
    names = [f"{name} p99, ms" for name in PAUSES]
    table(["leases in a batch", "ms", "leases/s", "CPU µs per lease", *names], rows)


if __name__ == "__main__":
    main()
