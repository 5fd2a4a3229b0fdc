"""Metrics of transports: requests for a source, how they ended, and which sources serve."""

from typing import Final

from globalstore.telemetry.instruments import Instruments
from globalstore.telemetry.shares import SourceShares

DISPATCH_EVENTS: Final = (
    "enqueued",
    "joined",
    "rejected",
    "granted",
    "replayed",
    "refused",
    "not_found",
    "failed",
    "timed_out",
    "stopped",
    "cancelled",
    "given_back",
)

_WAIT_BUCKETS: Final = (0, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
_DIFFUSION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class TransportMetrics:
    """Counts of requests by artifact, and how evenly sources are used."""

    def __init__(self, make: Instruments) -> None:
        self.active = make.gauge("tc_active_transports", "Transfers in progress.")
        self.dispatch_events = make.counter(
            "tc_transport_dispatch_events_total", "Life cycle of waiting requests.", "event"
        )
        for event in DISPATCH_EVENTS:
            self.dispatch_events.labels(event)
        self._requests = make.artifact_counter(
            "tc_transport_requests_total", "Requests for a source by outcome.", "status"
        )
        self._wait = make.artifact_histogram(
            "tc_transport_wait_seconds", "Wait for a source.", _WAIT_BUCKETS
        )
        self._filtered = make.artifact_counter(
            "tc_transport_filter_total", "Replicas passed over, by reason.", "reason"
        )
        self._without_source = make.artifact_counter(
            "tc_transport_no_exportable_total", "Requests refused for want of any source."
        )
        self._top1_share = make.artifact_gauge(
            "tc_transport_source_top1_share", "Share of transfers from the busiest source."
        )
        self._hhi = make.artifact_gauge(
            "tc_transport_source_hhi", "Sum of the squared shares of all sources."
        )
        self._shares: dict[str, SourceShares] = {}
        self._diffusion_first_hit = make.artifact_histogram(
            "tc_transport_diffusion_first_hit_seconds",
            "Time from a source's creation to its first transfer.",
            _DIFFUSION_BUCKETS,
        )

    def requested(self, artifact_id: str, status: str) -> None:
        """Count a request that ended: success, timeout, not_found, rejected or error."""
        self._requests.of(artifact_id, status).inc()

    def waited(self, artifact_id: str, seconds: float) -> None:
        """Take in how long a request for a source has waited."""
        self._wait.of(artifact_id).observe(seconds)

    def filtered(self, artifact_id: str, reason: str, count: int = 1) -> None:
        """Count replicas of an artifact that were passed over.

        ``reason`` is not_live, not_accepting, unavailable, saturated, presence_only, expired or
        capped.
        """
        self._filtered.of(artifact_id, reason).inc(count)

    def no_exportable(self, artifact_id: str) -> None:
        """Count a request that was refused because no source could ever serve it."""
        self._without_source.of(artifact_id).inc()

    def granted(self, artifact_id: str, source: int, first_use_s: float | None) -> None:
        """Count a transport that was granted on a source.

        ``source`` is a number of the source's own. Shares are kept for artifacts that have series
        of their own; the others show no concentration. ``first_use_s`` are the seconds since the
        source was created, if this is its first transport.
        """
        if first_use_s is not None:
            self._diffusion_first_hit.of(artifact_id).observe(first_use_s)
        top1, hhi = self._top1_share.of(artifact_id), self._hhi.of(artifact_id)
        if artifact_id in self._top1_share:
            shares = self._shares.setdefault(artifact_id, SourceShares())
            top1_share, squares = shares.used(source)
            top1.set(top1_share)
            hhi.set(squares)

    def forget(self, artifact_id: str) -> None:
        """Forget how often each source of an artifact was used."""
        self._shares.pop(artifact_id, None)
