"""What moves the metrics of the server itself, of workers and of their inventories."""

import sqlite3
from typing import Any

import trio
import trio.testing
from moving import Clock, Moves, moves, nothing, of, series
from servers import Serving, memory_info, pass_time

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.telemetry.capabilities import INSTANCE_CAPABILITIES, WORKER_CAPABILITIES

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService"
CONFLICTS = "tc_control_plane_conflicts_total"
RESULTS = "tc_reconcile_result_total"
SNAPSHOT = wire.RECONCILE_REQUEST_KIND_SNAPSHOT
LOST = "worker_lost_00000000"


def intents(kind: str, *results: str) -> set[str]:
    name = "tc_worker_control_reducer_intents_total"
    return of(name, "result", *results, shard="0", kind=kind)


async def unregister(store: Serving, worker_id: str, graceful: bool = True, id_: str = "") -> Any:
    return await store.runtime.UnregisterWorker(
        wire.UnregisterWorkerRequest(
            worker_id=worker_id, is_graceful_shutdown=graceful, client_request_id=id_
        )
    )


async def reconcile(store: Serving, worker_id: str, *artifacts: str, **fields: Any) -> Any:
    inventory = [
        common.ReplicaInfo(
            ref=common.ReplicaRef(artifact_id=artifact_id), memory_info=memory_info()
        )
        for artifact_id in artifacts
    ]
    return await store.runtime.ReconcileWorkerState(
        wire.ReconcileWorkerStateRequest(
            **{
                "worker_id": worker_id,
                "generation": 1,
                "request_seq": 1,
                "request_kind": SNAPSHOT,
                "inventory": inventory,
            }
            | fields
        )
    )


# The server itself.


@moves(
    series("tc_grpc_server_handled_total", method=f"{RUNTIME}/RegisterWorker", code="OK"),
    series("tc_grpc_server_handling_seconds_count", method=f"{RUNTIME}/RegisterWorker"),
    "tc_grpc_server_inflight_requests",
    "tc_grpc_server_inflight_peak_requests",
    "tc_control_plane_executor_max_threads",
    "tc_control_plane_executor_live_threads",
    "tc_control_plane_executor_busy_threads",
    "tc_control_plane_executor_idle_threads",
    "tc_control_plane_executor_queue_depth",
    "tc_control_plane_executor_full_seconds",
    "tc_ready",
    "tc_event_loop_lag_seconds",
    "tc_db_busy_seconds_total",
    server={"max_workers": 2},
)
async def calls_wait_for_a_handler_slot(it: Moves, clock: Clock) -> None:
    async with (
        trio.open_nursery() as nursery,
        it.store.components.daemon_locks.hold("d1", "maintenance"),
    ):
        nursery.start_soon(it.store.register, "d1")
        await pass_time(clock, 1.25)
        it.look()
        # Two of these wait for a lock in their handlers, the others for a handler slot.
        for _ in range(3):
            nursery.start_soon(it.store.register, "d1")
        clock.jump(1.5)
        for _ in range(8):
            await pass_time(clock, 0.25)
            it.look()
    it.look()


@moves(
    series("tc_worker_control_reducer_queue_depth", shard="0"),
    "tc_worker_control_reducer_queue_latency_seconds_count",
    intents("register", "submitted", "overloaded", "succeeded"),
    worker_policy={"control_reducer": {"queue_capacity": 1}},
)
async def changes_wait_for_the_lock_of_their_daemon(it: Moves, _: Clock) -> None:
    async with (
        trio.open_nursery() as nursery,
        it.store.components.daemon_locks.hold("d1", "maintenance"),
    ):
        for _attempt in range(2):
            nursery.start_soon(it.tries, it.store.register("d1"))
        await trio.testing.wait_all_tasks_blocked()
        it.look()
    it.look()


