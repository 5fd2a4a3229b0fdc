"""Metrics of workers: how many there are, their registrations and ends, and stored heartbeats."""

from typing import Final

from globalstore.telemetry.instruments import Instruments

_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class WorkerMetrics:
    """Counts of workers, of their registrations and ends, and of their heartbeats."""

    def __init__(self, make: Instruments) -> None:
        self.active = make.gauge("tc_active_workers", "Workers that are being heard.")
        self.unconfirmed = make.gauge(
            "tc_workers_unconfirmed", "Active workers that still have to reconcile."
        )
        self.capability_entries = make.gauge(
            "tc_capability_directory_entries",
            "Active entries with a capability.",
            "scope",
            "capability",
        )
        self.registrations = make.counter(
            "tc_worker_register_total", "Registrations of workers.", "kind", "result"
        )
        for kind in ("new", "renew", "reactivate", "recovery"):
            self.registrations.labels(kind, "ok")
        # Whether a daemon had a worker once is found out by what a refused call does not do.
        for kind in ("new", "renew", "recovery"):
            self.registrations.labels(kind, "rejected")
        self.unregistrations = make.counter(
            "tc_worker_unregister_total", "Deregistrations of workers.", "graceful", "result"
        )
        for graceful in ("true", "false"):
            for result in ("ok", "not_found"):
                self.unregistrations.labels(graceful, result)
        self.expired = make.counter(
            "tc_worker_expired_total", "Workers that were not heard in time."
        )
        self.evicted = make.counter(
            "tc_worker_evicted_total", "Workers whose endpoint was taken over."
        )
        self.moved = make.counter(
            "tc_worker_moved_total", "Live workers whose address was changed by a registration."
        )
        heartbeats = make.counter("tc_worker_heartbeat_total", "Heartbeats.", "result")
        # By result, since looking a series up would cost each heartbeat a microsecond.
        self.heartbeats = {
            result: heartbeats.labels(result)
            for result in ("ok", "sync_required", "not_found", "invalid")
        }
        self.unwritten = make.gauge(
            "tc_worker_heartbeat_buffer_pending", "Workers whose liveness is not yet written."
        )
        self.flush_batch_size = make.histogram(
            "tc_worker_heartbeat_flush_batch_size",
            "Workers whose liveness was written at once.",
            _BATCH_BUCKETS,
        )
        self.flush_updates = make.counter(
            "tc_worker_heartbeat_flush_updates_total", "Liveness rows by way of writing.", "result"
        )
        for result in ("batched", "dropped"):
            self.flush_updates.labels(result)
