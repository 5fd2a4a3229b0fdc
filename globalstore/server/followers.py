"""What memory learns from each commit, before anybody is answered."""

from collections.abc import Sequence

from globalstore.caches.keys import KeyCache
from globalstore.caches.sources import KnownSources
from globalstore.leases.expiry import LeaseExpiry
from globalstore.liveness.instances import Instances
from globalstore.liveness.workers import Workers
from globalstore.registry import memory_tier_samples, signals
from globalstore.registry.memory_tier_samples import Sample
from globalstore.registry.runtime.instances import InstanceRegistered
from globalstore.registry.runtime.replicas import MemoryTier
from globalstore.registry.runtime.sources import SourcesListed
from globalstore.registry.runtime.workers import WorkerRegistered
from globalstore.scheduling.transport_expiry import TransportExpiry
from globalstore.scheduling.transports import SourceQueues
from globalstore.telemetry.metrics import Metrics
from globalstore.waiting.drains import Drains
from globalstore.waiting.realizations import RealizationWaiters

_TIER_NAMES = {int(tier): tier.name for tier in MemoryTier}


class Followers:
    """Carries the events of the registry to whoever keeps something in memory."""

    def __init__(
        self,
        workers: Workers,
        instances: Instances,
        sources: KnownSources,
        drains: Drains,
        groups: RealizationWaiters,
        metrics: Metrics,
    ) -> None:
        self._workers = workers
        self._sources = sources
        self._drains = drains
        self._groups = groups
        self._instances = instances
        self._metrics = metrics
        self._queues: SourceQueues | None = None
        self._expiry: TransportExpiry | None = None
        self._leases: LeaseExpiry | None = None
        self._keys: KeyCache | None = None

    def attach(
        self,
        queues: SourceQueues,
        expiry: TransportExpiry,
        keys: KeyCache,
        leases: LeaseExpiry,
    ) -> None:
        """Name the followers that themselves need the store."""
        self._queues = queues
        self._expiry = expiry
        self._leases = leases
        self._keys = keys

    def follow(self, committed: Sequence[object]) -> None:
        """Take in the events of one commit, in their order."""
        assert self._queues is not None
        assert self._expiry is not None
        assert self._leases is not None
        assert self._keys is not None
        for event in committed:
            match event:
                case signals.SourceFreed(artifact_id, view_id):
                    self._sources.drop((artifact_id, view_id))
                    self._drains.space_changed((artifact_id, view_id))
                    self._queues.source_freed(artifact_id, view_id)
                case signals.WorkerReplicasChanged(worker_key):
                    self._workers.replicas_changed(worker_key)
                    self._sources.worker_changed(worker_key)
                case signals.TransportGranted(transport_key):
                    self._expiry.granted(transport_key)
                    self._sources.granted(event)
                    self._count_grant(event)
                    self._metrics.transports.active.inc()
                case signals.TransportEnded(transport_key, space):
                    self._expiry.ended(transport_key)
                    self._sources.ended(event)
                    self._drains.transport_ended(event)
                    self._metrics.transports.active.dec()
                    self._queues.source_freed(*space)
                case SourcesListed(space, shortlist):
                    self._sources.listed(space, shortlist)
                case signals.TransportsForgotten():
                    self._sources.rows_purged()
                case signals.GroupCounted(group, progress):
                    self._sources.group_counted(group, progress)
                case signals.ReplicaStored(artifact_id, memory_type, created, first):
                    self._metrics.replicas.registered(artifact_id, memory_type)
                    if created:
                        self._metrics.replicas.changed(artifact_id, memory_type, 1, edge=first)
                case signals.ReplicaRemoved(artifact_id, memory_type, last):
                    self._metrics.replicas.unregistered(artifact_id, memory_type)
                    self._metrics.replicas.changed(artifact_id, memory_type, -1, edge=last)
                case signals.ReplicasCounted(counts):
                    self._metrics.replicas.reconciled(
                        (artifact_id, _TIER_NAMES[tier], change, stored, edge)
                        for artifact_id, tier, change, stored, edge in counts
                    )
                case signals.SourcesFreed(spaces):
                    self._sources.drop_many(spaces)
                    self._drains.spaces_changed(spaces)
                    if len(self._queues):
                        for space in spaces:
                            self._queues.source_freed(*space)
                case signals.WorkerReconciled(worker_key, seq, version, confirmed):
                    self._workers.reconciled(worker_key, seq, version, confirmed=confirmed)
                    self._sources.drop_all()
                case WorkerRegistered(worker):
                    self._workers.registered(worker)
                    self._sources.drop_all()
                    self._instances.worker_registered(worker)
                case signals.WorkerEnded(worker_key, worker_id, lost):
                    self._workers.ended(worker_key)
                    self._instances.worker_ended(worker_key)
                    if lost:
                        self._queues.worker_lost(worker_id)
                case InstanceRegistered(instance):
                    self._instances.registered(instance)
                case signals.InstanceEnded(instance_key):
                    self._instances.ended(instance_key)
                case signals.KeyChanged(key):
                    self._keys.changed(key)
                case signals.RealizationEnded(fingerprint, state):
                    self._groups.ended(fingerprint, state)
                case signals.RealizationRowsWritten(operation, table, rows):
                    self._metrics.realizations.wrote(operation, table, rows)
                case signals.LeaseGranted(kind, key, expires_at_us):
                    self._leases.granted(kind, key, expires_at_us)
                case signals.LeaseEnded(kind, key):
                    self._leases.ended(kind, key)
                case memory_tier_samples.MemoryTierSampled(sample):
                    sampled(self._metrics, sample)
                case signals.LeasesExpired():
                    self._leases.expired(event)
                case _:
                    raise TypeError(f"nobody follows {event!r}")

    def _count_grant(self, event: signals.TransportGranted) -> None:
        artifact_id = event.space[0]
        age_s = max(0, event.at_us - event.created_us) / 1_000_000 if event.is_first else None
        self._metrics.transports.granted(artifact_id, event.replica_seq, age_s)
        if event.capped:
            self._metrics.transports.filtered(artifact_id, "capped", event.capped)


def sampled(metrics: Metrics, sample: Sample) -> None:
    """Show what a node said last of its memory tiers."""
    metrics.memory_tiers.sampled(
        sample.node_id,
        (sample.stable_total, sample.stable_used),
        (sample.preemptible_total, sample.preemptible_marked),
        sample.faults_per_sec,
        sample.rehydrate_p99_ns,
        enabled=sample.enable_preemptible,
    )