async def before_the_restart(store: Serving) -> None:
    worker = await store.register()
    await store.replica(worker.worker_id)
    await store.claim()
    await store.runtime.RegisterInstance(
        wire.RegisterInstanceRequest(instance_id="i", daemon_id="d1", engine="e")
    )


@moves(
    "tc_recovery_seconds",
    of("tc_recovery_rows", "table", "workers", "instances", "transports"),
    "tc_workers_unconfirmed",
    "tc_db_wal_bytes",
    "tc_db_free_bytes",
    "tc_db_checkpoint_seconds_count",
    "tc_clock_step_seconds_total",
    after=before_the_restart,
    is_timed=True,
)
async def a_server_takes_a_file_over(it: Moves, _: Clock) -> None:
    gauges = it.gauges()
    gauges.look(0)
    it.wall.ahead_s = 3600
    gauges.look(0)
    # A checkpoint comes after 4 MiB of log.
    await it.store.replica("w", "large", tensor_index_data=bytes(5 << 20))
    await it.store.replica("w")
    it.look()


# Workers.


@moves(
    of("tc_worker_register_total", "kind", "new", "renew", "reactivate", "recovery", result="ok"),
    of("tc_worker_register_total", "kind", "new", "renew", "recovery", result="rejected"),
    of("tc_worker_unregister_total", "graceful", "true", "false", result="ok"),
    of("tc_worker_unregister_total", "graceful", "true", "false", result="not_found"),
    of("tc_worker_heartbeat_total", "result", "ok", "sync_required", "not_found", "invalid"),
    of("tc_capability_directory_entries", "capability", *WORKER_CAPABILITIES, scope="worker"),
    of("tc_capability_directory_entries", "capability", *INSTANCE_CAPABILITIES, scope="instance"),
    of(CONFLICTS, "scope", "endpoint_takeover", "heartbeat_daemon_mismatch"),
    intents("heartbeat", "submitted", "succeeded", "failed"),
    intents("unregister", "submitted", "succeeded"),
    intents("maintenance", "submitted", "succeeded"),
    "tc_active_workers",
    "tc_worker_expired_total",
    "tc_worker_evicted_total",
    "tc_worker_moved_total",
    "tc_worker_heartbeat_buffer_pending",
    "tc_worker_heartbeat_flush_batch_size_count",
    of("tc_worker_heartbeat_flush_updates_total", "result", "batched"),
)
async def workers_come_and_go(it: Moves, clock: Clock) -> None:
    store = it.store
    worker = await store.register("d1", capability_flags=2**32)
    await it.fails(store.register("d9", node_address="localhost"))
    await it.fails(store.register("d1", p2p_port=0))
    await store.register("d1")
    await store.register("d1", is_recovery_registration=True)
    await store.register("d2", is_recovery_registration=True, previous_worker_id=worker.worker_id)
    await store.runtime.RegisterInstance(
        wire.RegisterInstanceRequest(
            instance_id="i", daemon_id="d1", engine="e", capability_flags=6, execution_endpoint="x"
        )
    )
    await store.beat(worker.worker_id, daemon_id="d1", capability_flags=0b111111)
    await pass_time(clock, 0.1)
    store.components.stalls.check()
    await store.beat(worker.worker_id, daemon_id="impostor")
    await store.beat(worker.worker_id, state_version=7)
    await it.fails(store.beat(worker.worker_id, state_version=0))
    await pass_time(clock, 1.25)
    it.look()
    await store.beat(worker.worker_id, accepting_new_requests=False)
    it.gauges().look(0)
    it.look()
    await unregister(store, worker.worker_id)
    await store.register("d1")
    await unregister(store, worker.worker_id, graceful=False)
    for graceful in (True, False):
        await unregister(store, LOST, graceful)
    await store.register("d3", grpc_port=9)
    await store.register("d3")
    await store.register("d4", node_address="d3.example")
    await pass_time(clock, 32)
    it.look()


