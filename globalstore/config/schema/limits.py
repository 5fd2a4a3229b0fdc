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
class Limits:
    """Bounds on requests and on what is kept."""

    digest_writes: DigestWrites = section(DigestWrites, "How much one request may write.")
    operation_leases: OperationLeases = section(OperationLeases, "Leases on operations.")
    operation_writes: OperationWrites = section(OperationWrites, "Writes of progress.")
    retention: Retention = section(Retention, "When finished things are deleted; 0s: never.")


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
        16 << 20, "Largest index of an artifact, in bytes, however it comes."
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
