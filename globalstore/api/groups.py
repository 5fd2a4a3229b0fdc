"""The calls by which a group realizes a version together: begin, report, publish, wait."""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar, cast

import trio

from globalstore.api import version_sets
from globalstore.api.application import Application, Encoded
from globalstore.api.group_calls import group_call
from globalstore.config.kinds import GroupPublishAuthorityMode
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry import group_joins, group_reports, groups
from globalstore.registry.group_joins import Identity, Join, KeyReference, SetReference, Terms
from globalstore.registry.group_reports import Report
from globalstore.registry.groups import Group, Member, MemberState, State
from globalstore.rpc import Call
from globalstore.rules.groups import (
    TRANSACTION_PREFIX,
    VERSION_SET_PREFIX,
    Manifest,
    Selection,
    digest_of,
    same_for_all,
)
from globalstore.rules.refusals import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
)
from globalstore.rules.values import identifier, required, storable, uuid_bytes

R = TypeVar("R")

# Longest lifetime of a realization: a century, so that every deadline is a storable number.
_LIFETIME_MS_MAX = 100 * 366 * 86400 * 1000

# What is kept of a caller's own deadline so that the answer still reaches it in time.
_REPLY_MARGIN_S = 0.05

# Free text is kept as sent, up to here: the end of a long trace says little more.
_DETAIL_CHARACTERS_MAX = 4096

# Digests that clients send: several times the longest in use.
_HASH_BYTES_MAX = 1024

# Members that are made into messages before other calls get a turn: less than a millisecond.
_MEMBERS_PER_TURN = 50

# Selections of groups that come together are put into a manifest once; from this many parts on in
# a thread, which takes some 8 µs a part.
_MANIFESTS_KEPT = 16
_PARTS_AT_ONCE = 64

_ALIASES = frozenset({"", "current", "latest"})

_STATES: dict[State, wire.GroupRealizationState] = {
    State.PREPARING: wire.GROUP_REALIZATION_STATE_PREPARING,
    State.READY_TO_PUBLISH: wire.GROUP_REALIZATION_STATE_READY_TO_PUBLISH,
    State.PUBLISHED: wire.GROUP_REALIZATION_STATE_PUBLISHED,
    State.ABORTED: wire.GROUP_REALIZATION_STATE_ABORTED,
    State.EXPIRED: wire.GROUP_REALIZATION_STATE_EXPIRED,
}
_MEMBER_STATES: dict[MemberState, wire.GroupRealizationMemberState] = {
    MemberState.JOINED: wire.GROUP_REALIZATION_MEMBER_STATE_JOINED,
    MemberState.PREPARED: wire.GROUP_REALIZATION_MEMBER_STATE_PREPARED,
    MemberState.PUBLISHED: wire.GROUP_REALIZATION_MEMBER_STATE_PUBLISHED,
    MemberState.FAILED: wire.GROUP_REALIZATION_MEMBER_STATE_FAILED,
    MemberState.CANCELLED: wire.GROUP_REALIZATION_MEMBER_STATE_CANCELLED,
    MemberState.EXPIRED: wire.GROUP_REALIZATION_MEMBER_STATE_EXPIRED,
}
_WAITED = {
    state: Encoded(
        wire.WaitGroupRealizationPublishedResponse(
            status=wire.STATUS_OK
            if state is State.PUBLISHED
            else wire.STATUS_ERROR
            if state.is_final
            else wire.STATUS_TIMED_OUT,
            state=_STATES[state],
        )
    )
    for state in State
}


