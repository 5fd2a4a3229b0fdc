"""The wall clock, and detecting that it was set, by comparing it with one that cannot be set."""

import time
from collections.abc import Callable

import trio

# Smaller differences are drift and scheduling, not a step of the clock.
STEP_S = 0.5


def wall_us() -> int:
    """Return the wall clock in microseconds since 1970."""
    return time.time_ns() // 1000


class ClockWatch:
    """Tells by how much the wall clock jumped between two looks."""

    def __init__(self, wall_us: Callable[[], int]) -> None:
        self._wall_us = wall_us
        self._seen = (trio.current_time(), wall_us())

    def step_s(self) -> float:
        """Return the jump since the last look in seconds, negative for one back; else 0."""
        before, wall_before = self._seen
        now, wall = self._seen = (trio.current_time(), self._wall_us())
        step = (wall - wall_before) / 1_000_000 - (now - before)
        return step if abs(step) >= STEP_S else 0.0
