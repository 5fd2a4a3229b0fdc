"""Figures that are looked up once a second instead of being counted."""

from globalstore.api.application import Application
from globalstore.rpc import Listener
from globalstore.scheduling.workers import LiveWorker

# Bits of WorkerCapabilityFlag by the names that the metric uses.
_WORKER_CAPABILITIES = {
    "queue_broker_enabled": 1 << 1,
    "retention_handles_enabled": 1 << 2,
    "capability_tokens_v2_enabled": 1 << 3,
    "gateway_ingress_enabled": 1 << 4,
    "shard_home_eligible": 1 << 5,
}


class Gauges:
    """Shows the present state of the parts in the metrics. Reads memory only."""

    def __init__(self, app: Application, listener: Listener) -> None:
        self._app = app
        self._listener = listener
        self._busy_seconds = 0.0

    def refresh(self) -> None:
        """Set every gauge; cheap enough for once a second."""
        app, metrics = self._app, self._app.metrics
        fresh = app.workers.listed(0, include_unavailable=True)
        metrics.active_workers.set(len(fresh))
        metrics.workers_unconfirmed.set(app.workers.unconfirmed)
        metrics.heartbeat_buffer_pending.set(app.workers.unwritten)
        self._capabilities(fresh)
        slots = app.slots
        metrics.executor_max_threads.set(slots.limit)
        metrics.executor_live_threads.set(slots.limit)
        metrics.executor_busy_threads.set(slots.busy)
        metrics.executor_idle_threads.set(max(0, slots.limit - slots.busy))
        metrics.executor_queue_depth.set(slots.waiting)
        metrics.grpc_connections.set(self._listener.statistics().connections)
        database = app.store.statistics()
        metrics.db_wal_bytes.set(database.wal_bytes)
        metrics.db_free_bytes.set(database.free_bytes)
        metrics.db_busy_seconds.inc(database.busy_seconds - self._busy_seconds)
        self._busy_seconds = database.busy_seconds

    def _capabilities(self, workers: list[LiveWorker]) -> None:
        for name, bit in _WORKER_CAPABILITIES.items():
            count = sum(bool(worker.capability_flags & bit) for worker in workers)
            self._app.metrics.capability_entries.labels("worker", name).set(count)
