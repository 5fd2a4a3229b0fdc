"""Gauges, set once a second: the components, the event loop's lag, the wall clock, the disk."""

from globalstore.leases.wall_clock import ClockWatch
from globalstore.server.components import Components
from globalstore.server.sockets import Transport
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")


class Gauges:
    """Shows how the components are, in the metrics and to probes. Reads memory only."""

    def __init__(self, components: Components, transport: Transport) -> None:
        self._components = components
        self._transport = transport
        self._clock = ClockWatch(components.clock.wall_us)
        self._busy_seconds = 0.0

    def look(self, lag_s: float) -> None:
        """Set every gauge; ``lag_s`` is how late the event loop was within the last second."""
        components, metrics = self._components, self._components.metrics
        components.health.set_lag(lag_s)
        metrics.server.event_loop_lag.set(lag_s)
        metrics.server.ready.set(components.health.ready)
        metrics.calls.end_peak_window()
        metrics.server.grpc_connections.set(self._transport.connections)
        self._look_at_workers()
        self._look_at_slots()
        self._look_at_database()
        step_s = self._clock.step_s()
        if step_s:
            metrics.server.clock_step_seconds.inc(abs(step_s))
            _log.warning("wall clock was set", step_s=round(step_s, 3))

    def _look_at_workers(self) -> None:
        workers, metrics = self._components.workers, self._components.metrics
        metrics.workers.active.set(len(workers.live()))
        metrics.workers.unconfirmed.set(workers.unconfirmed)
        metrics.workers.unwritten.set(workers.heartbeats.unwritten)

    def _look_at_slots(self) -> None:
        slots, metrics = self._components.handler_slots, self._components.metrics
        metrics.server.executor_max_threads.set(slots.limit)
        metrics.server.executor_live_threads.set(slots.limit)
        metrics.server.executor_busy_threads.set(slots.busy)
        metrics.server.executor_idle_threads.set(max(0, slots.limit - slots.busy))
        metrics.server.executor_queue_depth.set(slots.waiting)

    def _look_at_database(self) -> None:
        store, metrics, health = (
            self._components.store,
            self._components.metrics,
            self._components.health,
        )
        database = store.statistics()
        metrics.server.db_wal_bytes.set(database.wal_bytes)
        metrics.server.db_free_bytes.set(database.free_bytes)
        metrics.server.db_busy_seconds.inc(database.busy_seconds - self._busy_seconds)
        self._busy_seconds = database.busy_seconds
        health.failing.clear("database")
        health.degraded.clear("database")
        if store.degraded is not None:
            # A damaged or locked file is out of order; a full disk still answers reads.
            conditions = health.failing if store.broken else health.degraded
            conditions.set("database", store.degraded)
