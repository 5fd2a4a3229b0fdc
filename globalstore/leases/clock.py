"""The clocks of a server. The one that leases are measured by shows wall time and never jumps.

It starts at the wall clock and runs with trio's, so that nobody's lease is stretched or cut short
by somebody who sets the clock. What is stored of a lease is of this clock. When the wall clock was
set, how far this one is ahead of it since is remembered in the database: the next server starts at
the same distance, and what is left of each lease stays what it was.

A machine that was suspended looks as if its wall clock had been set forward: what it slept is not
counted.

It does not stop while the server is stalled. A deadline was told to the holder, who acts by it, and
may have been told to others; one that moved would be another deadline.
"""

from collections.abc import Callable

import trio

from globalstore.db import DatabaseError, Lane, Store
from globalstore.leases.wall_clock import STEP_S
from globalstore.registry import lease_clock
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.leases")

# How often the wall clock is held against this one: what a step within the last second before a
# crash does to leases is what it would do without any of this.
_LOOK_S = 1.0


class Clock:
    """The wall clock and the lease clock, both in microseconds since 1970, for any thread.

    ``wall_us`` tells the wall clock: it is stored and shown, and measures no lifetime. Made inside
    trio.
    """

    def __init__(self, wall_us: Callable[[], int]) -> None:
        self.wall_us = wall_us
        self._clock = trio.lowlevel.current_clock()
        self._began = self._clock.current_time()
        self._began_us = wall_us()
        self._ahead_us = 0

    def lease_us(self) -> int:
        """Return the time of the lease clock; what was returned before is never later."""
        return self._began_us + round((self._clock.current_time() - self._began) * 1_000_000)

    def wall_of(self, lease_us: int) -> int:
        """Return what the wall clock shows at a time of the lease clock, as it is set now."""
        return lease_us - self._ahead_us

    def trio_time(self, lease_us: int) -> float:
        """Return trio's time at which ``lease_us()`` is surely ``lease_us`` or later."""
        return self._began + (lease_us - self._began_us + 1) / 1_000_000

    async def restore(self, store: Store) -> None:
        """Take the distance to the wall clock over that an earlier server had."""
        self._ahead_us = await store.read(lease_clock.clock_ahead)
        self._began_us += self._ahead_us

    async def watch(self, store: Store) -> None:
        """Remember each step of the wall clock, until cancelled."""
        while True:
            await trio.sleep(_LOOK_S)
            ahead_us = self.lease_us() - self.wall_us()
            if abs(ahead_us - self._ahead_us) < STEP_S * 1_000_000:
                continue
            try:
                await store.write(lease_clock.remember_clock, ahead_us, lane=Lane.CONTROL)
            except DatabaseError as error:
                _log.limited("clock", "step of the wall clock not stored", reason=str(error))
            else:
                self._ahead_us = ahead_us
