"""Realizations: how they end.

A realization ends in one row: what became of its members follows from that, so a thousand members
cost no more than two. A refusal is returned, not raised, where something has to be kept in spite of
it: that a deadline has passed, or that a source was not as reported.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry.catalog.realization_rows import (
    Realization,
    RealizationState,
    find_open_realizations,
    find_realization,
)
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import (
    LeaseEnded,
    LeaseGranted,
    LeaseKind,
    LeasesExpired,
    RealizationEnded,
    RealizationRowsWritten,
)
from globalstore.rules.realizations import TRANSACTION_PREFIX
from globalstore.rules.refusals import AlreadyExists, FailedPrecondition, NotFound, Refusal

P = ParamSpec("P")
R = TypeVar("R")

# The failure that is shown of a realization that ended without a call.
EXPIRED_CODE = "deadline_exceeded"
FENCED_CODE = "source_visibility_stale"
ABORTED_CODE = "aborted"


def keeping(
    operation: Callable[Concatenate[Transaction, P], R],
) -> Callable[Concatenate[Transaction, P], R | Refusal]:
    """Let an operation return its refusal, so that what it wrote before is kept."""

    @wraps(operation)
    def run(tx: Transaction, /, *args: P.args, **kwargs: P.kwargs) -> R | Refusal:
        try:
            return operation(tx, *args, **kwargs)
        except Refusal as refused:
            return refused

    return run


def present(tx: Transaction, fingerprint: bytes, now_us: int, lease_us: int) -> Realization:
    """Return a realization after applying its deadline. Raises NotFound for an unknown one."""
    realization = find_realization(tx, fingerprint)
    if realization is None:
        raise NotFound(f"no group realization {TRANSACTION_PREFIX}{fingerprint.hex()}")
    return observed(tx, realization, now_us, lease_us)


def observed(tx: Transaction, realization: Realization, now_us: int, lease_us: int) -> Realization:
    """Return a realization as it is now: expired, if its deadline has passed."""
    if not realization.is_due(lease_us):
        return realization
    return end_realization(
        tx, realization, RealizationState.EXPIRED, now_us, "expire", EXPIRED_CODE
    )


@keeping
def observe(tx: Transaction, fingerprint: bytes, now_us: int, clock: LeaseNow) -> Realization:
    """Return a realization after applying its deadline. Refuses with NotFound."""
    return present(tx, fingerprint, now_us, clock())


@keeping
def abort(
    tx: Transaction, fingerprint: bytes, code: str, detail: str, now_us: int, clock: LeaseNow
) -> Realization:
    """End a realization without publishing it; one that failed before keeps its first failure.

    Refuses with NotFound, and with FailedPrecondition for one that is published.
    """
    realization = present(tx, fingerprint, now_us, clock())
    if realization.state is RealizationState.PUBLISHED:
        raise FailedPrecondition(f"{realization.transaction_id} is published already")
    if realization.state.is_final:
        return realization
    return end_realization(
        tx, realization, RealizationState.ABORTED, now_us, "abort", code or ABORTED_CODE, detail
    )


@keeping
def publish_realization(
    tx: Transaction, fingerprint: bytes, now_us: int, clock: LeaseNow
) -> Realization:
    """Publish a realization that is ready, if every source is still as it was reported.

    Refuses with NotFound, with FailedPrecondition for one that is not ready or has ended
    otherwise, and with AlreadyExists after aborting one whose sources are not as reported.
    """
    realization = present(tx, fingerprint, now_us, clock())
    if realization.state is RealizationState.PUBLISHED:
        return realization
    if realization.state.is_final:
        raise ended_otherwise(realization)
    if realization.state is not RealizationState.READY_TO_PUBLISH:
        raise FailedPrecondition(
            f"{realization.transaction_id} is not ready: {realization.prepared_count} of"
            f" {len(realization.required_part_ids)} parts are prepared"
        )
    return publish_ready(tx, realization, now_us, "publish")


def publish_ready(
    tx: Transaction, realization: Realization, now_us: int, operation: str
) -> Realization:
    """Publish a realization whose parts are all prepared, or abort it and raise AlreadyExists."""
    stale = _stale_sources(tx, realization, now_us)
    if not stale:
        return end_realization(tx, realization, RealizationState.PUBLISHED, now_us, operation)
    detail = json.dumps(
        [{"part_id": part_id, "reason": reason} for part_id, reason in stale],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    end_realization(
        tx,
        realization,
        RealizationState.ABORTED,
        now_us,
        operation,
        FENCED_CODE,
        detail,
        is_fenced=True,
    )
    raise AlreadyExists(f"{realization.transaction_id} is aborted: {FENCED_CODE} {detail}")


def ended_otherwise(realization: Realization) -> FailedPrecondition:
    """Say that a realization has failed, and why."""
    return FailedPrecondition(
        f"{realization.transaction_id} is {realization.state.name}:"
        f" {realization.failure_code}; use a new epoch"
    )


_SOURCES = """
SELECT part_id, reason FROM (
    SELECT m.part_id,
           CASE WHEN r.seq IS NULL THEN 'source_replica_not_found'
                WHEN r.is_available = 0 OR r.confirmation != i.confirmation
                     OR r.expires_at <= :now THEN 'source_replica_unavailable'
                WHEN r.export_state != 2 THEN 'source_replica_not_exportable'
                WHEN r.export_generation != m.source_export_generation
                    THEN 'source_export_generation_mismatch'
           END AS reason
    FROM group_members m
         LEFT JOIN held_replicas r ON r.replica_id = m.source_replica
         LEFT JOIN worker_ids i ON i.worker_key = r.worker_key
    WHERE m.transaction_key = :transaction AND m.source_replica_id != ''
) AS sources WHERE reason IS NOT NULL ORDER BY part_id
"""


def _stale_sources(tx: Snapshot, realization: Realization, now_us: int) -> list[Row]:
    """Return each part whose source is not as it was reported, and why."""
    return tx.all(_SOURCES, {"transaction": realization.transaction_key, "now": now_us})


def end_realization(
    tx: Transaction,
    realization: Realization,
    state: RealizationState,
    now_us: int,
    operation: str,
    failure_code: str = "",
    failure_detail: str = "",
    *,
    is_fenced: bool = False,
) -> Realization:
    """Bring a realization to its final state; ``operation`` is what ended it, for the metrics."""
    tx.run(
        "UPDATE group_transactions SET state = :state, is_fenced = :is_fenced,"
        " failure_code = :code, failure_detail = :detail, ended_at = :now"
        " WHERE transaction_key = :transaction",
        {
            "state": int(state),
            "is_fenced": is_fenced,
            "code": failure_code,
            "detail": failure_detail,
            "now": now_us,
            "transaction": realization.transaction_key,
        },
    )
    tx.emit(RealizationEnded(realization.fingerprint, int(state)))
    tx.emit(LeaseEnded(LeaseKind.REALIZATION, realization.transaction_key))
    tx.emit(RealizationRowsWritten(operation, "group_transactions", 1))
    return attrs.evolve(
        realization,
        state=state,
        is_fenced=is_fenced,
        failure_code=failure_code,
        failure_detail=failure_detail,
    )


def expire_realizations(
    tx: Transaction, transaction_keys: list[int], now_us: int, clock: LeaseNow
) -> list[str]:
    """Look what became of realizations that were to expire by now; return ids of those that did."""
    lease_us = clock()
    ended, later = set(transaction_keys), []
    expired: list[str] = []
    for realization in find_open_realizations(tx, transaction_keys):
        if realization.is_due(lease_us):
            observed(tx, realization, now_us, lease_us)
            expired.append(realization.transaction_id)
        elif realization.deadline_us is not None:
            ended.discard(realization.transaction_key)
            later.append((realization.transaction_key, realization.deadline_us))
    tx.emit(LeasesExpired(LeaseKind.REALIZATION, sorted(ended), later))
    return expired


def restore_realizations(tx: Transaction, lease_us: int) -> list[tuple[int, int]]:
    """Return key and deadline of all that have not ended, none later than it was at the start.

    Without that bound a wall clock that starts in the past would keep them for as long.
    """
    tx.run(
        "UPDATE group_transactions SET deadline = :now + lifetime"
        " WHERE ended_at IS NULL AND deadline > :now + lifetime",
        {"now": lease_us},
    )
    return [
        (key, deadline)
        for key, deadline in tx.all(
            "SELECT transaction_key, deadline FROM group_transactions"
            " WHERE ended_at IS NULL AND deadline IS NOT NULL"
        )
    ]


def live_count(tx: Snapshot, lease_us: int) -> int:
    """Return how many realizations have neither ended nor passed their deadline."""
    row = tx.one(
        "SELECT (SELECT count(*) FROM group_transactions"
        "        WHERE ended_at IS NULL AND deadline > :now)"
        " + (SELECT count(*) FROM group_transactions WHERE ended_at IS NULL AND deadline IS NULL)",
        {"now": lease_us},
    )
    assert row is not None
    count: int = row[0]
    return count


def purge_members(tx: Transaction, before_us: int, limit: int) -> int:
    """Forget up to ``limit`` members of realizations that ended before a time; return how many.

    The realizations themselves stay: no realization key is used twice.
    """
    deleted = 0
    while deleted < limit:
        row = tx.one(
            "SELECT transaction_key FROM group_transactions"
            " WHERE ended_at < :before AND has_members"
            " ORDER BY ended_at, transaction_key LIMIT 1",
            {"before": before_us},
        )
        if row is None:
            break
        left = limit - deleted
        gone = tx.run(
            "DELETE FROM group_members WHERE transaction_key = :key AND part_id IN (SELECT part_id"
            " FROM group_members WHERE transaction_key = :key ORDER BY part_id LIMIT :left)",
            {"key": row[0], "left": left},
        )
        deleted += gone
        if gone < left:
            tx.run("UPDATE group_transactions SET has_members = 0 WHERE transaction_key = ?", row)
            deleted += 1
    if deleted:
        tx.emit(RealizationRowsWritten("forget", "group_members", deleted))
    return deleted


def granted(realization: Realization) -> LeaseGranted | None:
    """Return the event by which a realization that begins is ended at its deadline."""
    if realization.deadline_us is None:
        return None
    return LeaseGranted(LeaseKind.REALIZATION, realization.transaction_key, realization.deadline_us)
