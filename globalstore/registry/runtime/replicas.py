"""Replicas: which worker holds which bytes where, and how they are counted and listed."""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry import artifacts
from globalstore.registry.runtime import replica_rows
from globalstore.registry.runtime.replica_places import MemoryTier, Place, intern_endpoint
from globalstore.registry.runtime.replica_rows import (
    NewReplica,
    ReplicaDescription,
    ReplicaKey,
    ReplicaOwner,
    StoredReplica,
    TransferColumns,
    transfer_columns,
)
from globalstore.registry.signals import (
    ReplicaRemoved,
    ReplicaStored,
    SourceFreed,
    WorkerReplicasChanged,
)
from globalstore.registry.worker_ids import Incarnation, incarnation_of
from globalstore.rules.transfer import Transfer


@attrs.frozen
class ReplicaRegistration:
    """A checked RegisterReplica request.

    ``view_id`` is blank for the canonical bytes, ``memory_size`` in bytes, ``max_concurrency`` the
    number of transports the replica serves at a time. ``transfer`` is None when the request has no
    transfer metadata. ``expires_at_us`` is in microseconds since 1970.
    """

    artifact_id: str
    view_id: str
    place: Place
    memory_size: int
    max_concurrency: int
    worker_id: str
    transfer: Transfer | None
    tensor_index_key: str
    is_memory_replica: bool
    source_process_id: str
    expires_at_us: int | None
    description: artifacts.Description | None
    index: artifacts.TensorIndex | None


def register_replica(
    tx: Transaction, registration: ReplicaRegistration, new_id: bytes, now_us: int
) -> bytes:
    """Store a replica, or refresh the one with the same identity; return its id.

    ``new_id`` becomes the id of a new row. The worker need not be known. Raises
    FailedPrecondition where the request contradicts what is known of the artifact.
    """
    artifact_key = artifacts.ensure_artifact(
        tx, registration.artifact_id, registration.description, registration.index, now_us
    )
    worker = incarnation_of(tx, registration.worker_id)
    owner = ReplicaOwner(worker.worker_key, worker.generation, worker.confirmation)
    place = registration.place
    key = ReplicaKey(
        artifact_key,
        registration.view_id,
        intern_endpoint(tx, place.node_id, place.node_address, place.node_port),
        int(place.memory_tier),
        place.device_id,
    )
    known = replica_rows.replica_at(tx, key)
    created = known is None
    first = created and not _holds_any(tx, artifact_key)
    if known is None:
        transfer = transfer_columns(registration.transfer or Transfer())
        new = NewReplica(new_id, key, _description(registration, transfer))
        replica_rows.insert_replica(tx, new, owner, now_us)
        tx.emit(WorkerReplicasChanged(owner.worker_key))
    else:
        transfer = _kept_or_given(known, registration.transfer, worker)
        description = _description(registration, transfer)
        replica_rows.refresh_replica(tx, known.seq, owner, description, now_us)
        if known.owner.worker_key != owner.worker_key:
            _follow_replica(tx, known.replica_id, owner)
            tx.emit(WorkerReplicasChanged(known.owner.worker_key))
        # Daemons refresh what they hold again and again; only a change makes waiters look again.
        if (known.owner, known.description) != (owner, description):
            tx.emit(WorkerReplicasChanged(owner.worker_key))
    tx.emit(ReplicaStored(registration.artifact_id, place.memory_tier.name, created, first))
    tx.emit(SourceFreed(registration.artifact_id, registration.view_id))
    return new_id if known is None else known.replica_id


def worker_generation(tx: Snapshot, worker_id: str) -> int:
    """Return the generation that a worker is in, 0 for one that is not known."""
    row = tx.one(
        "SELECT generation FROM worker_cursors JOIN worker_ids USING (worker_key)"
        " WHERE worker_id = :id",
        {"id": worker_id},
    )
    return 0 if row is None else int(row[0])


def is_held_by(tx: Snapshot, replica_id: bytes, worker_id: str, generation: int) -> bool:
    """Tell whether a replica is there and is a worker's, which is in a generation still."""
    row = tx.one(
        "SELECT 1 FROM held_replicas JOIN worker_ids USING (worker_key)"
        " WHERE replica_id = :replica_id AND worker_id = :worker_id",
        {"replica_id": replica_id, "worker_id": worker_id},
    )
    return row is not None and worker_generation(tx, worker_id) == generation


