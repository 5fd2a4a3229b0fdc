"""Memory tiers: a ledger of leases on the memory of nodes.

The store records, daemons enforce. Numbers are as on the wire here, unsigned; times are nanoseconds
since 1970, but for ``pending_until_us``, which is of the lease clock.
"""

import enum
from collections.abc import Iterable, Sequence

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired
from globalstore.rules.refusals import FailedPrecondition, NotFound, ResourceExhausted
from globalstore.rules.values import ordered64, signed64, unordered64, unsigned64


class TierLeaseState(enum.IntEnum):
    """The state of a lease, in the numbers of the wire."""

    PENDING = 1
    ACTIVE = 2
    REVOKING = 3
    EXPIRED = 4


# Bytes of a lease in a list at least: its ids, and the names of its kind and state.
_LISTED_BYTES_MIN = 100

OUTSTANDING = frozenset({TierLeaseState.PENDING, TierLeaseState.ACTIVE, TierLeaseState.REVOKING})


@attrs.frozen
class TierLease:
    """A lease as it is recorded. ``chunk_ids`` are packed, four little-endian bytes each."""

    lease_key: int
    lease_id: str
    node_id: str
    kind: int
    artifact_id: str
    range_start: int
    range_count: int
    chunk_ids: bytes
    ledger_version: int
    bytes: int
    workload_id: str
    state: TierLeaseState
    request_id: str
    ack_epoch_ns: int
    issued_at_ns: int
    pending_until_us: int | None


@attrs.frozen
class TierRequest:
    """A checked wish for a lease; ``lease_id`` is used if it is a new one."""

    lease_id: str
    node_id: str
    kind: int
    artifact_id: str
    range_start: int
    range_count: int
    chunk_ids: bytes
    ledger_version: int
    bytes: int
    workload_id: str
    request_id: str
    issued_at_ns: int
    pending_until_us: int | None


@attrs.frozen
class Acknowledgement:
    """What a daemon did about a lease; blank ``node_id`` is not compared.

    ``chunk_range`` None leaves the recorded one.
    """

    lease_id: str
    node_id: str
    artifact_id: str
    acquired: bool
    chunk_range: tuple[int, int] | None
    chunk_ids: bytes
    ledger_version: int
    bytes: int
    request_id: str
    ack_epoch_ns: int


_LEASE = (
    "SELECT lease_key, lease_id, node_id, kind, artifact_id, range_start, range_count, chunk_ids,"
    " ledger_version, bytes, workload_id, state, request_id, ack_epoch, issued_at, pending_until"
    " FROM memory_tier_leases"
)


def _lease(row: Row) -> TierLease:
    fields = list(row)
    fields[8], fields[14] = unordered64(row[8]), unordered64(row[14])
    fields[9], fields[13] = unsigned64(row[9]), unsigned64(row[13])
    fields[11] = TierLeaseState(row[11])
    return TierLease(*fields)


def request(tx: Transaction, wish: TierRequest) -> TierLease:
    """Record a wish as a pending lease, or return the lease that this request made before."""
    named = {"node_id": wish.node_id, "request_id": wish.request_id}
    known = tx.one(f"{_LEASE} WHERE node_id = :node_id AND request_id = :request_id", named)
    if known is not None:
        return _lease(known)
    tx.run(
        "INSERT INTO memory_tier_leases (lease_id, node_id, request_id, kind, artifact_id,"
        " range_start, range_count, chunk_ids, ledger_version, bytes, workload_id, state,"
        " ack_request_id, ack_epoch, issued_at, pending_until) VALUES (:lease_id, :node_id,"
        " :request_id, :kind, :artifact_id, :range_start, :range_count, :chunk_ids,"
        " :ledger_version, :bytes, :workload_id, :state, '', 0, :issued_at, :pending_until)",
        {
            **named,
            "lease_id": wish.lease_id,
            "kind": wish.kind,
            "artifact_id": wish.artifact_id,
            "range_start": wish.range_start,
            "range_count": wish.range_count,
            "chunk_ids": wish.chunk_ids,
            "ledger_version": ordered64(wish.ledger_version),
            "bytes": signed64(wish.bytes),
            "workload_id": wish.workload_id,
            "state": TierLeaseState.PENDING,
            "issued_at": ordered64(wish.issued_at_ns),
            "pending_until": wish.pending_until_us,
        },
    )
    lease = _of_id(tx, wish.lease_id)
    if wish.pending_until_us is not None:
        tx.emit(LeaseGranted(LeaseKind.MEMORY_TIER, lease.lease_key, wish.pending_until_us))
    return lease


