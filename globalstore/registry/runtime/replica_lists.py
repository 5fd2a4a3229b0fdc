"""Replicas as they are shown: single, in pages, counted, and as one worker's set."""

import attrs

from globalstore.db import Row, Snapshot
from globalstore.registry.runtime import replica_rows
from globalstore.registry.runtime.replica_places import MemoryTier
from globalstore.registry.runtime.replica_rows import (
    AVAILABLE,
    TABLES,
    Replica,
    ShownRow,
    shown_replica,
)
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.checksums import of_sorted_texts

_LABEL = "CASE memory_tier WHEN 0 THEN 'GPU' WHEN 1 THEN 'RAM' ELSE 'DISK' END"

_REPLICA = f"SELECT {replica_rows.columns_of(ShownRow._fields)} {TABLES}"


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
    """Replicas in the order of their registration; ``total`` counts all that match now.

    After one that is last there are no others; one that is not may be followed by an empty one.
    """

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


# Where a row has what grows with its replica.
_TRANSFER = ShownRow._fields.index("transfer_json")


def page(
    tx: Snapshot, filters: Filters, after_seq: int, size: int, bytes_max: int = 1 << 62
) -> Page:
    """Return up to ``size`` replicas registered after ``after_seq``.

    A page ends early when its transfer metadata have ``bytes_max`` bytes.

    A walk sees every replica that exists throughout exactly once: a replica keeps its seq for
    life, and later ones get higher ones.
    """
    given = attrs.asdict(filters, filter=lambda _, value: value is not None)
    where = " AND ".join(_FILTERS[name] for name in given) or "1"
    rows, is_all = tx.up_to(
        bytes_max,
        lambda row: len(row[_TRANSFER]),
        f"{_REPLICA} WHERE r.seq > :after AND {where} ORDER BY r.seq LIMIT :size",
        given | {"after": after_seq, "size": size + 1},
    )
    total = tx.one(f"SELECT count(*) FROM held_replicas r WHERE {where}", given)
    assert total is not None
    return Page([_shown(row) for row in rows[:size]], total[0], is_all and len(rows) <= size)


def by_id(tx: Snapshot, replica_id: bytes) -> Replica | None:
    """Return one replica, None also for one that is hidden until its transports have ended."""
    row = tx.one(f"{_REPLICA} WHERE r.replica_id = :id", {"id": replica_id})
    return None if row is None else _shown(row)


def _shown(row: Row) -> Replica:
    return shown_replica(ShownRow._make(row))


def counts(tx: Snapshot, artifact_ids: list[str]) -> list[tuple[int, int]]:
    """Return, for each artifact, how many replicas it has and how many are available.

    Views count with their artifact. Whether a worker is live does not matter here.
    """
    found = []
    for artifact_id in artifact_ids:
        row = tx.one(
            f"SELECT count(*), coalesce(sum({AVAILABLE}), 0) FROM held_replicas r"
            " JOIN worker_ids i ON i.worker_key = r.worker_key WHERE r.artifact_key ="
            " (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)",
            {"artifact_id": artifact_id},
        )
        assert row is not None
        count, available = row
        found.append((count, available))
    return found


def checksum_of_worker(tx: Snapshot, worker_key: int) -> str:
    """Return the digest of all that a worker holds, available or not.

    Entries are written and sorted by SQLite, whose order of texts is that of their bytes: with
    100 000 replicas that is a fifth of the time that ``checksums.of_replicas`` takes.
    """
    rows = tx.all(
        "SELECT a.artifact_id || ':' || r.view_id || ':' || e.node_id || ':' || e.node_address"
        " || ':' || e.node_port || ':' || iif(memory_tier = 0, device_id, 0) || ':'"
        f" || {_LABEL} || ':' || {AVAILABLE} || ';' {TABLES}"
        " WHERE r.worker_key = :worker_key"
        f" ORDER BY a.artifact_id, r.view_id, {_LABEL}, iif(memory_tier = 0, device_id, 0),"
        f" e.node_id, e.node_address, e.node_port, {AVAILABLE}",
        {"worker_key": worker_key},
    )
    return of_sorted_texts(text for (text,) in rows)


def artifacts_not_held(tx: Snapshot, worker_key: int, artifact_ids: list[str]) -> list[str]:
    """Return those of the ids under which a worker holds no replica, in their order."""
    return [
        artifact_id
        for artifact_id in artifact_ids
        if tx.one(
            "SELECT 1 FROM held_replicas WHERE worker_key = :worker_key AND artifact_key ="
            " (SELECT artifact_key FROM artifacts WHERE artifact_id = :artifact_id)",
            {"worker_key": worker_key, "artifact_id": artifact_id},
        )
        is None
    ]


# Both counts read the narrowest index, which has all replicas, and subtract the few that belong to
# no worker. Leaving those out beforehand would mean reading every row.
_OF_TYPES = ", ".join(f"count(*) FILTER (WHERE memory_tier = {int(tier)})" for tier in MemoryTier)


def totals(tx: Snapshot) -> dict[str, int]:
    """Return how many replicas there are of each memory type: GPU, RAM, DISK."""
    every = tx.one(f"SELECT {_OF_TYPES} FROM replicas")
    hidden = tx.one(
        f"SELECT {_OF_TYPES} FROM replicas WHERE worker_key = :nobody", {"nobody": NOBODY}
    )
    assert every is not None
    assert hidden is not None
    return {
        tier.name: count - less
        for tier, count, less in zip(MemoryTier, every, hidden, strict=True)
        if count > less
    }


def totals_by_artifact(tx: Snapshot, limit: int) -> dict[str, int]:
    """Return how many replicas each of the ``limit`` oldest artifacts that have any has."""
    return dict(
        tx.all(
            "SELECT a.artifact_id, t.shown FROM (SELECT artifact_key, count(*) - (SELECT count(*)"
            " FROM replicas n WHERE n.worker_key = :nobody AND n.artifact_key = r.artifact_key)"
            " AS shown FROM replicas r GROUP BY artifact_key HAVING shown > 0"
            " ORDER BY artifact_key LIMIT :limit) t"
            " JOIN artifacts a USING (artifact_key)",
            {"nobody": NOBODY, "limit": limit},
        )
    )
