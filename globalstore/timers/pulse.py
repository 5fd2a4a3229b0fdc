"""Noticing that this process itself was deaf: stopped, suspended, or its event loop blocked.

While the server hears nobody, everybody looks silent. Whoever holds deadlines is told how long the
server was deaf, and gives everyone that much more time before anything is expired.
"""

from collections.abc import Callable

import trio

# How often the loop's lateness is measured: often enough that a stall is known to a quarter of a
# second, seldom enough to cost nothing.
TICK_S = 0.25

# Lateness that counts as a stall. Below it a deadline is judged a little early, which the grace
# of every deadline covers; above it time is given back.
STALL_S = 0.5


class Pulse:
    """Measures how late the event loop wakes up. ``on_stall`` gets the seconds of each stall."""

    def __init__(self, *on_stall: Callable[[float], None]) -> None:
        self._on_stall = on_stall
        self._expected = trio.current_time() + TICK_S
        self.lag_s = 0.0

    def check(self) -> bool:
        """Tell everyone of a stall that just ended; True when there was one.

        Whoever is about to expire something calls this first: after a stall its own wake-up may
        come before that of the pulse.
        """
        now = trio.current_time()
        late = now - self._expected
        if late < STALL_S:
            return False
        self._expected = now + TICK_S
        self.lag_s = late
        for tell in self._on_stall:
            tell(late)
        return True

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await trio.sleep_until(self._expected)
            if not self.check():
                now = trio.current_time()
                self.lag_s = max(0.0, now - self._expected)
                self._expected = now + TICK_S
