"""The calls of MemoryTierService: samples of nodes' memory, and leases on it."""

import math
import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio

from globalstore.api.context import Handlers
from globalstore.db import DatabaseError, Lane
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as wire
from globalstore.registry import memory_tier_samples, memory_tiers
from globalstore.registry.memory_tier_samples import Retention, Sample
from globalstore.registry.memory_tiers import (
    OUTSTANDING,
    Acknowledgement,
    TierLease,
    TierLeaseState,
    TierRequest,
)
from globalstore.rpc import Call
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import existing, existing_or_blank, identifier, required
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.memory_tiers")

# How far the clock of a node may be ahead: more would pin its latest sample in the future.
_AHEAD_NS_MAX = 300 * 10**9

_KINDS = frozenset({wire.LEASE_KIND_STABLE, wire.LEASE_KIND_PREEMPTIBLE})
_ACTIONS = {wire.LEASE_ACK_ACTION_ACQUIRED: True, wire.LEASE_ACK_ACTION_RELEASED: False}
_STATES: frozenset[int] = frozenset(TierLeaseState)


class MemoryTierHandlers(Handlers):
    """The calls by which planners and daemons agree on the memory of nodes."""

    async def RequestMemoryTierLease(
        self, message: wire.RequestMemoryTierLeaseRequest, request: Call
    ) -> wire.RequestMemoryTierLeaseResponse:
        """Record the wish that a node hold chunks; a repeat returns the first lease."""
        wish = self._request(message)
        handout = await self.context.holding(request, "tier", wish.node_id, wish.request_id)
        lease = await self.context.write(request, memory_tiers.request, wish)
        give_back = partial(self._give_back, lease.lease_id)
        handout.answered(request, give_back, made=lease.lease_id == wish.lease_id)
        return wire.RequestMemoryTierLeaseResponse(lease=self._lease(lease))

    async def _give_back(self, lease_id: str) -> None:
        """Withdraw a lease that nobody was told of, unless its daemon has acted on it."""
        with suppress(DatabaseError):  # the retry, or whoever lists the leases, finds it pending
            await self.context.store.write(
                memory_tiers.withdraw_tier_lease, lease_id, lane=Lane.CONTROL
            )

    def _request(self, message: wire.RequestMemoryTierLeaseRequest) -> TierRequest:
        node_id = required("node_id", message.node_id)
        artifact_id = required("artifact_id", message.artifact_id)
        if not message.chunk_ids and not message.chunk_range.count:
            raise InvalidArgument("chunk_ids is empty and chunk_range.count is 0, expected one")
        kind = message.kind or wire.LEASE_KIND_STABLE
        if kind not in _KINDS:
            raise InvalidArgument(f"kind is {kind}, expected STABLE or PREEMPTIBLE")
        now_ns = self.context.clock.wall_us() * 1000
        ttl_us = pending_ttl_us(self.context.config.worker_policy.pending_lease_ttl)
        return TierRequest(
            lease_id=secrets.token_hex(16),
            node_id=node_id,
            kind=kind,
            artifact_id=artifact_id,
            range_start=message.chunk_range.start,
            range_count=message.chunk_range.count,
            chunk_ids=_packed(message.chunk_ids),
            ledger_version=message.ledger_version,
            bytes=message.bytes,
            workload_id=identifier("workload_id", message.workload_id) or "default",
            request_id=identifier("request_id", message.request_id)
            or f"mt_req_{now_ns}_{secrets.token_hex(4)}",
            issued_at_ns=message.issued_at_ns or now_ns,
            pending_until_us=self.context.clock.lease_us() + ttl_us if ttl_us else None,
        )

    async def AcknowledgeMemoryTierLease(
        self, message: wire.AcknowledgeMemoryTierLeaseRequest, request: Call
    ) -> wire.AcknowledgeMemoryTierLeaseResponse:
        """Record that a daemon holds the chunks of a lease, or does not any more."""
        acquired = _ACTIONS.get(message.action)
        if acquired is None:
            raise InvalidArgument(f"action is {message.action}, expected ACQUIRED or RELEASED")
        artifact_id = existing("artifact_id", message.artifact_id)
        if not message.chunk_ids:
            raise InvalidArgument("chunk_ids is empty, expected the chunks of the lease")
        now_us = self.context.clock.wall_us()
        spoken_of = message.chunk_range
        acknowledgement = Acknowledgement(
            lease_id=existing("lease_id", message.lease_id),
            node_id=existing_or_blank("node_id", message.node_id),
            artifact_id=artifact_id,
            acquired=acquired,
            chunk_range=(
                (spoken_of.start, spoken_of.count) if message.HasField("chunk_range") else None
            ),
            chunk_ids=_packed(message.chunk_ids),
            ledger_version=message.ledger_version,
            bytes=message.bytes,
            request_id=identifier("request_id", message.request_id),
            ack_epoch_ns=message.ack_epoch_ns or now_us * 1000,
        )
        lease = await self.context.write(
            request, memory_tiers.acknowledge, acknowledgement, now_us, lane=Lane.CONTROL
        )
        return wire.AcknowledgeMemoryTierLeaseResponse(lease=self._lease(lease))

    async def RevokeMemoryTierLease(
        self, message: wire.RevokeMemoryTierLeaseRequest, request: Call
    ) -> wire.RevokeMemoryTierLeaseResponse:
        """Ask the holder of a lease to give it up."""
        lease_id = existing("lease_id", message.lease_id)
        lease = await self.context.write(
            request, memory_tiers.revoke_tier_lease, lease_id, self.context.clock.wall_us()
        )
        _log.info(
            "memory tier lease revoked",
            lease_id=lease_id,
            node_id=lease.node_id,
            state=lease.state.name,
            reason=message.reason[:200],
        )
        return wire.RevokeMemoryTierLeaseResponse(lease=self._lease(lease))

    async def ListOutstandingLeases(
        self, message: wire.ListOutstandingLeasesRequest, request: Call
    ) -> wire.ListOutstandingLeasesResponse:
        """List the leases of a node, for a daemon that starts."""
        node_id = existing("node_id", message.node_id)
        for state in message.states:
            if state not in _STATES:
                raise InvalidArgument(
                    f"states has {state}, expected PENDING, ACTIVE, REVOKING or EXPIRED"
                )
        states = {TierLeaseState(state) for state in message.states} or OUTSTANDING
        response = wire.ListOutstandingLeasesResponse()
        room = self.context.list_room("name some states")
        most = room.bytes_max
        for lease in await self.context.read(memory_tiers.outstanding, node_id, states, most):
            made = self._lease(lease)
            room.take([made])
            response.leases.append(made)
            await trio.lowlevel.checkpoint()
        return response

    async def PublishMemoryTierStatus(
        self, message: wire.PublishMemoryTierStatusRequest, request: Call
    ) -> wire.PublishMemoryTierStatusResponse:
        """Store a sample of a node's memory tiers."""
        policy = self.context.config.worker_policy.memory_tiers
        keep = Retention(int(policy.snapshot_retention * 10**9), policy.snapshot_max_rows)
        sample = _sample(message.status, self.context.clock.wall_us() * 1000)
        await self.context.write(request, memory_tier_samples.publish_sample, sample, keep)
        return wire.PublishMemoryTierStatusResponse()

    def _lease(self, lease: TierLease) -> wire.MemoryTierLease:
        until_us = lease.pending_until_us
        return wire.MemoryTierLease(
            lease_id=lease.lease_id,
            node_id=lease.node_id,
            kind=wire.LeaseKind.Name(lease.kind),
            artifact_id=lease.artifact_id,
            chunk_range=wire.ChunkRange(start=lease.range_start, count=lease.range_count),
            chunk_ids=struct.unpack(f"<{len(lease.chunk_ids) // 4}I", lease.chunk_ids),
            ledger_version=lease.ledger_version,
            bytes=lease.bytes,
            workload_id=lease.workload_id,
            state=wire.LeaseState.Name(lease.state),
            request_id=lease.request_id,
            ack_epoch_ns=lease.ack_epoch_ns,
            issued_at_ns=lease.issued_at_ns,
            expires_at_ns=(0 if until_us is None else self.context.clock.wall_of(until_us) * 1000),
        )


