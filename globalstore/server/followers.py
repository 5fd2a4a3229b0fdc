"""The followers of each signal of a commit, in the order in which they get it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from globalstore.caches.keys import KeyCache
from globalstore.caches.sources import KnownSources
from globalstore.leases.expiry import LeaseExpiry
from globalstore.liveness.instances import Instances
from globalstore.liveness.workers import Workers
from globalstore.registry.memory_tier_samples import MemoryTierSampled
from globalstore.registry.runtime.instances import InstanceRegistered
from globalstore.registry.runtime.sources import SourcesListed
from globalstore.registry.runtime.workers import WorkerRegistered
from globalstore.registry.signals import (
    GroupCounted,
    InstanceEnded,
    KeyChanged,
    LeaseEnded,
    LeaseGranted,
    LeasesExpired,
    RealizationEnded,
    RealizationRowsWritten,
    ReplicaRemoved,
    ReplicasCounted,
    ReplicaStored,
    SourceFreed,
    SourcesExpire,
    SourcesFreed,
    TransportEnded,
    TransportGranted,
    TransportsForgotten,
    WorkerEnded,
    WorkerReconciled,
    WorkerReplicasChanged,
)
from globalstore.scheduling.transport_expiry import TransportExpiry
from globalstore.scheduling.transports import SourceQueues
from globalstore.server.commit_counts import CommitCounts
from globalstore.waiting.drains import Drains
from globalstore.waiting.realizations import RealizationWaiters

# What each signal is handed to, first to last. All of it is memory: none waits, none fails.
Followers = Mapping[type, tuple[Callable[[Any], None], ...]]


def followers_of(
    *,
    workers: Workers,
    instances: Instances,
    sources: KnownSources,
    keys: KeyCache,
    drains: Drains,
    realizations: RealizationWaiters,
    queues: SourceQueues,
    transports: TransportExpiry,
    leases: LeaseExpiry,
    counts: CommitCounts,
) -> Followers:
    """Return the table of all signals. Caches come before the queues, which look into them."""
    return {
        GroupCounted: (sources.group_counted,),
        InstanceEnded: (instances.ended,),
        InstanceRegistered: (instances.registered,),
        KeyChanged: (keys.changed,),
        LeaseEnded: (leases.ended,),
        LeaseGranted: (leases.granted,),
        LeasesExpired: (leases.expired,),
        MemoryTierSampled: (counts.memory_tier_sampled,),
        RealizationEnded: (realizations.ended,),
        RealizationRowsWritten: (counts.realization_rows_written,),
        ReplicaRemoved: (counts.replica_removed,),
        ReplicaStored: (counts.replica_stored,),
        ReplicasCounted: (counts.replicas_counted,),
        SourceFreed: (sources.source_freed, drains.source_freed, queues.source_freed),
        SourcesExpire: (queues.sources_expire,),
        SourcesFreed: (sources.sources_freed, drains.sources_freed, queues.sources_freed),
        SourcesListed: (sources.listed,),
        TransportEnded: (
            transports.ended,
            sources.ended,
            drains.transport_ended,
            counts.transport_ended,
            queues.transport_ended,
        ),
        TransportGranted: (transports.granted, sources.granted, counts.transport_granted),
        TransportsForgotten: (sources.transports_forgotten,),
        WorkerEnded: (workers.ended, queues.worker_ended),
        WorkerReconciled: (
            workers.reconciled,
            sources.worker_routable,
            queues.worker_reconciled,
        ),
        WorkerRegistered: (
            workers.registered,
            sources.worker_routable,
        ),
        WorkerReplicasChanged: (workers.replicas_changed, sources.replicas_changed),
    }


def follow(followers: Followers, committed: Sequence[object]) -> None:
    """Hand the signals of one commit to their followers, in commit order."""
    for signal in committed:
        for follower in followers[type(signal)]:
            follower(signal)