def withdraw_tier_lease(tx: Transaction, lease_id: str) -> bool:
    """Forget a lease that is pending, so that its request makes a new one; False if it is not."""
    row = tx.one(
        "DELETE FROM memory_tier_leases WHERE lease_id = :lease_id AND state = :pending"
        " RETURNING lease_key",
        {"lease_id": lease_id, "pending": TierLeaseState.PENDING},
    )
    if row is None:
        return False
    tx.emit(LeaseEnded(LeaseKind.MEMORY_TIER, row[0]))
    return True


def _of_id(tx: Snapshot, lease_id: str) -> TierLease:
    row = tx.one(f"{_LEASE} WHERE lease_id = :lease_id", {"lease_id": lease_id})
    if row is None:
        raise NotFound(f"there is no lease {lease_id[:80]!r}")
    return _lease(row)


def acknowledge(tx: Transaction, acknowledgement: Acknowledgement, now_us: int) -> TierLease:
    """Record what a daemon did about a lease, and return the lease as it is then.

    Raises NotFound when it is not the lease of that artifact and node, and FailedPrecondition when
    a daemon claims to hold a lease that has ended.
    """
    lease = _of_id(tx, acknowledgement.lease_id)
    if lease.artifact_id != acknowledgement.artifact_id or acknowledgement.node_id not in {
        "",
        lease.node_id,
    }:
        raise NotFound(f"lease {lease.lease_id!r} is of another artifact or node")
    if lease.state is TierLeaseState.EXPIRED:
        if acknowledgement.acquired:
            raise FailedPrecondition(
                f"lease {lease.lease_id!r} has ended: release the chunks, or request a new lease"
            )
        return lease
    if (
        acknowledgement.acquired
        and lease.ack_epoch_ns
        and acknowledgement.ledger_version < lease.ledger_version
    ):
        return lease  # a late duplicate of an earlier acknowledgement
    if not acknowledgement.acquired:
        state = TierLeaseState.EXPIRED
    else:
        state = (
            TierLeaseState.REVOKING
            if lease.state is TierLeaseState.REVOKING
            else TierLeaseState.ACTIVE
        )
    start, count = acknowledgement.chunk_range or (lease.range_start, lease.range_count)
    tx.run(
        "UPDATE memory_tier_leases SET range_start = :start, range_count = :count,"
        " chunk_ids = :chunk_ids, ledger_version = :ledger_version, bytes = :bytes,"
        " ack_request_id = :request_id, ack_epoch = :ack_epoch WHERE lease_key = :lease_key",
        {
            "start": start,
            "count": count,
            "chunk_ids": acknowledgement.chunk_ids,
            "ledger_version": ordered64(acknowledgement.ledger_version),
            "bytes": signed64(acknowledgement.bytes),
            "request_id": acknowledgement.request_id,
            "ack_epoch": signed64(acknowledgement.ack_epoch_ns),
            "lease_key": lease.lease_key,
        },
    )
    _move(tx, lease, state, now_us)
    return _of_id(tx, lease.lease_id)


def revoke_tier_lease(tx: Transaction, lease_id: str, now_us: int) -> TierLease:
    """Ask the holder to give a lease up; one that has ended stays ended."""
    lease = _of_id(tx, lease_id)
    if lease.state in {TierLeaseState.EXPIRED, TierLeaseState.REVOKING}:
        return lease
    _move(tx, lease, TierLeaseState.REVOKING, now_us)
    return _of_id(tx, lease_id)


