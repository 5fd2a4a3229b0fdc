"""Replicas: which worker holds which bytes where, and how they are counted and listed."""

import enum
import json
import re
from typing import Any, NamedTuple

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry import artifacts
from globalstore.registry.signals import (
    ReplicaRemoved,
    ReplicaStored,
    SourceFreed,
    WorkerReplicasChanged,
)
from globalstore.registry.worker_ids import NOBODY, Incarnation, incarnation_of
from globalstore.rules.transfer import Transfer


class MemoryTier(enum.IntEnum):
    """Where a replica's bytes are, fastest first: the order in which sources are preferred."""

    GPU = 0
    RAM = 1
    DISK = 2


@attrs.frozen
class Place:
    """Where a replica lives. Together with artifact and view this is its identity."""

    node_id: str
    node_address: str
    node_port: int
    memory_tier: MemoryTier
    device_id: int


@attrs.frozen
class ReplicaRegistration:
    """A checked RegisterReplica request.

    ``view_id`` is blank for the canonical bytes, ``memory_size`` in bytes, ``max_concurrency``
    the number of transports the replica serves at a time. ``transfer`` is None when the request
    says nothing of it. ``expires_at_us`` is in microseconds since 1970.
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


class TransferColumns(NamedTuple):
    """Transfer metadata as it is stored: the sum of the sizes, and all else as JSON or blank."""

    export_state: int
    export_generation: int
    transfer_size: int
    transfer_json: str


def transfer_columns(transfer: Transfer) -> TransferColumns:
    """Return the columns that hold transfer metadata."""
    state, generation, keys, sizes, verification = transfer
    if len(keys) == len(sizes) == 1 and not verification:
        plain = plain_columns(int(state), generation or 0, keys[0], sizes[0])
        if plain is not None:
            return plain
    text = ""
    if keys or verification:
        text = json.dumps([keys, sizes, verification], ensure_ascii=False, separators=(",", ":"))
    return TransferColumns(int(state), generation or 0, sum(sizes), text)


def plain_columns(state: int, generation: int, key: str, size: int) -> TransferColumns | None:
    """Return the columns for one key without verification, which nearly all replicas have.

    None when the key needs JSON's escapes.
    """
    if not _PLAIN(key):
        return None
    return TransferColumns(state, generation, size, f'[["{key}"],[{size}],""]')


# Keys that JSON writes as they are.
_PLAIN = re.compile(r"[A-Za-z0-9_:./+=-]*").fullmatch


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
    worker_key = worker.worker_key
    place = registration.place
    columns: dict[str, Any] = {
        "artifact_key": artifact_key,
        "view_id": registration.view_id,
        "endpoint_key": intern_endpoint(tx, place.node_id, place.node_address, place.node_port),
        "memory_tier": int(place.memory_tier),
        "device_id": place.device_id,
        "worker_key": worker_key,
        "worker_generation": worker.generation,
        "confirmation": worker.confirmation,
        "is_available": 1,
        "memory_size": registration.memory_size,
        "max_concurrency": registration.max_concurrency,
        "tensor_index_key": registration.tensor_index_key,
        "is_memory_replica": int(registration.is_memory_replica),
        "source_process_id": registration.source_process_id,
        "expires_at": registration.expires_at_us,
        "now": now_us,
    }
    known = tx.one(
        "SELECT seq, replica_id, worker_key, worker_generation, export_generation, export_state,"
        f" transfer_size, transfer_json, {', '.join(_DESCRIBED)} FROM replicas"
        " WHERE artifact_key = :artifact_key AND view_id = :view_id"
        " AND endpoint_key = :endpoint_key AND memory_tier = :memory_tier"
        " AND device_id = :device_id",
        columns,
    )
    replica_id: bytes
    created = known is None
    first = created and not _holds_any(tx, artifact_key)
    if known is None:
        replica_id = new_id
        columns |= transfer_columns(registration.transfer or Transfer())._asdict() | {
            "replica_id": new_id
        }
        _insert(tx, columns)
    else:
        replica_id = known[1]
        columns |= _kept_or_given(known, registration.transfer, worker)
        _refresh(tx, columns | {"seq": known[0]})
        if known[2] != worker_key:
            _follow_replica(tx, columns | {"replica_id": replica_id})
            tx.emit(WorkerReplicasChanged(known[2]))
    if known is None or not _is_as_described(known, columns):
        tx.emit(WorkerReplicasChanged(worker_key))
    memory_type = place.memory_tier.name
    tx.emit(ReplicaStored(registration.artifact_id, memory_type, created, first))
    tx.emit(SourceFreed(registration.artifact_id, registration.view_id))
    return replica_id


# What a refresh overwrites, besides the time, in the order of ``register``'s query.
_DESCRIBED = (
    "confirmation",
    "is_available",
    "memory_size",
    "max_concurrency",
    "tensor_index_key",
    "is_memory_replica",
    "source_process_id",
    "expires_at",
)


def _is_as_described(known: Row, columns: dict[str, Any]) -> bool:
    """Tell whether a refresh leaves everything about a replica as it was.

    Daemons refresh what they hold again and again; only a change makes others look again.
    """
    names = (
        *("worker_key", "worker_generation", "export_generation", "export_state"),
        *("transfer_size", "transfer_json", *_DESCRIBED),
    )
    return known[2:] == tuple(columns[name] for name in names)


def _kept_or_given(known: Row, given: Transfer | None, worker: Incarnation) -> dict[str, Any]:
    """Return the transfer columns of a replica that is registered again.

    Nothing said keeps what is known, unless the worker's process is a new one: then the old keys
    are dead. Within one generation of the worker a lower export generation is a late duplicate.
    """
    kept = {
        "export_generation": known[4],
        "export_state": known[5],
        "transfer_size": known[6],
        "transfer_json": known[7],
    }
    same_worker = known[2] == worker.worker_key
    # Whoever confirmed all that it holds also confirmed this.
    of_generation = max(known[3], worker.confirmed_generation)
    if given is None:
        same_process = same_worker and of_generation >= worker.process_generation
        return kept if same_process else transfer_columns(Transfer())._asdict()
    same_generation = same_worker and of_generation == worker.generation
    if same_generation and given.generation is not None and given.generation < known[4]:
        return kept
    return transfer_columns(given)._asdict()


def _follow_replica(tx: Transaction, columns: dict[str, Any]) -> None:
    """Let the transports that a replica serves share the fate of its new worker."""
    tx.run(
        "UPDATE transports SET source_worker_key = :worker_key"
        " WHERE replica_id = :replica_id AND outcome = 0",
        columns,
    )


def _insert(tx: Transaction, columns: dict[str, Any]) -> None:
    tx.run(
        "INSERT INTO replicas (replica_id, artifact_key, view_id, endpoint_key, memory_tier,"
        " device_id, worker_key, worker_generation, confirmation, is_available, memory_size,"
        " max_concurrency, export_state, export_generation, transfer_size, transfer_json,"
        " tensor_index_key, is_memory_replica, source_process_id, expires_at, created_at,"
        " updated_at) VALUES (:replica_id, :artifact_key, :view_id, :endpoint_key, :memory_tier,"
        " :device_id, :worker_key, :worker_generation, :confirmation, :is_available, :memory_size,"
        " :max_concurrency, :export_state, :export_generation, :transfer_size, :transfer_json,"
        " :tensor_index_key, :is_memory_replica, :source_process_id, :expires_at, :now, :now)",
        columns,
    )


def _refresh(tx: Transaction, columns: dict[str, Any]) -> None:
    tx.run(
        "UPDATE replicas SET worker_key = :worker_key, worker_generation = :worker_generation,"
        " confirmation = :confirmation, is_available = :is_available, memory_size = :memory_size,"
        " max_concurrency = :max_concurrency, export_state = :export_state,"
        " export_generation = :export_generation, transfer_size = :transfer_size,"
        " transfer_json = :transfer_json, tensor_index_key = :tensor_index_key,"
        " is_memory_replica = :is_memory_replica, source_process_id = :source_process_id,"
        " expires_at = :expires_at, updated_at = :now WHERE seq = :seq",
        columns,
    )


def intern_endpoint(tx: Transaction, node_id: str, address: str, port: int) -> int:
    """Return the key of a place that replicas are served from."""
    fields = {"id": node_id, "address": address, "port": port}
    row = tx.one(
        "SELECT endpoint_key FROM endpoints WHERE node_id = :id AND node_address = :address"
        " AND node_port = :port",
        fields,
    ) or tx.one(
        "INSERT INTO endpoints (node_id, node_address, node_port) VALUES (:id, :address, :port)"
        " RETURNING endpoint_key",
        fields,
    )
    assert row is not None
    key: int = row[0]
    return key


def unregister_replica(tx: Transaction, artifact_id: str, replica_id: bytes) -> bool:
    """Delete a replica; False when this artifact has none of this id.

    Its transports stay open and can be completed; they count for nobody.
    """
    row = tx.one(
        "SELECT r.seq FROM replicas r JOIN artifacts a USING (artifact_key)"
        " WHERE r.replica_id = :replica_id AND a.artifact_id = :artifact_id"
        f" AND r.worker_key != {NOBODY}",
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
        "SELECT seq FROM replicas WHERE expires_at <= :now"
        f" AND worker_key != {NOBODY} ORDER BY expires_at LIMIT :limit",
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
    row = tx.one(
        f"SELECT 1 FROM replicas WHERE artifact_key = ? AND worker_key != {NOBODY} LIMIT 1",
        (artifact_key,),
    )
    return row is not None
