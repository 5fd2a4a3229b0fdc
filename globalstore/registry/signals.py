"""What a committed operation tells the rest of the process.

The store hands these over on the event loop, in commit order, before it answers whoever asked for
the operation: what is kept in memory never trails behind an answer.
"""

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import attrs

if TYPE_CHECKING:
    from globalstore.registry.memory_tier_samples import Sample

from globalstore.rules.scoring import Candidate, GroupProgress, WorkerLoad

# An artifact and a view, blank for the canonical bytes.
Space = tuple[str, str]

# Kind, id and epoch of a group of requests.
GroupKey = tuple[str, str, int]


@attrs.frozen
class WorkerRegistered:
    """A worker is active under a generation that nobody had before."""

    worker: "WorkerState"


@attrs.frozen
class WorkerEnded:
    """A worker became inactive: unregistered, expired or evicted.

    ``lost`` unless it said goodbye: what it asked for and what it served ends with it.
    """

    worker_key: int
    worker_id: str
    lost: bool


@attrs.frozen
class InstanceRegistered:
    """An instance is active under a generation that it never had before."""

    instance: "InstanceState"


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
    """A worker's inventory was accepted: where its cursor and its version stand now.

    ``confirmed`` when the inventory was a complete one.
    """

    worker_key: int
    request_seq: int
    state_version: int
    confirmed: bool


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
    """Rows of transports that had ended are gone; what was counted of them does not hold."""


@attrs.frozen
class SourcesListed:
    """Which free sources an artifact and view had at this point of the commit."""

    space: Space
    shortlist: "Shortlist"


@attrs.frozen
class GroupCounted:
    """How far a group of requests was at this point of the commit."""

    group: GroupKey
    progress: GroupProgress


@attrs.frozen
class Shortlist:
    """The best free sources of an artifact and view, in their order, as far as anyone is heard.

    ``loads`` are those of their workers. Unless it ``is_complete`` there are more sources.
    """

    candidates: list[Candidate]
    loads: Mapping[int, WorkerLoad]
    is_complete: bool


@attrs.frozen
class KeyChanged:
    """What a key points at, its hints or its lifetime changed."""

    key: str


class LeaseKind(enum.Enum):
    """What ends at a deadline of its own; each kind has integer keys."""

    SHARD_HOME = "shard_home"
    MEMORY_TIER = "memory_tier"
    KEY = "key"
    GROUP = "group"


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
class MemoryTierSampled:
    """What a node says of its memory tiers, later than all that it said before."""

    sample: "Sample"


@attrs.frozen
class RealizationEnded:
    """The realization of a group has come to its final state, a number of the wire."""

    fingerprint: bytes
    state: int


@attrs.frozen
class RealizationRowsWritten:
    """An operation on groups wrote rows of a table."""

    operation: str
    table: str
    rows: int


@attrs.frozen
class WorkerState:
    """A worker as the database has it. Sizes in bytes, times in microseconds since 1970."""

    worker_key: int
    worker_id: str
    daemon_id: str
    node_id: str
    node_address: str
    grpc_port: int
    p2p_port: int
    mem_pool_total_size: int
    mem_pool_available_size: int
    accepting_new_requests: bool
    capability_flags: int
    last_heartbeat_us: int
    generation: int
    request_seq: int
    state_version: int
    needs_reconcile: bool

    def log_fields(self) -> dict[str, object]:
        """What the log says of a worker."""
        return {
            "worker_id": self.worker_id,
            "daemon_id": self.daemon_id,
            "node_id": self.node_id,
            "address": f"{self.node_address}:{self.grpc_port}",
            "generation": self.generation,
            "state_version": self.state_version,
        }


@attrs.frozen
class InstanceState:
    """An instance as the database has it; times in microseconds since 1970.

    ``named_worker_id`` is blank for an instance that follows its daemon; ``labels_json`` is an
    object of texts.
    """

    instance_key: int
    instance_id: str
    daemon_id: str
    named_worker_id: str
    engine: str
    signals_endpoint: str
    labels_json: str
    execution_endpoint: str
    execution_host_kind: str
    capability_flags: int
    last_heartbeat_us: int
    generation: int
