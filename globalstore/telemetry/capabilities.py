"""How many entries have each capability, kept by what changes."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import Gauge

# Bits of the capability flags by the names that the metric uses: value n of the enum is 1 << n.
WORKER_CAPABILITIES: Final[Mapping[str, int]] = {
    "queue_broker_enabled": 1 << 1,
    "retention_handles_enabled": 1 << 2,
    "capability_tokens_v2_enabled": 1 << 3,
    "gateway_ingress_enabled": 1 << 4,
    "shard_home_eligible": 1 << 5,
}
INSTANCE_CAPABILITIES: Final[Mapping[str, int]] = {
    "execution_signals_enabled": 1 << 1,
    "node_agent_enabled": 1 << 2,
}


class CapabilityDirectory:
    """Counts the active entries of one scope by capability; a change costs what it changes."""

    def __init__(self, entries: Gauge, scope: str, capabilities: Mapping[str, int]) -> None:
        """Count in ``entries``, which is ``tc_capability_directory_entries``.

        ``scope`` is worker or instance. ``capabilities`` are the bits that are counted, by name;
        others are passed over.
        """
        self._series = [(bit, entries.labels(scope, name)) for name, bit in capabilities.items()]

    def changed(self, before: int, after: int) -> None:
        """Count the changed flags of one entry; 0 stands for an entry that is not there."""
        for bit, series in self._series:
            if (before ^ after) & bit:
                series.inc(1 if after & bit else -1)
