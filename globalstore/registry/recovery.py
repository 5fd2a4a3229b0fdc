"""The repairs of a database that a server takes over, before it serves."""

import attrs

from globalstore.db import Snapshot, Transaction
from globalstore.registry.signals import WorkerReplicasChanged
from globalstore.registry.worker_ids import NOBODY


@attrs.frozen
class Recovered:
    """The identity of the database and how many rows recovery changed."""

    cluster_id: str
    workers_unconfirmed: int
    counters_corrected: int


def recover(tx: Transaction, new_cluster_id: str, now_us: int) -> Recovered:
    """Make the database safe to serve from; the number of statements does not depend on its size.

    Nothing that a worker held is routable until the worker confirms it: the daemon may have died
    with the server. ``new_cluster_id`` names a database that has no identity yet.
    """
    tx.run(
        "INSERT INTO cluster VALUES (1, :id, :now) ON CONFLICT (cluster_key) DO NOTHING",
        {"id": new_cluster_id, "now": now_us},
    )
    row = tx.one("SELECT cluster_id FROM cluster")
    assert row is not None
    tx.run(
        "UPDATE worker_ids SET confirmation = confirmation_last + 1,"
        " confirmation_last = confirmation_last + 1 WHERE worker_key != :nobody",
        {"nobody": NOBODY},
    )
    unconfirmed = tx.run(
        "UPDATE worker_cursors SET needs_reconcile = 1 WHERE worker_key IN"
        " (SELECT worker_key FROM workers WHERE inactive_at IS NULL)"
    )
    counted = (
        "(SELECT count(*) FROM transports t WHERE t.replica_id = r.replica_id AND outcome = 0)"
    )
    corrected = tx.run(
        f"UPDATE replicas AS r SET current_requests = {counted}"
        f" WHERE r.replica_id IN (SELECT replica_id FROM replicas WHERE current_requests > 0"
        " UNION SELECT replica_id FROM transports WHERE outcome = 0)"
        f" AND current_requests != {counted}"
    )
    tx.run(
        "DELETE FROM replicas WHERE worker_key = :nobody AND current_requests = 0",
        {"nobody": NOBODY},
    )
    for (worker_key,) in tx.all("SELECT worker_key FROM workers WHERE inactive_at IS NULL"):
        tx.emit(WorkerReplicasChanged(worker_key))
    return Recovered(row[0], unconfirmed, corrected)


def unrecovered(tx: Snapshot) -> Recovered | None:
    """Return the identity of a database that could not be repaired yet, None if it has none."""
    row = tx.one("SELECT cluster_id FROM cluster")
    return None if row is None else Recovered(row[0], 0, 0)
