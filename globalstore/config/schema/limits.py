"""Sections ``limits`` and ``registration``."""

# ruff: noqa: RUF009 (setting() and section() only declare a field)

import attrs

from globalstore.config.kinds import Duration, UInt32, UInt64
from globalstore.config.schema._settings import section, setting


@attrs.frozen
class DigestWrites:
    """How much one request may write; 0 stands for the default."""

    max_leaf_writes_per_request: UInt32 = setting(
        16384, "Leaf digests in one request.", zero_is_default=True
    )
    max_proof_digests_per_request: UInt32 = setting(
        16384, "Proof digests in one request.", zero_is_default=True
    )
    max_total_digests_per_request: UInt32 = setting(
        32768, "Digests of every kind in one request.", zero_is_default=True
    )
    max_digest_bytes_per_request: UInt64 = setting(
        2097152, "Bytes of digests in one request.", zero_is_default=True
    )


@attrs.frozen
class OperationLeases:
    """Leases on long-running operations."""

    default_ttl: Duration = setting(30.0, "Lease given to a caller that names none.")
    max_ttl: Duration = setting(
        300.0, "Longest lease a caller can get: how long a dead holder may block the operation."
    )


@attrs.frozen
class OperationWrites:
    """Writes of an operation's progress."""

    min_status_update_interval: Duration = setting(
        1.0, "Progress of one operation is stored at most this often; its end is stored at once."
    )


@attrs.frozen
class Retention:
    """When finished things are deleted; 0s keeps them for good."""

    operations_ttl: Duration = setting(
        86400.0, "Age, since its last update, at which a finished operation is deleted."
    )
    assembly_proof_commitments_ttl: Duration = setting(
        86400.0, "Age at which commitments of a sealed or idle assembly are deleted."
    )
    piece_proof_digests_ttl: Duration = setting(
        86400.0, "Age at which piece digests of a sealed or idle assembly are deleted."
    )


@attrs.frozen
class Rows:
    """How many rows a table may have; each key is the name of its table."""

    replicas: UInt64 = setting(10_000_000, "Replicas of all workers.")
    artifacts: UInt64 = setting(10_000_000, "Artifacts; they are never deleted.")
    tensor_indexes: UInt64 = setting(1_000_000, "Indexes of artifacts; they are never deleted.")
    artifact_bindings: UInt64 = setting(1_000_000, "Bindings; they are never deleted.")
    disk_locations: UInt64 = setting(
        10_000_000, "Disk locations, deleted ones too; they are never forgotten."
    )
    worker_ids: UInt64 = setting(
        10_000_000, "Ids of workers that replicas, transports or chunks name, known or not."
    )
    workers: UInt64 = setting(1_000_000, "Workers, until a day after their end.")
    endpoints: UInt64 = setting(
        10_000_000, "Addresses of replicas. Unused ones go when half of them are taken."
    )
    instances: UInt64 = setting(1_000_000, "Instances, until a day after their end.")
    transports: UInt64 = setting(
        100_000_000, "Transports, ended ones until worker_policy.transport_retention has passed."
    )
    recorded_replies: UInt64 = setting(
        20_000_000, "Answers kept for a day for repeats of a client_request_id."
    )
    key_mappings: UInt64 = setting(
        10_000_000, "Keys. Revoked and expired ones go when half of them are taken."
    )
    key_generations: UInt64 = setting(
        20_000_000, "Targets of keys, earlier ones until a day after their end."
    )
    key_swaps: UInt64 = setting(20_000_000, "Swaps with an operation_id within a day.")
    shard_leases: UInt64 = setting(
        10_000_000, "Shards with a home. Ended leases go when half of them are taken."
    )
    chunk_nodes: UInt64 = setting(1_000_000, "Nodes that reported chunks.")
    chunk_blocks: UInt64 = setting(
        20_000_000, "Blocks of up to 256 chunks, of a node, a device and a reporter each."
    )
    memory_tier_leases: UInt64 = setting(
        10_000_000, "Leases on memory, ended ones until worker_policy.tier_lease_retention."
    )
    memory_tier_snapshots: UInt64 = setting(
        10_000_000,
        "Reports of memory tiers. Those older than a day go when half of them are taken.",
    )
    version_sets: UInt64 = setting(1_000_000, "Version sets; they are never deleted.")
    version_set_parts: UInt64 = setting(10_000_000, "Parts of all version sets.")
    group_transactions: UInt64 = setting(
        10_000_000, "Realizations; they are never deleted, so that none is used twice."
    )
    group_members: UInt64 = setting(
        10_000_000, "Members of realizations, until a day after the end of these."
    )


@attrs.frozen
class Limits:
    """Bounds on requests and on what is kept."""

    rows: Rows = section(
        Rows,
        "How many rows of each kind there may be. What would add one more is RESOURCE_EXHAUSTED "
        "and names the key; changes, ends and deletions go on. From 80 % on the log warns.",
    )
    digest_writes: DigestWrites = section(
        DigestWrites, "How much one request may write.", has_effect=False
    )
    operation_leases: OperationLeases = section(
        OperationLeases, "Leases on operations.", has_effect=False
    )
    operation_writes: OperationWrites = section(
        OperationWrites, "Writes of progress.", has_effect=False
    )
    retention: Retention = section(
        Retention, "When finished things are deleted; 0s: never.", has_effect=False
    )


@attrs.frozen
class Registration:
    """Sessions in which a daemon announces an artifact piece by piece."""

    default_ttl: Duration = setting(
        60.0, "Life of a session between keepalives if none is asked.", has_effect=False
    )
    min_ttl: Duration = setting(1.0, "Shortest life a caller may ask for.", has_effect=False)
    max_ttl: Duration = setting(600.0, "Longest life a caller may ask for.", has_effect=False)
    max_pending_lifetime: Duration = setting(
        21600.0,
        "Age at which an unfinished session ends whatever its keepalives say.",
        has_effect=False,
    )
    max_pending_per_worker: UInt64 = setting(
        64, "Unfinished sessions of one worker.", has_effect=False
    )
    max_pending_total: UInt64 = setting(
        4096, "Unfinished sessions of all workers.", has_effect=False
    )
    max_artifact_bytes: UInt64 = setting(1 << 44, "Largest artifact, in bytes.", has_effect=False)
    max_index_bytes: UInt64 = setting(
        16 << 20, "Largest index of an artifact, in bytes; a larger one is RESOURCE_EXHAUSTED."
    )
    max_entries_per_feed: UInt64 = setting(
        10000, "Chunks or segments in one feed.", has_effect=False
    )
    max_entries_per_session: UInt64 = setting(
        262144, "Chunks or segments in one session.", has_effect=False
    )
    terminal_retention: Duration = setting(
        3600.0,
        "How long an ended session can still be read and its calls repeated.",
        has_effect=False,
    )
    restart_grace: Duration = setting(
        60.0, "Least time a session has left after a restart of the server.", has_effect=False
    )
    sweep_interval: Duration = setting(
        1.0, "How often ended sessions are looked for; at least 0.1s.", has_effect=False
    )
