"""Leases end by themselves when nobody extends them: one scheduler for all kinds of leases.

It learns deadlines from commits, and sleeps until the next one. Extending a lease costs it nothing:
it wakes at the deadline that it knows, asks the database, and sleeps again until the real one. What
counts is the row, compared with the clock inside a transaction; the scheduler makes the end known.
"""

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

import attrs
import trio

from globalstore.db import DatabaseError, Lane, Store
from globalstore.leases.clock import LeaseClock
from globalstore.liveness.stalls import StallDetector
from globalstore.registry import memory_tiers
from globalstore.registry.runtime import shard_leases
from globalstore.registry.signals import LeaseEnded, LeaseGranted, LeaseKind, LeasesExpired
from globalstore.rules.deadlines import Deadlines
from globalstore.rules.values import unsigned64
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.leases")

# Leases that one transaction looks after: some milliseconds of the writer.
_ROWS = 500

# Pause before it is tried again when the database refuses, as a full disk does.
_RETRY_US = 1_000_000

# Shards that one line of the log names.
_TOLD = 8


@attrs.define(eq=False)
class _Kind:
    expire: Callable[[list[int]], Awaitable[None]]
    patient: bool
    deadlines: Deadlines[int] = attrs.field(factory=Deadlines)


class LeaseExpiry:
    """Which lease ends next. Deadlines are microseconds of the lease clock.

    Each kind has an operation that expires leases at their deadlines: it emits ``LeasesSettled``
    for all of them. A ``patient`` kind gets more time when the server itself was stalled.
    """

    def __init__(self, clock: LeaseClock, stalls: StallDetector) -> None:
        self._clock = clock
        self._stalls = stalls
        self._kinds: dict[LeaseKind, _Kind] = {}
        self._sooner = trio.Event()
        stalls.subscribe(self._postpone)

    def __repr__(self) -> str:
        counts = (f"{kind.value}: {len(each.deadlines)}" for kind, each in self._kinds.items())
        return f"<LeaseExpiry [{', '.join(counts)}]>"

    def add(
        self, kind: LeaseKind, expire: Callable[[list[int]], Awaitable[None]], *, patient: bool
    ) -> None:
        """Look after a kind of lease from now on."""
        self._kinds[kind] = _Kind(expire, patient)

    def pending(self, kind: LeaseKind) -> int:
        """Return how many leases of a kind have a deadline."""
        return len(self._kinds[kind].deadlines)

    def restore(self, kind: LeaseKind, leases: Iterable[tuple[int, int]]) -> None:
        """Take over leases of an earlier server, as (key, deadline)."""
        for key, expires_at_us in leases:
            self._kinds[kind].deadlines.set(key, expires_at_us)
        self._sooner.set()

    def granted(self, signal: LeaseGranted) -> None:
        """A lease has a deadline."""
        kind = self._kinds[signal.kind]
        if kind.patient:
            self._stalls.check()  # or an earlier stall would be added to a deadline that begins now
        if kind.deadlines.set(signal.key, signal.expires_at_us):
            self._sooner.set()

    def ended(self, signal: LeaseEnded) -> None:
        """A lease has no deadline any more."""
        self._kinds[signal.kind].deadlines.discard(signal.key)

    def expired(self, signal: LeasesExpired) -> None:
        """The database has told what became of leases at their deadlines."""
        deadlines = self._kinds[signal.kind].deadlines
        for key in signal.ended:
            deadlines.discard(key)
        for key, expires_at_us in signal.later:
            deadlines.discard(key)
            deadlines.set(key, expires_at_us)
        self._sooner.set()

    def _postpone(self, seconds: float) -> None:
        for each in self._kinds.values():
            if each.patient:
                each.deadlines.postpone_all(int(seconds * 1_000_000))

    async def run(self) -> None:
        """Settle what is due, until cancelled."""
        while True:
            times = [each.deadlines.next() for each in self._kinds.values()]
            next_us = min((at for at in times if at is not None), default=None)
            wake_at = float("inf") if next_us is None else self._clock.trio_time(int(next_us))
            with trio.move_on_at(wake_at):
                await self._sooner.wait()
                self._sooner = trio.Event()
                continue
            self._stalls.check()
            for kind, each in self._kinds.items():
                await self._expire_due(kind, each)

    async def _expire_due(self, kind: LeaseKind, each: _Kind) -> None:
        now_us = self._clock.now_us()
        while keys := list(islice(each.deadlines.pop_due(now_us), _ROWS)):
            # They come again unless the database answers: none is lost to an error.
            for key in keys:
                each.deadlines.set(key, now_us + _RETRY_US)
            try:
                await each.expire(keys)
            except DatabaseError as error:
                _log.limited(
                    f"expire {kind.value}",
                    "leases not expired",
                    kind=kind.value,
                    count=len(keys),
                    reason=str(error),
                )
                return


async def expire_tier_leases(
    store: Store, wall_us: Callable[[], int], lease_keys: list[int]
) -> None:
    """End memory tier leases that no daemon has acknowledged."""
    ended = await store.write(
        memory_tiers.expire_tier_leases, lease_keys, wall_us(), lane=Lane.CONTROL
    )
    for lease_id, node_id in ended:
        _log.info("memory tier lease not acknowledged", lease_id=lease_id, node_id=node_id)


async def expire_shard_leases(store: Store, clock: LeaseClock, shard_ids: list[int]) -> None:
    """Tell of shards whose home has not extended its lease."""
    expired = await store.write(
        shard_leases.expire_shard_leases, shard_ids, clock.now_us, lane=Lane.CONTROL
    )
    if not expired:
        return
    named = [str(unsigned64(each.shard_id)) for each in expired[:_TOLD]]
    _log.info("shard leases expired", count=len(expired), shards=" ".join(named))
    for each in expired:
        _log.debug(
            "shard lease expired",
            shard_id=unsigned64(each.shard_id),
            holder_daemon_id=each.holder,
            generation=each.generation,
        )
