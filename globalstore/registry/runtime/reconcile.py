"""Reconciliation: making a worker's rows agree with its inventory, and moving its cursor."""

import attrs

from globalstore.db import Ready, Snapshot, Transaction
from globalstore.registry.runtime import inventories
from globalstore.registry.runtime.inventories import Differences, ReportedReplica
from globalstore.registry.runtime.inventory_writes import (
    Changes,
    Claim,
    Slice,
    claimed_incarnation,
    steps,
)
from globalstore.registry.signals import WorkerReconciled, WorkerReplicasChanged

# Rows of the worker, or entries of its inventory, above which a reconcile is compared on a reader
# and written in slices: up to here it takes the writer some 20 ms and is one transaction.
WHOLE_MAX = 1000


@attrs.frozen
class Acceptance:
    """What becomes known of an inventory when it is accepted; see ``WorkerReconciled``."""

    changed: bool
    complete: bool
    fingerprint: int | None
    compared_at: int | None = None


@attrs.frozen
class Accepted:
    """A reconcile that was carried out; ``differences`` has what was kept and listed twice."""

    changes: Changes
    differences: Differences

    def agreeing(self, fingerprint: int) -> int | None:
        """Return the fingerprint of the inventory if all rows are as it says, else None."""
        return None if self.differences.kept or self.changes.foreign else fingerprint


def is_small(tx: Snapshot, worker_key: int) -> bool:
    """Tell whether a worker's rows are few and short enough to be compared in one transaction."""
    row = tx.one(
        "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT length(transfer_json) AS size"
        " FROM replicas WHERE worker_key = :key LIMIT :limit)",
        {"key": worker_key, "limit": WHOLE_MAX + 1},
    )
    assert row is not None
    count, size = row
    return bool(count <= WHOLE_MAX and size < inventories.READ_BYTES_MAX)


def whole(
    tx: Transaction,
    claim: Claim,
    fingerprint: int,
    reported: list[ReportedReplica],
    taken_us: int | None,
    live: frozenset[int],
    now_us: int,
) -> Accepted | None:
    """Carry out a small reconcile; None when the claim does not hold.

    ``fingerprint`` is the inventory's and ``taken_us`` when it was begun; ``live`` are the keys of
    the live workers, whose replicas are never taken over.
    """
    worker = claimed_incarnation(tx, claim)
    if worker is None:
        return None
    differences = Differences(worker, taken_us)
    differences.expect(reported)
    after, is_last = (0, 0), False
    while not is_last:
        rows, is_last = inventories.rows(tx, claim.worker_key, after, WHOLE_MAX)
        differences.compare(rows)
        after = rows[-1].position if rows else after
    number = differences.confirmation()
    slice_ = Slice(claim, worker, number, live, now_us)
    changes = Changes()
    for step in steps(differences, slice_, WHOLE_MAX):
        changes.extend(step.result if isinstance(step, Ready) else step(tx))
    accepted = Accepted(changes, differences)
    _accept(tx, claim, number, Acceptance(len(changes) > 0, True, accepted.agreeing(fingerprint)))
    return accepted


def accept_inventory(
    tx: Transaction, claim: Claim, number: int | None, acceptance: Acceptance
) -> bool:
    """Move the cursor of a reconcile whose rows are written, or that changes none.

    ``number`` is the confirmation number from now on, None to leave it. False when the claim does
    not hold.
    """
    worker = claimed_incarnation(tx, claim)
    if worker is None:
        return False
    if number is not None and number != worker.confirmation:
        # Whatever was registered while the slices were being written.
        tx.run(
            "UPDATE replicas SET confirmation = :number WHERE worker_key = :worker_key"
            " AND confirmation = :present",
            {
                "number": number,
                "worker_key": claim.worker_key,
                "present": worker.confirmation,
            },
        )
    _accept(tx, claim, number, acceptance)
    return True


def _accept(tx: Transaction, claim: Claim, number: int | None, acceptance: Acceptance) -> None:
    row = tx.one(
        "UPDATE worker_cursors SET request_seq = :request_seq,"
        " state_version = state_version + :changed,"
        " needs_reconcile = iif(:complete, 0, needs_reconcile),"
        " confirmed_generation = iif(:complete, generation, confirmed_generation)"
        " WHERE worker_key = :worker_key RETURNING state_version",
        attrs.asdict(claim) | {"changed": acceptance.changed, "complete": acceptance.complete},
    )
    assert row is not None
    if number is not None:
        tx.run(
            "UPDATE worker_ids SET confirmation = :number WHERE worker_key = :worker_key",
            {"number": number, "worker_key": claim.worker_key},
        )
    if acceptance.changed:
        tx.emit(WorkerReplicasChanged(claim.worker_key))
    tx.emit(
        WorkerReconciled(claim.worker_key, claim.request_seq, row[0], **attrs.asdict(acceptance))
    )
