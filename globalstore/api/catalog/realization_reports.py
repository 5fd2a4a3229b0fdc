"""ReportGroupRealizationPrepared."""

from globalstore.api.catalog.realization_calls import (
    MEMBER_STATES,
    STATES,
    accepted,
    fingerprint_of,
    identity_of,
    is_explicit,
    realization_call,
)
from globalstore.api.context import Handlers
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import realization_reports
from globalstore.registry.catalog.realization_joins import Identity
from globalstore.registry.catalog.realization_reports import PreparedReport
from globalstore.rpc import Call
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import identifier, required, storable, uuid_bytes


class RealizationReportHandlers(Handlers):
    """The call by which a member tells that it is prepared."""

    @realization_call("report")
    async def ReportGroupRealizationPrepared(
        self, message: wire.ReportGroupRealizationPreparedRequest, request: Call
    ) -> wire.ReportGroupRealizationPreparedResponse:
        """Record that a part is prepared; the last one may publish the realization."""
        report, context = _report(message), self.context
        reported = accepted(
            await context.write(
                request,
                realization_reports.report_prepared,
                report,
                not is_explicit(self.context),
                context.clock.wall_us(),
                context.clock.lease_us,
            )
        )
        return wire.ReportGroupRealizationPreparedResponse(
            status=wire.STATUS_OK,
            state=STATES[reported.state],
            member_state=MEMBER_STATES[reported.member_state],
            member_fingerprint=reported.fingerprint,
        )


def _report(message: wire.ReportGroupRealizationPreparedRequest) -> PreparedReport:
    transaction = fingerprint_of(required("transaction_id", message.transaction_id))
    part_id = required("part_id", message.part_id)
    staged = message.staged_value
    binding_id = required("staged_value.binding_id", staged.binding_id)
    value_id = required("staged_value.binding_value_id", staged.binding_value_id)
    token = required("staged_value.staging_token", staged.staging_token)
    staged_daemon_id = identifier("staged_value.daemon_id", staged.daemon_id)
    staged_session_id = identifier("staged_value.daemon_session_id", staged.daemon_session_id)
    top = identity_of(message)
    source_id = identifier("source_replica_id", message.source_replica_id)
    return PreparedReport(
        transaction=transaction,
        part_id=part_id,
        identity=Identity(
            _agreed("daemon_id", top.daemon_id, staged_daemon_id),
            _agreed("daemon_session_id", top.daemon_session_id, staged_session_id),
            top.worker_id,
        ),
        staged_daemon_id=staged_daemon_id,
        staged_session_id=staged_session_id,
        staged_binding_id=binding_id,
        staged_binding_value_id=value_id,
        staging_token=token,
        staging_epoch=storable("staged_value.staging_epoch", staged.staging_epoch),
        materialization_attempt_id=identifier(
            "materialization_attempt_id", message.materialization_attempt_id
        ),
        source_replica_id=source_id,
        source_replica=_uuid(source_id),
        source_export_generation=storable(
            "source_export_generation", message.source_export_generation
        ),
        child_transport_request_id=identifier(
            "child_transport_request_id", message.child_transport_request_id
        ),
        expected_previous_seal_generation=storable(
            "expected_previous_seal_generation", message.expected_previous_seal_generation
        ),
        prepared_value_hash=message.prepared_value_hash,
        fingerprint=message.member_fingerprint,
    )


def _agreed(field: str, top: str, staged: str) -> str:
    if top and staged and top != staged:
        raise InvalidArgument(f"{field} differs from staged_value.{field}")
    return top or staged


def _uuid(text: str) -> bytes | None:
    """Return the bytes of a replica id; None for a text that no replica has."""
    try:
        return uuid_bytes("source_replica_id", text)
    except InvalidArgument:
        return None
