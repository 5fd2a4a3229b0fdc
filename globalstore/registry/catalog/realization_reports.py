"""Reports that a part of a realization is prepared."""

import attrs

from globalstore.db import Transaction
from globalstore.registry.catalog import realization_rows, realizations, version_sets
from globalstore.registry.catalog.realization_joins import Identity
from globalstore.registry.catalog.realization_rows import (
    Member,
    MemberState,
    Realization,
    RealizationState,
)
from globalstore.registry.catalog.realizations import keeping
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import RealizationRowsWritten
from globalstore.rules.realizations import member_fingerprint
from globalstore.rules.refusals import AlreadyExists, NotFound


@attrs.frozen
class PreparedReport:
    """A checked ReportGroupRealizationPrepared request.

    ``transaction`` is the fingerprint of the realization. ``identity`` is the reporting process.
    ``source_replica`` are the bytes of ``source_replica_id``, None for an id that no replica can
    have. ``fingerprint`` is empty when the caller does not know it.
    """

    transaction: bytes = attrs.field(repr=bytes.hex)
    part_id: str
    identity: Identity
    staged_daemon_id: str
    staged_session_id: str
    staged_binding_id: str
    staged_binding_value_id: str
    staging_token: str
    staging_epoch: int
    materialization_attempt_id: str
    source_replica_id: str
    source_replica: bytes | None
    source_export_generation: int
    child_transport_request_id: str
    expected_previous_seal_generation: int
    prepared_value_hash: bytes
    fingerprint: bytes


@attrs.frozen
class ReportOutcome:
    """The state of a realization and of a part of it after a report."""

    state: RealizationState
    member_state: MemberState
    fingerprint: bytes = attrs.field(repr=bytes.hex)


# The fields of a report that its fingerprint covers.
_COVERED = (
    "part_id",
    "materialization_attempt_id",
    "staged_binding_id",
    "staged_binding_value_id",
    "staging_token",
    "staging_epoch",
    "source_replica_id",
    "source_export_generation",
    "child_transport_request_id",
)


@keeping
def report_prepared(
    tx: Transaction, report: PreparedReport, publishes_itself: bool, now_us: int, clock: LeaseNow
) -> ReportOutcome:
    """Record that a part is prepared; the last one makes the realization ready, or publishes it.

    Refuses with NotFound for an unknown realization or part, with FailedPrecondition when it has
    failed, with AlreadyExists for another report of the same part or one of another process, and
    also after aborting a realization whose sources are not as reported.
    """
    realization = realizations.present(tx, report.transaction, now_us, clock())
    member = realization_rows.member(tx, realization, report.part_id)
    if member is None:
        raise NotFound(f"part {report.part_id[:80]!r} has not joined {realization.transaction_id}")
    if realization.state in {RealizationState.ABORTED, RealizationState.EXPIRED}:
        raise realizations.ended_otherwise(realization)
    fingerprint = _fingerprint(tx, realization, report)
    _check_reporter(member, report.identity)
    if report.fingerprint and report.fingerprint != fingerprint:
        raise AlreadyExists(
            f"member_fingerprint is {report.fingerprint.hex()[:64]}, but that of this report is"
            f" {fingerprint.hex()}"
        )
    if member.is_prepared:
        _check_repeat(member, report, fingerprint)
    else:
        realization = _prepare(
            tx, realization, member, report, fingerprint, now_us, publishes_itself
        )
    return ReportOutcome(realization.state, realization.member_state(is_prepared=True), fingerprint)


def _fingerprint(tx: Transaction, realization: Realization, report: PreparedReport) -> bytes:
    [part] = version_sets.parts(tx, realization.version_set, [report.part_id])
    return member_fingerprint(
        realization.transaction_id,
        realization.version_set.version_set_id,
        part.selection.selection_hash,
        {name: getattr(report, name) for name in _COVERED} | attrs.asdict(report.identity),
    )


def _check_reporter(member: Member, identity: Identity) -> None:
    for field, reported in attrs.asdict(identity).items():
        joined = getattr(member, field)
        if joined and reported and joined != reported:
            raise AlreadyExists(
                f"part {member.part_id[:80]!r} has been joined by another {field}: {joined[:80]!r}"
            )


def _check_repeat(member: Member, report: PreparedReport, fingerprint: bytes) -> None:
    if member.fingerprint != fingerprint:
        raise AlreadyExists(f"part {member.part_id[:80]!r} has reported another value already")
    for field in ("prepared_value_hash", "expected_previous_seal_generation"):
        if getattr(member, field) != getattr(report, field):
            raise AlreadyExists(f"part {member.part_id[:80]!r} has reported another {field}")


def _prepare(
    tx: Transaction,
    realization: Realization,
    member: Member,
    report: PreparedReport,
    fingerprint: bytes,
    now_us: int,
    publishes_itself: bool,
) -> Realization:
    prepared = realization.prepared_count + 1
    complete = prepared == len(realization.required_part_ids)
    state = RealizationState.READY_TO_PUBLISH if complete else realization.state
    identity_fields = {
        field: value or getattr(member, field)
        for field, value in attrs.asdict(report.identity).items()
    }
    tx.run(
        "UPDATE group_members SET is_prepared = 1, daemon_id = :daemon_id,"
        " daemon_session_id = :daemon_session_id, worker_id = :worker_id,"
        " fingerprint = :fingerprint, staged_daemon_id = :staged_daemon_id,"
        " staged_session_id = :staged_session_id, staged_binding_id = :staged_binding_id,"
        " staged_binding_value_id = :staged_binding_value_id, staging_token = :staging_token,"
        " staging_epoch = :staging_epoch,"
        " materialization_attempt_id = :materialization_attempt_id,"
        " source_replica_id = :source_replica_id, source_replica = :source_replica,"
        " source_export_generation = :source_export_generation,"
        " child_transport_request_id = :child_transport_request_id,"
        " expected_previous_seal_generation = :expected_previous_seal_generation,"
        " prepared_value_hash = :prepared_value_hash"
        " WHERE transaction_key = :transaction_key AND part_id = :part_id",
        attrs.asdict(report, filter=lambda field, _: field.name not in {"identity", "transaction"})
        | identity_fields
        | {"fingerprint": fingerprint, "transaction_key": realization.transaction_key},
    )
    tx.run(
        "UPDATE group_transactions SET prepared_count = :prepared, state = :state"
        " WHERE transaction_key = :transaction_key",
        {"prepared": prepared, "state": int(state), "transaction_key": realization.transaction_key},
    )
    tx.emit(RealizationRowsWritten("report", "group_members", 1))
    tx.emit(RealizationRowsWritten("report", "group_transactions", 1))
    realization = attrs.evolve(realization, prepared_count=prepared, state=state)
    if complete and publishes_itself:
        return realizations.publish_ready(tx, realization, now_us, "report")
    return realization
