"""What memory takes over at a start from an earlier server."""

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import attrs
import trio

from globalstore.db import DatabaseError, Full, start_refusal
from globalstore.registry import memory_tier_samples, recovery, row_limits
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

    On a full disk the repairs wait for space, before anything else is written; reads go on. Raises
    StartRefused.
    """
    try:
        return await _recover(components)
    except DatabaseError as error:
        store = components.store
        refusal = start_refusal(store.failure or error, store.path or Path("(in memory)"))
        assert refusal is not None
        raise refusal from error


async def _recover(components: Components) -> Recovered:
    began = trio.current_time()
    store, metrics, now_us = components.store, components.metrics, components.clock.wall_us()
    await store.write_first(row_limits.count_rows, components.row_limits)
    cluster = await store.write_first(recovery.recover, _new_cluster_id(now_us), now_us)
    if cluster is None:
        cluster = await store.read(recovery.unrecovered)
        if cluster is None:
            raise Full("the disk is full")
        _log.error("the disk is full: recovery and all writes wait for space, reads go on")
    # Said here as well as by recovery, which may not be stored yet.
    components.workers.restore(
        attrs.evolve(state, needs_reconcile=True)
        for state in await store.read(workers.active_workers)
    )
    components.instances.restore(await store.read(instances.active_instances))
    components.transport_expiry.restore(await store.read(transport_ends.in_progress))
    metrics.replicas.restore(
        await store.read(replica_lists.totals),
        await store.read(replica_lists.totals_by_artifact, ARTIFACTS_MAX),
    )
    for sample in await store.read(memory_tier_samples.latest_of_all, NODES_MAX):
        components.commit_counts.memory_tier_sampled(MemoryTierSampled(sample))
    metrics.transports.active.set(len(components.transport_expiry))
    with suppress(Full):  # maintenance looks again
        await components.full_tables.look()
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