def _description(
    registration: ReplicaRegistration, transfer: TransferColumns
) -> ReplicaDescription:
    return ReplicaDescription(
        1,
        registration.memory_size,
        registration.max_concurrency,
        *transfer,
        registration.tensor_index_key,
        int(registration.is_memory_replica),
        registration.source_process_id,
        registration.expires_at_us,
    )


def _kept_or_given(
    known: StoredReplica, given: Transfer | None, worker: Incarnation
) -> TransferColumns:
    """Return the transfer columns of a replica that is registered again.

    Whatever was given counts, also under a lower export generation: daemons begin to count anew
    when they load an artifact again, and send 0 where they do not count. A request without transfer
    metadata keeps what is known, unless the worker's process is a new one: then the old keys are
    dead.
    """
    if given is not None:
        return transfer_columns(given)
    # A worker that confirmed all that it holds also confirmed this.
    of_generation = max(known.owner.worker_generation, worker.confirmed_generation)
    same_worker = known.owner.worker_key == worker.worker_key
    same_process = same_worker and of_generation >= worker.process_generation
    return known.description.transfer if same_process else transfer_columns(Transfer())


def _follow_replica(tx: Transaction, replica_id: bytes, owner: ReplicaOwner) -> None:
    """Give the transports that a replica serves to its new worker as well."""
    tx.run(
        "UPDATE transports SET source_worker_key = :worker_key"
        " WHERE replica_id = :replica_id AND outcome = 0",
        {"worker_key": owner.worker_key, "replica_id": replica_id},
    )


def unregister_replica(tx: Transaction, artifact_id: str, replica_id: bytes) -> bool:
    """Delete a replica; False when this artifact has none of this id.

    Its transports stay open and can be completed; they count for no worker.
    """
    row = tx.one(
        "SELECT r.seq FROM held_replicas r JOIN artifacts a USING (artifact_key)"
        " WHERE r.replica_id = :replica_id AND a.artifact_id = :artifact_id",
        {"replica_id": replica_id, "artifact_id": artifact_id},
    )
    if row is None:
        return False
    _delete(tx, row[0])
    return True


def unregister_one(
    tx: Transaction,
    artifact_id: str,
    worker_id: str,
    tier: MemoryTier | None,
    device_id: int | None,
) -> bool:
    """Delete one replica of a worker, the one in the fastest memory and of those the oldest.

    None is no filter. False when no replica matches.
    """
    row = tx.one(
        "SELECT seq FROM replicas WHERE worker_key ="
        " (SELECT worker_key FROM worker_ids WHERE worker_id = :worker_id AND worker_id != '')"
        " AND artifact_key = (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)"
        " AND memory_tier = coalesce(:tier, memory_tier)"
        " AND device_id = coalesce(:device_id, device_id)"
        " ORDER BY memory_tier, seq LIMIT 1",
        {
            "worker_id": worker_id,
            "artifact_id": artifact_id,
            "tier": tier,
            "device_id": device_id,
        },
    )
    if row is None:
        return False
    _delete(tx, row[0])
    return True


def remove_expired(tx: Transaction, now_us: int, limit: int) -> int:
    """Delete up to ``limit`` replicas whose time has passed; return how many."""
    rows = tx.all(
        "SELECT seq FROM held_replicas WHERE expires_at <= :now"
        " ORDER BY expires_at, seq LIMIT :limit",
        {"now": now_us, "limit": limit},
    )
    for (seq,) in rows:
        _delete(tx, seq)
    return len(rows)


def _delete(tx: Transaction, seq: int) -> None:
    row = tx.one(
        "DELETE FROM replicas WHERE seq = :seq"
        " RETURNING artifact_key, view_id, memory_tier, worker_key",
        {"seq": seq},
    )
    assert row is not None
    artifact_key, view_id, memory_tier, worker_key = row
    name = tx.one("SELECT artifact_id FROM artifacts WHERE artifact_key = ?", (artifact_key,))
    assert name is not None
    last = not _holds_any(tx, artifact_key)
    tx.emit(ReplicaRemoved(name[0], MemoryTier(memory_tier).name, last))
    tx.emit(WorkerReplicasChanged(worker_key))
    tx.emit(SourceFreed(name[0], view_id))


def _holds_any(tx: Snapshot, artifact_key: int) -> bool:
    row = tx.one("SELECT 1 FROM held_replicas WHERE artifact_key = ? LIMIT 1", (artifact_key,))
    return row is not None
