"""Every part of the server, made from the configuration and tied together. Nothing runs yet."""

import time
from collections.abc import Callable
from pathlib import Path

from globalstore.api.context import HandlerContext
from globalstore.api.memory_tiers import pending_ttl_us
from globalstore.api.middleware.handler_slots import HandlerSlots
from globalstore.api.middleware.tokens import Tokens
from globalstore.api.standard.health import HealthService
from globalstore.caches.keys import KeyCache
from globalstore.caches.sources import KnownSources
from globalstore.config import GlobalStoreConfig
from globalstore.config.schema.worker_policy import TransportScheduler
from globalstore.db import Observers, Runner, Store, StoreOptions
from globalstore.http import HealthState
from globalstore.leases.clock import LeaseClock
from globalstore.leases.expiry import LeaseExpiry
from globalstore.leases.kinds import lease_kinds
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.instance_expiry import InstanceReaper
from globalstore.liveness.instances import Instances
from globalstore.liveness.stalls import StallDetector
from globalstore.liveness.worker_expiry import HeartbeatWriter, Reaper, grace_s
from globalstore.liveness.workers import Workers
from globalstore.maintenance.abandoned_nodes import AbandonedNodes
from globalstore.maintenance.retention import Maintenance, Schedule
from globalstore.registry.retention import retained
from globalstore.registry.runtime import instances, workers
from globalstore.registry.schema import MIGRATIONS
from globalstore.rules.scoring import Mode, Scoring, Spread, Weights
from globalstore.scheduling.queue_order import Fairness
from globalstore.scheduling.refusal_reasons import Refusals
from globalstore.scheduling.transport_expiry import TransportExpiry
from globalstore.scheduling.transports import SourceQueues
from globalstore.scheduling.waiters import Policy
from globalstore.server.commit_counts import CommitCounts
from globalstore.server.followers import follow, followers_of
from globalstore.telemetry.capabilities import (
    INSTANCE_CAPABILITIES,
    WORKER_CAPABILITIES,
    CapabilityDirectory,
)
from globalstore.telemetry.metrics import Metrics
from globalstore.waiting.chunk_reports import ChunkReports, WorkerSlots
from globalstore.waiting.drains import Drains
from globalstore.waiting.realizations import RealizationWaiters


def wall_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1000


def queue_policy(chosen: TransportScheduler) -> Policy:
    """Return how sources are chosen and who is next, as the configuration wants it."""
    weights, groups = chosen.source_balance_weights, chosen.group_dispatch
    return Policy(
        max_waiters=chosen.max_waiters,
        scan_limit=groups.queue_scan_limit,
        batch_limit=groups.dispatch_batch_limit,
        scoring=Scoring(
            Mode[chosen.mode.name.removeprefix("TRANSPORT_SCHEDULER_MODE_")],
            Weights(
                weights.replica_load_weight,
                weights.worker_load_weight,
                weights.recent_assignment_penalty_weight,
                weights.diffusion_bonus_weight,
            ),
            Spread(
                groups.group_source_spread_weight,
                groups.group_source_soft_cap_ratio,
                groups.group_source_min_candidates_for_enforce,
            ),
        ),
        fairness=Fairness(
            groups.fairness_floor_ratio,
            groups.completion_bias_weight,
            groups.starvation_aging_threshold,
        ),
        relaxed_group_kinds=frozenset(kind.lower() for kind in groups.relaxed_group_kinds),
    )


