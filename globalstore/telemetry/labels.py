"""Series by artifact, bounded: whatever clients register, a scrape stays small."""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from prometheus_client.metrics import MetricWrapperBase

M = TypeVar("M", bound=MetricWrapperBase)

# The contract with dashboards: this many artifacts have series of their own in each metric.
ARTIFACTS_MAX: Final = 1000

# What the series of one metric may take up in a scrape. Ten metrics are labelled by artifact and a
# scrape has to stay below 2 MB, also when ids are long or each artifact has a histogram.
METRIC_BYTES_MAX: Final = 160 * 1024

# Text of a series besides its names and values: braces, quotes, the number, the line end.
_SERIES_OVERHEAD_BYTES: Final = 40

# Where artifacts beyond the bounds are counted together.
OTHER: Final = "other"


class ArtifactSeries(Generic[M]):
    """The series of a metric whose first label is ``artifact_id``.

    An artifact gets series of its own while there is room, and loses them with ``remove``; the
    others share ``artifact_id="other"``, so that sums over all artifacts stay right.
    """

    def __init__(self, metric: M, name: str, lines_per_series: int = 1) -> None:
        """Bound a metric that is scraped under ``name``.

        ``lines_per_series`` counts the samples of one label set: buckets, sum and count of a
        histogram.
        """
        self._metric = metric
        self._name = name
        self._lines = lines_per_series
        self._live: dict[str, dict[tuple[str, ...], M]] = {}
        self._other: dict[tuple[str, ...], M] = {}
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<ArtifactSeries {self._name} [artifacts: {len(self._live)}, {self._bytes} B]>"

    def __contains__(self, artifact_id: str) -> bool:
        """Tell whether the artifact has series of its own."""
        return artifact_id in self._live

    def __iter__(self) -> Iterator[str]:
        """Return the artifacts that have series of their own."""
        return iter(self._live)

    def of(self, artifact_id: str, *rest: str) -> M:
        """Return the series of an artifact, or the shared one when there is no room.

        ``artifact_id`` is any text; the id "other" itself is counted as other. ``rest`` are the
        values of the metric's further labels, which must come from a closed set.
        """
        return self.own(artifact_id, *rest) or self.other(*rest)

    def own(self, artifact_id: str, *rest: str) -> M | None:
        """Return the series of an artifact alone, or None when there is no room for one."""
        mine = self._live.get(artifact_id)
        if mine is not None and (child := mine.get(rest)) is not None:
            return child
        # Cheap, and nearly always enough to tell that there is no room: a character is a byte.
        if self._bytes + self._lines * len(artifact_id) > METRIC_BYTES_MAX:
            return None
        cost = self._cost(artifact_id, rest)
        room = mine is not None or (len(self._live) < ARTIFACTS_MAX and artifact_id != OTHER)
        if not room or self._bytes + cost > METRIC_BYTES_MAX:
            return None
        child = self._metric.labels(artifact_id, *rest)
        self._live.setdefault(artifact_id, {})[rest] = child
        self._bytes += cost
        return child

    def other(self, *rest: str) -> M:
        """Return the series that artifacts without room share."""
        child = self._other.get(rest)
        if child is None:
            child = self._other[rest] = self._metric.labels(OTHER, *rest)
        return child

    def remove(self, artifact_id: str) -> None:
        """Drop the artifact's own series, if it has any; what others share stays."""
        for rest in self._live.pop(artifact_id, {}):
            self._metric.remove(artifact_id, *rest)
            self._bytes -= self._cost(artifact_id, rest)

    def _cost(self, artifact_id: str, rest: tuple[str, ...]) -> int:
        labels = len(artifact_id.encode("utf-8", "replace")) + sum(len(r) + 16 for r in rest)
        return self._lines * (
            len(self._name) + len("artifact_id") + labels + _SERIES_OVERHEAD_BYTES
        )
