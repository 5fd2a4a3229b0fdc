"""Noticing that this process itself was stalled: stopped, suspended, or its event loop blocked.

While the server is stalled it receives no heartbeats, so that every member looks silent. Holders of
deadlines subscribe to the length of each stall, and postpone their deadlines by it before anything
is expired.
"""

from collections.abc import Callable

import trio

from globalstore.telemetry import get_logger

_log = get_logger("globalstore.server")

# How often the loop's lateness is measured: often enough that a stall is known to a quarter of a
# second, seldom enough to cost nothing.
TICK_S = 0.25

# Lateness that counts as a stall. Below it a deadline is judged a little early, which the grace
# of every deadline covers; above it time is given back.
STALL_S = 0.5


# Window of the published figures; a second is the contract for the peak of running calls.
_WINDOW_S = 1.0


class StallDetector:
    """Measures how late the event loop wakes up.

    ``on_second`` gets the greatest lateness of each second, in seconds.
    """

    def __init__(self, on_second: Callable[[float], None] = lambda _: None) -> None:
        self.on_second = on_second
        self._on_stall: list[Callable[[float], None]] = []
        self._expected = trio.current_time() + TICK_S
        self._worst_s = 0.0

    def subscribe(self, on_stall: Callable[[float], None]) -> None:
        """Report every stall to a holder of deadlines, in seconds."""
        self._on_stall.append(on_stall)

    def check(self) -> bool:
        """Report a stall that has just ended to all subscribers; True when there was one.

        It is called before anything is expired: after a stall the caller's own wake-up may come
        before that of this detector.
        """
        now = trio.current_time()
        late = now - self._expected
        if late < STALL_S:
            return False
        self._expected = now + TICK_S
        self._worst_s = max(self._worst_s, late)
        _log.warning("the server was stalled; deadlines are moved", seconds=round(late, 3))
        for tell in self._on_stall:
            tell(late)
        return True

    async def run(self) -> None:
        """Measure until cancelled."""
        window_ends = trio.current_time() + _WINDOW_S
        while True:
            await trio.sleep_until(self._expected)
            now = trio.current_time()
            if not self.check():
                self._worst_s = max(self._worst_s, now - self._expected)
                self._expected = now + TICK_S
            if now >= window_ends - TICK_S / 2:
                self.on_second(self._worst_s)
                self._worst_s, window_ends = 0.0, now + _WINDOW_S
