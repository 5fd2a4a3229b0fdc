"""Metrics of version sets and realizations."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OPERATIONS: Final = ("register", "begin", "report", "publish", "wait", "abort", "get")

# What is done to realizations without a call: they expire, and their members are forgotten later.
_CLEANUPS: Final = ("expire", "forget")

# Who writes rows of which table.
_WRITES: Final = (
    ("register", "version_sets"),
    ("register", "version_set_parts"),
    ("begin", "group_transactions"),
    ("join", "group_members"),
    ("report", "group_members"),
    ("report", "group_transactions"),
    ("publish", "group_transactions"),
    ("abort", "group_transactions"),
    ("expire", "group_transactions"),
    ("forget", "group_members"),
)

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class RealizationMetrics:
    """Counts of calls, waits, rows and what is cleaned up."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = "tc_group_realization"
        self._events = Counter(
            f"{name}_events_total", "Calls about groups.", ("operation", "result"),
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            f"{name}_operation_seconds", "Duration of calls about groups.", ("operation",),
            buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        for operation in OPERATIONS:
            self._events.labels(operation, "ok")
            self._seconds.labels(operation)
        self.waiter_polls = Counter(
            f"{name}_waiter_polls_total", "Waits for the end of a realization, by how they ended.",
            ("result",), registry=registry,
        )  # fmt: skip
        for result in ("published", "aborted", "expired", "timed_out", "rejected", "not_found"):
            self.waiter_polls.labels(result)
        self.active_waiters = Gauge(
            f"{name}_active_waiters", "Calls that wait for the end of a realization.",
            registry=registry,
        )  # fmt: skip
        self._cleanup = Counter(
            f"{name}_cleanup_total", "Realizations expired, rows of members forgotten.",
            ("operation", "result"), registry=registry,
        )  # fmt: skip
        for operation in _CLEANUPS:
            self._cleanup.labels(operation, "ok")
        self._control_writes = Counter(
            f"{name}_control_writes_total", "Rows written for groups.", ("operation", "table"),
            registry=registry,
        )  # fmt: skip
        for operation, table in _WRITES:
            self._control_writes.labels(operation, table)

    def called(self, operation: str, result: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._events.labels(operation, result).inc()
        self._seconds.labels(operation).observe(seconds)

    def wrote(self, operation: str, table: str, rows: int) -> None:
        """Count rows that were written and are durable."""
        self._control_writes.labels(operation, table).inc(rows)
        if operation in _CLEANUPS:
            self._cleanup.labels(operation, "ok").inc(rows)
