"""PublishGroupRealization, WaitGroupRealizationPublished, AbortGroupRealization,
GetGroupRealization.
"""

import json
from collections.abc import Iterable
from typing import cast

import trio

from globalstore.api.bounds.fields import DETAIL_CHARACTERS_MAX
from globalstore.api.catalog import version_sets
from globalstore.api.catalog.realization_calls import (
    MEMBER_STATES,
    STATES,
    accepted,
    fingerprint_of,
    is_explicit,
    realization_call,
)
from globalstore.api.context import Handlers
from globalstore.api.encoding import Encoded
from globalstore.api.turns import in_turns
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import realization_rows, realizations
from globalstore.registry.catalog.realization_rows import (
    Member,
    MemberState,
    Realization,
    RealizationState,
)
from globalstore.rpc import Call
from globalstore.rules.realizations import TRANSACTION_PREFIX, digest_of
from globalstore.rules.refusals import NotFound, PermissionDenied, ResourceExhausted
from globalstore.rules.values import identifier, required

# Members that are made into messages before other calls get a turn: less than a millisecond.
_MEMBERS_PER_TURN = 50

_WAITED = {
    state: Encoded(
        wire.WaitGroupRealizationPublishedResponse(
            status=wire.STATUS_OK
            if state is RealizationState.PUBLISHED
            else wire.STATUS_ERROR
            if state.is_final
            else wire.STATUS_TIMED_OUT,
            state=STATES[state],
        )
    )
    for state in RealizationState
}


class RealizationHandlers(Handlers):
    """The calls by which a realization is published, aborted, waited for and shown."""

    @realization_call("publish")
    async def PublishGroupRealization(
        self, message: wire.PublishGroupRealizationRequest, request: Call
    ) -> wire.PublishGroupRealizationResponse:
        """Publish a realization that is ready."""
        transaction_id = required("transaction_id", message.transaction_id)
        if is_explicit(self.context):
            # What would allow it is a live operation lease; this server grants none yet.
            raise PermissionDenied(
                "authority: publishing needs a live operation lease of kind"
                f" group_realization_publish whose target is {transaction_id[:80]}"
            )
        fingerprint, context = fingerprint_of(transaction_id), self.context
        realization = accepted(
            await context.write(
                request,
                realizations.publish_realization,
                fingerprint,
                context.clock.wall_us(),
                context.clock.lease_us,
            )
        )
        return wire.PublishGroupRealizationResponse(
            status=wire.STATUS_OK, state=STATES[realization.state]
        )

    @realization_call("wait")
    async def WaitGroupRealizationPublished(
        self, message: wire.WaitGroupRealizationPublishedRequest, request: Call
    ) -> wire.WaitGroupRealizationPublishedResponse:
        """Wait until a realization has ended, or the caller's deadline passes."""
        fingerprint = fingerprint_of(required("transaction_id", message.transaction_id))
        deadline_us = message.deadline_unix_nanos // 1000
        wanted_s = (deadline_us - self.context.clock.wall_us()) / 1_000_000
        patience_s = self.context.patience_s(request, wanted_s)
        self.context.handler_slots.release(request)
        polls = self.context.metrics.realizations.waiter_polls
        try:
            state = await self._wait(request, fingerprint, patience_s)
        except (NotFound, ResourceExhausted) as refused:
            polls.labels("not_found" if isinstance(refused, NotFound) else "rejected").inc()
            raise
        polls.labels(state.name.lower() if state.is_final else "timed_out").inc()
        return cast(wire.WaitGroupRealizationPublishedResponse, _WAITED[state])

    async def _wait(self, request: Call, fingerprint: bytes, patience_s: float) -> RealizationState:
        if patience_s <= 0:
            return await self._state(request, fingerprint)
        with self.context.realization_waiters.waiting(fingerprint) as waiter:
            state = await self._state(request, fingerprint)
            if state.is_final:
                return state
            with self.context.waiting(request), trio.move_on_after(patience_s):
                await waiter.ended.wait()
            if waiter.state is not None:
                return RealizationState(waiter.state)
            return await self._state(request, fingerprint)

    async def _state(self, request: Call, fingerprint: bytes) -> RealizationState:
        realization = await self.context.read(realization_rows.find_realization, fingerprint)
        if realization is None:
            raise NotFound(f"no group realization {TRANSACTION_PREFIX}{fingerprint.hex()}")
        if realization.is_due(self.context.clock.lease_us()):
            realization = await self._observe(request, fingerprint)
        return realization.state

    async def _observe(self, request: Call, fingerprint: bytes) -> Realization:
        context = self.context
        return accepted(
            await context.write(
                request,
                realizations.observe,
                fingerprint,
                context.clock.wall_us(),
                context.clock.lease_us,
            )
        )

    @realization_call("abort")
    async def AbortGroupRealization(
        self, message: wire.AbortGroupRealizationRequest, request: Call
    ) -> wire.AbortGroupRealizationResponse:
        """End a realization without publishing it."""
        fingerprint = fingerprint_of(required("transaction_id", message.transaction_id))
        code, context = identifier("failure_code", message.failure_code), self.context
        detail = message.failure_detail[:DETAIL_CHARACTERS_MAX]
        realization = accepted(
            await context.write(
                request,
                realizations.abort,
                fingerprint,
                code,
                detail,
                context.clock.wall_us(),
                context.clock.lease_us,
            )
        )
        return wire.AbortGroupRealizationResponse(
            status=wire.STATUS_OK, state=STATES[realization.state]
        )

    @realization_call("get")
    async def GetGroupRealization(
        self, message: wire.GetGroupRealizationRequest, request: Call
    ) -> wire.GetGroupRealizationResponse:
        """Show a realization with its members."""
        transaction_id = required("transaction_id", message.transaction_id)
        fingerprint = digest_of(TRANSACTION_PREFIX, transaction_id)
        shown = (
            None
            if fingerprint is None
            else await self.context.read(realization_rows.show, fingerprint)
        )
        if fingerprint is None or shown is None:
            return wire.GetGroupRealizationResponse(status=wire.STATUS_NOT_FOUND)
        realization, members = shown
        if realization.is_due(self.context.clock.lease_us()):
            realization = await self._observe(request, fingerprint)
        response = _shown(realization, members)
        response.publish_authority_mode = (
            "COORDINATOR_EXPLICIT" if is_explicit(self.context) else "AUTO_WHEN_READY"
        )
        reasons = _reasons(realization)
        async for turn in in_turns(members, _MEMBERS_PER_TURN):
            response.members.extend(
                _member(realization, member, reasons.get(member.part_id, "")) for member in turn
            )
        self.context.list_room("let clients take more, or give members shorter ids").take(
            [response]
        )
        return response


