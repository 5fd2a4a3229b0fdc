"""How late the event loop is, measured by a task that asks to be woken on time."""

from collections.abc import Callable
from typing import Final

import trio

from globalstore.telemetry.metrics import Metrics

# Often enough to see a stall that a daemon would feel, rare enough to cost nothing.
LAG_INTERVAL_SECONDS: Final = 0.25

# Window of the published figures; one second is the contract for the peak of calls.
WINDOW_SECONDS: Final = 1.0


async def measure_event_loop(
    metrics: Metrics, on_lag: Callable[[float], None] = lambda _: None
) -> None:
    """Publish the event loop's lag and the peak of running calls once a second, until cancelled.

    Args:
        metrics: where both are published.
        on_lag: told each second's greatest lag in seconds, such as ``HealthState.set_lag``.
    """
    worst = 0.0
    window_ends = trio.current_time() + WINDOW_SECONDS
    while True:
        due = trio.current_time() + LAG_INTERVAL_SECONDS
        await trio.sleep_until(due)
        now = trio.current_time()
        worst = max(worst, now - due)
        if now >= window_ends - LAG_INTERVAL_SECONDS / 2:
            metrics.event_loop_lag.set(worst)
            metrics.calls.end_peak_window()
            on_lag(worst)
            worst, window_ends = 0.0, now + WINDOW_SECONDS