def pending_ttl_us(seconds: float) -> int:
    """Return how long a lease may stay pending, in microseconds; 0: for ever."""
    return int(seconds * 1_000_000)


def _packed(chunk_ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(chunk_ids)}I", *chunk_ids)


def _sample(status: wire.MemoryTierStatus, now_ns: int) -> Sample:
    if not 0 <= status.faults_per_sec < math.inf:
        raise InvalidArgument(
            f"status.faults_per_sec is {status.faults_per_sec}, expected a number of 0 or more"
        )
    epoch_ns = status.epoch_ns
    if epoch_ns == 0 or epoch_ns > now_ns + _AHEAD_NS_MAX:
        epoch_ns = now_ns
    return Sample(
        node_id=required("status.node_id", status.node_id),
        epoch_ns=epoch_ns,
        worker_id=identifier("status.worker_id", status.worker_id),
        stable_total=status.stable_total_bytes,
        stable_used=status.stable_used_bytes,
        preemptible_total=status.preemptible_total_bytes,
        preemptible_marked=status.preemptible_marked_bytes,
        faults_per_sec=status.faults_per_sec,
        rehydrate_p99_ns=status.rehydrate_p99_ns,
        enable_preemptible=status.enable_preemptible,
        config_json=status.memory_tier_config_json or "{}",
    )
