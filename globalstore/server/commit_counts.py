"""What each commit adds to the metrics."""

from globalstore.registry.memory_tier_samples import MemoryTierSampled
from globalstore.registry.runtime.replica_places import MemoryTier
from globalstore.registry.signals import (
    RealizationRowsWritten,
    ReplicaRemoved,
    ReplicasCounted,
    ReplicaStored,
    TransportEnded,
    TransportGranted,
)
from globalstore.telemetry.metrics import Metrics

_TIER_NAMES = {int(tier): tier.name for tier in MemoryTier}


class CommitCounts:
    """Keeps gauges and counters in step with the database; a method a signal."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def replica_stored(self, signal: ReplicaStored) -> None:
        """Count a replica that was registered, anew or again."""
        replicas = self._metrics.replicas
        replicas.registered(signal.artifact_id, signal.memory_type)
        if signal.created:
            replicas.changed(signal.artifact_id, signal.memory_type, 1, edge=signal.first)

    def replica_removed(self, signal: ReplicaRemoved) -> None:
        """Count a replica that is gone."""
        replicas = self._metrics.replicas
        replicas.unregistered(signal.artifact_id, signal.memory_type)
        replicas.changed(signal.artifact_id, signal.memory_type, -1, edge=signal.last)

    def replicas_counted(self, signal: ReplicasCounted) -> None:
        """Count the replicas that an inventory added or removed."""
        self._metrics.replicas.reconciled(
            (artifact_id, _TIER_NAMES[tier], change, stored, edge)
            for artifact_id, tier, change, stored, edge in signal.counts
        )

    def transport_granted(self, signal: TransportGranted) -> None:
        """Count a transport that is in progress."""
        transports, artifact_id = self._metrics.transports, signal.space[0]
        age_s = max(0, signal.at_us - signal.created_us) / 1_000_000 if signal.is_first else None
        transports.granted(artifact_id, signal.replica_seq, age_s)
        if signal.capped:
            transports.filtered(artifact_id, "capped", signal.capped)
        transports.active.inc()

    def transport_ended(self, _: TransportEnded) -> None:
        """Count a transport that is not in progress any more."""
        self._metrics.transports.active.dec()

    def realization_rows_written(self, signal: RealizationRowsWritten) -> None:
        """Count the rows that an operation on realizations wrote."""
        self._metrics.realizations.wrote(signal.operation, signal.table, signal.rows)

    def memory_tier_sampled(self, signal: MemoryTierSampled) -> None:
        """Show how a node divides its memory."""
        sample = signal.sample
        self._metrics.memory_tiers.sampled(
            sample.node_id,
            (sample.stable_total, sample.stable_used),
            (sample.preemptible_total, sample.preemptible_marked),
            sample.faults_per_sec,
            sample.rehydrate_p99_ns,
            enabled=sample.enable_preemptible,
        )
