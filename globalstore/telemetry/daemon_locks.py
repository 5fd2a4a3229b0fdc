"""Metrics of the locks under which the changes of a daemon follow each other."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX: Final = "tc_worker_control_reducer"
_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5,
)  # fmt: skip


class DaemonLockMetrics:
    """How many changes wait, for how long, and what becomes of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._depth = Gauge(
            f"{_PREFIX}_queue_depth", "Changes waiting for a lock.", ["shard"], registry=registry
        )
        self._latency = Histogram(
            f"{_PREFIX}_queue_latency_seconds",
            "Wait of a change for its lock.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._intents = Counter(
            f"{_PREFIX}_intents_total",
            "Changes by shard and fate.",
            ["shard", "kind", "result"],
            registry=registry,
        )
        # Looking a series up by its labels would cost each heartbeat a microsecond.
        self._known: dict[tuple[int, str, str], Counter] = {}
        self.entered: Callable[[float], None] = self._latency.observe

    def waiting(self, shard: int, count: int) -> None:
        """Show how many changes wait in a shard now."""
        self._depth.labels(shard).set(count)

    def intent(self, shard: int, kind: str, result: str) -> None:
        """Count a change that was submitted, overloaded, succeeded or failed."""
        key = shard, kind, result
        counter = self._known.get(key)
        if counter is None:
            counter = self._known[key] = self._intents.labels(*key)
        counter.inc()
