"""The rows of table ``replicas``: the one place that names its columns.

A reader lists a row type, a NamedTuple whose fields are looked up in one vocabulary, and reads rows
by name. A writer passes the same types, from whose fields the statements are made. So no two texts
have to agree by position.

Replicas that no worker holds any more are in the table until their last transport ends. The view
``held_replicas`` is without them; the table itself is read where they count, or where the key of a
worker or of a row says that it is another one.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.runtime.replica_places import MemoryTier, Place
from globalstore.rules.transfer import ExportState, Transfer


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


# What is read.

# A replica counts as available only under the present confirmation number of its worker.
AVAILABLE = "(r.is_available AND r.confirmation = i.confirmation)"

# What a source that may serve looks like, now or once it has a free slot.
EXPORTABLE = (
    "export_state = 2 AND transfer_size = memory_size AND (expires_at IS NULL OR expires_at > :now)"
)

# The tables that row types are read from; a query that needs fewer of them joins fewer.
TABLES = """
FROM held_replicas r JOIN artifacts a USING (artifact_key) JOIN endpoints e USING (endpoint_key)
     JOIN worker_ids i ON i.worker_key = r.worker_key
"""

# By how full a source is the shortlist is ordered; an index is on this very expression.
LOAD_RATIO = "r.current_requests * 1.0 / r.max_concurrency"

# What a field of a row type is read from; one that is not listed is a column of ``replicas``.
_EXPRESSIONS = {
    "artifact_id": "a.artifact_id",
    "node_id": "e.node_id",
    "node_address": "e.node_address",
    "node_port": "e.node_port",
    "worker_id": "i.worker_id",
    "worker_load": "i.load_sum",
    "worker_limit": "i.limit_sum",
    "is_available": AVAILABLE,
    "was_stored": "r.is_available",
    "is_confirmed": "r.confirmation = i.confirmation",
    "is_whole": "r.transfer_size = r.memory_size",
    "max_concurrency": "max(r.max_concurrency, r.current_requests)",
    "load": "r.current_requests",
    "limit": "r.max_concurrency",
    "minus_limit": "-r.max_concurrency",
    "ratio": LOAD_RATIO,
    "tier": "r.memory_tier",
    "last_assigned_us": "r.last_assigned_at",
    "updated_us": "r.updated_at",
    "expires_us": "r.expires_at",
}


def columns_of(fields: Sequence[str]) -> str:
    """Return what to select for the fields of a row type, in their order."""
    return ", ".join(_EXPRESSIONS.get(name, f"r.{name}") for name in fields)


class ShownRow(NamedTuple):
    """A row as it is shown, before what is stored compactly is unfolded."""

    seq: int
    replica_id: bytes
    artifact_id: str
    view_id: str
    node_id: str
    node_address: str
    node_port: int
    memory_tier: int
    device_id: int
    memory_size: int
    max_concurrency: int
    current_requests: int
    is_available: int
    export_state: int
    export_generation: int
    transfer_json: str
    tensor_index_key: str
    is_memory_replica: int
    source_process_id: str
    expires_at: int | None
    created_at: int


class HeldReplica(NamedTuple):
    """A row of a worker: first what is shown, then what is not.

    ``is_available`` is the effective value, ``was_stored`` the one in the row.
    """

    seq: int
    replica_id: bytes
    artifact_id: str
    view_id: str
    node_id: str
    node_address: str
    node_port: int
    memory_tier: int
    device_id: int
    memory_size: int
    max_concurrency: int
    current_requests: int
    is_available: int
    export_state: int
    export_generation: int
    transfer_json: str
    tensor_index_key: str
    is_memory_replica: int
    source_process_id: str
    expires_at: int | None
    created_at: int
    artifact_key: int
    updated_at: int
    was_stored: int
    confirmation: int
    worker_generation: int
    transfer_size: int

    @property
    def position(self) -> tuple[int, int]:
        """Where this row is in the order in which the rows of a worker are read."""
        return self.artifact_key, self.seq


def shown_replica(row: ShownRow | HeldReplica) -> Replica:
    """Return the replica that a row shows."""
    text = row.transfer_json
    keys, sizes, verification = json.loads(text) if text else ((), (), "")
    return Replica(
        row.seq, row.replica_id, row.artifact_id, row.view_id,
        Place(
            row.node_id, row.node_address, row.node_port,
            MemoryTier(row.memory_tier), row.device_id,
        ),
        row.memory_size, row.max_concurrency, row.current_requests, bool(row.is_available),
        Transfer(
            ExportState(row.export_state), row.export_generation,
            tuple(keys), tuple(sizes), verification,
        ),
        row.tensor_index_key, bool(row.is_memory_replica), row.source_process_id,
        row.expires_at, row.created_at,
    )  # fmt: skip


# What is written.


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
        plain = plain_columns(int(state), generation, keys[0], sizes[0])
        if plain is not None:
            return plain
    text = ""
    if keys or verification:
        text = json.dumps([keys, sizes, verification], ensure_ascii=False, separators=(",", ":"))
    return TransferColumns(int(state), generation, sum(sizes), text)


def plain_columns(state: int, generation: int, key: str, size: int) -> TransferColumns | None:
    """Return the columns for one key without verification, which nearly all replicas have.

    None when the key needs JSON's escapes.
    """
    if not _PLAIN(key):
        return None
    return TransferColumns(state, generation, size, f'[["{key}"],[{size}],""]')


# Keys that JSON writes as they are.
_PLAIN = re.compile(r"[A-Za-z0-9_:./+=-]*").fullmatch


class ReplicaKey(NamedTuple):
    """What one row at a time may have: the identity of a replica, in keys."""

    artifact_key: int
    view_id: str
    endpoint_key: int
    memory_tier: int
    device_id: int


class ReplicaOwner(NamedTuple):
    """Whose a row is, and what they confirmed it by."""

    worker_key: int
    worker_generation: int
    confirmation: int


class ReplicaDescription(NamedTuple):
    """A daemon's description of a replica, as it is stored; ``max_concurrency`` is the target."""

    is_available: int
    memory_size: int
    max_concurrency: int
    export_state: int
    export_generation: int
    transfer_size: int
    transfer_json: str
    tensor_index_key: str
    is_memory_replica: int
    source_process_id: str
    expires_at: int | None

    @property
    def transfer(self) -> TransferColumns:
        """The columns that say how the bytes can be transferred."""
        return TransferColumns(
            self.export_state, self.export_generation, self.transfer_size, self.transfer_json
        )


