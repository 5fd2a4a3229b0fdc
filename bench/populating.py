"""A database with many replicas, made by the registry's own operations."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from globalstore.db import Store, StoreOptions, Transaction
from globalstore.registry import new_ids, recovery
from globalstore.registry.runtime import replicas, workers
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.transfer import ExportState, Transfer

WORKERS = 100
PER_ARTIFACT = 1000
HOT = "hot"  # the artifact that is claimed, with this many replicas:
HOT_REPLICAS = 8
HOT_PORT = 50_000  # of every one of them

_TRANSFER = Transfer(ExportState.EXPORTABLE, 1, ("k" * 40,), (100,))


def open_store(
    path: Path, on_commit: Callable[[list[Any]], None] = lambda committed: None
) -> Store:
    """Return a store that logs nothing of its bulk work."""
    options = StoreOptions(slow_operation_ms=60_000)
    return Store(path, migrations=MIGRATIONS, options=options, on_commit=on_commit)


def registration(artifact_id: str, number: int) -> replicas.ReplicaRegistration:
    """Return replica ``number`` of an artifact: its worker is the next one each time."""
    worker = number % WORKERS
    port = HOT_PORT + number // WORKERS % 1000
    return replicas.ReplicaRegistration(
        artifact_id=artifact_id,
        view_id="",
        place=Place(f"n{worker}", f"10.0.0.{worker}", port, MemoryTier.RAM, 0),
        memory_size=100,
        max_concurrency=4,
        worker_id=f"worker_{worker}",
        transfer=_TRANSFER,
        tensor_index_key="",
        is_memory_replica=False,
        source_process_id="",
        expires_at_us=None,
        description=None,
        index=None,
    )


def _register(tx: Transaction, numbers: Sequence[int], now_us: int) -> None:
    for number in numbers:
        wanted = registration(f"model-{number // PER_ARTIFACT}", number)
        replicas.register_replica(tx, wanted, new_ids.new_id(), now_us)


def _register_hot(tx: Transaction, now_us: int) -> None:
    for number in range(HOT_REPLICAS):
        replicas.register_replica(tx, registration(HOT, number), new_ids.new_id(), now_us)


async def register_workers(store: Store, now_us: int) -> None:
    """Begin a database and register all workers in it."""
    await store.write(recovery.recover, "bench", now_us)
    for number in range(WORKERS):
        wanted = workers.WorkerRegistration(
            daemon_id=f"d{number}",
            node_id=f"n{number}",
            node_address=f"10.0.0.{number}",
            grpc_port=50052,
            p2p_port=50053,
            mem_pool_total_size=0,
            mem_pool_available_size=0,
            capability_flags=0,
            is_recovery=False,
            previous_worker_id="",
        )
        await store.write(workers.register_worker, wanted, f"worker_{number}", now_us)


async def populate(path: Path, count: int) -> None:
    """Fill a new database with ``count`` replicas and the hot artifact."""
    now_us = time.time_ns() // 1000
    async with open_store(path) as store:
        await register_workers(store, now_us)
        chunks = (range(start, min(count, start + 1000)) for start in range(0, count, 1000))
        await store.bulk_chunks(_register, chunks, now_us)
        await store.write(_register_hot, now_us)


def populated(path: Path, count: int) -> None:
    """Run ``populate``, for callers outside trio."""
    trio.run(populate, path, count)
