"""Worker ids as keys, and the one number by which all replicas of a worker are hidden.

A replica may name a worker that is not known, so an id has a row of its own. A replica is
available only while the confirmation number it was registered under is the present one. Hiding
takes a number that was never in use; a worker that confirms what it had goes back to the old one.
"""

import attrs

from globalstore.db import Transaction
from globalstore.registry.signals import WorkerReplicasChanged

# The key of no worker, for replicas that are gone but still serve transports.
NOBODY = 0


@attrs.frozen
class Incarnation:
    """What a replica that is registered now takes from its worker; generations are 0 if unknown."""

    worker_key: int
    confirmation: int
    generation: int
    process_generation: int
    confirmed_generation: int


def intern(tx: Transaction, worker_id: str) -> int:
    """Return the key of a worker id, known or not."""
    row = tx.one("SELECT worker_key FROM worker_ids WHERE worker_id = :id", {"id": worker_id})
    if row is None:
        row = tx.one(
            "INSERT INTO worker_ids (worker_id) VALUES (:id) RETURNING worker_key",
            {"id": worker_id},
        )
    assert row is not None
    key: int = row[0]
    return key


def incarnation_of(tx: Transaction, worker_id: str) -> Incarnation:
    """Return the incarnation of a worker at this instant."""
    row = tx.one(
        "SELECT i.worker_key, i.confirmation, coalesce(c.generation, 0),"
        " coalesce(c.process_generation, 0), coalesce(c.confirmed_generation, 0)"
        " FROM worker_ids i"
        " LEFT JOIN worker_cursors c USING (worker_key) WHERE i.worker_id = :id",
        {"id": worker_id},
    )
    if row is None:
        intern(tx, worker_id)
        return incarnation_of(tx, worker_id)
    return Incarnation(*row)


def hide_replicas(tx: Transaction, worker_key: int) -> None:
    """Make all replicas of a worker unavailable, however many they are."""
    tx.run(
        "UPDATE worker_ids SET confirmation = confirmation_last + 1,"
        " confirmation_last = confirmation_last + 1 WHERE worker_key = :worker_key",
        {"worker_key": worker_key},
    )
    tx.emit(WorkerReplicasChanged(worker_key))
