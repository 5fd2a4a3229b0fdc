"""Metrics of replicas: how many there are, by memory type and by artifact."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import Counter, Gauge

from globalstore.telemetry.instruments import Instruments

MEMORY_TYPES: Final = ("GPU", "RAM", "DISK")


class ReplicaMetrics:
    """Gauges that are kept by what changes, never by counting rows.

    ``on_gone`` is called with an artifact that has no replica any more.
    """

    def __init__(self, make: Instruments, on_gone: Callable[[str], None]) -> None:
        self._on_gone = on_gone
        self._total = make.gauge("tc_replicas_total", "Replicas.")
        self._by_memory_type = make.gauge(
            "tc_replicas_per_memtype", "Replicas by memory type.", "memory_type"
        )
        for memory_type in MEMORY_TYPES:
            self._by_memory_type.labels(memory_type)
        self._by_artifact = make.artifact_gauge("tc_replicas_per_artifact", "Replicas by artifact.")
        self._registered = make.artifact_counter(
            "tc_replica_register_total", "Replicas created or updated.", "memory_type"
        )
        self._unregistered = make.artifact_counter(
            "tc_replica_unregister_total", "Replicas deleted.", "memory_type"
        )

    def changed(self, artifact_id: str, memory_type: str, change: int, *, edge: bool) -> None:
        """Change the number of an artifact's replicas of one memory type by ``change``.

        ``edge`` says that the artifact had none at all before, or has none after. Gauges are kept
        by what changes, never by counting rows. An artifact that found no room when its first
        replica came is counted as other until its last has gone.
        """
        self._add([(artifact_id, memory_type, change, 0, edge)], {})

    def reconciled(self, counts: Iterable[tuple[str, str, int, int, bool]]) -> None:
        """Take in how an inventory changed the number of replicas of some artifacts.

        Each of ``counts`` is (artifact_id, memory_type, change, stored, edge): there are ``change``
        more of them now, and ``stored`` of them were created or updated; for ``edge`` see
        ``changed``.
        """
        counts = list(counts)
        sums: dict[Counter | Gauge, int] = {}
        for artifact_id, memory_type, change, stored, _ in counts:
            if stored:
                child = self._registered.of(artifact_id, memory_type)
                sums[child] = sums.get(child, 0) + stored
            if change < 0:
                child = self._unregistered.of(artifact_id, memory_type)
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
        series = self._by_artifact
        for artifact_id, memory_type, change, _, edge in counts:
            if not change:
                continue
            of_type[memory_type] += change
            mine = artifact_id in series or (edge and change > 0)
            gauge = series.of(artifact_id) if mine else series.other()
            sums[gauge] = sums.get(gauge, 0) + change
            if edge and change < 0:
                gone.append(artifact_id)
        self._total.inc(sum(of_type.values()))
        for memory_type, change in of_type.items():
            if change:
                self._by_memory_type.labels(memory_type).inc(change)
        for child, amount in sums.items():
            child.inc(amount)
        for artifact_id in gone:
            self._on_gone(artifact_id)

    def restore(self, by_type: Mapping[str, int], by_artifact: Mapping[str, int]) -> None:
        """Take over what there is at start: all replicas by type, and those of some artifacts.

        Artifacts that are not named, or find no room, are counted as other.
        """
        other = sum(by_type.values())
        for memory_type, count in by_type.items():
            self._total.inc(count)
            self._by_memory_type.labels(memory_type).inc(count)
        for artifact_id, count in by_artifact.items():
            child = self._by_artifact.of(artifact_id)
            if artifact_id in self._by_artifact:
                child.set(count)
                other -= count
        if other:
            self._by_artifact.other().set(other)

    def registered(self, artifact_id: str, memory_type: str) -> None:
        """Count a replica that was created or updated; ``memory_type`` is GPU, RAM or DISK."""
        self._registered.of(artifact_id, memory_type).inc()

    def unregistered(self, artifact_id: str, memory_type: str) -> None:
        """Count a replica that was deleted; ``memory_type`` is GPU, RAM or DISK."""
        self._unregistered.of(artifact_id, memory_type).inc()
