"""Realizations: their states, and how they end.

A realization ends in one row: what became of its members follows from that, so a thousand members
cost no more than two. A refusal is returned, not raised, where something has to be kept in spite of
it: that a deadline has passed, or that a source was not as reported.
"""

import enum
import json
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry.catalog.version_sets import VersionSet
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import (
    LeaseEnded,
    LeaseGranted,
    LeaseKind,
    LeasesExpired,
    RealizationEnded,
    RealizationRowsWritten,
)
from globalstore.rules.realizations import TRANSACTION_PREFIX, RealizationKind
from globalstore.rules.refusals import AlreadyExists, FailedPrecondition, NotFound, Refusal

# Reads the lease clock, in microseconds.

P = ParamSpec("P")
R = TypeVar("R")

# The failure that is shown of a realization that ended without a call.
EXPIRED_CODE = "deadline_exceeded"
FENCED_CODE = "source_visibility_stale"
ABORTED_CODE = "aborted"


class RealizationState(enum.IntEnum):
    """The state of a realization; the numbers of the wire."""

    PREPARING = 3
    READY_TO_PUBLISH = 4
    PUBLISHED = 5
    ABORTED = 6
    EXPIRED = 7

    @property
    def is_final(self) -> bool:
        """Whether no other state can follow."""
        return self >= RealizationState.PUBLISHED


class MemberState(enum.IntEnum):
    """The state of a part; the numbers of the wire."""

    JOINED = 1
    PREPARED = 3
    PUBLISHED = 4
    FAILED = 5
    CANCELLED = 6
    EXPIRED = 7


@attrs.frozen
class Realization:
    """A realization, without its members.

    ``key`` is blank and ``key_generation`` None when no key gave the version. ``is_fenced`` when it
    was aborted because a source was not as reported. ``deadline_us`` is of the lease clock, None
    for one that does not expire; ``deadline_unix_nanos`` is what is shown of it.
    """

    transaction_key: int
    fingerprint: bytes = attrs.field(repr=bytes.hex)
    group_kind: str
    group_id: str
    epoch: int
    version_set: VersionSet
    required_part_ids: list[str]
    namespace: str
    key: str
    key_generation: int | None
    state: RealizationState
    prepared_count: int
    is_fenced: bool
    failure_code: str
    failure_detail: str
    deadline_unix_nanos: int
    deadline_us: int | None

    @property
    def transaction_id(self) -> str:
        """The id by which clients name the realization."""
        return TRANSACTION_PREFIX + self.fingerprint.hex()

    def is_due(self, lease_us: int) -> bool:
        """Tell whether its deadline has passed and it has not ended yet."""
        return (
            not self.state.is_final
            and self.deadline_us is not None
            and self.deadline_us <= lease_us
        )

    def member_state(self, *, is_prepared: bool) -> MemberState:
        """Return the state of a part that has joined."""
        match self.state:
            case RealizationState.PUBLISHED:
                return MemberState.PUBLISHED
            case RealizationState.ABORTED:
                return MemberState.FAILED if self.is_fenced else MemberState.CANCELLED
            case RealizationState.EXPIRED:
                return MemberState.EXPIRED
        return MemberState.PREPARED if is_prepared else MemberState.JOINED

    def count(self, state: MemberState) -> int:
        """Return how many parts are PREPARED, FAILED or PUBLISHED."""
        is_theirs = self.member_state(is_prepared=True) is state
        return self.prepared_count if is_theirs else 0


@attrs.frozen
class Member:
    """A part that has joined. What it has reported is blank, or 0, until it ``is_prepared``."""

    part_id: str
    is_prepared: bool
    daemon_id: str
    daemon_session_id: str
    worker_id: str
    fingerprint: bytes
    staged_daemon_id: str
    staged_session_id: str
    staged_binding_id: str
    staged_binding_value_id: str
    staging_token: str
    staging_epoch: int
    materialization_attempt_id: str
    source_replica_id: str
    source_export_generation: int
    child_transport_request_id: str
    expected_previous_seal_generation: int
    prepared_value_hash: bytes


_REALIZATION = """
SELECT t.transaction_key, t.fingerprint, t.group_kind, t.group_id, t.epoch,
       v.version_set_key, v.manifest_hash, v.realization_kind, t.required_part_ids, t.namespace,
       t.key, t.key_generation, t.state, t.prepared_count, t.is_fenced, t.failure_code,
       t.failure_detail, t.deadline_unix_nanos, t.deadline
FROM group_transactions t JOIN version_sets v USING (version_set_key)
"""

_MEMBER = """
SELECT part_id, is_prepared, daemon_id, daemon_session_id, worker_id, fingerprint,
       staged_daemon_id, staged_session_id, staged_binding_id, staged_binding_value_id,
       staging_token, staging_epoch, materialization_attempt_id, source_replica_id,
       source_export_generation, child_transport_request_id, expected_previous_seal_generation,
       prepared_value_hash
FROM group_members
"""


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


def find_realization(tx: Snapshot, fingerprint: bytes) -> Realization | None:
    """Return a realization as it is stored, whether or not its deadline has passed."""
    row = tx.one(_REALIZATION + "WHERE t.fingerprint = ?", (fingerprint,))
    return None if row is None else _realization(row)


def find_by_realization_key(
    tx: Snapshot, group_kind: str, group_id: str, epoch: int
) -> Realization | None:
    """Return the realization with a realization key, as it is stored."""
    row = tx.one(
        _REALIZATION + "WHERE t.group_kind = :kind AND t.group_id = :id AND t.epoch = :epoch",
        {"kind": group_kind, "id": group_id, "epoch": epoch},
    )
    return None if row is None else _realization(row)


def _realization(row: Row) -> Realization:
    key, fingerprint, kind, id_, epoch, set_key, manifest, realization, required, *rest = row
    namespace, name, generation, state, prepared, fenced, *end = rest
    return Realization(
        key,
        fingerprint,
        kind,
        id_,
        epoch,
        VersionSet(set_key, manifest, RealizationKind(realization)),
        json.loads(required),
        namespace,
        name,
        generation,
        RealizationState(state),
        prepared,
        bool(fenced),
        *end,
    )


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


def member(tx: Snapshot, realization: Realization, part_id: str) -> Member | None:
    """Return a part that has joined, or None."""
    row = tx.one(
        _MEMBER + "WHERE transaction_key = :transaction AND part_id = :part",
        {"transaction": realization.transaction_key, "part": part_id},
    )
    return None if row is None else Member(*row)


def show(tx: Snapshot, fingerprint: bytes) -> tuple[Realization, list[Member]] | None:
    """Return a realization as it is stored, and its members in the order of their ids."""
    realization = find_realization(tx, fingerprint)
    if realization is None:
        return None
    rows = tx.all(
        _MEMBER + "WHERE transaction_key = ? ORDER BY part_id", (realization.transaction_key,)
    )
    return realization, [Member(*row) for row in rows]


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
    rows = tx.all(
        _REALIZATION + "WHERE t.transaction_key IN (SELECT value FROM json_each(:keys))"
        " AND t.ended_at IS NULL",
        {"keys": json.dumps(transaction_keys)},
    )
    ended, later = set(transaction_keys), []
    expired: list[str] = []
    for realization in map(_realization, rows):
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
