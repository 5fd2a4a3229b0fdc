"""Every metric of the server. Names, labels and buckets are a contract with dashboards.

Label values come from closed sets, except ``artifact_id``, which ``ArtifactSeries`` bounds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from globalstore.telemetry.calls import CallMetrics
from globalstore.telemetry.daemon_locks import DaemonLockMetrics
from globalstore.telemetry.labels import ArtifactSeries
from globalstore.telemetry.memory_tiers import MemoryTierMetrics
from globalstore.telemetry.realizations import RealizationMetrics
from globalstore.telemetry.shares import SourceShares

# Creation times would double the counters of a scrape; nobody asked for them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

CAPABILITIES: Final = (
    "queue_broker_enabled",
    "retention_handles_enabled",
    "capability_tokens_v2_enabled",
    "gateway_ingress_enabled",
    "shard_home_eligible",
    "execution_signals_enabled",
    "node_agent_enabled",
)
DISPATCH_EVENTS: Final = (
    "enqueued",
    "joined",
    "rejected",
    "granted",
    "replayed",
    "refused",
    "not_found",
    "failed",
    "timed_out",
    "stopped",
    "cancelled",
    "given_back",
)
MEMORY_TYPES: Final = ("GPU", "RAM", "DISK")

_RECONCILE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_WAIT_BUCKETS: Final = (0, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
_DIFFUSION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CHECKPOINT_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

# Samples of one label set of a histogram besides its buckets: +Inf, sum, count.
_HISTOGRAM_EXTRA_LINES: Final = 3


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = CallMetrics(self.registry)
        self.daemon_locks = DaemonLockMetrics(self.registry)
        self.realizations = RealizationMetrics(self.registry)
        self.memory_tiers = MemoryTierMetrics(self.registry)
        self._define_server()
        self._define_workers()
        self._define_control_plane()
        self._define_replicas()
        self._define_transports()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _define_server(self) -> None:
        executor = "tc_control_plane_executor"
        self.executor_max_threads = self._gauge(
            f"{executor}_max_threads", "Handlers that may run at once; 0: no bound."
        )
        self.executor_live_threads = self._gauge(
            f"{executor}_live_threads", "Handler slots that exist."
        )
        self.executor_busy_threads = self._gauge(
            f"{executor}_busy_threads", "Handler slots in use."
        )
        self.executor_idle_threads = self._gauge(f"{executor}_idle_threads", "Free handler slots.")
        self.executor_queue_depth = self._gauge(
            f"{executor}_queue_depth", "Calls waiting for a handler slot."
        )
        self.ready = self._gauge("tc_ready", "1 while /ready answers 200, else 0.")
        self.event_loop_lag = self._gauge(
            "tc_event_loop_lag_seconds", "Greatest delay of a wake-up in the last second."
        )
        self.grpc_connections = self._gauge("tc_grpc_server_connections", "Open gRPC connections.")
        self.db_wal_bytes = self._gauge("tc_db_wal_bytes", "Size of the write-ahead log.")
        self.db_free_bytes = self._gauge(
            "tc_db_free_bytes", "Free bytes of the database's file system."
        )
        self.db_busy_seconds = self._counter(
            "tc_db_busy_seconds_total", "Time the database's writer was at work."
        )
        self.db_checkpoint_seconds = self._histogram(
            "tc_db_checkpoint_seconds", "Duration of checkpoints.", _CHECKPOINT_BUCKETS
        )
        self.clock_step_seconds = self._counter(
            "tc_clock_step_seconds_total", "Sum of the wall clock's jumps, either way."
        )
        self.snapshot_age = self._gauge(
            "tc_snapshot_age_seconds", "Age of the snapshot that a read replica serves."
        )
        self.tls_cert_expiry = self._gauge(
            "tc_tls_cert_expiry_timestamp_seconds", "When the certificate in use expires."
        )
        self.backup_last_success = self._gauge(
            "tc_backup_last_success_timestamp_seconds", "When the last good backup was made."
        )
        self.backup_duration = self._gauge(
            "tc_backup_duration_seconds", "How long the last backup took."
        )
        self.backup_size = self._gauge("tc_backup_size_bytes", "Size of the last backup.")
        self.backup_failures = self._counter("tc_backup_failures_total", "Backups that failed.")

    def _define_workers(self) -> None:
        self.active_workers = self._gauge("tc_active_workers", "Workers that are being heard.")
        self.workers_unconfirmed = self._gauge(
            "tc_workers_unconfirmed", "Active workers that still have to reconcile."
        )
        self.capability_entries = self._gauge(
            "tc_capability_directory_entries",
            "Active entries with a capability.",
            "scope",
            "capability",
        )
        for scope in ("worker", "instance"):
            for capability in CAPABILITIES:
                self.capability_entries.labels(scope, capability)
        self.worker_register = self._counter(
            "tc_worker_register_total", "Registrations of workers.", "kind", "result"
        )
        for kind in ("new", "renew", "reactivate", "recovery"):
            for result in ("ok", "rejected"):
                self.worker_register.labels(kind, result)
        self.worker_unregister = self._counter(
            "tc_worker_unregister_total", "Deregistrations of workers.", "graceful", "result"
        )
        for graceful in ("true", "false"):
            for result in ("ok", "not_found"):
                self.worker_unregister.labels(graceful, result)
        self.worker_expired = self._counter(
            "tc_worker_expired_total", "Workers that were not heard in time."
        )
        self.worker_evicted = self._counter(
            "tc_worker_evicted_total", "Workers whose endpoint was taken over."
        )
        self.worker_heartbeat = self._counter("tc_worker_heartbeat_total", "Heartbeats.", "result")
        for result in ("ok", "sync_required", "not_found", "invalid"):
            self.worker_heartbeat.labels(result)
        self.heartbeat_buffer_pending = self._gauge(
            "tc_worker_heartbeat_buffer_pending", "Workers whose liveness is not yet written."
        )
        self.heartbeat_flush_batch_size = self._histogram(
            "tc_worker_heartbeat_flush_batch_size",
            "Workers whose liveness was written at once.",
            _BATCH_BUCKETS,
        )
        self.heartbeat_flush_updates = self._counter(
            "tc_worker_heartbeat_flush_updates_total", "Liveness rows by way of writing.", "result"
        )
        for result in ("batched", "fallback", "dropped"):
            self.heartbeat_flush_updates.labels(result)
        self.gc_rows_deleted = self._counter(
            "tc_gc_rows_deleted_total", "Rows deleted because their time was up.", "table"
        )
        self.recovery_seconds = self._gauge(
            "tc_recovery_seconds", "How long the recovery at start took."
        )
        self.recovery_rows = self._gauge(
            "tc_recovery_rows", "Rows that the recovery at start read.", "table"
        )

    def _define_control_plane(self) -> None:
        self.state_sync = self._counter("tc_state_sync_total", "Executed reconciles.", "result")
        for result in ("success", "error"):
            self.state_sync.labels(result)
        self.state_sync_seconds = self._histogram(
            "tc_state_sync_seconds", "Duration of reconciles.", _RECONCILE_BUCKETS
        )
        self.reconcile_result = self._counter(
            "tc_reconcile_result_total", "Reconciles by their answer.", "result_kind"
        )
        self.reconcile_retry_later = self._counter(
            "tc_reconcile_retry_later_total", "Reconciles that must be repeated.", "reason"
        )
        self.control_plane_conflicts = self._counter(
            "tc_control_plane_conflicts_total", "Calls at odds with the state.", "scope"
        )
        self.idempotency_replay = self._counter(
            "tc_control_plane_idempotency_replay_total",
            "Requests whose client_request_id was known.",
            "operation_kind",
            "result",
        )

    def _define_replicas(self) -> None:
        self.replicas = self._gauge("tc_replicas_total", "Replicas.")
        self.replicas_per_memtype = self._gauge(
            "tc_replicas_per_memtype", "Replicas by memory type.", "memory_type"
        )
        for memory_type in MEMORY_TYPES:
            self.replicas_per_memtype.labels(memory_type)
        self._replicas_per_artifact = self._artifact_gauge(
            "tc_replicas_per_artifact", "Replicas by artifact."
        )
        self._replica_register = self._artifact_counter(
            "tc_replica_register_total", "Replicas created or updated.", "memory_type"
        )
        self._replica_unregister = self._artifact_counter(
            "tc_replica_unregister_total", "Replicas deleted.", "memory_type"
        )

    def _define_transports(self) -> None:
        self.active_transports = self._gauge("tc_active_transports", "Transfers in progress.")
        self.transport_dispatch_events = self._counter(
            "tc_transport_dispatch_events_total", "Life cycle of waiting requests.", "event"
        )
        for event in DISPATCH_EVENTS:
            self.transport_dispatch_events.labels(event)
        self._transport_requests = self._artifact_counter(
            "tc_transport_requests_total", "Requests for a source by outcome.", "status"
        )
        self._transport_wait = self._artifact_histogram(
            "tc_transport_wait_seconds", "Wait for a source.", _WAIT_BUCKETS
        )
        self._transport_filter = self._artifact_counter(
            "tc_transport_filter_total", "Replicas passed over, by reason.", "reason"
        )
        self._transport_no_exportable = self._artifact_counter(
            "tc_transport_no_exportable_total", "Requests refused for want of any source."
        )
        self._top1_share = self._artifact_gauge(
            "tc_transport_source_top1_share", "Share of transfers from the busiest source."
        )
        self._hhi = self._artifact_gauge(
            "tc_transport_source_hhi", "Sum of the squared shares of all sources."
        )
        self._shares: dict[str, SourceShares] = {}
        self._diffusion_first_hit = self._artifact_histogram(
            "tc_transport_diffusion_first_hit_seconds",
            "Time from a source's creation to its first transfer.",
            _DIFFUSION_BUCKETS,
        )

    def _artifact_counter(self, name: str, text: str, *labels: str) -> ArtifactSeries[Counter]:
        return ArtifactSeries(self._counter(name, text, "artifact_id", *labels), name)

    def _artifact_gauge(self, name: str, text: str) -> ArtifactSeries[Gauge]:
        return ArtifactSeries(self._gauge(name, text, "artifact_id"), name)

    def _artifact_histogram(
        self, name: str, text: str, buckets: tuple[float, ...]
    ) -> ArtifactSeries[Histogram]:
        histogram = self._histogram(name, text, buckets, "artifact_id")
        return ArtifactSeries(histogram, name, len(buckets) + _HISTOGRAM_EXTRA_LINES)

    def replicas_changed(
        self, artifact_id: str, memory_type: str, change: int, *, edge: bool
    ) -> None:
        """The number of an artifact's replicas of one memory type changed by ``change``.

        ``edge`` says that the artifact had none at all before, or has none after. Gauges are kept
        by what changes, never by counting rows. An artifact that found no room when its first
        replica came is counted as other until its last has gone.
        """
        self._add([(artifact_id, memory_type, change, 0, edge)], {})

    def replicas_reconciled(self, counts: Iterable[tuple[str, str, int, int, bool]]) -> None:
        """An inventory changed how many replicas some artifacts have.

        Each of ``counts`` is (artifact_id, memory_type, change, stored, edge): there are ``change``
        more of them now, and ``stored`` of them were created or updated; for ``edge`` see
        ``replicas_changed``.
        """
        counts = list(counts)
        sums: dict[Counter | Gauge, int] = {}
        for artifact_id, memory_type, change, stored, _ in counts:
            if stored:
                child = self._replica_register.of(artifact_id, memory_type)
                sums[child] = sums.get(child, 0) + stored
            if change < 0:
                child = self._replica_unregister.of(artifact_id, memory_type)
                sums[child] = sums.get(child, 0) - change
        self._add(counts, sums)

    def _add(
        self,
        counts: list[tuple[str, str, int, int, bool]],
        sums: dict[Counter | Gauge, int],
    ) -> None:
        """Add to the gauges of replicas, and ``sums`` to their series: each series once."""
        gone = []
        of_type = dict.fromkeys(MEMORY_TYPES, 0)
        series = self._replicas_per_artifact
        for artifact_id, memory_type, change, _, edge in counts:
            if not change:
                continue
            of_type[memory_type] += change
            mine = artifact_id in series or (edge and change > 0)
            gauge = series.of(artifact_id) if mine else series.other()
            sums[gauge] = sums.get(gauge, 0) + change
            if edge and change < 0:
                gone.append(artifact_id)
        self.replicas.inc(sum(of_type.values()))
        for memory_type, change in of_type.items():
            if change:
                self.replicas_per_memtype.labels(memory_type).inc(change)
        for child, amount in sums.items():
            child.inc(amount)
        for artifact_id in gone:
            self.remove_artifact(artifact_id)

    def restore_replicas(self, by_type: Mapping[str, int], by_artifact: Mapping[str, int]) -> None:
        """Take over what there is at start: all replicas by type, and those of some artifacts.

        Artifacts that are not named, or find no room, are counted as other.
        """
        other = sum(by_type.values())
        for memory_type, count in by_type.items():
            self.replicas.inc(count)
            self.replicas_per_memtype.labels(memory_type).inc(count)
        for artifact_id, count in by_artifact.items():
            child = self._replicas_per_artifact.of(artifact_id)
            if artifact_id in self._replicas_per_artifact:
                child.set(count)
                other -= count
        if other:
            self._replicas_per_artifact.other().set(other)

    def replica_registered(self, artifact_id: str, memory_type: str) -> None:
        """A replica was created or updated; ``memory_type`` is GPU, RAM or DISK."""
        self._replica_register.of(artifact_id, memory_type).inc()

    def replica_unregistered(self, artifact_id: str, memory_type: str) -> None:
        """A replica was deleted; ``memory_type`` is GPU, RAM or DISK."""
        self._replica_unregister.of(artifact_id, memory_type).inc()

    def transport_request(self, artifact_id: str, status: str) -> None:
        """A request for a source ended: success, timeout, not_found, rejected or error."""
        self._transport_requests.of(artifact_id, status).inc()

    def transport_waited(self, artifact_id: str, seconds: float) -> None:
        """A request for a source has ended after waiting so long."""
        self._transport_wait.of(artifact_id).observe(seconds)

    def transport_filter(self, artifact_id: str, reason: str, count: int = 1) -> None:
        """Replicas were passed over.

        Args:
            artifact_id: the artifact asked for.
            reason: not_live, not_accepting, unavailable, saturated, presence_only, expired, capped.
            count: how many.
        """
        self._transport_filter.of(artifact_id, reason).inc(count)

    def transport_no_exportable(self, artifact_id: str) -> None:
        """A request was refused because no source could ever serve it."""
        self._transport_no_exportable.of(artifact_id).inc()

    def source_granted(self, artifact_id: str, source: int, first_use_s: float | None) -> None:
        """A transport was granted on a source.

        Args:
            artifact_id: the artifact.
            source: a number of the source's own. Shares are kept for artifacts that have series of
                their own; the others show no concentration.
            first_use_s: seconds since the source was created, if this is its first transport.
        """
        if first_use_s is not None:
            self._diffusion_first_hit.of(artifact_id).observe(first_use_s)
        top1, hhi = self._top1_share.of(artifact_id), self._hhi.of(artifact_id)
        if artifact_id in self._top1_share:
            shares = self._shares.setdefault(artifact_id, SourceShares())
            top1_share, squares = shares.used(source)
            top1.set(top1_share)
            hhi.set(squares)

    def labelled_artifacts(self) -> set[str]:
        """The artifacts that have series of their own in any metric.

        Requests may name artifacts that nobody holds; maintenance removes those of these that
        have no replica, so that invented ids do not keep the room of real ones.
        """
        return {artifact_id for series in self._by_artifact() for artifact_id in series}

    def remove_artifact(self, artifact_id: str) -> None:
        """Drop every series of an artifact that has no replica any more."""
        self._shares.pop(artifact_id, None)
        for series in self._by_artifact():
            series.remove(artifact_id)

    def _by_artifact(self) -> Iterator[ArtifactSeries[Any]]:
        yield from (s for s in vars(self).values() if isinstance(s, ArtifactSeries))
