"""Metrics of gRPC calls: how many, how they ended, how long they took, how many at once."""

from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
)  # fmt: skip

UNKNOWN_METHOD: Final = "unknown"

# The contract with dashboards; the caller is told INTERNAL.
_DIED: Final = "UNKNOWN"


class _Method(Protocol):
    @property
    def path(self) -> str: ...


class ObservedCall(Protocol):
    """What is asked of a call: the method of a service it belongs to, if any."""

    @property
    def method(self) -> _Method | None:
        """None, or a method with the path ``unknown``, for a path that no service has."""

    @property
    def died(self) -> bool:
        """Whether its handler died without a code of its own."""


class _Code(Protocol):
    @property
    def name(self) -> str: ...


class CallMetrics:
    """Sees every call begin and end, also those that no handler ever saw.

    ``method`` labels come from service definitions only, so clients cannot add series.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._handled = Counter(
            "tc_grpc_server_handled_total",
            "Finished calls by method and status code.",
            ["method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "tc_grpc_server_handling_seconds",
            "Time from the arrival of a call to its end, in seconds.",
            ["method"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._inflight_gauge = Gauge(
            "tc_grpc_server_inflight_requests", "Running calls.", registry=registry
        )
        self._inflight_gauge.set_function(lambda: self._inflight)
        self._peak_gauge = Gauge(
            "tc_grpc_server_inflight_peak_requests",
            "Most calls that ran at once in the last full second.",
            registry=registry,
        )
        self._inflight = 0
        self._peak = 0
        self._counters: dict[tuple[str, str], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def __repr__(self) -> str:
        return f"<CallMetrics [inflight: {self._inflight}, peak: {self._peak}]>"

    def started(self, call: ObservedCall) -> None:
        """Count a call that has arrived."""
        self._inflight += 1
        self._peak = max(self._peak, self._inflight)

    def finished(self, call: ObservedCall, code: _Code, seconds: float) -> None:
        """Count a call that has ended, ``seconds`` after it arrived.

        The name of its status becomes the label; a call whose handler died is counted as UNKNOWN.
        """
        self._inflight -= 1
        method = UNKNOWN_METHOD if call.method is None else call.method.path
        key = (method, _DIED if call.died else code.name)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._handled.labels(*key)
        counter.inc()
        histogram = self._histograms.get(method)
        if histogram is None:
            histogram = self._histograms[method] = self._seconds.labels(method)
        histogram.observe(seconds)

    def end_peak_window(self) -> None:
        """Publish the most calls at once since the last time, and begin to count anew."""
        self._peak_gauge.set(self._peak)
        self._peak = self._inflight