class Components:
    """The parts of one server. Made inside trio, since some of them note the time.

    ``runner`` says where the database runs; a simulation runs it inline. Raises TokenFileUnusable.
    """

    def __init__(
        self,
        config: GlobalStoreConfig,
        wall: Callable[[], int] = wall_us,
        runner: Runner = Runner.THREADS,
    ) -> None:
        self.config = config
        self.wall_us = wall
        policy = config.worker_policy
        timeout_s = policy.heartbeat_timeout
        self.metrics = Metrics()
        self.commit_counts = CommitCounts(self.metrics)
        self.health = HealthState()
        self.grpc_health = HealthService()
        self.stalls = StallDetector()
        self.workers = Workers(
            timeout_s,
            grace_s(timeout_s),
            self._worker_routable,
            on_capabilities=CapabilityDirectory(
                self.metrics.workers.capability_entries, "worker", WORKER_CAPABILITIES
            ).changed,
            check_stall=self.stalls.check,
        )
        self.instances = Instances(
            timeout_s,
            grace_s(timeout_s),
            on_capabilities=CapabilityDirectory(
                self.metrics.workers.capability_entries, "instance", INSTANCE_CAPABILITIES
            ).changed,
            check_stall=self.stalls.check,
        )
        self.sources = KnownSources()
        self.drains = Drains()
        self.realization_waiters = RealizationWaiters(
            policy.group_realization.max_waiters_per_transaction,
            self.metrics.realizations.active_waiters.set,
        )
        self.store = Store(
            config.database.path,
            migrations=MIGRATIONS,
            options=StoreOptions(
                max_wal_bytes=config.database.max_wal_bytes,
                min_free_bytes=config.database.min_free_bytes,
                backup_directory=(
                    Path(config.backup.directory).expanduser() if config.backup.directory else None
                ),
            ),
            on_commit=lambda committed: follow(self.followers, committed),
            runner=runner,
            observers=Observers(checkpointed=self.metrics.server.db_checkpoint_seconds.observe),
        )
        self.queues = SourceQueues(
            self.store,
            self.workers,
            self.sources,
            queue_policy(policy.transport_scheduler),
            wall,
            self._count_dispatch,
        )
        self.refusals = Refusals(self.store, self.workers, self.metrics.transports.filtered, wall)
        self.stalls.subscribe(self.workers.postpone)
        self.stalls.subscribe(self.instances.postpone)
        self.transport_expiry = TransportExpiry(
            self.store, self.stalls, policy.effective_transport_ttl, wall
        )
        self.stalls.subscribe(self.transport_expiry.postpone)
        self.keys = KeyCache(self.store)
        self.chunk_reports = ChunkReports(self.store)
        self.lease_clock = LeaseClock(wall)
        self.leases = LeaseExpiry(
            self.store,
            self.lease_clock,
            self.stalls,
            wall,
            lease_kinds(pending_ttl_us(policy.pending_lease_ttl)),
        )
        self.followers = followers_of(
            workers=self.workers,
            instances=self.instances,
            sources=self.sources,
            keys=self.keys,
            drains=self.drains,
            realizations=self.realization_waiters,
            queues=self.queues,
            transports=self.transport_expiry,
            leases=self.leases,
            counts=self.commit_counts,
        )
        reducer = policy.control_reducer
        self.daemon_locks = DaemonLocks(
            reducer.shard_count, reducer.queue_capacity, self.metrics.daemon_locks
        )
        self.handler_slots = HandlerSlots(config.server.max_workers)
        self.context = HandlerContext(
            config,
            self.store,
            self.workers,
            self.instances,
            self.queues,
            self.drains,
            self.refusals,
            self.daemon_locks,
            self.keys,
            self.realization_waiters,
            self.handler_slots,
            self.metrics,
            wall,
            self.lease_clock,
            self.chunk_reports,
            WorkerSlots(self.store, self.workers),
        )
        token_file = config.server.auth.token_file
        self.tokens = Tokens(Path(token_file).expanduser()) if token_file else None
        self.heartbeats = HeartbeatWriter(
            self.store, self.workers, workers.record_worker_heartbeats, self._heartbeats_written
        )
        self.instance_heartbeats = HeartbeatWriter(
            self.store, self.instances, instances.record_instance_heartbeats
        )
        self.reaper = Reaper(
            self.store,
            self.workers,
            self.daemon_locks,
            self.stalls,
            wall,
            self.metrics.workers.expired.inc,
        )
        self.instance_reaper = InstanceReaper(self.store, self.instances, self.stalls, wall)
        self.maintenance = Maintenance(
            self.store,
            Schedule(
                cleanup_interval_s=policy.cleanup_interval,
                optimize_interval_s=config.database.optimize_interval,
            ),
            retained(
                transports_s=policy.transport_retention, tier_leases_s=policy.tier_lease_retention
            ),
            wall,
            self.metrics,
            AbandonedNodes(self.store, self.workers, policy.chunk_stale_threshold),
        )

    def _worker_routable(self) -> None:
        self.sources.worker_routable()
        self.queues.worker_routable()

    def _count_dispatch(self, event: str) -> None:
        self.metrics.transports.dispatch_events.labels(event).inc()

    def _heartbeats_written(self, taken: int, written: int) -> None:
        self.metrics.workers.flush_batch_size.observe(taken)
        self.metrics.workers.flush_updates.labels("batched").inc(written)
        self.metrics.workers.flush_updates.labels("dropped").inc(taken - written)
