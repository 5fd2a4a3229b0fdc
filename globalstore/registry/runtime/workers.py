"""Workers: their identity, their current incarnation, and their ends."""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry import worker_ids
from globalstore.registry.runtime import chunks, shard_leases, transport_ends, worker_rows
from globalstore.registry.runtime.worker_rows import WorkerState
from globalstore.registry.signals import SourcesFreed, WorkerEnded, WorkerReplicasChanged
from globalstore.rules.values import signed64


@attrs.frozen
class WorkerRegistered:
    """A worker is active under a generation that was never used before."""

    worker: WorkerState


@attrs.frozen
class WorkerRegistration:
    """A checked RegisterWorker request. Sizes in bytes; ``previous_worker_id`` may be blank."""

    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    mem_pool_total_size: int
    mem_pool_available_size: int
    capability_flags: int
    is_recovery: bool
    previous_worker_id: str


@attrs.frozen
class Registered:
    """A registration that succeeded. ``kind`` is new, renew, reactivate or recovery.

    ``evicted`` is the worker of another daemon that lost its endpoint to this one. ``moved_from``
    is the address and port that the daemon's own active worker had until now, if others.
    """

    worker: WorkerState
    kind: str
    state_sync_required: bool
    evicted: WorkerState | None
    moved_from: tuple[str, int] | None = None


@attrs.frozen
class PreviousWorkerForeign:
    """A recovery refused because the worker it names belongs to another daemon."""

    worker_id: str
    daemon_id: str
    node_id: str


def active_workers(tx: Snapshot) -> list[WorkerState]:
    """Return every worker that is neither unregistered nor expired."""
    return [row.state for row in worker_rows.active(tx)]


def register_worker(
    tx: Transaction,
    registration: WorkerRegistration,
    new_worker_id: str,
    now_us: int,
) -> Registered | PreviousWorkerForeign:
    """Make a daemon's worker active in a new generation.

    ``new_worker_id`` is used if the daemon has no worker yet. A worker of another daemon that has
    the endpoint is evicted, live or not: only one of the two can be listening there, and it is the
    one that speaks now. A refusal changes nothing.
    """
    own = worker_rows.of_daemon(tx, registration.daemon_id)
    owner = worker_rows.at_endpoint(tx, registration.node_address, registration.grpc_port)
    if registration.is_recovery and registration.previous_worker_id:
        previous = worker_rows.of_id(tx, registration.previous_worker_id)
        if previous is not None and previous.daemon_id != registration.daemon_id:
            return PreviousWorkerForeign(previous.worker_id, previous.daemon_id, previous.node_id)
    evicted = None
    if owner is not None and (own is None or owner.worker_key != own.worker_key):
        evicted = owner.state
        _end(tx, owner.worker_key, owner.worker_id, now_us, lost=True)
        tx.run(
            "UPDATE workers SET grpc_port = NULL WHERE worker_key = :worker_key",
            {"worker_key": owner.worker_key},
        )
    if own is None:
        worker_key, kind = _insert(tx, registration, new_worker_id, now_us), "new"
    else:
        worker_key, kind = own.worker_key, "renew" if own.inactive_at is None else "reactivate"
        _renew(tx, worker_key, registration, kind == "reactivate", now_us)
    if registration.is_recovery:
        kind = "recovery"
        if registration.previous_worker_id:
            _adopt(tx, worker_key, registration.previous_worker_id)
    row = worker_rows.of_key(tx, worker_key)
    assert row is not None
    worker = row.state
    tx.emit(WorkerRegistered(worker))
    sync = registration.is_recovery or worker.needs_reconcile
    moved_from = None
    if own is not None and own.inactive_at is None:
        before = own.node_address, own.grpc_port
        moved_from = before if before != (worker.node_address, worker.grpc_port) else None
    return Registered(worker, kind, sync, evicted, moved_from)


