"""What moves the metrics of replicas, transports, groups, memory tiers and upkeep."""

from typing import Any

import attrs
import trio
import trio.testing
from claims import parked, start
from filled_tables import insert, tables
from moving import Clock, Moves, moves, of, series
from servers import Serving, memory_info, pass_time

from globalstore.config.schema.limits import Rows
from globalstore.db import Transaction
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers
from globalstore.rules import multihash

ROWS = [field.name for field in attrs.fields(Rows)]
TIERS = ("GPU", "RAM", "DISK")
DISPATCH = "tc_transport_dispatch_events_total"
REQUESTS = "tc_transport_requests_total"
FILTER = "tc_transport_filter_total"
GROUPS = "tc_group_realization"


# Replicas.


@moves(
    "tc_replicas_total",
    series("tc_replicas_per_artifact", artifact_id="model"),
    of("tc_replicas_per_memtype", "memory_type", *TIERS),
    of("tc_replica_register_total", "memory_type", *TIERS, artifact_id="model"),
    of("tc_replica_unregister_total", "memory_type", *TIERS, artifact_id="model"),
)
async def replicas_come_and_go(it: Moves, _: Clock) -> None:
    worker = await it.store.register()
    ids = []
    for kind in (common.MEMORY_TYPE_GPU, common.MEMORY_TYPE_RAM, common.MEMORY_TYPE_DISK):
        for device in (0, 1):
            info = memory_info(memory_type=kind, device_id=device)
            ids.append((await it.store.replica(worker.worker_id, mem_info=info)).replica_id)
    for replica_id in ids[::2]:
        await it.store.runtime.UnregisterReplica(
            wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica_id)
        )
    it.look()


# Transports.


@moves(
    of(REQUESTS, "status", "success", "timeout", "not_found", "rejected", "error",
       artifact_id="model"),
    series("tc_transport_wait_seconds_count", artifact_id="model"),
    series("tc_transport_no_exportable_total", artifact_id="model"),
    series("tc_transport_source_top1_share", artifact_id="model"),
    series("tc_transport_source_hhi", artifact_id="model"),
    series("tc_transport_diffusion_first_hit_seconds_count", artifact_id="model"),
    "tc_active_transports",
    of(DISPATCH, "event", "enqueued", "joined", "rejected", "granted", "replayed", "refused"),
    of(DISPATCH, "event", "not_found", "timed_out", "stopped", "cancelled", "given_back"),
    worker_policy={"transport_scheduler": {"max_waiters": 1}},
)  # fmt: skip
async def requests_end_in_every_way(it: Moves, clock: Clock) -> None:
    store = it.store
    worker = await store.register()
    info = memory_info(remote_memory_keys=[], buffer_sizes=[])
    await store.replica(worker.worker_id, mem_info=info)
    await store.claim()
    await store.replica(worker.worker_id)
    granted = await store.claim(request_id="r")
    await store.claim(request_id="r")
    await it.fails(store.claim(request_id="r", source_port=7))
    async with trio.open_nursery() as nursery:
        waits = start(nursery, store, wait_s=5, request_id="w")
        await parked(store, 1)
        start(nursery, store, wait_s=5, request_id="w")
        await trio.testing.wait_all_tasks_blocked()
        await store.claim(request_id="more")
        await pass_time(clock, 5)
        await waits.result()
        gone = start(nursery, store)
        await parked(store, 1)
        gone.scope.cancel()
        await gone.ended.wait()
        await store.complete(granted.transport_id)
        for turns in range(40):
            leaves = start(nursery, store)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            leaves.scope.cancel()
            await leaves.ended.wait()
            await trio.testing.wait_all_tasks_blocked()
            if leaves.answer is not None:
                break
        it.look()
        stopped = start(nursery, store)
        await parked(store, 1)
        store.components.queues.stop()
        await stopped.ended.wait()
    it.look()


