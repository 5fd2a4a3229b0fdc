"""Every component of the server, made from the configuration and connected to the others.

Nothing runs yet: ``lifecycle`` starts and stops them.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import attrs

import globalstore
from globalstore.api.context import HandlerContext
from globalstore.api.index_checks import IndexChecks
from globalstore.api.memory_tiers import pending_ttl_us
from globalstore.api.middleware.callers import KnownCallers
from globalstore.api.middleware.handler_slots import HandlerSlots
from globalstore.api.middleware.refused_callers import RefusedCallers
from globalstore.api.middleware.tokens import Tokens
from globalstore.api.standard.health import HealthService
from globalstore.caches.keys import KeyCache
from globalstore.caches.sources import KnownSources
from globalstore.caches.worker_capacity import WorkerCapacity
from globalstore.caches.worker_digests import WorkerDigests
from globalstore.config import GlobalStoreConfig
from globalstore.db import Busy, DatabaseError, Examination, Observers, Runner, Store, StoreOptions
from globalstore.http import HealthState
from globalstore.leases.clock import Clock
from globalstore.leases.expiry import LeaseExpiry
from globalstore.leases.kinds import lease_kinds
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.heartbeat_writer import HeartbeatWriter, grace_s
from globalstore.liveness.instance_expiry import InstanceReaper
from globalstore.liveness.instances import Instances
from globalstore.liveness.stalls import StallDetector
from globalstore.liveness.worker_expiry import Reaper
from globalstore.liveness.workers import Workers
from globalstore.maintenance.abandoned_nodes import AbandonedNodes
from globalstore.maintenance.full_tables import FullTables
from globalstore.maintenance.retention import Maintenance, Schedule
from globalstore.registry.retention import retained
from globalstore.registry.runtime import instances, workers
from globalstore.registry.schema import MIGRATIONS
from globalstore.scheduling.refusal_reasons import Refusals
from globalstore.scheduling.transport_expiry import TransportExpiry
from globalstore.scheduling.transports import SourceQueues
from globalstore.server.commit_counts import CommitCounts
from globalstore.server.followers import follow, followers_of
from globalstore.server.policies import queue_policy
from globalstore.server.renewals import Renewal, warn_of_access
from globalstore.telemetry.capabilities import (
    INSTANCE_CAPABILITIES,
    WORKER_CAPABILITIES,
    CapabilityDirectory,
)
from globalstore.telemetry.metrics import Metrics
from globalstore.waiting.chunk_reports import ChunkReports
from globalstore.waiting.drains import Drains
from globalstore.waiting.handouts import Handouts
from globalstore.waiting.realizations import RealizationWaiters


class Components:
    """The components of one server. Made inside trio, since some of them note the time.

    ``wall_us`` reads the wall clock in microseconds since 1970. ``runner`` says where the database
    runs; a simulation runs it inline. ``examination`` is one of the database file that was begun
    earlier. Raises TokenFileUnusable.
    """

    def __init__(
        self,
        config: GlobalStoreConfig,
        wall_us: Callable[[], int],
        runner: Runner,
        examination: Examination | None = None,
    ) -> None:
        self.config = config
        self.row_limits: Mapping[str, int] = attrs.asdict(config.limits.rows)
        self.clock = Clock(wall_us)
        self.metrics = Metrics()
        self.commit_counts = CommitCounts(self.metrics)
        self.health = HealthState()
        self.grpc_health = HealthService()
        self.stalls = StallDetector()
        self.store = self._store(runner, examination)
        self._make_liveness()
        self._make_caches()
        self._make_leases()
        self._make_waiting()
        self._make_upkeep()
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
        token_file = config.server.auth.token_file
        self.metrics.server.built(globalstore.__version__, len(MIGRATIONS))
        refused = RefusedCallers(self._count_refused)
        self.tokens = Tokens(Path(token_file).expanduser(), refused) if token_file else None
        self.callers = KnownCallers(
            self.tokens,
            refused,
            by_certificate=config.server.grpc.tls.daemon_id_from_certificate,
        )
        self.token_renewal = (
            Renewal("token file", lambda: [token_file], self._reload_tokens)
            if self.tokens
            else None
        )
        self.handler_slots = HandlerSlots(config.server.max_workers)
        self.context = HandlerContext(
            config=config,
            store=self.store,
            clock=self.clock,
            metrics=self.metrics,
            handler_slots=self.handler_slots,
            workers=self.workers,
            instances=self.instances,
            daemon_locks=self.daemon_locks,
            queues=self.queues,
            refusals=self.refusals,
            drains=self.drains,
            handouts=self.handouts,
            chunk_reports=self.chunk_reports,
            realization_waiters=self.realization_waiters,
            keys=self.keys,
            worker_capacity=WorkerCapacity(self.store, self.workers),
            worker_digests=WorkerDigests(self.store),
            index_checks=IndexChecks(self.handler_slots),
        )

    def _store(self, runner: Runner, examination: Examination | None) -> Store:
        database, backup = self.config.database, self.config.backup
        return Store(
            database.path,
            migrations=MIGRATIONS,
            options=StoreOptions(
                max_wal_bytes=database.max_wal_bytes,
                min_free_bytes=database.min_free_bytes,
                backup_directory=Path(backup.directory).expanduser() if backup.directory else None,
            ),
            on_commit=lambda committed: follow(self.followers, committed),
            runner=runner,
            examination=examination,
            observers=Observers(checkpointed=self.metrics.server.db_checkpoint_seconds.observe),
        )

    def _make_liveness(self) -> None:
        policy, entries = self.config.worker_policy, self.metrics.workers.capability_entries
        timeout_s = policy.heartbeat_timeout
        self.workers = Workers(
            timeout_s,
            grace_s(timeout_s),
            self._worker_routable,
            self._worker_unroutable,
            on_capabilities=CapabilityDirectory(entries, "worker", WORKER_CAPABILITIES).changed,
            check_stall=self.stalls.check,
        )
        self.instances = Instances(
            timeout_s,
            grace_s(timeout_s),
            on_capabilities=CapabilityDirectory(entries, "instance", INSTANCE_CAPABILITIES).changed,
            check_stall=self.stalls.check,
        )
        self.stalls.subscribe(self.workers.postpone)
        self.stalls.subscribe(self.instances.postpone)
        reducer = policy.control_reducer
        self.daemon_locks = DaemonLocks(
            reducer.shard_count, reducer.queue_capacity, self.metrics.daemon_locks
        )
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
            self.clock.wall_us,
            self.metrics.workers.expired.inc,
        )
        self.instance_reaper = InstanceReaper(
            self.store, self.instances, self.workers, self.stalls, self.clock.wall_us
        )

    def _make_caches(self) -> None:
        self.sources = KnownSources()
        self.keys = KeyCache(self.store)

    def _make_leases(self) -> None:
        kinds = lease_kinds(pending_ttl_us(self.config.worker_policy.pending_lease_ttl))
        self.leases = LeaseExpiry(self.store, self.clock, self.stalls, kinds)

    def _make_waiting(self) -> None:
        policy, metrics = self.config.worker_policy, self.metrics
        self.drains = Drains()
        self.handouts = Handouts()
        self.chunk_reports = ChunkReports(self.store)
        self.realization_waiters = RealizationWaiters(
            policy.group_realization.max_waiters_per_transaction,
            metrics.realizations.active_waiters.set,
        )
        self.queues = SourceQueues(
            self.store,
            self.workers,
            self.sources,
            queue_policy(policy.transport_scheduler),
            self.clock.wall_us,
            self.handouts,
            self._count_dispatch,
        )
        self.refusals = Refusals(
            self.store, self.workers, metrics.transports.filtered, self.clock.wall_us
        )
        self.transport_expiry = TransportExpiry(
            self.store, self.stalls, policy.effective_transport_ttl, self.clock.wall_us
        )
        self.stalls.subscribe(self.transport_expiry.postpone)

    def _make_upkeep(self) -> None:
        policy = self.config.worker_policy
        self.full_tables = FullTables(
            self.store,
            self.row_limits,
            self.config.database.max_bytes,
            self.clock.wall_us,
            self.clock.lease_us,
            self.metrics.server,
        )
        self.maintenance = Maintenance(
            self.store,
            Schedule(
                cleanup_interval_s=policy.cleanup_interval,
                optimize_interval_s=self.config.database.optimize_interval,
            ),
            retained(
                transports_s=policy.transport_retention, tier_leases_s=policy.tier_lease_retention
            ),
            self.clock.wall_us,
            self.metrics,
            AbandonedNodes(self.store, self.workers, policy.chunk_stale_threshold),
            self.full_tables,
        )

    def tasks(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Return what runs in the background for as long as the server serves, by name."""
        return self._token_tasks() | {
            "stalls": self.stalls.run,
            "heartbeat reaper": self.reaper.run,
            "heartbeat writer": self.heartbeats.run,
            "instance reaper": self.instance_reaper.run,
            "instance heartbeat writer": self.instance_heartbeats.run,
            "transport expiry": self.transport_expiry.run,
            "source expiry": self.queues.watch_expiries,
            "refusal reasons": self.refusals.run,
            "chunk reports": self.chunk_reports.run,
            "lease expiry": self.leases.run,
            "lease clock": partial(self.clock.watch, self.store),
            "maintenance": self.maintenance.run,
            "database upkeep": self.maintenance.keep_database,
            "database watch": self.store.watch,
        }

    def _token_tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        if self.tokens is None or self.token_renewal is None:
            return {}
        return {"tokens": self.token_renewal.run, "withdrawn tokens": self.tokens.end_withdrawn}

    def _worker_routable(self) -> None:
        self.sources.worker_routable()
        self.queues.worker_routable()

    def _worker_unroutable(self) -> None:
        self.queues.worker_unroutable()

    def _reload_tokens(self) -> None:
        assert self.tokens is not None
        self.tokens.reload()
        warn_of_access(self.config)

    def _count_refused(self, reason: str) -> None:
        self.metrics.server.auth_refusals.labels(reason).inc()

    def _count_dispatch(self, event: str) -> None:
        self.metrics.transports.dispatch_events.labels(event).inc()

    def _heartbeats_written(self, taken: int, written: int, error: DatabaseError | None) -> None:
        metrics = self.metrics.workers
        if isinstance(error, Busy):
            self.metrics.control_plane.conflicts.labels("worker_heartbeat_tx_conflict").inc()
        metrics.flush_batch_size.observe(taken)
        metrics.flush_updates.labels("batched").inc(written)
        metrics.flush_updates.labels("dropped").inc(taken - written)