class StoredReplica(NamedTuple):
    """The row of a replica as it is now."""

    seq: int
    replica_id: bytes
    current_requests: int
    owner: ReplicaOwner
    description: ReplicaDescription


def _marked(fields: Sequence[str]) -> str:
    return ", ".join(f"{name} = ?" for name in fields)


_OWNED = len(ReplicaOwner._fields)
_OF_KEY = " AND ".join(f"{name} = ?" for name in ReplicaKey._fields)
_WRITTEN = (*ReplicaOwner._fields, *ReplicaDescription._fields)

_AT = f"SELECT seq, replica_id, current_requests, {', '.join(_WRITTEN)} FROM replicas"


def replica_at(tx: Snapshot, key: ReplicaKey) -> StoredReplica | None:
    """Return the row that has an identity, whichever worker holds it."""
    row = tx.one(f"{_AT} WHERE {_OF_KEY}", key)
    if row is None:
        return None
    seq, replica_id, load, *written = row
    return StoredReplica(
        seq,
        replica_id,
        load,
        ReplicaOwner._make(written[:_OWNED]),
        ReplicaDescription._make(written[_OWNED:]),
    )


class NewReplica(NamedTuple):
    """What the rows that are inserted together differ in."""

    replica_id: bytes
    key: ReplicaKey
    description: ReplicaDescription


