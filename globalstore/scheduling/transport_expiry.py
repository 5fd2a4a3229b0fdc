"""The expiry of transports that nobody completes."""

from collections.abc import Callable, Iterable
from itertools import islice

import trio

from globalstore.db import DatabaseError, Lane, Store
from globalstore.liveness.alarm import Alarm
from globalstore.liveness.stalls import StallDetector
from globalstore.registry.runtime import transport_ends as registry
from globalstore.registry.signals import TransportEnded, TransportGranted
from globalstore.rules.deadlines import Deadlines
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.transports")

# Transports that one transaction ends.
_EXPIRE_ROWS = 500

# Pause before it is tried again when the database refuses, as a full disk does.
_RETRY_S = 1.0


class TransportExpiry:
    """Ends each transport that was in progress for ``ttl_s``.

    Ages are measured on trio's clock. A transport that an earlier server granted gets what is left
    of ``ttl_s`` by the wall clock, and never more than all of it.
    """

    def __init__(
        self, store: Store, stalls: StallDetector, ttl_s: float, wall_us: Callable[[], int]
    ) -> None:
        self.ttl_s = ttl_s
        self._store = store
        self._stalls = stalls
        self._wall_us = wall_us
        self._deadlines: Deadlines[int] = Deadlines()
        self._alarm = Alarm(self._deadlines.next)

    def __len__(self) -> int:
        return len(self._deadlines)

    def restore(self, in_progress: Iterable[tuple[int, int]]) -> None:
        """Take over transports of an earlier server, as (key, created at in µs)."""
        now, now_us = trio.current_time(), self._wall_us()
        for key, created_at_us in in_progress:
            age_s = max(0.0, (now_us - created_at_us) / 1_000_000)
            self._deadlines.set(key, now + max(0.0, self.ttl_s - age_s))
        self._alarm.sooner()

    def granted(self, signal: TransportGranted) -> None:
        """Take in that a transport began."""
        self._stalls.check()  # or an earlier stall would be added to a deadline that begins now
        if self._deadlines.set(signal.transport_key, trio.current_time() + self.ttl_s):
            self._alarm.sooner()

    def ended(self, signal: TransportEnded) -> None:
        """Take in that a transport ended, in whatever way."""
        self._deadlines.discard(signal.transport_key)

    def postpone(self, seconds: float) -> None:
        """Give every transport more time: the server itself was stalled that long."""
        self._deadlines.postpone_all(seconds)

    async def run(self) -> None:
        """End what is due, until cancelled."""
        while True:
            await self._alarm.wait()
            if not self._stalls.check():
                await self._expire_due()

    async def _expire_due(self) -> None:
        due = self._deadlines.pop_due(trio.current_time())
        while keys := list(islice(due, _EXPIRE_ROWS)):
            try:
                ended = await self._store.write(
                    registry.expire_transports,
                    keys,
                    "not completed in time: expired",
                    self._wall_us(),
                    lane=Lane.CONTROL,
                )
            except DatabaseError as error:
                _log.error("transports not expired", count=len(keys), reason=str(error))
                for key in keys:
                    self._deadlines.set(key, trio.current_time() + _RETRY_S)
                return
            if ended:
                _log.info("transports expired", count=ended, ttl_s=self.ttl_s)
