"""The retirement of a replica: touched, marked, and drained before it is removed."""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.signals import SourceFreed, WorkerReplicasChanged
from globalstore.registry.worker_ids import NOBODY


def touch(tx: Transaction, artifact_id: str, replica_id: bytes, now_us: int) -> bool:
    """Note that a replica was updated now, and nothing else; False when there is none."""
    row = tx.one(
        "UPDATE replicas SET updated_at = :now WHERE seq ="
        " (SELECT seq FROM held_replicas JOIN artifacts USING (artifact_key)"
        " WHERE replica_id = :replica_id AND artifact_id = :artifact_id) RETURNING view_id",
        {"replica_id": replica_id, "artifact_id": artifact_id, "now": now_us},
    )
    if row is None:
        return False
    tx.emit(SourceFreed(artifact_id, row[0]))  # its place among equal sources is another one
    return True


def mark_unavailable(
    tx: Transaction, artifact_id: str, replica_id: bytes, now_us: int
) -> str | None:
    """Make a replica unavailable from now on; return its artifact, None when there is none.

    A blank ``artifact_id`` is not compared. Transports that it serves run on.
    """
    row = tx.one(
        "UPDATE replicas SET is_available = 0, updated_at = :now WHERE seq ="
        " (SELECT seq FROM held_replicas JOIN artifacts USING (artifact_key)"
        " WHERE replica_id = :replica_id AND :artifact_id IN ('', artifact_id))"
        " RETURNING worker_key, view_id, (SELECT artifact_id FROM artifacts a"
        " WHERE a.artifact_key = replicas.artifact_key)",
        {"replica_id": replica_id, "artifact_id": artifact_id, "now": now_us},
    )
    if row is None:
        return None
    worker_key, view_id, found = row
    tx.emit(WorkerReplicasChanged(worker_key))
    tx.emit(SourceFreed(found, view_id))  # whoever waits for it may learn that there is none
    return str(found)


@attrs.frozen
class Drain:
    """The progress of a drain; ``oldest_us`` is when the oldest transport of the replica began.

    ``is_hidden`` when the replica is gone for all other purposes and goes with its last transport.
    """

    artifact_id: str
    view_id: str
    seq: int
    load: int
    oldest_us: int | None
    is_hidden: bool


def drain(tx: Snapshot, replica_id: bytes) -> Drain | None:
    """Return how far a replica is drained, None when it is gone."""
    row = tx.one(
        "SELECT a.artifact_id, r.view_id, r.seq, r.current_requests, (SELECT min(created_at)"
        " FROM transports t WHERE t.replica_id = r.replica_id AND t.outcome = 0), r.worker_key"
        " FROM replicas r JOIN artifacts a USING (artifact_key) WHERE r.replica_id = :id",
        {"id": replica_id},
    )
    if row is None:
        return None
    artifact_id, view_id, seq, load, oldest_us, worker_key = row
    return Drain(artifact_id, view_id, seq, load, oldest_us, worker_key == NOBODY)