@moves(
    of(FILTER, "reason", "not_live", "not_accepting", "unavailable", "saturated", "presence_only",
       "expired", "capped", artifact_id="model"),
    worker_policy={
        "transport_scheduler": {
            "source_balance_weights": {
                "worker_load_weight": 0, "recent_assignment_penalty_weight": 0,
                "diffusion_bonus_weight": 0,
            },
            "group_dispatch": {"group_source_spread_weight": 0},
        }
    },
)  # fmt: skip
async def replicas_are_ruled_out(it: Moves, clock: Clock) -> None:
    store = it.store
    now_s = it.wall() // 1_000_000
    worker, other = await store.register("d1"), await store.register("d2")
    await store.replica("nobody", mem_info=memory_info(device_id=1))
    await store.replica(other.worker_id, mem_info=memory_info("d2"))
    await store.beat(other.worker_id, accepting_new_requests=False)
    marked = await store.replica(worker.worker_id, mem_info=memory_info(device_id=2))
    await store.runtime.MarkReplicaUnavailable(
        wire.MarkReplicaUnavailableRequest(replica_id=marked.replica_id)
    )
    await store.replica(
        worker.worker_id,
        mem_info=memory_info(device_id=3, remote_memory_keys=[], buffer_sizes=[]),
    )
    await store.replica(
        worker.worker_id, mem_info=memory_info(device_id=4, expires_at={"seconds": now_s - 9})
    )
    await store.replica(worker.worker_id, mem_info=memory_info(device_id=5))
    await store.claim()
    await store.claim()
    await store.components.refusals.explain()
    # A group uses the first of three sources, whose load is always the least, beyond its share.
    for device, slots in ((6, 1000), (7, 4), (8, 4)):
        info = memory_info(device_id=device, memory_type=common.MEMORY_TYPE_GPU)
        await store.replica(worker.worker_id, mem_info=info, max_concurrency=slots)
    for part in range(5):
        group = wire.TransportSchedulingGroup(
            group_id="g", group_kind="k", part_id=str(part), total_parts=5
        )
        await store.claim(scheduling_group=group)
    await pass_time(clock, 0.25)
    it.look()


# Groups.

_SELECTION = common.ArtifactSelection(artifact_id="a")


def _joining(epoch: int) -> Any:
    return wire.BeginOrJoinGroupRealizationRequest(
        version=wire.VersionReference(explicit_selection=_SELECTION),
        context=wire.GroupRealizationContext(
            group_kind="k", group_id="g", epoch=epoch, part_id="0", required_part_ids=["0"],
            total_parts=1,
        ),
    )  # fmt: skip


def _prepared(transaction_id: str) -> Any:
    return wire.ReportGroupRealizationPreparedRequest(
        transaction_id=transaction_id,
        part_id="0",
        staged_value=wire.StagedBindingValueRef(
            binding_id="b", binding_value_id="v", staging_token="t"
        ),
    )


async def made_ready(store: Serving) -> None:
    """Prepare all parts where nobody publishes by themselves."""
    begun = await store.catalog.BeginOrJoinGroupRealization(_joining(0))
    await store.catalog.ReportGroupRealizationPrepared(_prepared(begun.transaction_id))


@moves(
    of(f"{GROUPS}_events_total", "operation", "register", "begin", "report", "publish", "wait",
       "abort", "get", result="ok"),
    of(f"{GROUPS}_operation_seconds_count", "operation", "register", "begin", "report", "publish",
       "wait", "abort", "get"),
    of(f"{GROUPS}_waiter_polls_total", "result", "published", "aborted", "expired", "timed_out",
       "rejected", "not_found"),
    f"{GROUPS}_active_waiters",
    of(f"{GROUPS}_cleanup_total", "operation", "expire", "forget", result="ok"),
    of(f"{GROUPS}_control_writes_total", "operation", "register", table="version_sets"),
    of(f"{GROUPS}_control_writes_total", "operation", "register", table="version_set_parts"),
    of(f"{GROUPS}_control_writes_total", "operation", "begin", "report", "publish", "abort",
       "expire", table="group_transactions"),
    of(f"{GROUPS}_control_writes_total", "operation", "join", "report", "forget",
       table="group_members"),
    of("tc_gc_rows_deleted_total", "table", "group_members"),
    worker_policy={
        "group_realization": {"enabled": True, "max_waiters_per_transaction": 1},
        "cleanup_interval": "1000000s",
    },
    after=made_ready,
    earlier={
        "worker_policy": {
            "group_realization": {
                "enabled": True, "publish_authority_mode": "COORDINATOR_EXPLICIT",
            }
        }
    },
)  # fmt: skip
async def groups_are_realized(it: Moves, clock: Clock) -> None:
    catalog = it.store.catalog

    async def wait(transaction_id: str, wait_s: float = 0) -> None:
        nanos = it.wall() * 1000 + round(wait_s * 1e9) if wait_s else 0
        await it.tries(
            catalog.WaitGroupRealizationPublished(
                wire.WaitGroupRealizationPublishedRequest(
                    transaction_id=transaction_id, deadline_unix_nanos=nanos
                )
            )
        )

    other = common.ArtifactSelection(artifact_id="b")
    part = wire.GroupVersionSetPart(part_id="0", selection=other)
    await catalog.RegisterGroupVersionSet(
        wire.RegisterGroupVersionSetRequest(
            realization_kind=wire.GROUP_REALIZATION_KIND_SAME_SELECTION, parts=[part]
        )
    )
    ready, published, aborted, expired = [
        (await catalog.BeginOrJoinGroupRealization(_joining(epoch))).transaction_id
        for epoch in range(4)
    ]
    await catalog.PublishGroupRealization(wire.PublishGroupRealizationRequest(transaction_id=ready))
    await wait("grt_" + "0" * 64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, aborted, 5)
        await trio.testing.wait_all_tasks_blocked()
        await wait(aborted, 5)
        it.look()
        await pass_time(clock, 5)
    await catalog.ReportGroupRealizationPrepared(_prepared(published))
    await catalog.AbortGroupRealization(wire.AbortGroupRealizationRequest(transaction_id=aborted))
    await catalog.GetGroupRealization(wire.GetGroupRealizationRequest(transaction_id=aborted))
    await pass_time(clock, 31)
    for transaction_id in (published, aborted, expired):
        await wait(transaction_id)
    it.wall.ahead_s = 2 * 86400
    await it.store.components.maintenance.run_pass()
    it.look()


