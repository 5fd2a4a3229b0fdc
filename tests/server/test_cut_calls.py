"""Clients that are cut off, in every way and at every moment of every call that hands something out
or takes something away.

Two rules hold. Who was told that a call has failed owns nothing of what it hands out to one alone:
a transport, the lease of a shard, a lease of memory. And every other call was carried out wholly or
not at all, and to make it again is safe.
"""

import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio.testing
from cut_calls import Moment, Way, cut_off, gated
from key_calls import ready
from memory_tiers import tier_calls
from realizations import realization_calls
from servers import Serving, claim_request, replica_request
from shard_leases import shard_lease_calls

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as tiers

RUNTIME = "/tensorcast.global_store.v1.ClusterRuntimeService/"
CATALOG = "/tensorcast.global_store.v1.ArtifactCatalogService/"
TIERS = "/tensorcast.memory_tier.v1.MemoryTierService/"

CUTS = [
    (way, moment)
    for way in Way
    for moment in Moment
    if (way, moment) != (Way.LATE, Moment.ANSWERED)  # it was in time
]

Step = Callable[[Serving], Awaitable[Any]]


@attrs.frozen
class Case:
    """A call that is cut off, and what it changes.

    ``prepare`` makes what it needs and returns its request. ``seen`` returns what the call changes,
    as others see it: ``before`` without it, ``after`` with it. ``hands_out`` when its caller alone
    gets something; ``taken_back`` is seen when that was taken back. ``trigger`` ends its wait, if
    it waits.
    """

    path: str
    operation: str
    prepare: Step
    seen: Step
    before: Any
    after: Any
    hands_out: bool = False
    taken_back: Any = None
    trigger: Step | None = None


async def load(store: Serving) -> int:
    """Transports in progress."""
    [row] = await store.read("SELECT count(*) FROM transports WHERE outcome = 0")
    return int(row[0])


async def source(store: Serving) -> Any:
    worker = await store.register("d1")
    await store.replica(worker.worker_id)
    return claim_request(wait_s=30, request_id="cut")


async def busy_source(store: Serving) -> Any:
    request = await source(store)
    await store.claim(request_id="first")
    return request


async def free_the_source(store: Serving) -> None:
    [row] = await store.read("SELECT transport_id FROM transports WHERE request_id = 'first'")
    await store.complete(str(uuid.UUID(bytes=row[0])))


async def source_that_it_has(store: Serving) -> Any:
    request = await source(store)
    await store.claim(request_id="cut")
    return request


async def to_complete(store: Serving) -> Any:
    await source(store)
    granted = await store.claim(request_id="first")
    return wire.CompleteReplicaTransportRequest(transport_id=granted.transport_id, outcome=1)


async def holder(store: Serving) -> str | None:
    """Who is the home of shard 7."""
    answer = await store.runtime.BatchGetShardHomeLeases(
        wire.BatchGetShardHomeLeasesRequest(shard_ids=[7])
    )
    return answer.leases[0].holder_daemon_id if answer.leases else None


async def to_acquire(store: Serving) -> Any:
    return wire.AcquireShardHomeLeaseRequest(shard_id=7, holder_daemon_id="a", ttl_ms=600_000)


async def to_acquire_again(store: Serving) -> Any:
    await shard_lease_calls.acquire(store, ttl_ms=600_000)
    return await to_acquire(store)


async def to_release(store: Serving) -> Any:
    held = await shard_lease_calls.acquire(store, ttl_ms=600_000)
    return wire.ReleaseShardHomeLeaseRequest(lease_token=held.lease.lease_token)


async def to_keep(store: Serving) -> Any:
    held = await shard_lease_calls.acquire(store, ttl_ms=600_000)
    return wire.KeepaliveShardHomeLeaseRequest(lease_token=held.lease.lease_token, ttl_ms=500_000)


async def tier_states(store: Serving) -> list[int]:
    states = await tier_calls.outstanding(store, PENDING, ACTIVE, REVOKING, EXPIRED)
    return [lease.state for lease in states]


async def to_wish(store: Serving) -> Any:
    return tier_calls.wish(request_id="cut")


async def to_acknowledge(store: Serving) -> Any:
    lease = await tier_calls.request(store, request_id="first")
    return tiers.AcknowledgeMemoryTierLeaseRequest(
        lease_id=lease.lease_id,
        artifact_id="model",
        chunk_ids=[3, 1, 2],
        action=tiers.LEASE_ACK_ACTION_ACQUIRED,
    )


