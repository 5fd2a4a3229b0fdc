"""What the tests of shard-home leases share."""

from typing import Any

from servers import Serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# 2 ** 64 - 1: the largest shard there is.
LAST_SHARD = 2**64 - 1


async def acquire(store: Serving, shard: int = 7, daemon: str = "a", ttl_ms: int = 1000) -> Any:
    return await store.runtime.AcquireShardHomeLease(
        wire.AcquireShardHomeLeaseRequest(shard_id=shard, holder_daemon_id=daemon, ttl_ms=ttl_ms)
    )


async def keep(store: Serving, token: str, ttl_ms: int = 1000) -> Any:
    answer = await store.runtime.KeepaliveShardHomeLease(
        wire.KeepaliveShardHomeLeaseRequest(lease_token=token, ttl_ms=ttl_ms)
    )
    return answer.lease


async def keep_all(store: Serving, *entries: tuple[int, int, str], ttl_ms: int = 1000) -> list[Any]:
    """Extend many, each named as (shard, generation, token)."""
    request = wire.BatchKeepaliveShardHomeLeasesRequest(ttl_ms=ttl_ms)
    for shard, generation, token in entries:
        request.leases.add(shard_id=shard, lease_generation=generation, lease_token=token)
    answer = await store.runtime.BatchKeepaliveShardHomeLeases(request)
    return list(answer.outcomes)


async def release(store: Serving, token: str) -> bool:
    answer = await store.runtime.ReleaseShardHomeLease(
        wire.ReleaseShardHomeLeaseRequest(lease_token=token)
    )
    released: bool = answer.released
    return released


async def get(store: Serving, shard: int = 7) -> Any:
    answer = await store.runtime.GetShardHomeLease(wire.GetShardHomeLeaseRequest(shard_id=shard))
    return answer.lease


async def get_all(store: Serving, *shards: int) -> list[Any]:
    answer = await store.runtime.BatchGetShardHomeLeases(
        wire.BatchGetShardHomeLeasesRequest(shard_ids=shards)
    )
    return list(answer.leases)


def facts(lease: Any) -> tuple[str, int, str]:
    """Holder, generation and token."""
    return lease.holder_daemon_id, lease.lease_generation, lease.lease_token


def until_us(lease: Any) -> int:
    """When a lease ends, in microseconds since 1970."""
    us: int = lease.expires_at.ToMicroseconds()
    return us