def _shown(realization: Realization, members: Iterable[Member]) -> wire.GetGroupRealizationResponse:
    there = {MemberState.PREPARED, MemberState.PUBLISHED}
    present = {
        member.part_id
        for member in members
        if realization.member_state(is_prepared=member.is_prepared) in there
    }
    if realization.state is RealizationState.PUBLISHED:
        present.update(realization.required_part_ids)  # also when its members are forgotten
    return wire.GetGroupRealizationResponse(
        status=wire.STATUS_OK,
        transaction_id=realization.transaction_id,
        version_set=version_sets.reference(realization.version_set.manifest_hash),
        realization_kind=version_sets.KINDS[realization.version_set.kind],
        state=STATES[realization.state],
        required_part_ids=realization.required_part_ids,
        missing_part_ids=[part for part in realization.required_part_ids if part not in present],
        group_kind=realization.group_kind,
        group_id=realization.group_id,
        epoch=realization.epoch,
        total_parts=len(realization.required_part_ids),
        prepared_count=realization.count(MemberState.PREPARED)
        + realization.count(MemberState.PUBLISHED),
        failed_count=realization.count(MemberState.FAILED),
        published_count=realization.count(MemberState.PUBLISHED),
        failure_code=realization.failure_code,
        failure_detail=realization.failure_detail,
        deadline_unix_nanos=realization.deadline_unix_nanos,
    )


def _reasons(realization: Realization) -> dict[str, str]:
    """Return why the sources of parts were refused, by part."""
    if not realization.is_fenced:
        return {}
    return {each["part_id"]: each["reason"] for each in json.loads(realization.failure_detail)}


def _member(
    realization: Realization, member: Member, reason: str
) -> wire.GroupRealizationMemberDiagnostic:
    state = realization.member_state(is_prepared=member.is_prepared)
    shown = wire.GroupRealizationMemberDiagnostic(
        part_id=member.part_id,
        state=MEMBER_STATES[state],
        daemon_id=member.daemon_id,
        daemon_session_id=member.daemon_session_id,
        worker_id=member.worker_id,
        materialization_attempt_id=member.materialization_attempt_id,
        source_replica_id=member.source_replica_id,
        source_export_generation=member.source_export_generation,
        child_transport_request_id=member.child_transport_request_id,
        failure_code=realization.failure_code,
        failure_detail=reason,
        member_fingerprint=member.fingerprint,
    )
    if member.is_prepared:
        shown.staged_value.CopyFrom(
            wire.StagedBindingValueRef(
                daemon_id=member.staged_daemon_id,
                daemon_session_id=member.staged_session_id,
                binding_id=member.staged_binding_id,
                binding_value_id=member.staged_binding_value_id,
                staging_token=member.staging_token,
                staging_epoch=member.staging_epoch,
            )
        )
    return shown
