"""Section ``worker_policy``: liveness, maintenance, scheduling."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

import math

import attrs

from globalstore.config.kinds import (
    Duration,
    GroupPublishAuthorityMode,
    Ratio,
    TransportSchedulerMode,
    UInt32,
    UInt64,
    Weight,
)
from globalstore.config.schema._settings import section, setting


@attrs.frozen
class MemoryTiers:
    """What nodes report of their memory."""

    snapshot_retention: Duration = setting(600.0, "Age limit of a node's reports; 0s: none.")
    snapshot_max_rows: UInt32 = setting(
        200, "Reports kept per node; 0: the default.", zero_is_default=True
    )
    publish_interval: Duration = setting(
        5.0, "How often daemons should report; a hint to them.", has_effect=False
    )


@attrs.frozen
class ControlReducer:
    """How changes of one daemon follow each other."""

    shard_count: UInt32 = setting(
        1,
        "Shards by which waiting changes are bounded and counted, at most 64. Daemons never wait "
        "for each other, whatever this is. 0: the default.",
        zero_is_default=True,
    )
    queue_capacity: UInt32 = setting(
        2048,
        "Changes that may wait in a shard; one more is answered 'overloaded'. 0: the default.",
        zero_is_default=True,
    )
    coalesce_window: Duration = setting(
        0.05,
        "How long heartbeats are gathered. Every heartbeat is applied by itself, in memory; only "
        "what is stored of them is gathered.",
        has_effect=False,
    )


@attrs.frozen
class KeyMapping:
    """Names that point at artifacts."""

    alias_cache_ttl: Duration = setting(
        1.0,
        "How long a client may reuse the answer for an alias. Told in whole seconds, rounded up; "
        "0s: not at all.",
    )

    @property
    def alias_cache_ttl_seconds(self) -> int:
        """``alias_cache_ttl`` as it is answered: whole seconds, rounded up."""
        return math.ceil(self.alias_cache_ttl)


@attrs.frozen
class SourceBalanceWeights:
    """What counts how much in the score of a source; an explicit 0 leaves a term out."""

    replica_load_weight: Weight = setting(1.0, "Weight of the replica's own load.")
    worker_load_weight: Weight = setting(1.0, "Weight of the load of its worker.")
    recent_assignment_penalty_weight: Weight = setting(
        1.0, "Weight against sources that were chosen a moment ago."
    )
    diffusion_bonus_weight: Weight = setting(
        1.0, "Weight in favour of fresh copies, so that load spreads to them."
    )


@attrs.frozen
class GroupDispatch:
    """How waiting requests that belong together are served."""

    fairness_floor_ratio: Ratio = setting(
        0.25, "Share of each round kept for the groups that wait longest, 0 to 1."
    )
    completion_bias_weight: Weight = setting(1.0, "Preference for groups that are nearly complete.")
    starvation_aging_threshold: Duration = setting(
        5.0, "A request that waited this long goes before the rest."
    )
    queue_scan_limit: UInt32 = setting(
        128, "Waiting requests looked at in one round; at least 1.", floor=1
    )
    dispatch_batch_limit: UInt32 = setting(16, "Requests served in one round; at least 1.", floor=1)
    group_source_spread_weight: Weight = setting(
        2.0, "How strongly the members of a group are spread over the sources."
    )
    group_source_soft_cap_ratio: Weight = setting(
        1.3, "How far above an even share one source may go before others come first."
    )
    group_source_min_candidates_for_enforce: UInt32 = setting(
        3, "With fewer sources than this no cap applies; at least 1.", floor=1
    )
    relaxed_group_kinds: tuple[str, ...] = setting(
        ("tp_version",),
        "Kinds of groups that may mix artifacts and views; case does not matter.",
    )


@attrs.frozen
class TransportScheduler:
    """Who gets a source, and which."""

    mode: TransportSchedulerMode = setting(
        TransportSchedulerMode.TRANSPORT_SCHEDULER_MODE_GROUP_DISPATCH,
        "LEGACY: least busy replica first; SOURCE_BALANCE: by score; GROUP_DISPATCH: by score, "
        "and requests of a group together.",
    )
    source_balance_weights: SourceBalanceWeights = section(
        SourceBalanceWeights, "Terms of a source's score; an explicit 0 leaves one out."
    )
    group_dispatch: GroupDispatch = section(
        GroupDispatch, "How waiting requests that belong together are served."
    )
    max_waiters: UInt64 = setting(
        65536, "Requests that may wait for a source; one more is refused at once."
    )


@attrs.frozen
class GroupRealization:
    """Transactions by which a group of workers takes up a version together."""

    enabled: bool = setting(False, "Offer group transactions.")
    default_deadline_ms: UInt64 = setting(
        30000, "Milliseconds a caller waits if it names no deadline."
    )
    max_total_parts: UInt32 = setting(1024, "Parts of one transaction; at least 1.", floor=1)
    transaction_ttl_ms: UInt64 = setting(300000, "Milliseconds after which a transaction expires.")
    expiration_scan_interval_ms: UInt64 = setting(
        30000, "Milliseconds between two looks for expired transactions.", has_effect=False
    )
    max_parts_per_version_set: UInt32 = setting(
        4096, "Parts of one set of versions; at least 1.", floor=1
    )
    publish_authority_mode: GroupPublishAuthorityMode = setting(
        GroupPublishAuthorityMode.GROUP_PUBLISH_AUTHORITY_MODE_AUTO_WHEN_READY,
        "AUTO_WHEN_READY: published once every member is ready; COORDINATOR_EXPLICIT: when the "
        "coordinator says so.",
    )
    max_active_transactions: UInt32 = setting(4096, "Unfinished transactions; at least 1.", floor=1)
    max_waiters_per_transaction: UInt32 = setting(
        1024, "Callers waiting on one transaction; at least 1.", floor=1
    )
    min_wait_poll_interval_ms: UInt64 = setting(
        25,
        "Least milliseconds a client pauses between two polls; not above the greatest.",
        has_effect=False,
    )
    max_wait_poll_interval_ms: UInt64 = setting(
        500,
        "Most milliseconds a client pauses between two polls; at least 1.",
        floor=1,
        has_effect=False,
    )
    max_member_reports_per_rpc: UInt32 = setting(
        1024, "Member reports in one call; at least 1.", floor=1, has_effect=False
    )
    cleanup_batch_limit: UInt32 = setting(
        256, "Transactions removed in one pass; at least 1.", floor=1, has_effect=False
    )


@attrs.frozen
class WorkerPolicy:
    """When a daemon counts as alive, and how work is dealt out."""

    heartbeat_timeout: Duration = setting(
        30.0,
        "Silence after which a worker gets no more transfers and then expires. Short: failures "
        "are noticed soon; long: a busy network does no harm. At least 0.1s, better several times "
        "default_heartbeat_interval.",
    )
    cleanup_interval: Duration = setting(
        60.0, "Time between two maintenance passes; at least 1s.", floor=1.0
    )
    default_heartbeat_interval: Duration = setting(
        5.0, "How often daemons are told to report; keep it well below heartbeat_timeout."
    )
    memory_tiers: MemoryTiers = section(MemoryTiers, "What nodes report of their memory.")
    control_reducer: ControlReducer = section(
        ControlReducer, "How changes of one daemon follow each other."
    )
    key_mapping: KeyMapping = section(KeyMapping, "Names that point at artifacts.")
    transport_scheduler: TransportScheduler = section(
        TransportScheduler, "Who gets a source, and which."
    )
    group_realization: GroupRealization = section(
        GroupRealization, "Transactions by which a group takes up a version together."
    )
    transport_ttl: Duration | None = setting(
        None,
        "Age at which a transfer in progress is given up. null: the greatest of 60s, twice "
        "heartbeat_timeout and ten times cleanup_interval.",
    )
    transport_retention: Duration = setting(
        86400.0, "How long an ended transfer can still be looked up."
    )
    chunk_stale_threshold: Duration = setting(
        3600.0, "Chunk rows of a node without a live worker are deleted after this long."
    )
    max_lease_ttl: Duration = setting(86400.0, "Longest shard lease a daemon can get.")
    pending_lease_ttl: Duration = setting(
        0.0, "A memory-tier lease nobody acknowledged ends after this long. 0s: never."
    )
    tier_lease_retention: Duration = setting(
        86400.0, "How long an ended memory-tier lease can still be looked up."
    )

    @property
    def effective_transport_ttl(self) -> float:
        """``transport_ttl`` in seconds, or what its formula gives."""
        if self.transport_ttl is not None:
            return self.transport_ttl
        return max(60.0, 2 * self.heartbeat_timeout, 10 * self.cleanup_interval)
