"""UpsertKeyMapping, SwapKeyMapping, ResolveKeyMapping, RevokeKeyMapping."""

import math
from collections.abc import Callable
from typing import TypeVar, cast

from google.protobuf.duration_pb2 import Duration

from globalstore.api.context import Handlers
from globalstore.api.encoding import Encoded
from globalstore.caches.keys import Known
from globalstore.db import Transaction
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import keys as registry
from globalstore.registry.catalog.keys import KeyMapping, Kind
from globalstore.registry.lease_clock import LeaseNow
from globalstore.rpc import Call, fast_path
from globalstore.rules.artifact_ids import stored
from globalstore.rules.refusals import InvalidArgument
from globalstore.rules.values import UINT32_MAX, existing, existing_or_blank, identifier, required

# How long an answer may be kept of a key that nothing changes, in seconds.
_IMMUTABLE_CACHE_S = 30

# The range of a Duration, in seconds: ten thousand years.
_DURATION_S_MAX = 315_576_000_000
_NANOS = 1_000_000_000

A = TypeVar("A")
R = TypeVar("R")

_NOT_FOUND = Encoded(wire.ResolveKeyMappingResponse(status=wire.STATUS_NOT_FOUND))


class KeyHandlers(Handlers):
    """The calls by which names are pointed at artifacts, and resolved."""

    async def UpsertKeyMapping(
        self, message: wire.UpsertKeyMappingRequest, request: Call
    ) -> wire.UpsertKeyMappingResponse:
        """Point a new key at an artifact, or refresh one that points there already."""
        change = registry.Upsert(
            key=required("key", message.key),
            artifact_id=stored("artifact_id", message.artifact_id),
            replica_uuid=identifier("replica_uuid", message.replica_uuid),
            daemon_address=identifier("daemon_address", message.daemon_address),
            ttl_s=_seconds("ttl", message.ttl) if message.HasField("ttl") else None,
        )
        other = await self._write(request, registry.upsert_key, change)
        if other is None:
            return wire.UpsertKeyMappingResponse(status=wire.STATUS_OK)
        return wire.UpsertKeyMappingResponse(
            status=wire.STATUS_ERROR,
            conflict_reason=f"key {change.key} points at {other}; swap it to change that",
        )

    async def SwapKeyMapping(
        self, message: wire.SwapKeyMappingRequest, request: Call
    ) -> wire.SwapKeyMappingResponse:
        """Point a key at another artifact, if it still points where the caller thinks."""
        change = registry.Swap(
            key=required("key", message.key),
            artifact_id=stored("new_artifact_id", message.new_artifact_id),
            expected_artifact_id=existing_or_blank(
                "expected_artifact_id", message.expected_artifact_id
            ),
            expected_generation=(
                message.expected_generation if message.HasField("expected_generation") else None
            ),
            operation_id=identifier("operation_id", message.operation_id),
        )
        swapped = await self._write(request, registry.swap_key, change)
        return wire.SwapKeyMappingResponse(
            status=wire.STATUS_OK if swapped.won else wire.STATUS_ERROR,
            artifact_id=swapped.artifact_id,
            generation=swapped.generation,
        )

    def _resolve_fast(
        self, message: wire.ResolveKeyMappingRequest, _: Call
    ) -> wire.ResolveKeyMappingResponse | None:
        known = self.context.keys.known(message.key.strip())
        return None if known is None else cast(wire.ResolveKeyMappingResponse, self._answer(known))

    @fast_path(_resolve_fast)
    async def ResolveKeyMapping(
        self, message: wire.ResolveKeyMappingRequest, request: Call
    ) -> wire.ResolveKeyMappingResponse:
        """Tell what a key points at; nearly always from memory."""
        key = existing("key", message.key)
        # A known key comes here too, when many calls come together and the fast path is left out.
        known = self.context.keys.known(key)
        if known is None:
            self.context.handler_slots.release(request)
            known = await self.context.keys.look_up(key)
        return cast(wire.ResolveKeyMappingResponse, self._answer(known))

    async def RevokeKeyMapping(
        self, message: wire.RevokeKeyMappingRequest, request: Call
    ) -> wire.RevokeKeyMappingResponse:
        """Let a key point at nothing."""
        key = existing("key", message.key)
        found = await self._write(request, registry.revoke_key, key)
        return wire.RevokeKeyMappingResponse(
            status=wire.STATUS_OK if found else wire.STATUS_NOT_FOUND
        )

    async def _write(
        self, call: Call, operation: Callable[[Transaction, A, int, LeaseNow], R], change: A
    ) -> R:
        context = self.context
        return await context.write(
            call, operation, change, context.clock.wall_us(), context.clock.lease_us
        )

    def _answer(self, known: Known) -> Encoded:
        mapping = known.mapping
        # A key that points at a version set has no artifact to answer with.
        if mapping is None or not mapping.artifact_id:
            return _NOT_FOUND
        lease_us = 0 if mapping.expires_at_us is None else self.context.clock.lease_us()
        if mapping.expired(lease_us):
            return _NOT_FOUND
        cache_s = self._cache_s(mapping, lease_us)
        if known.answer is None or known.answer[0] != cache_s:
            known.answer = cache_s, _resolved(mapping, cache_s)
        return cast(Encoded, known.answer[1])

    def _cache_s(self, mapping: KeyMapping, lease_us: int) -> int:
        if mapping.kind is Kind.ALIAS:
            return self.context.config.worker_policy.key_mapping.alias_cache_ttl_seconds
        if mapping.expires_at_us is not None:
            return math.ceil((mapping.expires_at_us - lease_us) / 1_000_000)
        return _IMMUTABLE_CACHE_S if mapping.ttl_s is None else mapping.ttl_s


def _resolved(mapping: KeyMapping, cache_s: int) -> Encoded:
    return Encoded(
        wire.ResolveKeyMappingResponse(
            status=wire.STATUS_OK,
            artifact_id=mapping.artifact_id,
            replica_uuid=mapping.replica_uuid,
            daemon_address=mapping.daemon_address,
            generation=mapping.generation,
            cache_ttl_seconds=min(cache_s, UINT32_MAX),
        )
    )


def _seconds(field: str, duration: Duration) -> int:
    """Return a duration in whole seconds, rounded up."""
    seconds, nanos = duration.seconds, duration.nanos
    if seconds < 0 or nanos < 0:
        raise InvalidArgument(f"{field} is negative, expected 0 or more")
    if seconds > _DURATION_S_MAX or nanos >= _NANOS:
        raise InvalidArgument(
            f"{field} is {seconds} s and {nanos} ns, expected at most {_DURATION_S_MAX} s and"
            f" {_NANOS - 1} ns"
        )
    return seconds + (nanos > 0)
