"""How the metrics of one server are made: in one registry, and those by artifact bounded."""

from typing import Any, Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from globalstore.telemetry.labels import ArtifactSeries

# Creation times would double the counters of a scrape; nobody asked for them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

# Samples of one label set of a histogram besides its buckets: +Inf, sum, count.
_HISTOGRAM_EXTRA_LINES: Final = 3


class Instruments:
    """Makes metrics in one registry. ``by_artifact`` has all whose first label is an artifact."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.by_artifact: list[ArtifactSeries[Any]] = []

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Return a new counter."""
        return Counter(name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Return a new gauge."""
        return Gauge(name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        """Return a new histogram; ``buckets`` are its upper bounds."""
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def artifact_counter(self, name: str, text: str, *labels: str) -> ArtifactSeries[Counter]:
        """Return a new counter by artifact."""
        series = ArtifactSeries(self.counter(name, text, "artifact_id", *labels), name)
        self.by_artifact.append(series)
        return series

    def artifact_gauge(self, name: str, text: str) -> ArtifactSeries[Gauge]:
        """Return a new gauge by artifact."""
        series = ArtifactSeries(self.gauge(name, text, "artifact_id"), name)
        self.by_artifact.append(series)
        return series

    def artifact_histogram(
        self, name: str, text: str, buckets: tuple[float, ...]
    ) -> ArtifactSeries[Histogram]:
        """Return a new histogram by artifact."""
        histogram = self.histogram(name, text, buckets, "artifact_id")
        series = ArtifactSeries(histogram, name, len(buckets) + _HISTOGRAM_EXTRA_LINES)
        self.by_artifact.append(series)
        return series
