"""Replicas: which worker holds which bytes where, and how they are counted and listed."""

import enum
import json
import os
from typing import Any

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry import artifacts
from globalstore.registry.events import (
    ReplicaRemoved,
    ReplicaStored,
    SourceFreed,
    WorkerReplicasChanged,
)
from globalstore.registry.worker_ids import Standing, standing
from globalstore.rules.checksums import Entry, of_replicas
from globalstore.rules.transfer import ExportState, Transfer


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
class Registration:
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


@attrs.frozen
class Replica:
    """A replica as it is shown.

    ``is_available`` is the effective value and ``max_concurrency`` never below the load.
    """

    seq: int
    replica_id: bytes
    artifact_id: str
    view_id: str
    place: Place
    memory_size: int
    max_concurrency: int
    current_requests: int
    is_available: bool
    transfer: Transfer
    tensor_index_key: str
    is_memory_replica: bool
    source_process_id: str
    expires_at_us: int | None
    created_at_us: int


_AVAILABLE = "(r.is_available AND r.confirmation = i.confirmation)"

_REPLICA = f"""
SELECT r.seq, r.replica_id, a.artifact_id, r.view_id, e.node_id, e.node_address, e.node_port,
       r.memory_tier, r.device_id, r.memory_size, max(r.max_concurrency, r.current_requests),
       r.current_requests, {_AVAILABLE}, r.export_state, r.export_generation, r.transfer_json,
       r.tensor_index_key, r.is_memory_replica, r.source_process_id, r.expires_at, r.created_at
FROM replicas r JOIN artifacts a USING (artifact_key) JOIN endpoints e USING (endpoint_key)
     JOIN worker_ids i ON i.worker_key = r.worker_key
"""


def _replica(row: Row) -> Replica:
    keys, sizes, verification = json.loads(row[15]) if row[15] else ((), (), "")
    return Replica(
        seq=row[0],
        replica_id=row[1],
        artifact_id=row[2],
        view_id=row[3],
        place=Place(row[4], row[5], row[6], MemoryTier(row[7]), row[8]),
        memory_size=row[9],
        max_concurrency=row[10],
        current_requests=row[11],
        is_available=bool(row[12]),
        transfer=Transfer(ExportState(row[13]), row[14], tuple(keys), tuple(sizes), verification),
        tensor_index_key=row[16],
        is_memory_replica=bool(row[17]),
        source_process_id=row[18],
        expires_at_us=row[19],
        created_at_us=row[20],
    )


def _transfer_columns(transfer: Transfer) -> dict[str, Any]:
    said = bool(transfer.keys or transfer.verification)
    text = json.dumps(
        [transfer.keys, transfer.sizes, transfer.verification],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return {
        "export_state": int(transfer.state),
        "export_generation": transfer.generation or 0,
        "transfer_size": sum(transfer.sizes),
        "transfer_json": text if said else "",
    }


def register(tx: Transaction, asked: Registration, new_id: bytes, now_us: int) -> bytes:
    """Store a replica, or refresh the one with the same identity; return its id.

    ``new_id`` becomes the id of a new row. The worker need not be known. Raises
    FailedPrecondition where the request contradicts what is known of the artifact.
    """
    artifact_key = artifacts.ensure(tx, asked.artifact_id, asked.description, asked.index, now_us)
    worker = standing(tx, asked.worker_id)
    worker_key = worker.worker_key
    columns: dict[str, Any] = {
        "artifact_key": artifact_key,
        "view_id": asked.view_id,
        "endpoint_key": _intern_endpoint(tx, asked.place),
        "memory_tier": int(asked.place.memory_tier),
        "device_id": asked.place.device_id,
        "worker_key": worker_key,
        "worker_generation": worker.generation,
        "confirmation": worker.confirmation,
        "memory_size": asked.memory_size,
        "max_concurrency": asked.max_concurrency,
        "tensor_index_key": asked.tensor_index_key,
        "is_memory_replica": int(asked.is_memory_replica),
        "source_process_id": asked.source_process_id,
        "expires_at": asked.expires_at_us,
        "now": now_us,
    }
    known = tx.one(
        "SELECT seq, replica_id, worker_key, worker_generation, export_generation, export_state,"
        " transfer_size, transfer_json FROM replicas"
        " WHERE artifact_key = :artifact_key AND view_id = :view_id"
        " AND endpoint_key = :endpoint_key AND memory_tier = :memory_tier"
        " AND device_id = :device_id",
        columns,
    )
    replica_id: bytes
    first = False
    if known is None:
        first = not _holds_any(tx, artifact_key)
        replica_id = new_id
        columns |= _transfer_columns(asked.transfer or Transfer()) | {"replica_id": new_id}
        _insert(tx, columns)
    else:
        replica_id = known[1]
        columns |= _kept_or_given(known, asked.transfer, worker)
        _refresh(tx, columns | {"seq": known[0]})
        if known[2] != worker_key:
            _follow_replica(tx, columns | {"replica_id": replica_id})
            tx.emit(WorkerReplicasChanged(known[2]))
    tx.emit(WorkerReplicasChanged(worker_key))
    memory_type = asked.place.memory_tier.name
    tx.emit(ReplicaStored(asked.artifact_id, memory_type, known is None, first))
    tx.emit(SourceFreed(asked.artifact_id, asked.view_id))
    return replica_id


def _kept_or_given(known: Row, given: Transfer | None, worker: Standing) -> dict[str, Any]:
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
    if given is None:
        same_process = same_worker and known[3] >= worker.process_generation
        return kept if same_process else _transfer_columns(Transfer())
    same_generation = same_worker and known[3] == worker.generation
    if same_generation and given.generation is not None and given.generation < known[4]:
        return kept
    return _transfer_columns(given)


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
        " :device_id, :worker_key, :worker_generation, :confirmation, 1, :memory_size,"
        " :max_concurrency, :export_state, :export_generation, :transfer_size, :transfer_json,"
        " :tensor_index_key, :is_memory_replica, :source_process_id, :expires_at, :now, :now)",
        columns,
    )


