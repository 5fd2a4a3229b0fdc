"""Gauges, set once a second: the components, the event loop's lag, the wall clock, the disk."""

from globalstore.leases.wall_clock import ClockWatch
from globalstore.server.components import Components
from globalstore.server.sockets import Transport
from globalstore.telemetry import get_logger

# A queue of handlers that is not empty for longer is no burst.
SLOTS_FULL_S = 1.0

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
        self._look_at_clients()
        self._look_at_workers()
        self._look_at_slots()
        self._look_at_database()
        step_s = self._clock.step_s()
        if step_s:
            metrics.server.clock_step_seconds.inc(abs(step_s))
            _log.warning("wall clock was set", step_s=round(step_s, 3))

    def _look_at_clients(self) -> None:
        held = self._transport.statistics()
        self._components.metrics.server.clients_hold(
            connections=held.connections,
            calls=held.calls_in_flight,
            held_bytes=held.held_bytes,
            largest_address_bytes=held.largest_address_bytes,
            arriving_bytes=held.incomplete_message_bytes,
            ended_for_room=held.ended_for_room,
            ended_for_memory=held.ended_for_memory,
        )

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
        full_s = slots.full_s()
        metrics.server.executor_full_seconds.set(full_s)
        degraded = self._components.health.degraded
        degraded.clear("handler slots")
        if full_s > SLOTS_FULL_S:
            degraded.set(
                "handler slots",
                f"all {slots.limit} handler slots have been in use for {full_s:.0f} s, and"
                f" {slots.waiting} calls wait for one (server.max_workers)",
            )

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