# What they share comes first, the order in which ``run_rows`` wants it.
_SHARED = (*ReplicaOwner._fields, "created_at", "updated_at")
_OWN = ("replica_id", *ReplicaKey._fields, *ReplicaDescription._fields)
_COLUMNS = ", ".join((*_SHARED, *_OWN))
_INSERT = f"INSERT INTO replicas ({_COLUMNS}) VALUES ({', '.join('?' * len((*_SHARED, *_OWN)))})"
_INSERT_ROWS = f"""
INSERT INTO replicas ({_COLUMNS})
SELECT {", ".join("?" * len(_SHARED))}, * FROM (VALUES …) WHERE true
ON CONFLICT DO NOTHING
"""


def insert_replica(tx: Transaction, new: NewReplica, owner: ReplicaOwner, now_us: int) -> None:
    """Insert one row, whose identity and id no other row has."""
    tx.run(_INSERT, (*owner, now_us, now_us, new.replica_id, *new.key, *new.description))


def insert_replicas(
    tx: Transaction, new: Sequence[NewReplica], owner: ReplicaOwner, now_us: int
) -> int:
    """Insert rows, except those whose identity or id another row has; return how many."""
    rows = [(replica_id, *key, *described) for replica_id, key, described in new]
    return tx.run_rows(_INSERT_ROWS, rows, (*owner, now_us, now_us))


_REFRESH = f"UPDATE replicas SET {_marked(_WRITTEN)}, updated_at = ? WHERE seq = ?"


def refresh_replica(
    tx: Transaction, seq: int, owner: ReplicaOwner, description: ReplicaDescription, now_us: int
) -> None:
    """Write all that a row holds anew but its identity."""
    tx.run(_REFRESH, (*owner, *description, now_us, seq))


# What an inventory may change of a row that it lists.
_REPORTED = (
    *("is_available", "memory_size", *TransferColumns._fields),
    *("confirmation", "worker_generation"),
)
_REPORT = f"""
UPDATE replicas SET endpoint_key = coalesce(:endpoint_key, endpoint_key),
    {", ".join(f"{name} = :{name}" for name in _REPORTED)}, updated_at = :now
WHERE seq = :seq AND worker_key = :worker_key AND updated_at = :seen_at
"""


def report_replica(
    tx: Transaction, row: HeldReplica, owner: ReplicaOwner, changed: dict[str, Any]
) -> bool:
    """Write what an inventory reports of a row; False when it was changed after it was seen.

    ``changed`` has seq, seen_at (µs, when the row was updated as it was seen), endpoint_key (None
    to leave it) and now (µs).
    """
    return tx.run(_REPORT, row._asdict() | owner._asdict() | changed) > 0


# A replica never leaves its artifact and view, and a seq is never used twice. RETURNING knows no
# alias, and of the other tables what a query inside of it finds.
_TAKEN = {
    "artifact_id": ":artifact_id",
    "is_available": "1",
    "max_concurrency": "max_concurrency",
} | {
    name: f"(SELECT {name} FROM endpoints e WHERE e.endpoint_key = replicas.endpoint_key)"
    for name in ("node_id", "node_address", "node_port")
}
_TAKE = f"""
UPDATE replicas SET current_requests = current_requests + 1, last_assigned_at = :now
WHERE seq = :seq AND worker_key = :worker_key AND is_available = 1 AND {EXPORTABLE}
    AND current_requests < max_concurrency
    AND confirmation = (SELECT confirmation FROM worker_ids WHERE worker_key = :worker_key)
RETURNING {", ".join(_TAKEN.get(name, name) for name in ShownRow._fields)}
"""


def take_source(
    tx: Transaction, artifact_id: str, seq: int, worker_key: int, now_us: int
) -> Replica | None:
    """Count one transport more on a source; None when it cannot serve or has another owner."""
    row = tx.one(
        _TAKE,
        {"artifact_id": artifact_id, "seq": seq, "worker_key": worker_key, "now": now_us},
    )
    return None if row is None else shown_replica(ShownRow._make(row))
