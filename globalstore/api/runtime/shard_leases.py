"""AcquireShardHomeLease, its keepalives and release, GetShardHomeLease and its batch."""

import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp

from globalstore.api.context import Handlers
from globalstore.api.encoding import timestamp
from globalstore.api.turns import in_turns
from globalstore.db import DatabaseError, Lane
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import shard_leases
from globalstore.registry.runtime.shard_leases import Renewal, RenewalRefusal, ShardLease
from globalstore.rpc import Call
from globalstore.rules.refusals import InvalidArgument, NotFound
from globalstore.rules.values import required, signed64, unsigned64

# Entries that are looked at before other calls get a turn: about a millisecond each time.
_ENTRIES_PER_TURN = 100


class ShardLeaseHandlers(Handlers):
    """The calls by which daemons become, stay and find homes of shards.

    All writes go through one lane, so that they are carried out in the order of the calls.
    """

    async def AcquireShardHomeLease(
        self, message: wire.AcquireShardHomeLeaseRequest, request: Call
    ) -> wire.AcquireShardHomeLeaseResponse:
        """Make a daemon the home of a shard; no error if it is already."""
        daemon_id = required("holder_daemon_id", message.holder_daemon_id)
        ttl_us, new_token = self._ttl_us(message.ttl_ms), secrets.token_hex(16)
        handout = await self.context.holding(request, "shard", message.shard_id, daemon_id)
        answer = await self.context.write(
            request,
            shard_leases.acquire,
            signed64(message.shard_id),
            daemon_id,
            new_token,
            ttl_us,
            self.context.clock.lease_us,
            lane=Lane.CONTROL,
        )
        if answer.held:
            await handout.unanswered(request)
        else:
            give_back = partial(self._give_back, answer.lease)
            handout.answered(request, give_back, made=answer.lease.token == new_token)
        return wire.AcquireShardHomeLeaseResponse(
            acquired=not answer.held, lease=self._lease(answer.lease)
        )

    async def _give_back(self, lease: ShardLease) -> None:
        """Release a lease that nobody was told of, unless it was extended since."""
        with suppress(DatabaseError):  # nothing is lost for good: it ends by its time to live
            await self.context.store.write(
                shard_leases.withdraw_shard_lease,
                lease,
                self.context.clock.lease_us,
                lane=Lane.CONTROL,
            )

    async def KeepaliveShardHomeLease(
        self, message: wire.KeepaliveShardHomeLeaseRequest, request: Call
    ) -> wire.KeepaliveShardHomeLeaseResponse:
        """Extend a live lease."""
        token = required("lease_token", message.lease_token)
        lease = await self.context.write(
            request,
            shard_leases.keepalive,
            token,
            self._ttl_us(message.ttl_ms),
            self.context.clock.lease_us,
            lane=Lane.CONTROL,
        )
        if lease is None:
            raise NotFound(RenewalRefusal.UNKNOWN.value)
        return wire.KeepaliveShardHomeLeaseResponse(lease=self._lease(lease))

    async def BatchKeepaliveShardHomeLeases(
        self, message: wire.BatchKeepaliveShardHomeLeasesRequest, request: Call
    ) -> wire.BatchKeepaliveShardHomeLeasesResponse:
        """Extend many live leases at one instant, each for itself."""
        ttl_us = self._ttl_us(message.ttl_ms)
        entries = message.leases
        renewals: list[Renewal] = []
        async for turn in in_turns(entries, _ENTRIES_PER_TURN):
            renewals += map(_renewal, turn)
        if not renewals:
            return wire.BatchKeepaliveShardHomeLeasesResponse()
        renewed = await self.context.write(
            request,
            shard_leases.keepalive_batch,
            renewals,
            ttl_us,
            self.context.clock.lease_us,
            lane=Lane.CONTROL,
        )
        expires_at = timestamp(self.context.clock.wall_of(renewed.until_us))
        response = wire.BatchKeepaliveShardHomeLeasesResponse()
        async for pairs in in_turns(zip(entries, renewed.outcomes, strict=True), _ENTRIES_PER_TURN):
            for entry, outcome in pairs:
                _add_outcome(response, entry, outcome, expires_at)
        return response

    async def ReleaseShardHomeLease(
        self, message: wire.ReleaseShardHomeLeaseRequest, request: Call
    ) -> wire.ReleaseShardHomeLeaseResponse:
        """Give a lease up; one that is not the caller's any more is left alone."""
        token = required("lease_token", message.lease_token)
        released = await self.context.write(
            request, shard_leases.release, token, self.context.clock.lease_us, lane=Lane.CONTROL
        )
        return wire.ReleaseShardHomeLeaseResponse(released=released)

    async def GetShardHomeLease(
        self, message: wire.GetShardHomeLeaseRequest, request: Call
    ) -> wire.GetShardHomeLeaseResponse:
        """Return the home of a shard."""
        found = await self._routes(request, [message.shard_id])
        if not found:
            raise NotFound(f"shard {message.shard_id} has no home at the moment")
        return wire.GetShardHomeLeaseResponse(lease=self._route(found[0]))

    async def BatchGetShardHomeLeases(
        self, message: wire.BatchGetShardHomeLeasesRequest, request: Call
    ) -> wire.BatchGetShardHomeLeasesResponse:
        """Return the homes of shards; shards without one are left out."""
        response = wire.BatchGetShardHomeLeasesResponse()
        found = await self._routes(request, message.shard_ids)
        room = self.context.list_room("name fewer shard_ids")
        async for turn in in_turns(found, _ENTRIES_PER_TURN):
            made = list(map(self._route, turn))
            room.take(made)
            response.leases.extend(made)
        return response

    async def _routes(self, request: Call, shard_ids: Iterable[int]) -> list[ShardLease]:
        """Return the live leases of some shards, each once, in the order of the request."""
        signed_ids = list(dict.fromkeys(map(signed64, shard_ids)))
        clock = self.context.clock.lease_us
        found, doubtful = await self.context.read(shard_leases.routes, signed_ids, clock)
        if doubtful:
            found += (await self._decided(request, doubtful))[0]
        by_shard = {lease.shard_id: lease for lease in found}
        return [by_shard[shard_id] for shard_id in signed_ids if shard_id in by_shard]

    async def _decided(
        self, request: Call, shard_ids: Sequence[int]
    ) -> tuple[list[ShardLease], list[int]]:
        """Read through the writer, which has no commit under way when it answers."""
        return await self.context.write(
            request,
            shard_leases.routes,
            shard_ids,
            self.context.clock.lease_us,
            lane=Lane.CONTROL,
        )

    def _ttl_us(self, ttl_ms: int) -> int:
        """Return a lifetime in microseconds, no longer than is allowed."""
        if ttl_ms == 0:
            raise InvalidArgument("ttl_ms is 0, expected a number above 0")
        longest_us = int(self.context.config.worker_policy.max_lease_ttl * 1_000_000)
        return min(ttl_ms * 1000, longest_us)

    def _lease(self, lease: ShardLease) -> wire.ShardHomeLease:
        return wire.ShardHomeLease(
            shard_id=unsigned64(lease.shard_id),
            holder_daemon_id=lease.holder,
            lease_token=lease.token,
            lease_generation=lease.generation,
            expires_at=timestamp(self.context.clock.wall_of(lease.expires_at_us)),
        )

    def _route(self, lease: ShardLease) -> wire.ShardHomeRoute:
        return wire.ShardHomeRoute(
            shard_id=unsigned64(lease.shard_id),
            holder_daemon_id=lease.holder,
            lease_generation=lease.generation,
            expires_at=timestamp(self.context.clock.wall_of(lease.expires_at_us)),
        )


def _add_outcome(
    response: wire.BatchKeepaliveShardHomeLeasesResponse,
    entry: wire.ShardHomeLeaseKeepalive,
    outcome: str | RenewalRefusal,
    expires_at: Timestamp,
) -> None:
    """Add what became of one entry: the holder of its lease, or why it was left alone."""
    added = response.outcomes.add(
        shard_id=entry.shard_id,
        lease_generation=entry.lease_generation,
        lease_token=entry.lease_token,
    )
    if isinstance(outcome, RenewalRefusal):
        added.message = outcome.value
        return
    added.ok = True
    added.lease.shard_id = entry.shard_id
    added.lease.holder_daemon_id = outcome
    added.lease.lease_token = entry.lease_token.strip()
    added.lease.lease_generation = entry.lease_generation
    added.lease.expires_at.CopyFrom(expires_at)


def _renewal(entry: wire.ShardHomeLeaseKeepalive) -> Renewal:
    return Renewal(signed64(entry.shard_id), entry.lease_generation, entry.lease_token.strip())
