"""RequestReplicaTransport, CompleteReplicaTransport."""

import math

import attrs
import trio
from google.protobuf.duration_pb2 import Duration

from globalstore.api.bounds.fields import DETAIL_CHARACTERS_MAX
from globalstore.api.context import Handlers
from globalstore.api.runtime import memory_info
from globalstore.db import Lane
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.new_ids import new_id
from globalstore.registry.runtime import transport_ends
from globalstore.registry.runtime.transports import (
    Answer,
    Granted,
    Miss,
    RequestGroup,
    RequestRefused,
    TransportRequest,
)
from globalstore.rpc import Call
from globalstore.rules.artifact_ids import looked_up
from globalstore.rules.fingerprints import transport_request
from globalstore.rules.refusals import InvalidArgument, Unavailable
from globalstore.rules.values import existing, identifier, required, storable, uuid_bytes, uuid_text
from globalstore.scheduling.waiters import Withdrawn
from globalstore.telemetry.labels import OTHER

_STATUSES = {
    Miss.NO_REPLICA: wire.STATUS_NOT_FOUND,
    Miss.NO_SOURCE: wire.STATUS_NOT_FOUND,
    Withdrawn.TIMED_OUT: wire.STATUS_TIMED_OUT,
    Withdrawn.TOO_MANY: wire.STATUS_TOO_MANY_REQUESTS,
}

# The same for the metric.
_OUTCOMES = {
    Miss.NO_REPLICA: "not_found",
    Miss.NO_SOURCE: "not_found",
    Withdrawn.TIMED_OUT: "timeout",
    Withdrawn.TOO_MANY: "rejected",
    Withdrawn.STOPPING: "error",
}


class TransportHandlers(Handlers):
    """The calls by which a requester gets a source and reports how the transfer went."""

    async def RequestReplicaTransport(
        self, message: wire.RequestReplicaTransportRequest, request: Call
    ) -> wire.RequestReplicaTransportResponse:
        """Grant a source of an artifact, waiting for one if the caller likes."""
        claim = _request(message)
        wanted_s = _seconds(message.wait_timeout_dur)
        patience_s = self.context.patience_s(request, wanted_s)
        began = trio.current_time()
        if patience_s > 0:
            with self.context.waiting(request):
                answer = await self.context.queues.request(claim, patience_s, request)
        else:
            self.context.handler_slots.release(request)
            answer = await self.context.queues.request(claim, 0, request, is_patient=wanted_s > 0)
        self._count(claim.artifact_id, answer, trio.current_time() - began)
        if answer in {Miss.NO_SOURCE, Withdrawn.TIMED_OUT}:
            self.context.refusals.note(claim.space)
        if isinstance(answer, Granted):
            return _granted(answer)
        if isinstance(answer, RequestRefused):
            raise InvalidArgument(answer.text)
        if answer is Withdrawn.STOPPING:
            raise Unavailable("the server is shutting down")
        return wire.RequestReplicaTransportResponse(status=_STATUSES[answer])

    def _count(self, artifact_id: str, answer: Answer | Withdrawn, waited_s: float) -> None:
        """Count how a request ended; an artifact without replicas gets no series of its own."""
        metrics = self.context.metrics
        label = OTHER if answer is Miss.NO_REPLICA else artifact_id
        if isinstance(answer, Granted):
            outcome = "success"
        else:
            outcome = "error" if isinstance(answer, RequestRefused) else _OUTCOMES[answer]
        metrics.transports.requested(label, outcome)
        metrics.transports.waited(label, waited_s)
        if answer is Miss.NO_SOURCE:
            metrics.transports.no_exportable(label)

    async def CompleteReplicaTransport(
        self, message: wire.CompleteReplicaTransportRequest, request: Call
    ) -> wire.CompleteReplicaTransportResponse:
        """End a transport and free its slot; again changes nothing."""
        transport_id = uuid_bytes("transport_id", message.transport_id)
        outcome = transport_ends.outcome_of(message.outcome)
        detail = message.outcome_detail.strip()[:DETAIL_CHARACTERS_MAX]
        found = await self.context.write(
            request,
            transport_ends.complete,
            transport_id,
            outcome,
            detail,
            self.context.clock.wall_us(),
            lane=Lane.CONTROL,
        )
        return wire.CompleteReplicaTransportResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND
        )


def _granted(answer: Granted) -> wire.RequestReplicaTransportResponse:
    response = wire.RequestReplicaTransportResponse(
        status=wire.STATUS_OK, transport_id=uuid_text(answer.transport_id)
    )
    if answer.source is not None:
        response.remote_memory_info.CopyFrom(memory_info.to_message(answer.source))
    return response


def _seconds(duration: Duration) -> float:
    """Return a wait in seconds, whole milliseconds of it; negative is none."""
    return max(0, math.trunc(duration.seconds * 1000 + duration.nanos / 1_000_000)) / 1000


def _request(message: wire.RequestReplicaTransportRequest) -> TransportRequest:
    view_id = memory_info.view_of("requested_byte_space", message.requested_byte_space, existing)
    group = _group(message) if message.HasField("scheduling_group") else None
    request_id = required("request_id", message.request_id)
    artifact_id = looked_up("artifact_id", message.artifact_id)
    node_id = identifier("source_node_id", message.source_node_id)
    address = identifier("source_address", message.source_address)
    if message.source_port > 65535:
        raise InvalidArgument(f"source_port is {message.source_port}, expected at most 65535")
    requester_worker_id = identifier("requester_worker_id", message.requester_worker_id)
    fingerprint = transport_request(
        artifact_id=artifact_id,
        view_id=view_id,
        node_id=node_id,
        address=address,
        port=message.source_port,
        requester_worker_id=requester_worker_id,
        group=attrs.astuple(group) if group is not None else None,
    )
    return TransportRequest(
        artifact_id=artifact_id,
        view_id=view_id,
        node_id=node_id,
        address=address,
        port=message.source_port,
        requester_worker_id=requester_worker_id,
        request_id=request_id,
        fingerprint=fingerprint,
        group=group,
        transport_id=new_id(),
    )


def _group(message: wire.RequestReplicaTransportRequest) -> RequestGroup:
    group = message.scheduling_group
    group_id = identifier("scheduling_group.group_id", group.group_id)
    kind = identifier("scheduling_group.group_kind", group.group_kind)
    part_id = identifier("scheduling_group.part_id", group.part_id)
    if not (group_id and kind and part_id):
        raise InvalidArgument("scheduling_group: group_id/group_kind/part_id are required")
    if group.total_parts == 0:
        raise InvalidArgument("scheduling_group.total_parts is 0, expected a number above 0")
    return RequestGroup(
        kind=kind,
        group_id=group_id,
        epoch=storable("scheduling_group.epoch", group.epoch),
        part_id=part_id,
        total_parts=group.total_parts,
        priority=group.priority,
    )