def _insert(tx: Transaction, registration: WorkerRegistration, worker_id: str, now_us: int) -> int:
    worker_key = worker_ids.intern(tx, worker_id)
    fields = _fields(registration) | {"worker_key": worker_key, "now": now_us}
    tx.run(
        "INSERT INTO workers (worker_key, daemon_id, node_id, node_address, grpc_port, p2p_port,"
        " mem_pool_total_size, registered_at) VALUES (:worker_key, :daemon_id, :node_id,"
        " :node_address, :grpc_port, :p2p_port, :mem_pool_total_size, :now)",
        fields,
    )
    tx.run(
        "INSERT INTO worker_liveness VALUES"
        " (:worker_key, :now, :mem_pool_available_size, 1, :capability_flags)",
        fields,
    )
    tx.run(
        "INSERT INTO worker_cursors (worker_key, generation, process_generation, request_seq,"
        " state_version, needs_reconcile) VALUES (:worker_key, 1, 1, 0, 1, 0)",
        fields,
    )
    return worker_key


def _renew(
    tx: Transaction, worker_key: int, registration: WorkerRegistration, returned: bool, now_us: int
) -> None:
    """Start a new generation of a known worker; if it holds replicas it has to reconcile."""
    fields = _fields(registration) | {
        "worker_key": worker_key,
        "now": now_us,
        "returned": int(returned),
    }
    tx.run(
        "UPDATE workers SET node_id = :node_id, node_address = :node_address,"
        " grpc_port = :grpc_port, p2p_port = :p2p_port,"
        " mem_pool_total_size = :mem_pool_total_size, registered_at = :now, inactive_at = NULL"
        " WHERE worker_key = :worker_key",
        fields,
    )
    tx.run(
        "UPDATE worker_liveness SET last_heartbeat = max(last_heartbeat, :now),"
        " mem_pool_available_size = :mem_pool_available_size, accepting_new_requests = 1,"
        " capability_flags = :capability_flags WHERE worker_key = :worker_key",
        fields,
    )
    tx.run(
        "UPDATE worker_cursors SET generation = generation + 1, request_seq = 0,"
        " process_generation = iif(:is_recovery, process_generation, generation + 1),"
        " state_version = state_version + :returned, needs_reconcile = max(needs_reconcile,"
        " EXISTS (SELECT 1 FROM replicas r WHERE r.worker_key = :worker_key))"
        " WHERE worker_key = :worker_key",
        fields,
    )

    if returned:
        worker_ids.hide_replicas(tx, worker_key)


def _fields(registration: WorkerRegistration) -> dict[str, object]:
    return attrs.asdict(registration) | {
        "capability_flags": signed64(registration.capability_flags)
    }


def _adopt(tx: Transaction, worker_key: int, previous_worker_id: str) -> None:
    """Move replicas that are still recorded under a lost worker id to its successor."""
    previous = tx.one(
        "SELECT worker_key FROM worker_ids WHERE worker_id = :worker_id",
        {"worker_id": previous_worker_id},
    )
    if previous is None or previous == (worker_key,):
        return
    (old,) = previous
    # What the old id had confirmed is not carried over: the daemon confirms it by reconciling.
    tx.run(
        "UPDATE replicas SET worker_key = :new, worker_generation = 0, confirmation = 0"
        " WHERE worker_key = :old",
        {"new": worker_key, "old": old},
    )
    tx.run(
        "UPDATE transports SET source_worker_key = :new"
        " WHERE source_worker_key = :old AND outcome = 0",
        {"new": worker_key, "old": old},
    )
    tx.emit(WorkerReplicasChanged(worker_key))


def unregister_worker(tx: Transaction, worker_id: str, graceful: bool, now_us: int) -> bool:
    """End a worker on its own order; False when the id is unknown. Again is no error.

    After a graceful end its transports run on to their own completion or expiry, the leases of its
    daemon are free, and the chunks of its node are forgotten unless another worker is there.
    """
    row = tx.one(
        "SELECT worker_key, daemon_id FROM workers JOIN worker_ids USING (worker_key)"
        " WHERE worker_id = :worker_id",
        {"worker_id": worker_id},
    )
    if row is None:
        return False
    worker_key, daemon_id = row
    _end(tx, worker_key, worker_id, now_us, lost=not graceful)
    if graceful:
        shard_leases.release_all(tx, daemon_id)
        chunks.worker_left(tx, worker_key)
    return True


def is_active(tx: Snapshot, worker_id: str) -> bool:
    """Tell whether a worker is neither unregistered nor expired."""
    row = worker_rows.of_id(tx, worker_id)
    return row is not None and row.inactive_at is None