class GroupsFace:
    """The calls by which the members of a group come, report and learn of the end."""

    app: Application

    @group_call("begin")
    async def BeginOrJoinGroupRealization(  # noqa: N802
        self, input_message: wire.BeginOrJoinGroupRealizationRequest, request: Call
    ) -> wire.BeginOrJoinGroupRealizationResponse:
        """Enter the realization of a slot, which begins if nobody did before."""
        self.app.slots.release(request)
        policy = self.app.config.worker_policy.group_realization
        asked = await _join(input_message, policy.max_total_parts)
        terms = Terms(
            _lifetime_us(policy.default_deadline_ms),
            _lifetime_us(policy.transaction_ttl_ms),
            policy.max_active_transactions,
        )
        app = self.app
        joined = _told(
            await app.write(
                request,
                group_joins.begin_or_join,
                asked,
                terms,
                version_sets.of_artifact,
                app.wall_us(),
                app.lease_clock.now_us,
            )
        )
        group = joined.group
        return wire.BeginOrJoinGroupRealizationResponse(
            status=wire.STATUS_OK,
            transaction_id=group.transaction_id,
            version_set=version_sets.reference(group.version_set.manifest_hash),
            realization_kind=version_sets.KINDS[group.version_set.kind],
            part=version_sets.part_message(joined.part),
            state=_STATES[group.state],
            transaction_fingerprint=group.fingerprint,
            key_generation=group.key_generation or 0,
        )

    @group_call("report")
    async def ReportGroupRealizationPrepared(  # noqa: N802
        self, input_message: wire.ReportGroupRealizationPreparedRequest, request: Call
    ) -> wire.ReportGroupRealizationPreparedResponse:
        """Note that a part is prepared; the last one may publish the group."""
        asked, app = _report(input_message), self.app
        reported = _told(
            await app.write(
                request,
                group_reports.report,
                asked,
                not self._is_explicit,
                app.wall_us(),
                app.lease_clock.now_us,
            )
        )
        return wire.ReportGroupRealizationPreparedResponse(
            status=wire.STATUS_OK,
            state=_STATES[reported.state],
            member_state=_MEMBER_STATES[reported.member_state],
            member_fingerprint=reported.fingerprint,
        )

    @group_call("publish")
    async def PublishGroupRealization(  # noqa: N802
        self, input_message: wire.PublishGroupRealizationRequest, request: Call
    ) -> wire.PublishGroupRealizationResponse:
        """Publish a group that is ready."""
        transaction_id = required("transaction_id", input_message.transaction_id)
        if self._is_explicit:
            # What would allow it is a live operation lease; this server grants none yet.
            raise PermissionDenied(
                "authority: publishing needs a live operation lease of kind"
                f" group_realization_publish whose target is {transaction_id[:80]}"
            )
        fingerprint, app = _fingerprint(transaction_id), self.app
        group = _told(
            await app.write(
                request, groups.publish, fingerprint, app.wall_us(), app.lease_clock.now_us
            )
        )
        return wire.PublishGroupRealizationResponse(
            status=wire.STATUS_OK, state=_STATES[group.state]
        )

    @group_call("wait")
    async def WaitGroupRealizationPublished(  # noqa: N802
        self, input_message: wire.WaitGroupRealizationPublishedRequest, request: Call
    ) -> wire.WaitGroupRealizationPublishedResponse:
        """Wait until a realization has ended, or the caller's deadline passes."""
        fingerprint = _fingerprint(required("transaction_id", input_message.transaction_id))
        deadline_us = input_message.deadline_unix_nanos // 1000
        patience_s = min(
            (deadline_us - self.app.wall_us()) / 1_000_000,
            max(0.0, request.time_remaining - _REPLY_MARGIN_S),
        )
        self.app.slots.release(request)
        polls = self.app.metrics.groups.waiter_polls
        try:
            state = await self._wait(request, fingerprint, patience_s)
        except (NotFound, ResourceExhausted) as refused:
            polls.labels("not_found" if isinstance(refused, NotFound) else "rejected").inc()
            raise
        polls.labels(state.name.lower() if state.is_final else "timed_out").inc()
        return cast(wire.WaitGroupRealizationPublishedResponse, _WAITED[state])

    async def _wait(self, request: Call, fingerprint: bytes, patience_s: float) -> State:
        if patience_s <= 0:
            return await self._state(request, fingerprint)
        with self.app.group_waiters.waiting(fingerprint) as crowd:
            state = await self._state(request, fingerprint)
            if state.is_final:
                return state
            with request.only_waiting(), trio.move_on_after(patience_s):
                await crowd.ended.wait()
            if crowd.state is not None:
                return State(crowd.state)
            return await self._state(request, fingerprint)

    async def _state(self, request: Call, fingerprint: bytes) -> State:
        group = await self.app.read(groups.find, fingerprint)
        if group is None:
            raise NotFound(f"no group realization {TRANSACTION_PREFIX}{fingerprint.hex()}")
        if group.is_due(self.app.lease_clock.now_us()):
            group = await self._observe(request, fingerprint)
        return group.state

    async def _observe(self, request: Call, fingerprint: bytes) -> Group:
        app = self.app
        return _told(
            await app.write(
                request, groups.observe, fingerprint, app.wall_us(), app.lease_clock.now_us
            )
        )

    @group_call("abort")
    async def AbortGroupRealization(  # noqa: N802
        self, input_message: wire.AbortGroupRealizationRequest, request: Call
    ) -> wire.AbortGroupRealizationResponse:
        """End a realization without publishing it."""
        fingerprint = _fingerprint(required("transaction_id", input_message.transaction_id))
        code, app = identifier("failure_code", input_message.failure_code), self.app
        detail = input_message.failure_detail[:_DETAIL_CHARACTERS_MAX]
        group = _told(
            await app.write(
                request,
                groups.abort,
                fingerprint,
                code,
                detail,
                app.wall_us(),
                app.lease_clock.now_us,
            )
        )
        return wire.AbortGroupRealizationResponse(status=wire.STATUS_OK, state=_STATES[group.state])

    @group_call("get")
    async def GetGroupRealization(  # noqa: N802
        self, input_message: wire.GetGroupRealizationRequest, request: Call
    ) -> wire.GetGroupRealizationResponse:
        """Show a realization with its members."""
        transaction_id = required("transaction_id", input_message.transaction_id)
        fingerprint = digest_of(TRANSACTION_PREFIX, transaction_id)
        shown = None if fingerprint is None else await self.app.read(groups.show, fingerprint)
        if fingerprint is None or shown is None:
            return wire.GetGroupRealizationResponse(status=wire.STATUS_NOT_FOUND)
        group, members = shown
        if group.is_due(self.app.lease_clock.now_us()):
            group = await self._observe(request, fingerprint)
        response = _shown(group, members)
        response.publish_authority_mode = (
            "COORDINATOR_EXPLICIT" if self._is_explicit else "AUTO_WHEN_READY"
        )
        reasons = _reasons(group)
        for start in range(0, len(members), _MEMBERS_PER_TURN):
            response.members.extend(
                _member(group, member, reasons.get(member.part_id, ""))
                for member in members[start : start + _MEMBERS_PER_TURN]
            )
            await trio.lowlevel.checkpoint()
        return response

    @property
    def _is_explicit(self) -> bool:
        return (
            self.app.config.worker_policy.group_realization.publish_authority_mode
            is GroupPublishAuthorityMode.GROUP_PUBLISH_AUTHORITY_MODE_COORDINATOR_EXPLICIT
        )


