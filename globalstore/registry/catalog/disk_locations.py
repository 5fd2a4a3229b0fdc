"""Disk locations: where an artifact lies, or lay, on the disk that the cluster shares.

They outlive every worker and are no source of transports. A deletion is for good.
"""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.rules.refusals import InvalidArgument


@attrs.frozen
class DiskLocation:
    """Where an artifact lies; times in microseconds since 1970.

    ``kind`` is the number of the wire's DiskLocationKind. ``deleted_at_us`` is that of the first
    deletion, None for a location that is not deleted.
    """

    relative_path: str
    kind: int
    created_at_us: int
    updated_at_us: int
    deleted_at_us: int | None


def upsert_disk_location(
    tx: Transaction,
    artifact_id: str,
    cluster_id: str,
    relative_path: str,
    kind: int,
    is_deleted: bool,
    now_us: int,
) -> None:
    """Record a location or its deletion; one that is deleted stays as it is.

    Raises InvalidArgument when this is another cluster.
    """
    if cluster_id != _cluster_id(tx):
        raise InvalidArgument("cluster_id does not match server cluster_id")
    tx.run(
        "INSERT INTO disk_locations VALUES (:artifact_id, :relative_path, :kind, :now, :now,"
        " :deleted_at)"
        " ON CONFLICT (artifact_id, relative_path) DO UPDATE SET kind = excluded.kind,"
        " deleted_at = excluded.deleted_at, updated_at = excluded.updated_at"
        " WHERE disk_locations.deleted_at IS NULL"
        " AND (disk_locations.kind != excluded.kind OR excluded.deleted_at IS NOT NULL)",
        {
            "artifact_id": artifact_id,
            "relative_path": relative_path,
            "kind": kind,
            "now": now_us,
            "deleted_at": now_us if is_deleted else None,
        },
    )


def locations(
    tx: Snapshot, artifact_id: str, include_deleted: bool, limit: int
) -> tuple[str, list[DiskLocation]]:
    """Return the cluster and where in it an artifact lies, by path in the order of its bytes.

    Places beyond the first ``limit`` are left out.
    """
    rows = tx.all(
        "SELECT relative_path, kind, created_at, updated_at, deleted_at FROM disk_locations"
        " WHERE artifact_id = :artifact_id AND (:include_deleted OR deleted_at IS NULL)"
        " ORDER BY relative_path LIMIT :limit",
        {"artifact_id": artifact_id, "include_deleted": include_deleted, "limit": limit},
    )
    return _cluster_id(tx), [DiskLocation(*row) for row in rows]


def _cluster_id(tx: Snapshot) -> str:
    row = tx.one("SELECT cluster_id FROM cluster")
    assert row is not None
    cluster_id: str = row[0]
    return cluster_id