def _refresh(tx: Transaction, columns: dict[str, Any]) -> None:
    tx.run(
        "UPDATE replicas SET worker_key = :worker_key, worker_generation = :worker_generation,"
        " confirmation = :confirmation, is_available = 1, memory_size = :memory_size,"
        " max_concurrency = :max_concurrency, export_state = :export_state,"
        " export_generation = :export_generation, transfer_size = :transfer_size,"
        " transfer_json = :transfer_json, tensor_index_key = :tensor_index_key,"
        " is_memory_replica = :is_memory_replica, source_process_id = :source_process_id,"
        " expires_at = :expires_at, updated_at = :now WHERE seq = :seq",
        columns,
    )


def _intern_endpoint(tx: Transaction, place: Place) -> int:
    fields = {"id": place.node_id, "address": place.node_address, "port": place.node_port}
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


def unregister(tx: Transaction, artifact_id: str, replica_id: bytes) -> bool:
    """Delete a replica; False when this artifact has none of this id.

    Its transports stay open and can be completed; they count for nobody.
    """
    row = tx.one(
        "SELECT r.seq FROM replicas r JOIN artifacts a USING (artifact_key)"
        " WHERE r.replica_id = :replica_id AND a.artifact_id = :artifact_id",
        {"replica_id": replica_id, "artifact_id": artifact_id},
    )
    if row is None:
        return False
    _delete(tx, row[0])
    return True


