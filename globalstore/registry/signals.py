"""Signals: what a committed operation tells the rest of the process.

The store hands them over on the event loop, in commit order, before it answers the callers of the
operations: what is kept in memory never trails behind an answer. A signal that carries a row stands
beside the type of that row, in the module of its noun.
"""

import enum
from typing import NamedTuple

import attrs

from globalstore.rules.scoring import GroupProgress

# An artifact and a view, blank for the canonical bytes.
Space = tuple[str, str]

# Kind, id and epoch of a scheduling group.
GroupKey = tuple[str, str, int]


@attrs.frozen
class WorkerEnded:
    """A worker became inactive: unregistered, expired or evicted.

    ``lost`` unless it unregistered: its requests and the transports that it served end with it.
    """

    worker_key: int
    worker_id: str
    lost: bool


@attrs.frozen
class InstanceEnded:
    """An instance became inactive: unregistered or expired."""

    instance_key: int


@attrs.frozen
class WorkerReplicasChanged:
    """What a worker holds, or whether it is available, changed."""

    worker_key: int


@attrs.frozen
class WorkerReconciled:
    """A worker's inventory was accepted: where its cursor and its version are now.

    ``changed`` if that made another set of replicas of it. If it was ``complete``, ``fingerprint``
    tells which inventory agrees with the rows from now on, None when none does; it agreed with them
    at the revision ``compared_at`` of the replicas, None for the present one.
    """

    worker_key: int
    request_seq: int
    state_version: int
    changed: bool
    complete: bool
    fingerprint: int | None
    compared_at: int | None


class ReplicaCount(NamedTuple):
    """How an inventory changed the number of an artifact's replicas of one memory tier.

    ``stored`` of them were created or updated. ``edge`` when the artifact had no replica before,
    or has none after.
    """

    artifact_id: str
    memory_tier: int
    change: int
    stored: int
    edge: bool


@attrs.frozen
class ReplicasCounted:
    """An inventory changed what is counted of replicas, by artifact and memory tier."""

    counts: list[ReplicaCount]


@attrs.frozen
class ReplicaStored:
    """A replica was registered, anew (``created``) or again; ``first`` is its artifact's first."""

    artifact_id: str
    memory_type: str
    created: bool
    first: bool


@attrs.frozen
class ReplicaRemoved:
    """A replica row is gone; ``last`` when it was the artifact's last one."""

    artifact_id: str
    memory_type: str
    last: bool


@attrs.frozen
class SourceFreed:
    """A waiter for this artifact and view may find a source now, or learn that there is none."""

    artifact_id: str
    view_id: str


@attrs.frozen
class SourcesFreed:
    """As ``SourceFreed``, for many artifacts and views."""

    spaces: set[Space]


@attrs.frozen
class SourcesExpire:
    """All replicas of an artifact and view that a waiter may hope for expire by this time (µs)."""

    space: Space
    at_us: int


@attrs.frozen
class TransportGranted:
    """A transport is in progress.

    ``replica_seq`` and ``worker_key`` are its source's, ``created_us`` when that was registered and
    ``is_first`` whether it serves for the first time. ``capped`` sources were passed over because
    the request's group has enough of them.
    """

    transport_key: int
    space: Space
    group: GroupKey | None
    replica_id: bytes
    replica_seq: int
    worker_key: int
    created_us: int
    is_first: bool
    capped: int
    at_us: int


@attrs.frozen
class TransportEnded:
    """A transport that was in progress is not any more, and a waiter may find its source.

    ``replica_seq``, its ``load`` after this and ``worker_key`` are None when the source is gone;
    worker_key is NOBODY for one that was hidden, which goes with its last transport.
    """

    transport_key: int
    space: Space
    group: GroupKey | None
    succeeded: bool
    replica_seq: int | None
    load: int | None
    worker_key: int | None
    at_us: int


@attrs.frozen
class TransportsForgotten:
    """Rows of transports that had ended are gone; counts of scheduling groups do not hold."""


@attrs.frozen
class GroupCounted:
    """The progress of a scheduling group at this point of the commit."""

    group: GroupKey
    progress: GroupProgress


@attrs.frozen
class KeyChanged:
    """What a key points at, its hints or its lifetime changed."""

    key: str


class LeaseKind(enum.Enum):
    """What ends at a deadline of its own; each kind has integer keys."""

    SHARD_HOME = "shard_home"
    MEMORY_TIER = "memory_tier"
    KEY = "key"
    REALIZATION = "realization"


@attrs.frozen
class LeaseGranted:
    """A lease is to end at a time of the lease clock (µs), earlier than it was if it was known."""

    kind: LeaseKind
    key: int
    expires_at_us: int


@attrs.frozen
class LeaseEnded:
    """A lease has ended, or does not end by time any more."""

    kind: LeaseKind
    key: int


@attrs.frozen
class LeasesExpired:
    """What became of leases at their deadlines: ended, or extended meanwhile, as (key, until)."""

    kind: LeaseKind
    ended: list[int]
    later: list[tuple[int, int]]


@attrs.frozen
class RealizationEnded:
    """A realization has come to its final state, a number of the wire."""

    fingerprint: bytes
    state: int


@attrs.frozen
class RealizationRowsWritten:
    """An operation on realizations wrote rows of a table."""

    operation: str
    table: str
    rows: int
