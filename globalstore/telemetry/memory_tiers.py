"""Metrics of the memory tiers of nodes: what each said last."""

from collections import OrderedDict
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

_PREFIX: Final = "tensorcast_memory_tier"

# Nodes with series of their own; of more, the one that has been silent longest loses its series.
NODES_MAX: Final = 1000


class MemoryTierMetrics:
    """A handful of gauges per node."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{_PREFIX}_{name}", text, ["node", *labels], registry=registry)

        self._stable = gauge("stable_bytes", "The stable pool of a node.", "state")
        self._preemptible = gauge("preemptible_bytes", "The preemptible pool of a node.", "state")
        self._faults = gauge("faults_per_sec", "Chunks that a node had to bring back, a second.")
        self._p99 = gauge("rehydrate_p99_ns", "99th percentile of the time to bring a chunk back.")
        self._enabled = gauge(
            "enable_preemptible", "Whether a node has a preemptible pool.", "enable_preemptible"
        )
        self._nodes: OrderedDict[str, None] = OrderedDict()

    def sampled(
        self,
        node: str,
        stable: tuple[int, int],
        preemptible: tuple[int, int],
        faults_per_sec: float,
        rehydrate_p99_ns: int,
        *,
        enabled: bool,
    ) -> None:
        """Show the latest sample of a node; pools as (total, used or marked), in bytes."""
        self._nodes[node] = None
        self._nodes.move_to_end(node)
        if len(self._nodes) > NODES_MAX:
            self._remove(self._nodes.popitem(last=False)[0])
        for state, size in zip(("total", "used"), stable, strict=True):
            self._stable.labels(node, state).set(size)
        for state, size in zip(("total", "marked"), preemptible, strict=True):
            self._preemptible.labels(node, state).set(size)
        self._faults.labels(node).set(faults_per_sec)
        self._p99.labels(node).set(rehydrate_p99_ns)
        for value in (True, False):
            self._enabled.labels(node, str(value).lower()).set(value is enabled)

    def _remove(self, node: str) -> None:
        for gauge, states in (
            (self._stable, ("total", "used")),
            (self._preemptible, ("total", "marked")),
            (self._enabled, ("true", "false")),
        ):
            for state in states:
                gauge.remove(node, state)
        self._faults.remove(node)
        self._p99.remove(node)
