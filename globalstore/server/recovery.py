"""What memory takes over at a start from an earlier server."""

import secrets
from datetime import UTC, datetime

import trio

from globalstore.db import Lane
from globalstore.registry import memory_tier_samples, recovery
from globalstore.registry.memory_tier_samples import MemoryTierSampled
from globalstore.registry.recovery import Recovered
from globalstore.registry.runtime import instances, replica_lists, transport_ends, workers
from globalstore.server.components import Components
from globalstore.telemetry import get_logger
from globalstore.telemetry.labels import ARTIFACTS_MAX
from globalstore.telemetry.memory_tiers import NODES_MAX

_log = get_logger("globalstore.server")


async def recover(components: Components) -> Recovered:
    """Repair what an earlier server left, and take its workers, transports and leases over.

    Raises DatabaseError.
    """
    began = trio.current_time()
    store, metrics, now_us = components.store, components.metrics, components.clock.wall_us()
    cluster = await store.write(
        recovery.recover, _new_cluster_id(now_us), now_us, lane=Lane.CONTROL
    )
    components.workers.restore(await store.read(workers.active_workers))
    components.instances.restore(await store.read(instances.active_instances))
    components.transport_expiry.restore(await store.read(transport_ends.in_progress))
    metrics.replicas.restore(
        await store.read(replica_lists.totals),
        await store.read(replica_lists.totals_by_artifact, ARTIFACTS_MAX),
    )
    for sample in await store.read(memory_tier_samples.latest_of_all, NODES_MAX):
        components.commit_counts.memory_tier_sampled(MemoryTierSampled(sample))
    metrics.transports.active.set(len(components.transport_expiry))
    await components.clock.restore(store)
    await components.leases.restore()
    seconds = trio.current_time() - began
    metrics.server.recovery_seconds.set(seconds)
    for table, rows in (
        ("workers", components.workers),
        ("instances", components.instances),
        ("transports", components.transport_expiry),
    ):
        metrics.server.recovery_rows.labels(table).set(len(rows))
    _log.info(
        "recovered",
        cluster_id=cluster.cluster_id,
        workers_unconfirmed=cluster.workers_unconfirmed,
        transports_in_progress=len(components.transport_expiry),
        counters_corrected=cluster.counters_corrected,
        seconds=round(seconds, 3),
    )
    return cluster


def _new_cluster_id(now_us: int) -> str:
    moment = datetime.fromtimestamp(now_us // 1_000_000, UTC)
    return f"{moment:%Y%m%dT%H%M%S}Z_{secrets.token_hex(4)}"
