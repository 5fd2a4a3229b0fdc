"""What the tests of memory tiers share."""

from typing import Any

from servers import Serving

from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as wire

PENDING = wire.LEASE_STATE_PENDING
ACTIVE = wire.LEASE_STATE_ACTIVE
REVOKING = wire.LEASE_STATE_REVOKING
EXPIRED = wire.LEASE_STATE_EXPIRED
ACQUIRED = wire.LEASE_ACK_ACTION_ACQUIRED
RELEASED = wire.LEASE_ACK_ACTION_RELEASED

# 2 ** 64 - 1: what every unsigned field takes.
LAST = 2**64 - 1


def wish(**fields: Any) -> Any:
    return wire.RequestMemoryTierLeaseRequest(
        **{"node_id": "n1", "artifact_id": "model", "chunk_ids": [3, 1, 2]} | fields
    )


async def request(store: Serving, **fields: Any) -> Any:
    return (await store.tiers.RequestMemoryTierLease(wish(**fields))).lease


async def acknowledge(store: Serving, lease: Any, action: int = ACQUIRED, **fields: Any) -> Any:
    answer = await store.tiers.AcknowledgeMemoryTierLease(
        wire.AcknowledgeMemoryTierLeaseRequest(
            **{
                "lease_id": lease.lease_id,
                "artifact_id": "model",
                "chunk_ids": [3, 1, 2],
                "action": action,
            }
            | fields
        )
    )
    return answer.lease


async def revoke(store: Serving, lease_id: str, reason: str = "") -> Any:
    request = wire.RevokeMemoryTierLeaseRequest(lease_id=lease_id, reason=reason)
    return (await store.tiers.RevokeMemoryTierLease(request)).lease


async def outstanding(store: Serving, *states: int, node_id: str = "n1") -> list[Any]:
    request = wire.ListOutstandingLeasesRequest(node_id=node_id, states=states)  # type: ignore[arg-type]
    return list((await store.tiers.ListOutstandingLeases(request)).leases)


async def publish(store: Serving, node_id: str = "n1", **fields: Any) -> None:
    status = wire.MemoryTierStatus(node_id=node_id, **fields)
    await store.tiers.PublishMemoryTierStatus(wire.PublishMemoryTierStatusRequest(status=status))


async def in_state(store: Serving, state: int, **fields: Any) -> Any:
    """A lease that has come into a state."""
    lease = await request(store, **fields)
    if state != PENDING:
        lease = await acknowledge(store, lease, ledger_version=5, bytes=50, ack_epoch_ns=7)
    if state == REVOKING:
        lease = await revoke(store, lease.lease_id)
    if state == EXPIRED:
        lease = await acknowledge(
            store, lease, RELEASED, ledger_version=5, bytes=50, ack_epoch_ns=7
        )
    assert lease.state == state
    return lease