def _move(tx: Transaction, lease: TierLease, state: TierLeaseState, now_us: int) -> None:
    """Put a lease into a state; only one that is pending ends by time."""
    tx.run(
        "UPDATE memory_tier_leases SET state = :state, pending_until = NULL,"
        " ended_at = iif(:state = 4, :now, NULL) WHERE lease_key = :lease_key",
        {"state": state, "now": now_us, "lease_key": lease.lease_key},
    )
    if lease.pending_until_us is not None:
        tx.emit(LeaseEnded(LeaseKind.MEMORY_TIER, lease.lease_key))


def outstanding(
    tx: Snapshot, node_id: str, states: Iterable[TierLeaseState], bytes_max: int
) -> list[TierLease]:
    """Return the leases of a node in some states, the latest issued first.

    Refuses a list that has more than ``bytes_max`` bytes as a message, however it is encoded: a
    chunk id, four bytes here, has one there at least.
    """
    wanted = sorted(states)
    size = tx.one(
        f"SELECT coalesce(sum(length(chunk_ids) / 4 + {_LISTED_BYTES_MIN}), 0)"
        " FROM memory_tier_leases"
        f" WHERE node_id = ? AND state IN ({','.join('?' * len(wanted))})",
        (node_id, *wanted),
    )
    assert size is not None
    if size[0] > bytes_max:
        raise ResourceExhausted(
            f"the leases of {node_id!r} take more than {bytes_max} bytes: name some states"
        )
    rows = tx.all(
        f"{_LEASE} WHERE node_id = ? AND state IN ({','.join('?' * len(wanted))})"
        " ORDER BY issued_at DESC, lease_id",
        (node_id, *wanted),
    )
    return [_lease(row) for row in rows]


def expire_tier_leases(
    tx: Transaction, lease_keys: Sequence[int], now_us: int, _clock: LeaseNow
) -> list[tuple[str, str]]:
    """End leases that nobody acknowledged in time; return id and node of those that were pending.

    The scheduler decides when that is: it gives them more time when the server was stalled.
    """
    marks = ",".join("?" * len(lease_keys))
    ended = tx.all(
        "UPDATE memory_tier_leases SET state = 4, pending_until = NULL, ended_at = ?"
        f" WHERE lease_key IN ({marks}) AND state = 1 RETURNING lease_id, node_id",
        (now_us, *lease_keys),
    )
    tx.emit(LeasesExpired(LeaseKind.MEMORY_TIER, list(lease_keys), []))
    return [(lease_id, node_id) for lease_id, node_id in ended]


def restore_tier_leases(tx: Transaction, now_us: int, ttl_us: int) -> list[tuple[int, int]]:
    """Return key and deadline (lease clock) of every pending lease that ends by time.

    Each start decides anew: with ``ttl_us`` 0 none of them ends by time; otherwise one that had no
    deadline, or a later one than it would get now, gets a new one.
    """
    tx.run(
        "UPDATE memory_tier_leases SET pending_until = iif(:ttl = 0, NULL,"
        " min(coalesce(pending_until, :now + :ttl), :now + :ttl)) WHERE state = 1"
        " AND pending_until IS NOT iif(:ttl = 0, NULL,"
        " min(coalesce(pending_until, :now + :ttl), :now + :ttl))",
        {"now": now_us, "ttl": ttl_us},
    )
    return [
        (lease_key, until)
        for lease_key, until in tx.all(
            "SELECT lease_key, pending_until FROM memory_tier_leases"
            " WHERE state = 1 AND pending_until IS NOT NULL"
        )
    ]


def purge_tier_leases(tx: Transaction, before_us: int, limit: int) -> int:
    """Delete up to ``limit`` leases that ended before a time; return how many."""
    return tx.run(
        "DELETE FROM memory_tier_leases WHERE lease_key IN (SELECT lease_key"
        " FROM memory_tier_leases WHERE ended_at < :before"
        " ORDER BY ended_at, lease_key LIMIT :limit)",
        {"before": before_us, "limit": limit},
    )
