"""The expiry of leases that nobody extends: one scheduler for all kinds of leases.

It learns deadlines from commits, and sleeps until the next one. Extending a lease tells it nothing:
it wakes at the deadline that it knows, asks the database, and sleeps again until the real one. The
row decides, compared with the clock inside a transaction; the scheduler makes the end known.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from globalstore.db import DatabaseError, Lane, Store, Transaction
from globalstore.leases.clock import Clock
from globalstore.leases.kinds import Kind
from globalstore.liveness.alarm import Alarm
from globalstore.liveness.stalls import StallDetector
from globalstore.registry.lease_clock import LeaseNow
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired
from globalstore.rules.deadlines import Deadlines
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.leases")

# Leases that one transaction checks: some milliseconds of the writer.
_ROWS = 500

# Pause before it is tried again when the database refuses, as a full disk does.
_RETRY_US = 1_000_000


class LeaseExpiry:
    """Which lease ends next. Deadlines are microseconds of the lease clock.

    ``kinds`` are all kinds of leases there are.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        stalls: StallDetector,
        kinds: Mapping[LeaseKind, Kind[Any]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._stalls = stalls
        self._kinds = kinds
        self._deadlines: dict[LeaseKind, Deadlines[int]] = {kind: Deadlines() for kind in kinds}
        self._alarm = Alarm(self._next_at)
        stalls.subscribe(self._postpone)

    def __repr__(self) -> str:
        counts = (f"{kind.value}: {len(each)}" for kind, each in self._deadlines.items())
        return f"<LeaseExpiry [{', '.join(counts)}]>"

    def pending(self, kind: LeaseKind) -> int:
        """Return how many leases of a kind have a deadline."""
        return len(self._deadlines[kind])

    async def restore(self) -> None:
        """Take over the leases of an earlier server, on a full disk as soon as there is space.

        Raises DatabaseError.
        """
        for name, kind in self._kinds.items():
            await self._store.write_first(_restore, name, kind.restore, self._clock.lease_us)

    def granted(self, signal: LeaseGranted) -> None:
        """Take in that a lease has a deadline."""
        if self._kinds[signal.kind].patient:
            self._stalls.check()  # or an earlier stall would be added to a deadline that begins now
        if self._deadlines[signal.kind].set(signal.key, signal.expires_at_us):
            self._alarm.sooner()

    def ended(self, signal: LeaseEnded) -> None:
        """Take in that a lease has no deadline any more."""
        self._deadlines[signal.kind].discard(signal.key)

    def expired(self, signal: LeasesExpired) -> None:
        """Take in what the database has decided of leases at their deadlines."""
        deadlines = self._deadlines[signal.kind]
        for key in signal.ended:
            deadlines.discard(key)
        for key, expires_at_us in signal.later:
            deadlines.discard(key)
            deadlines.set(key, expires_at_us)
        self._alarm.sooner()

    def _postpone(self, seconds: float) -> None:
        for name, kind in self._kinds.items():
            if kind.patient:
                self._deadlines[name].postpone_all(int(seconds * 1_000_000))

    async def run(self) -> None:
        """Expire what is due, until cancelled."""
        while True:
            await self._alarm.wait()
            self._stalls.check()
            for name in self._kinds:
                await self._expire_due(name)

    def _next_at(self) -> float | None:
        times = [each.next() for each in self._deadlines.values()]
        next_us = min((at for at in times if at is not None), default=None)
        return None if next_us is None else self._clock.trio_time(int(next_us))

    async def _expire_due(self, name: LeaseKind) -> None:
        kind, deadlines = self._kinds[name], self._deadlines[name]
        now_us = self._clock.lease_us()
        while keys := list(islice(deadlines.pop_due(now_us), _ROWS)):
            # They are tried again unless the database answers: none is lost to an error.
            for key in keys:
                deadlines.set(key, now_us + _RETRY_US)
            try:
                ended = await self._store.write(
                    kind.expire,
                    keys,
                    self._clock.wall_us(),
                    self._clock.lease_us,
                    lane=Lane.CONTROL,
                )
            except DatabaseError as error:
                _log.limited(
                    f"expire {name.value}",
                    "leases not expired",
                    kind=name.value,
                    count=len(keys),
                    reason=str(error),
                )
                return
            if ended:
                kind.log(ended)


def _restore(
    tx: Transaction,
    kind: LeaseKind,
    restore: Callable[[Transaction, int], list[tuple[int, int]]],
    clock: LeaseNow,
) -> None:
    """Let memory learn the deadlines of all leases of a kind."""
    tx.emit(LeasesExpired(kind, [], restore(tx, clock())))