@moves(
    of("tc_state_sync_total", "result", "success", "error"),
    "tc_state_sync_seconds_count",
    of(RESULTS, "result_kind", *map(wire.ReconcileResultKind.Name, range(1, 7))),
    of("tc_reconcile_retry_later_total", "reason", "request_seq_gap", "contradicted_snapshot"),
    of("tc_reconcile_retry_later_total", "reason", "overloaded"),
    of(
        *(CONFLICTS, "scope", "reconcile_daemon_mismatch", "reconcile_generation_stale"),
        *("reconcile_generation_future", "reconcile_request_stale", "reconcile_request_gap"),
        *("reconcile_owner_conflict", "reconcile_session_local"),
    ),
    intents("reconcile", "submitted", "succeeded", "failed", "overloaded"),
    worker_policy={"control_reducer": {"queue_capacity": 1}},
)
async def inventories_are_taken_and_not_taken(it: Moves, _: Clock) -> None:
    store = it.store
    worker, other = await store.register("d1"), await store.register("d2")
    id_ = worker.worker_id
    await store.replica(other.worker_id, "foreign")
    answer = await reconcile(store, id_, "model", "msa1:mount", "foreign")
    await reconcile(store, id_, "model")
    await reconcile(store, id_, request_seq=9)
    await reconcile(store, id_, request_seq=0)
    await reconcile(store, id_, generation=0)
    await reconcile(store, id_, generation=9)
    await reconcile(store, id_, daemon_id="d2")
    await store.beat(id_, state_checksum=answer.new_state_checksum, state_version=2)
    await reconcile(store, id_, request_seq=2)
    await it.fails(reconcile(store, LOST))
    async with trio.open_nursery() as nursery, store.components.daemon_locks.hold("d1", "x"):
        for _attempt in range(2):
            nursery.start_soon(it.tries, reconcile(store, id_, "model", request_seq=2))
        await trio.testing.wait_all_tasks_blocked()
    await store.components.store.write(lambda tx: tx.all("PRAGMA max_page_count = 1"))
    many = [f"{'long' * 200}-{number}" for number in range(900)]
    await it.fails(reconcile(store, id_, *many, request_seq=3))
    it.look()


@moves(
    of("tc_reconcile_retry_later_total", "reason", "tx_conflict_exhausted"),
    of(
        *(CONFLICTS, "scope", "reconcile_tx_conflict_exhausted"),
        *("worker_heartbeat_tx_conflict", "unregister_worker_tx_conflict"),
    ),
    of("tc_worker_heartbeat_flush_updates_total", "result", "dropped"),
    of("tc_transport_dispatch_events_total", "event", "failed"),
    intents("unregister", "failed"),
    intents("register", "failed"),
    after=nothing,
)
async def somebody_else_holds_the_file(it: Moves, clock: Clock) -> None:
    store = it.store
    worker = await store.register()
    foreign = sqlite3.connect(it.path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    await reconcile(store, worker.worker_id, "model")
    await it.fails(unregister(store, worker.worker_id))
    await it.fails(store.register("d2"))
    await it.fails(store.claim())
    await store.beat(worker.worker_id, accepting_new_requests=False)
    await pass_time(clock, 0.5)
    it.look()
    foreign.rollback()
    foreign.close()


@moves(
    *(
        of("tc_control_plane_idempotency_replay_total", "result", "hit", "payload_conflict",
           operation_kind=kind)
        for kind in ("RegisterReplica", "UnregisterWorker")
    ),
)  # fmt: skip
async def requests_come_again(it: Moves, _: Clock) -> None:
    store = it.store
    worker, gone = await store.register(), await store.register("gone")
    for _attempt in range(2):
        await store.replica(worker.worker_id, client_request_id="r")
        await unregister(store, gone.worker_id, id_="u")
    await it.fails(store.replica(worker.worker_id, "other", client_request_id="r"))
    await it.fails(unregister(store, gone.worker_id, graceful=False, id_="u"))
    it.look()
