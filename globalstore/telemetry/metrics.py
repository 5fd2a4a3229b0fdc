"""Every metric of the server. Names, labels and buckets are a contract with dashboards.

Label values come from closed sets, except ``artifact_id``, which ``ArtifactSeries`` bounds.
"""

from prometheus_client import CollectorRegistry, ProcessCollector

from globalstore.telemetry.calls import CallMetrics
from globalstore.telemetry.control_plane import ControlPlaneMetrics
from globalstore.telemetry.daemon_locks import DaemonLockMetrics
from globalstore.telemetry.instruments import Instruments
from globalstore.telemetry.memory_tiers import MemoryTierMetrics
from globalstore.telemetry.realizations import RealizationMetrics
from globalstore.telemetry.replicas import ReplicaMetrics
from globalstore.telemetry.server import ServerMetrics
from globalstore.telemetry.transports import TransportMetrics
from globalstore.telemetry.workers import WorkerMetrics


class Metrics:
    """The metrics of one server, in a registry of their own: an attribute a noun."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # ``process_*``: processor time, memory, open files and start of the process.
        ProcessCollector(registry=self.registry)
        self.instruments = make = Instruments(self.registry)
        self.calls = CallMetrics(self.registry)
        self.daemon_locks = DaemonLockMetrics(self.registry)
        self.realizations = RealizationMetrics(self.registry)
        self.memory_tiers = MemoryTierMetrics(self.registry)
        self.server = ServerMetrics(make)
        self.workers = WorkerMetrics(make)
        self.control_plane = ControlPlaneMetrics(make)
        self.replicas = ReplicaMetrics(make, self.remove_artifact)
        self.transports = TransportMetrics(make)

    def labelled_artifacts(self) -> set[str]:
        """Return the artifacts that have series of their own in any metric.

        Requests may name artifacts that nobody holds; maintenance removes those of these that
        have no replica, so that invented ids do not keep the room of real ones.
        """
        return {artifact_id for series in self.instruments.by_artifact for artifact_id in series}

    def remove_artifact(self, artifact_id: str) -> None:
        """Drop every series of an artifact that has no replica any more."""
        self.transports.forget(artifact_id)
        for series in self.instruments.by_artifact:
            series.remove(artifact_id)