def expire_worker(tx: Transaction, worker_key: int, generation: int, now_us: int) -> bool:
    """End a worker whose heartbeats are overdue; False when it ended or registered meanwhile."""
    row = tx.one(
        "SELECT worker_id FROM workers JOIN worker_ids USING (worker_key)"
        " JOIN worker_cursors USING (worker_key)"
        " WHERE worker_key = :worker_key AND generation = :generation AND inactive_at IS NULL",
        {"worker_key": worker_key, "generation": generation},
    )
    if row is None:
        return False
    (worker_id,) = row
    _end(tx, worker_key, worker_id, now_us, lost=True)
    return True


def _end(tx: Transaction, worker_key: int, worker_id: str, now_us: int, *, lost: bool) -> None:
    """Make a worker inactive and all it holds unavailable; with ``lost``, end its transports.

    Nothing is written of one that has ended already and holds nothing.
    """
    row = {"worker_key": worker_key, "now": now_us}
    ended = tx.run(
        "UPDATE workers SET inactive_at = :now WHERE worker_key = :worker_key"
        " AND inactive_at IS NULL",
        row,
    )
    tx.run(
        "UPDATE worker_liveness SET accepting_new_requests = 0 WHERE worker_key = :worker_key"
        " AND accepting_new_requests",
        row,
    )
    if ended or tx.one("SELECT 1 FROM replicas WHERE worker_key = :worker_key LIMIT 1", row):
        worker_ids.hide_replicas(tx, worker_key)
    if lost:
        transport_ends.end_of_worker(tx, worker_key, worker_id, now_us)
    tx.emit(WorkerEnded(worker_key, worker_id, lost))


def hide_unconfirmed(tx: Transaction, worker_key: int, limit: int) -> int:
    """Make replicas unavailable that a worker registered as a process that is gone.

    Only their confirmation is taken away, as an expiry does: the latest report of them stays. At
    most ``limit`` rows; returns how many, so that the caller comes again.
    """
    hidden = tx.all(
        "UPDATE replicas SET confirmation = 0 WHERE seq IN ("
        " SELECT seq FROM replicas WHERE worker_key = :worker_key AND confirmation ="
        " (SELECT confirmation FROM worker_ids i WHERE i.worker_key = :worker_key)"
        " AND worker_generation < (SELECT process_generation FROM worker_cursors c"
        " WHERE c.worker_key = :worker_key AND confirmed_generation < process_generation)"
        " ORDER BY artifact_key, seq LIMIT :limit) RETURNING"
        " (SELECT artifact_id FROM artifacts a WHERE a.artifact_key = replicas.artifact_key),"
        " view_id",
        {"worker_key": worker_key, "limit": limit},
    )
    if hidden:
        tx.emit(WorkerReplicasChanged(worker_key))
        tx.emit(SourcesFreed(set(hidden)))  # whoever waits may learn that there is none
    return len(hidden)


def record_worker_heartbeats(tx: Transaction, rows: list[dict[str, int]]) -> int:
    """Store heartbeats; rows of workers that are gone are passed over.

    Each mapping has worker_key, last_heartbeat (µs), mem_pool_available_size,
    accepting_new_requests and capability_flags (signed).
    """
    return tx.many(
        "UPDATE worker_liveness SET last_heartbeat = max(last_heartbeat, :last_heartbeat),"
        " mem_pool_available_size = :mem_pool_available_size,"
        " accepting_new_requests = :accepting_new_requests, capability_flags = :capability_flags"
        " WHERE worker_key = :worker_key AND EXISTS (SELECT 1 FROM workers w"
        " WHERE w.worker_key = :worker_key AND w.inactive_at IS NULL)",
        rows,
    )


def purge_workers(tx: Transaction, before_us: int, limit: int) -> int:
    """Delete up to ``limit`` workers that ended before a time and that nothing refers to."""
    keys = tx.all(
        "SELECT worker_key FROM workers w WHERE inactive_at < :before"
        " AND NOT EXISTS (SELECT 1 FROM replicas r WHERE r.worker_key = w.worker_key)"
        " AND NOT EXISTS (SELECT 1 FROM transports t WHERE t.source_worker_key = w.worker_key"
        " AND t.outcome = 0) ORDER BY worker_key LIMIT :limit",
        {"before": before_us, "limit": limit},
    )
    return tx.many("DELETE FROM workers WHERE worker_key = ?", keys)