def remove_expired(tx: Transaction, now_us: int, limit: int) -> int:
    """Delete up to ``limit`` replicas whose time has passed; return how many."""
    rows = tx.all(
        "SELECT seq FROM replicas WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit",
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
    row = tx.one("SELECT 1 FROM replicas WHERE artifact_key = ? LIMIT 1", (artifact_key,))
    return row is not None


@attrs.frozen
class Filters:
    """Which replicas to list; None means any. Texts compare byte for byte."""

    artifact_id: str | None = None
    node_id: str | None = None
    node_address: str | None = None
    memory_tier: MemoryTier | None = None
    device_id: int | None = None


@attrs.frozen
class Page:
    """Replicas in the order of their registration; ``total`` counts all that match now."""

    replicas: list[Replica]
    total: int
    is_last: bool


_FILTERS = {
    "artifact_id": "r.artifact_key = (SELECT artifact_key FROM artifacts"
    " WHERE artifact_id = :artifact_id)",
    "node_id": "r.endpoint_key IN (SELECT endpoint_key FROM endpoints WHERE node_id = :node_id)",
    "node_address": "r.endpoint_key IN (SELECT endpoint_key FROM endpoints"
    " WHERE node_address = :node_address)",
    "memory_tier": "r.memory_tier = :memory_tier",
    "device_id": "r.device_id = :device_id",
}


def page(tx: Snapshot, filters: Filters, after_seq: int, size: int) -> Page:
    """Return up to ``size`` replicas registered after ``after_seq``.

    A walk sees every replica that exists throughout exactly once: a replica keeps its seq for
    life, and later ones get higher ones.
    """
    given = attrs.asdict(filters, filter=lambda _, value: value is not None)
    where = " AND ".join(_FILTERS[name] for name in given) or "1"
    rows = tx.all(
        f"{_REPLICA} WHERE r.seq > :after AND {where} ORDER BY r.seq LIMIT :size",
        given | {"after": after_seq, "size": size + 1},
    )
    total = tx.one(f"SELECT count(*) FROM replicas r WHERE {where}", given)
    assert total is not None
    return Page([_replica(row) for row in rows[:size]], total[0], len(rows) <= size)


def by_id(tx: Snapshot, replica_id: bytes) -> Replica | None:
    """Return one replica."""
    row = tx.one(f"{_REPLICA} WHERE r.replica_id = :id", {"id": replica_id})
    return None if row is None else _replica(row)


def counts(tx: Snapshot, artifact_ids: list[str]) -> list[tuple[int, int]]:
    """Return, for each artifact, how many replicas it has and how many are available.

    Views count with their artifact. Whether a worker is being heard does not matter here.
    """
    found = []
    for artifact_id in artifact_ids:
        row = tx.one(
            f"SELECT count(*), coalesce(sum({_AVAILABLE}), 0) FROM replicas r"
            " JOIN worker_ids i ON i.worker_key = r.worker_key WHERE r.artifact_key ="
            " (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)",
            {"artifact_id": artifact_id},
        )
        assert row is not None
        found.append((row[0], row[1]))
    return found


def checksum_of_worker(tx: Snapshot, worker_key: int) -> str:
    """Return the digest of all that a worker holds, available or not."""
    rows = tx.all(
        f"SELECT a.artifact_id, r.view_id, e.node_id, e.node_address, e.node_port,"
        f" r.memory_tier, r.device_id, {_AVAILABLE} FROM replicas r"
        " JOIN artifacts a USING (artifact_key) JOIN endpoints e USING (endpoint_key)"
        " JOIN worker_ids i ON i.worker_key = r.worker_key WHERE r.worker_key = :worker_key",
        {"worker_key": worker_key},
    )
    return of_replicas(
        Entry(
            artifact_id,
            view_id,
            node_id,
            address,
            port,
            MemoryTier(tier).name,
            device if tier == MemoryTier.GPU else 0,
            bool(available),
        )
        for artifact_id, view_id, node_id, address, port, tier, device, available in rows
    )


def artifacts_not_held(tx: Snapshot, worker_key: int, artifact_ids: list[str]) -> list[str]:
    """Return those of the ids under which a worker holds no replica, in their order."""
    return [
        artifact_id
        for artifact_id in artifact_ids
        if tx.one(
            "SELECT 1 FROM replicas WHERE worker_key = :worker_key AND artifact_key ="
            " (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)",
            {"worker_key": worker_key, "artifact_id": artifact_id},
        )
        is None
    ]


def totals(tx: Snapshot) -> dict[str, int]:
    """Return how many replicas there are of each memory type: GPU, RAM, DISK."""
    return {
        MemoryTier(tier).name: count
        for tier, count in tx.all("SELECT memory_tier, count(*) FROM replicas GROUP BY 1")
    }


def totals_by_artifact(tx: Snapshot, limit: int) -> dict[str, int]:
    """Return how many replicas each of the ``limit`` oldest artifacts that have any has."""
    return dict(
        tx.all(
            "SELECT a.artifact_id, t.count FROM (SELECT artifact_key, count(*) AS count"
            " FROM replicas GROUP BY artifact_key ORDER BY artifact_key LIMIT :limit) t"
            " JOIN artifacts a USING (artifact_key)",
            {"limit": limit},
        )
    )


# Ids whose random bytes are drawn at once. Asking the system gives the interpreter lock away, and
# getting it back from a busy writer thread costs more than all else that an id needs.
_IDS_DRAWN = 256

_drawn: list[bytes] = []


def fresh_id() -> bytes:
    """Return the bytes of a new random replica or transport id (UUID version 4)."""
    if not _drawn:
        noise = os.urandom(16 * _IDS_DRAWN)
        _drawn.extend(noise[start : start + 16] for start in range(0, len(noise), 16))
    noise = _drawn.pop()
    version, variant = noise[6] & 0x0F | 0x40, noise[8] & 0x3F | 0x80
    return b"%b%c%b%c%b" % (noise[:6], version, noise[7:8], variant, noise[9:])
