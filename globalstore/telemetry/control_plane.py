"""Metrics of reconciliation, of conflicts and of repeated requests."""

from typing import Final

from globalstore.telemetry.instruments import Instruments

_RECONCILE_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)


class ControlPlaneMetrics:
    """What daemons said of their state, and what the server made of it."""

    def __init__(self, make: Instruments) -> None:
        self.reconciles = make.counter("tc_state_sync_total", "Executed reconciles.", "result")
        for result in ("success", "error"):
            self.reconciles.labels(result)
        self.reconcile_seconds = make.histogram(
            "tc_state_sync_seconds", "Duration of reconciles.", _RECONCILE_BUCKETS
        )
        self.reconcile_results = make.counter(
            "tc_reconcile_result_total", "Reconciles by their answer.", "result_kind"
        )
        self.retries_later = make.counter(
            "tc_reconcile_retry_later_total", "Reconciles that must be repeated.", "reason"
        )
        self.conflicts = make.counter(
            "tc_control_plane_conflicts_total", "Calls at odds with the state.", "scope"
        )
        self.replays = make.counter(
            "tc_control_plane_idempotency_replay_total",
            "Requests whose client_request_id was known.",
            "operation_kind",
            "result",
        )