# Memory tiers.


@moves(
    of("tensorcast_memory_tier_stable_bytes", "state", "total", "used", node="n"),
    of("tensorcast_memory_tier_preemptible_bytes", "state", "total", "marked", node="n"),
    series("tensorcast_memory_tier_faults_per_sec", node="n"),
    series("tensorcast_memory_tier_rehydrate_p99_ns", node="n"),
    of("tensorcast_memory_tier_enable_preemptible", "enable_preemptible", "true", "false",
       node="n"),
)  # fmt: skip
async def a_node_tells_of_its_memory(it: Moves, _: Clock) -> None:
    for epoch, enabled in enumerate((True, False), start=1):
        status = tiers.MemoryTierStatus(
            node_id="n", epoch_ns=epoch, stable_total_bytes=9, stable_used_bytes=8,
            preemptible_total_bytes=7, preemptible_marked_bytes=6, faults_per_sec=5,
            rehydrate_p99_ns=4, enable_preemptible=enabled,
        )  # fmt: skip
        await it.store.tiers.PublishMemoryTierStatus(
            tiers.PublishMemoryTierStatusRequest(status=status)
        )
        it.look()


# Upkeep.


@moves(
    of("tc_gc_rows_deleted_total", "table", "replicas", "recorded_replies", "workers", "instances",
       "key_generations", "key_swaps", "memory_tier_leases", "transports", "chunk_blocks"),
    worker_policy={"cleanup_interval": "1000000s", "chunk_stale_threshold": "1s"},
)  # fmt: skip
async def what_has_ended_is_deleted(it: Moves, clock: Clock) -> None:
    store = it.store
    await store.runtime.BatchUpdateChunkStates(
        wire.BatchUpdateChunkStatesRequest(
            node_id="left",
            updates=[wire.ChunkStateUpdate(artifact_id="a", state=wire.CHUNK_STATE_HOT)],
        )
    )
    await store.components.maintenance.run_pass()
    worker, gone = await store.register("d1"), await store.register("gone")
    seconds = it.wall() // 1_000_000 + 9
    info = memory_info(expires_at={"seconds": seconds})
    await store.replica(worker.worker_id, "short", client_request_id="r", mem_info=info)
    await store.replica(worker.worker_id, mem_info=memory_info(device_id=1))
    await store.complete((await store.claim()).transport_id)
    await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=gone.worker_id))
    await store.runtime.RegisterInstance(
        wire.RegisterInstanceRequest(instance_id="i", daemon_id="d1", engine="e")
    )
    await store.runtime.UnregisterInstance(wire.UnregisterInstanceRequest(instance_id="i"))
    index = b'{"a":[0,100,[100],[1],"U8",0]}'
    for artifact_id in ("a", "b"):
        await store.catalog.UpsertArtifactMetadata(
            wire.UpsertArtifactMetadataRequest(
                descriptor=common.ArtifactDescriptor(
                    artifact_id=artifact_id, index_multihash=multihash.of(index)
                ),
                canonical_index_data=index,
            )
        )
        await store.catalog.SwapKeyMapping(
            wire.SwapKeyMappingRequest(
                key="k", new_artifact_id=artifact_id, operation_id=artifact_id
            )
        )
    lease = (
        await store.tiers.RequestMemoryTierLease(
            tiers.RequestMemoryTierLeaseRequest(node_id="n", artifact_id="a", chunk_ids=[1])
        )
    ).lease
    for action in (tiers.LEASE_ACK_ACTION_ACQUIRED, tiers.LEASE_ACK_ACTION_RELEASED):
        await store.tiers.AcknowledgeMemoryTierLease(
            tiers.AcknowledgeMemoryTierLeaseRequest(
                lease_id=lease.lease_id, artifact_id="a", chunk_ids=[1], action=action
            )
        )
    await pass_time(clock, 2)
    it.wall.ahead_s = 2 * 86400
    await store.components.maintenance.run_pass()
    it.look()


@moves(
    "tc_db_used_bytes",
    of("tc_db_rows", "table", *ROWS),
    of("tc_db_rows_limit", "table", *ROWS),
)
async def tables_have_rows(it: Moves, _: Clock) -> None:
    def fill(tx: Transaction) -> None:
        for table in tables(tx):
            insert(tx, table, 1, "ON CONFLICT DO NOTHING")

    await it.store.components.store.write(fill)
    await it.store.components.full_tables.look()
    it.look()