async def to_give_up_memory(store: Serving) -> Any:
    request = await to_acknowledge(store)
    request.action = tiers.LEASE_ACK_ACTION_RELEASED
    return request


async def target(store: Serving) -> str:
    answer = await store.catalog.ResolveKeyMapping(wire.ResolveKeyMappingRequest(key="k"))
    return str(answer.artifact_id)


async def to_set_key(store: Serving) -> Any:
    await ready(store, "a", "b")
    request = wire.UpsertKeyMappingRequest(key="k", artifact_id="a")
    request.ttl.FromSeconds(600)
    return request


async def to_swap_key(store: Serving) -> Any:
    await store.catalog.UpsertKeyMapping(await to_set_key(store))
    return wire.SwapKeyMappingRequest(
        key="k", new_artifact_id="b", expected_artifact_id="a", operation_id="cut"
    )


async def to_revoke_key(store: Serving) -> Any:
    await store.catalog.UpsertKeyMapping(await to_set_key(store))
    return wire.RevokeKeyMappingRequest(key="k")


async def recorded(store: Serving) -> Any:
    request = await to_register_replica(store)
    await store.runtime.RegisterReplica(request)
    return request


async def to_revoke_memory(store: Serving) -> Any:
    lease = await tier_calls.request(store, request_id="first")
    return tiers.RevokeMemoryTierLeaseRequest(lease_id=lease.lease_id)


async def to_report(store: Serving) -> Any:
    return realization_calls.reporting(await realization_calls.begun(store))


async def to_abort(store: Serving) -> Any:
    transaction_id = await realization_calls.begun(store)
    return wire.AbortGroupRealizationRequest(transaction_id=transaction_id)


async def members(store: Serving) -> list[tuple[str, int]]:
    """Parts of the one realization there is, with their states."""
    found = await store.read("SELECT fingerprint FROM group_transactions")
    if not found:
        return []
    shown = await realization_calls.show(store, f"grt_{found[0][0].hex()}")
    return [(each.part_id, each.state) for each in shown.members]


async def to_join(store: Serving) -> Any:
    return realization_calls.joining("0", daemon_id="d1")


async def counts(store: Serving) -> list[tuple[int, int]]:
    return await store.counts("model")


async def to_register_replica(store: Serving) -> Any:
    worker = await store.register("d1")
    return replica_request(worker.worker_id, client_request_id="cut")


async def to_unregister_replica(store: Serving) -> Any:
    worker = await store.register("d1")
    made = await store.replica(worker.worker_id)
    return wire.UnregisterReplicaRequest(artifact_id="model", replica_id=made.replica_id)


async def to_unregister_worker(store: Serving) -> Any:
    worker = await store.register("d1")
    await store.replica(worker.worker_id)
    return wire.UnregisterWorkerRequest(worker_id=worker.worker_id, client_request_id="cut")


JOINED, PREPARED, CANCELLED = (
    wire.GROUP_REALIZATION_MEMBER_STATE_JOINED,
    wire.GROUP_REALIZATION_MEMBER_STATE_PREPARED,
    wire.GROUP_REALIZATION_MEMBER_STATE_CANCELLED,
)
PENDING, ACTIVE, REVOKING, EXPIRED = (
    tiers.LEASE_STATE_PENDING,
    tiers.LEASE_STATE_ACTIVE,
    tiers.LEASE_STATE_REVOKING,
    tiers.LEASE_STATE_EXPIRED,
)

