"""The ends of transports: completed, expired, or with the loss of a worker."""

import enum

from globalstore.db import Snapshot, Transaction
from globalstore.registry.signals import TransportEnded, TransportsForgotten
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.refusals import InvalidArgument


class Outcome(enum.IntEnum):
    """The state of a transport. The numbers of the ends are the wire's."""

    IN_PROGRESS = 0
    SUCCESS = 1
    FAILED = 2
    EXPIRED = 3
    CANCELLED = 4


def complete(
    tx: Transaction, transport_id: bytes, outcome: Outcome, detail: str, now_us: int
) -> bool:
    """End a transport and free its slot; False when there is none of this id.

    The first end stays: a later one changes nothing and is no error.
    """
    if end_transport(tx, transport_id, outcome, detail, now_us):
        return True
    return _known(tx, transport_id)


def withdraw_transport(tx: Transaction, transport_id: bytes, now_us: int) -> bool:
    """End a transport whose requester was not told of it; False if it has ended already."""
    return end_transport(tx, transport_id, Outcome.CANCELLED, "requester_gone", now_us)


def _known(tx: Snapshot, transport_id: bytes) -> bool:
    found = tx.one("SELECT 1 FROM transports WHERE transport_id = :id", {"id": transport_id})
    return found is not None


def end_transport(
    tx: Transaction, transport_id: bytes, outcome: Outcome, detail: str, now_us: int
) -> bool:
    """End a transport; False if it is not in progress. No slot is given back anywhere else."""
    row = tx.one(
        "UPDATE transports SET outcome = :outcome, outcome_detail = :detail, completed_at = :now"
        " WHERE transport_id = :transport_id AND outcome = 0"
        " RETURNING transport_key, replica_id, artifact_key, view_id, group_kind, group_id,"
        " group_epoch",
        {"transport_id": transport_id, "outcome": outcome, "detail": detail, "now": now_us},
    )
    if row is None:
        return False
    transport_key, replica_id, artifact_key, view_id, *group = row
    source = tx.one(
        "UPDATE replicas SET current_requests = current_requests - 1 WHERE replica_id = :id"
        " RETURNING seq, current_requests, worker_key",
        {"id": replica_id},
    )
    seq, load, worker_key = source or (None, None, None)
    if (load, worker_key) == (0, NOBODY):
        tx.run("DELETE FROM replicas WHERE seq = ?", (seq,))
    name = tx.one("SELECT artifact_id FROM artifacts WHERE artifact_key = ?", (artifact_key,))
    assert name is not None
    tx.emit(
        TransportEnded(
            transport_key,
            (name[0], view_id),
            None if group[1] is None else tuple(group),
            outcome == Outcome.SUCCESS,
            seq,
            load,
            worker_key,
            now_us,
        )
    )
    return True


def expire_transports(tx: Transaction, transport_keys: list[int], detail: str, now_us: int) -> int:
    """End transports that were in progress for too long; return how many still were."""
    ended = 0
    for key in transport_keys:
        row = tx.one(
            "SELECT transport_id, created_at FROM transports"
            " WHERE transport_key = :key AND outcome = 0",
            {"key": key},
        )
        if row is not None:
            age_s = max(0, now_us - row[1]) // 1_000_000
            ended += end_transport(tx, row[0], Outcome.EXPIRED, f"{detail} after {age_s} s", now_us)
    return ended


def end_of_worker(tx: Transaction, worker_key: int, worker_id: str, now_us: int) -> None:
    """End the transports that a lost worker served or had requested."""
    served = tx.all(
        "SELECT transport_id FROM transports WHERE source_worker_key = :key AND outcome = 0",
        {"key": worker_key},
    )
    for (transport_id,) in served:
        end_transport(tx, transport_id, Outcome.EXPIRED, f"source_worker_lost {worker_id}", now_us)
    requested = tx.all(
        "SELECT transport_id FROM transports WHERE requester_worker_id = :id AND outcome = 0",
        {"id": worker_id},
    )
    for (transport_id,) in requested:
        end_transport(
            tx, transport_id, Outcome.EXPIRED, f"requester_worker_lost {worker_id}", now_us
        )


def in_progress(tx: Snapshot) -> list[tuple[int, int]]:
    """Return key and creation time (µs) of every transport in progress."""
    return [
        (key, created_at)
        for key, created_at in tx.all(
            "SELECT transport_key, created_at FROM transports WHERE outcome = 0"
        )
    ]


def purge_transports(tx: Transaction, before_us: int, limit: int) -> int:
    """Delete up to ``limit`` transports that ended before a time; return how many."""
    deleted = tx.run(
        "DELETE FROM transports WHERE transport_key IN (SELECT transport_key FROM transports"
        " WHERE outcome > 0 AND completed_at < :before"
        " ORDER BY completed_at, transport_key LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )
    if deleted:
        tx.emit(TransportsForgotten())
    return deleted


def outcome_of(number: int) -> Outcome:
    """Return the end that a completion names; refuses one that is not explicit."""
    if number not in {Outcome.SUCCESS, Outcome.FAILED, Outcome.EXPIRED, Outcome.CANCELLED}:
        raise InvalidArgument(
            f"outcome is {number}, expected an explicit outcome:"
            " SUCCESS, FAILED, EXPIRED or CANCELLED"
        )
    return Outcome(number)
