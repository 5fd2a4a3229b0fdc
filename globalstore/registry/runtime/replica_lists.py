"""Replicas as they are shown: single, in pages, counted, and as one worker's set."""

import json

import attrs

from globalstore.db import Row, Snapshot
from globalstore.registry.runtime.replicas import MemoryTier, Place
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.checksums import of_sorted_texts
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


_AVAILABLE = "(r.is_available AND r.confirmation = i.confirmation)"

_LABEL = "CASE memory_tier WHEN 0 THEN 'GPU' WHEN 1 THEN 'RAM' ELSE 'DISK' END"

# What ``of_row`` wants, first in a row.
COLUMNS = f"""
r.seq, r.replica_id, a.artifact_id, r.view_id, e.node_id, e.node_address, e.node_port,
r.memory_tier, r.device_id, r.memory_size, max(r.max_concurrency, r.current_requests),
r.current_requests, {_AVAILABLE}, r.export_state, r.export_generation, r.transfer_json,
r.tensor_index_key, r.is_memory_replica, r.source_process_id, r.expires_at, r.created_at
"""

TABLES = """
FROM replicas r JOIN artifacts a USING (artifact_key) JOIN endpoints e USING (endpoint_key)
     JOIN worker_ids i ON i.worker_key = r.worker_key
"""

_REPLICA = f"SELECT {COLUMNS} {TABLES}"

# Replicas of nobody are gone, though transports they were granted for still run.
_SHOWN = f"r.worker_key != {NOBODY}"


def of_row(row: Row) -> Replica:
    """Return the replica of a row that begins with ``COLUMNS``."""
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
        f"{_REPLICA} WHERE r.seq > :after AND {_SHOWN} AND {where} ORDER BY r.seq LIMIT :size",
        given | {"after": after_seq, "size": size + 1},
    )
    total = tx.one(f"SELECT count(*) FROM replicas r WHERE {_SHOWN} AND {where}", given)
    assert total is not None
    return Page([of_row(row) for row in rows[:size]], total[0], len(rows) <= size)


def by_id(tx: Snapshot, replica_id: bytes) -> Replica | None:
    """Return one replica, None also for one that is hidden until its transports have ended."""
    row = tx.one(f"{_REPLICA} WHERE r.replica_id = :id AND {_SHOWN}", {"id": replica_id})
    return None if row is None else of_row(row)


def counts(tx: Snapshot, artifact_ids: list[str]) -> list[tuple[int, int]]:
    """Return, for each artifact, how many replicas it has and how many are available.

    Views count with their artifact. Whether a worker is being heard does not matter here.
    """
    found = []
    for artifact_id in artifact_ids:
        row = tx.one(
            f"SELECT count(*), coalesce(sum({_AVAILABLE}), 0) FROM replicas r"
            f" JOIN worker_ids i ON i.worker_key = r.worker_key WHERE {_SHOWN} AND r.artifact_key ="
            " (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)",
            {"artifact_id": artifact_id},
        )
        assert row is not None
        found.append((row[0], row[1]))
    return found


def checksum_of_worker(tx: Snapshot, worker_key: int) -> str:
    """Return the digest of all that a worker holds, available or not.

    Entries are written and sorted by SQLite, whose order of texts is that of their bytes: with
    100 000 replicas that is a fifth of the time that ``checksums.of_replicas`` takes.
    """
    rows = tx.all(
        "SELECT a.artifact_id || ':' || r.view_id || ':' || e.node_id || ':' || e.node_address"
        " || ':' || e.node_port || ':' || iif(memory_tier = 0, device_id, 0) || ':'"
        f" || {_LABEL} || ':' || {_AVAILABLE} || ';' {TABLES}"
        " WHERE r.worker_key = :worker_key"
        f" ORDER BY a.artifact_id, r.view_id, {_LABEL}, iif(memory_tier = 0, device_id, 0),"
        f" e.node_id, e.node_address, e.node_port, {_AVAILABLE}",
        {"worker_key": worker_key},
    )
    return of_sorted_texts(text for (text,) in rows)


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
        for tier, count in tx.all(
            f"SELECT memory_tier, count(*) FROM replicas r WHERE {_SHOWN} GROUP BY 1"
        )
    }


def totals_by_artifact(tx: Snapshot, limit: int) -> dict[str, int]:
    """Return how many replicas each of the ``limit`` oldest artifacts that have any has."""
    return dict(
        tx.all(
            "SELECT a.artifact_id, t.count FROM (SELECT artifact_key, count(*) AS count"
            f" FROM replicas r WHERE {_SHOWN} GROUP BY artifact_key ORDER BY artifact_key"
            " LIMIT :limit) t"
            " JOIN artifacts a USING (artifact_key)",
            {"limit": limit},
        )
    )