def _told(outcome: R | Refusal) -> R:
    """Raise what an operation has refused with after keeping what it wrote."""
    if isinstance(outcome, Refusal):
        raise outcome
    return outcome


def _fingerprint(transaction_id: str) -> bytes:
    fingerprint = digest_of(TRANSACTION_PREFIX, transaction_id)
    if fingerprint is None:
        raise NotFound(f"no group realization {transaction_id[:80]!r}")
    return fingerprint


def _lifetime_us(milliseconds: int) -> int:
    return min(milliseconds, _LIFETIME_MS_MAX) * 1000


def _digest(field: str, value: bytes) -> bytes:
    if len(value) > _HASH_BYTES_MAX:
        raise InvalidArgument(f"{field} is longer than {_HASH_BYTES_MAX} bytes")
    return value


async def _join(message: wire.BeginOrJoinGroupRealizationRequest, parts_max: int) -> Join:
    context = message.context
    group_kind = required("context.group_kind", context.group_kind)
    group_id = required("context.group_id", context.group_id)
    part_id = required("context.part_id", context.part_id)
    required_ids = _required_part_ids(context, parts_max)
    if part_id not in required_ids:
        raise InvalidArgument(f"context.part_id {part_id[:80]!r} is none of the required_part_ids")
    return Join(
        group_kind=group_kind,
        group_id=group_id,
        epoch=storable("context.epoch", context.epoch),
        part_id=part_id,
        required_part_ids=required_ids,
        version=await _version(message.version, required_ids),
        fingerprint=_digest("transaction_fingerprint", message.transaction_fingerprint),
        deadline_unix_nanos=storable("deadline_unix_nanos", message.deadline_unix_nanos),
        identity=_identity(message),
    )


def _required_part_ids(context: wire.GroupRealizationContext, parts_max: int) -> list[str]:
    entries = context.required_part_ids
    if not entries:
        raise InvalidArgument("context.required_part_ids is required")
    if len(entries) > parts_max:
        raise InvalidArgument(
            f"context.required_part_ids has {len(entries)} entries, expected at most {parts_max}"
        )
    distinct = sorted({required("context.required_part_ids", entry) for entry in entries})
    if context.total_parts != len(distinct):
        raise InvalidArgument(
            f"context.total_parts is {context.total_parts}, but required_part_ids has"
            f" {len(distinct)} different ids"
        )
    return distinct


def _identity(
    message: wire.BeginOrJoinGroupRealizationRequest | wire.ReportGroupRealizationPreparedRequest,
) -> Identity:
    return Identity(
        identifier("daemon_id", message.daemon_id),
        identifier("daemon_session_id", message.daemon_session_id),
        identifier("worker_id", message.worker_id),
    )