CASES = {
    "a transport": Case(
        f"{RUNTIME}RequestReplicaTransport", "grant", source, load, 0, 1, hands_out=True,
        taken_back=0,
    ),
    "a transport that was waited for": Case(
        f"{RUNTIME}RequestReplicaTransport",
        "grant",
        busy_source,
        load,
        0,
        1,
        hands_out=True,
        taken_back=0,
        trigger=free_the_source,
    ),
    "a transport that it has": Case(
        f"{RUNTIME}RequestReplicaTransport", "grant", source_that_it_has, load, 1, 1
    ),
    "the end of a transport": Case(
        f"{RUNTIME}CompleteReplicaTransport", "complete", to_complete, load, 1, 0
    ),
    "a shard": Case(
        f"{RUNTIME}AcquireShardHomeLease", "acquire", to_acquire, holder, None, "a", hands_out=True
    ),
    "a shard that it holds": Case(
        f"{RUNTIME}AcquireShardHomeLease", "acquire", to_acquire_again, holder, "a", "a"
    ),
    "the end of a shard's lease": Case(
        f"{RUNTIME}ReleaseShardHomeLease", "release", to_release, holder, "a", None
    ),
    "more time for a shard": Case(
        f"{RUNTIME}KeepaliveShardHomeLease", "keepalive", to_keep, holder, "a", "a"
    ),
    "memory": Case(
        f"{TIERS}RequestMemoryTierLease", "request", to_wish, tier_states, [], [PENDING],
        hands_out=True, taken_back=[],
    ),
    "memory that was taken": Case(
        f"{TIERS}AcknowledgeMemoryTierLease", "acknowledge", to_acknowledge, tier_states,
        [PENDING], [ACTIVE],
    ),
    "memory that is called back": Case(
        f"{TIERS}RevokeMemoryTierLease", "revoke_tier_lease", to_revoke_memory, tier_states,
        [PENDING], [REVOKING],
    ),
    "the end of a lease of memory": Case(
        f"{TIERS}AcknowledgeMemoryTierLease", "acknowledge", to_give_up_memory, tier_states,
        [PENDING], [EXPIRED],
    ),
    "a key with a ttl": Case(
        f"{CATALOG}UpsertKeyMapping", "upsert_key", to_set_key, target, "", "a"
    ),
    "another target": Case(f"{CATALOG}SwapKeyMapping", "swap_key", to_swap_key, target, "a", "b"),
    "the end of a key": Case(
        f"{CATALOG}RevokeKeyMapping", "revoke_key", to_revoke_key, target, "a", ""
    ),
    "a part of a realization": Case(
        f"{CATALOG}BeginOrJoinGroupRealization", "begin_or_join", to_join, members,
        [], [("0", JOINED)],
    ),
    "a part that is prepared": Case(
        f"{CATALOG}ReportGroupRealizationPrepared", "report_prepared", to_report, members,
        [("0", JOINED), ("1", JOINED)], [("0", PREPARED), ("1", JOINED)],
    ),
    "the end of a realization": Case(
        f"{CATALOG}AbortGroupRealization", "abort", to_abort, members,
        [("0", JOINED), ("1", JOINED)], [("0", CANCELLED), ("1", CANCELLED)],
    ),
    "a replica that it was told of": Case(
        f"{RUNTIME}RegisterReplica", "once", recorded, counts, [(1, 1)], [(1, 1)]
    ),
    "a replica, under a request id": Case(
        f"{RUNTIME}RegisterReplica", "once", to_register_replica, counts, [(0, 0)], [(1, 1)]
    ),
    "the end of a replica": Case(
        f"{RUNTIME}UnregisterReplica", "unregister_replica", to_unregister_replica, counts,
        [(1, 1)], [(0, 0)],
    ),
    "the end of a worker, under a request id": Case(
        f"{RUNTIME}UnregisterWorker", "once", to_unregister_worker, counts, [(1, 1)], [(1, 0)]
    ),
}  # fmt: skip


def expected(case: Case, way: Way, moment: Moment) -> Any:
    """Return what must be seen after the cut."""
    if moment is Moment.QUEUED:
        return case.before
    if not case.hands_out:
        return case.after
    # A client whose machine goes may have read its answer before, as one that closes has.
    is_kept = (way, moment) == (Way.VANISHED, Moment.ANSWERED)
    return case.after if is_kept else case.taken_back


@pytest.mark.parametrize(("way", "moment"), CUTS, ids=lambda each: each.name.lower())
@pytest.mark.parametrize("name", CASES)
async def test_a_call_that_is_cut_off_leaves_nothing_half(
    mock_clock: trio.testing.MockClock, name: str, way: Way, moment: Moment
) -> None:
    case = CASES[name]
    policy = {"group_realization": {"enabled": True}}
    async with gated(worker_policy=policy) as (store, gate):
        request = await case.prepare(store)
        await cut_off(
            store, gate, case.path, request, way, moment, case.operation, mock_clock,
            trigger=case.trigger and partial(case.trigger, store),
        )  # fmt: skip
        assert await case.seen(store) == expected(case, way, moment)
        # The client comes back and asks again, over another connection.
        service, _, method = case.path.rpartition("/")
        stub = {RUNTIME: store.runtime, CATALOG: store.catalog, TIERS: store.tiers}[f"{service}/"]
        answer = await getattr(stub, method)(request)
        # What was taken away already is not found again.
        found = {wire.STATUS_OK, wire.STATUS_NOT_FOUND}
        assert getattr(answer, "status", wire.STATUS_OK) in found
        assert await case.seen(store) == case.after
