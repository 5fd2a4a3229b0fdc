"""Samples of how nodes divide their memory: what planners and dashboards know of it.

Numbers are as on the wire here, unsigned; times are nanoseconds since 1970.
"""

import attrs

from globalstore.db import Row, Snapshot, Transaction
from globalstore.rules.values import ordered64, signed64, unordered64, unsigned64


@attrs.frozen
class Sample:
    """What a node reported of its memory tiers at an epoch. Sizes in bytes."""

    node_id: str
    epoch_ns: int
    worker_id: str
    stable_total: int
    stable_used: int
    preemptible_total: int
    preemptible_marked: int
    faults_per_sec: float
    rehydrate_p99_ns: int
    enable_preemptible: bool
    config_json: str

    @property
    def stable_available(self) -> int:
        """Bytes of the stable pool that planners may count on."""
        return max(0, self.stable_total - self.stable_used)


@attrs.frozen
class MemoryTierSampled:
    """A node reported its memory tiers, later than every earlier report."""

    sample: Sample


@attrs.frozen
class Retention:
    """How many samples of a node are kept: so old at most, 0 for any age, and so many."""

    age_ns: int
    rows: int


_SAMPLE = (
    "SELECT node_id, epoch, worker_id, stable_total, stable_used, preemptible_total,"
    " preemptible_marked, faults_per_sec, rehydrate_p99, enable_preemptible, config_json"
    " FROM memory_tier_snapshots"
)


def _sample(row: Row) -> Sample:
    return Sample(
        node_id=row[0],
        epoch_ns=unordered64(row[1]),
        worker_id=row[2],
        stable_total=unsigned64(row[3]),
        stable_used=unsigned64(row[4]),
        preemptible_total=unsigned64(row[5]),
        preemptible_marked=unsigned64(row[6]),
        faults_per_sec=row[7],
        rehydrate_p99_ns=unsigned64(row[8]),
        enable_preemptible=bool(row[9]),
        config_json=row[10],
    )


def publish_sample(tx: Transaction, sample: Sample, keep: Retention) -> None:
    """Store a sample of a node, replacing one of the same epoch, and delete old ones."""
    tx.run(
        "INSERT INTO memory_tier_snapshots VALUES (:node_id, :epoch, :worker_id, :stable_total,"
        " :stable_used, :preemptible_total, :preemptible_marked, :faults, :p99, :enabled, :config)"
        " ON CONFLICT (node_id, epoch) DO UPDATE SET worker_id = :worker_id,"
        " stable_total = :stable_total, stable_used = :stable_used,"
        " preemptible_total = :preemptible_total, preemptible_marked = :preemptible_marked,"
        " faults_per_sec = :faults, rehydrate_p99 = :p99, enable_preemptible = :enabled,"
        " config_json = :config",
        {
            "node_id": sample.node_id,
            "epoch": ordered64(sample.epoch_ns),
            "worker_id": sample.worker_id,
            "stable_total": signed64(sample.stable_total),
            "stable_used": signed64(sample.stable_used),
            "preemptible_total": signed64(sample.preemptible_total),
            "preemptible_marked": signed64(sample.preemptible_marked),
            "faults": sample.faults_per_sec,
            "p99": signed64(sample.rehydrate_p99_ns),
            "enabled": int(sample.enable_preemptible),
            "config": sample.config_json,
        },
    )
    latest_ns = _prune(tx, sample.node_id, keep)
    if sample.epoch_ns == latest_ns:
        tx.emit(MemoryTierSampled(sample))


def _prune(tx: Transaction, node_id: str, keep: Retention) -> int:
    """Delete samples of a node beyond what is kept; return the latest epoch."""
    row = tx.one(
        "SELECT count(*), min(epoch), max(epoch) FROM memory_tier_snapshots"
        " WHERE node_id = :node_id",
        {"node_id": node_id},
    )
    assert row is not None
    count, oldest, latest_ns = row[0], row[1], unordered64(row[2])
    first = ordered64(max(0, latest_ns - keep.age_ns)) if keep.age_ns else oldest
    if oldest < first:
        count -= tx.run(
            "DELETE FROM memory_tier_snapshots WHERE node_id = :node_id AND epoch < :first",
            {"node_id": node_id, "first": first},
        )
    if count > keep.rows:
        tx.run(
            "DELETE FROM memory_tier_snapshots WHERE node_id = :node_id AND epoch IN (SELECT epoch"
            " FROM memory_tier_snapshots WHERE node_id = :node_id ORDER BY epoch LIMIT :excess)",
            {"node_id": node_id, "excess": count - keep.rows},
        )
    return latest_ns


def latest(tx: Snapshot, node_id: str) -> Sample | None:
    """Return the sample of the highest epoch of a node; None for one that never reported."""
    row = tx.one(
        f"{_SAMPLE} WHERE node_id = :node_id ORDER BY epoch DESC LIMIT 1", {"node_id": node_id}
    )
    return None if row is None else _sample(row)


def latest_of_all(tx: Snapshot, limit: int) -> list[Sample]:
    """Return the latest sample of each node, of up to ``limit`` nodes."""
    rows = tx.all(
        f"{_SAMPLE} JOIN (SELECT node_id, max(epoch) AS epoch FROM memory_tier_snapshots"
        " GROUP BY node_id LIMIT :limit) USING (node_id, epoch)",
        {"limit": limit},
    )
    return [_sample(row) for row in rows]
