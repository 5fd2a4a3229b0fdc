"""The clocks of a server: the wall clock, and the lease clock, which never jumps.

The lease clock starts at the wall clock and runs with trio's, so that setting the wall clock
neither stretches nor shortens a lease. Stored lease times are of this clock. When the wall clock
was set, the distance between the two is stored in the database: the next server starts at the same
distance, so that what is left of each lease stays what it was.

A machine that was suspended looks as if its wall clock had been set forward: the time that it slept
is not counted.

The lease clock does not stop while the server is stalled. The holder of a lease knows its deadline
and acts by it, and others may know it as well; a deadline that moved would be another one.
"""

from collections.abc import Callable

import trio

from globalstore.db import DatabaseError, Lane, Store
from globalstore.leases.wall_clock import STEP_S
from globalstore.registry import lease_clock
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.leases")

# How often the two clocks are compared. A step within the last second before a crash is not noticed
# and changes leases, as every step would without this clock.
_LOOK_S = 1.0


class Clock:
    """The wall clock and the lease clock, both in microseconds since 1970, for any thread.

    ``wall_us`` reads the wall clock, which is stored and shown, and measures no lifetime. Made
    inside trio.
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