async def _version(
    said: wire.VersionReference, required_ids: list[str]
) -> Manifest | SetReference | KeyReference:
    match said.WhichOneof("value"):
        case "explicit_selection":
            chosen = version_sets.selection("version.explicit_selection", said.explicit_selection)
            if len(required_ids) <= _PARTS_AT_ONCE:
                return _same_for_all(chosen, tuple(required_ids))
            return await trio.to_thread.run_sync(_same_for_all, chosen, tuple(required_ids))
        case "explicit_version_set":
            name = "version.explicit_version_set"
            said_set = said.explicit_version_set
            set_id = required(f"{name}.version_set_id", said_set.version_set_id)
            given = _digest(f"{name}.manifest_hash", said_set.manifest_hash)
            return SetReference(set_id, digest_of(VERSION_SET_PREFIX, set_id), given)
        case "key_reference":
            name = "version.key_reference"
            by_key = said.key_reference
            if by_key.alias.strip().lower() not in _ALIASES:
                raise InvalidArgument(
                    f"{name}.alias is {by_key.alias[:40]!r}, expected current or latest"
                )
            return KeyReference(
                required(f"{name}.key", by_key.key),
                identifier(f"{name}.namespace", by_key.namespace),
                by_key.expected_generation if by_key.HasField("expected_generation") else None,
            )
        case _:
            raise InvalidArgument("version is required")


@lru_cache(maxsize=_MANIFESTS_KEPT)
def _same_for_all(chosen: Selection, part_ids: tuple[str, ...]) -> Manifest:
    return same_for_all(chosen, part_ids)


def _report(message: wire.ReportGroupRealizationPreparedRequest) -> Report:
    transaction = _fingerprint(required("transaction_id", message.transaction_id))
    part_id = required("part_id", message.part_id)
    staged = message.staged_value
    binding_id = required("staged_value.binding_id", staged.binding_id)
    value_id = required("staged_value.binding_value_id", staged.binding_value_id)
    token = required("staged_value.staging_token", staged.staging_token)
    staged_daemon_id = identifier("staged_value.daemon_id", staged.daemon_id)
    staged_session_id = identifier("staged_value.daemon_session_id", staged.daemon_session_id)
    top = _identity(message)
    source_id = identifier("source_replica_id", message.source_replica_id)
    return Report(
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
        prepared_value_hash=_digest("prepared_value_hash", message.prepared_value_hash),
        fingerprint=_digest("member_fingerprint", message.member_fingerprint),
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


def _shown(group: Group, members: Iterable[Member]) -> wire.GetGroupRealizationResponse:
    there = {MemberState.PREPARED, MemberState.PUBLISHED}
    present = {
        member.part_id
        for member in members
        if group.member_state(is_prepared=member.is_prepared) in there
    }
    if group.state is State.PUBLISHED:
        present.update(group.required_part_ids)  # also when its members are forgotten
    return wire.GetGroupRealizationResponse(
        status=wire.STATUS_OK,
        transaction_id=group.transaction_id,
        version_set=version_sets.reference(group.version_set.manifest_hash),
        realization_kind=version_sets.KINDS[group.version_set.kind],
        state=_STATES[group.state],
        required_part_ids=group.required_part_ids,
        missing_part_ids=[part for part in group.required_part_ids if part not in present],
        group_kind=group.group_kind,
        group_id=group.group_id,
        epoch=group.epoch,
        total_parts=len(group.required_part_ids),
        prepared_count=group.count(MemberState.PREPARED),
        failed_count=group.count(MemberState.FAILED),
        published_count=group.count(MemberState.PUBLISHED),
        failure_code=group.failure_code,
        failure_detail=group.failure_detail,
        deadline_unix_nanos=group.deadline_unix_nanos,
    )


def _reasons(group: Group) -> dict[str, str]:
    """Return why the sources of parts were refused, by part."""
    if not group.is_fenced:
        return {}
    return {each["part_id"]: each["reason"] for each in json.loads(group.failure_detail)}


def _member(group: Group, member: Member, reason: str) -> wire.GroupRealizationMemberDiagnostic:
    state = group.member_state(is_prepared=member.is_prepared)
    shown = wire.GroupRealizationMemberDiagnostic(
        part_id=member.part_id,
        state=_MEMBER_STATES[state],
        daemon_id=member.daemon_id,
        daemon_session_id=member.daemon_session_id,
        worker_id=member.worker_id,
        materialization_attempt_id=member.materialization_attempt_id,
        source_replica_id=member.source_replica_id,
        source_export_generation=member.source_export_generation,
        child_transport_request_id=member.child_transport_request_id,
        failure_code=group.failure_code,
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
