"""Who waits until a replica serves no transport any more, and what wakes them."""

import attrs
import trio

from globalstore.registry.signals import SourceFreed, SourcesFreed, Space, TransportEnded
from globalstore.registry.worker_ids import NOBODY
from globalstore.rules.refusals import ResourceExhausted

# Calls that wait for a drain at a time. Somebody waits for each replica that is to be retired, so
# this is a cluster that is shut down at once; each costs a parked task.
_WAITERS_MAX = 65_536


@attrs.define(eq=False)
class DrainWaiter:
    """Something happened to a replica, or may have, when ``changed`` is set.

    ``went`` when it was hidden and its last transport has ended: then the row is gone as well.
    """

    space: Space
    seq: int
    went: bool = False
    changed: trio.Event = attrs.Factory(trio.Event)


class Drains:
    """All calls that wait for a replica to be drained."""

    def __init__(self) -> None:
        self._waiters: dict[Space, set[DrainWaiter]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<Drains [waiters: {len(self)}]>"

    def begin(self, space: Space, seq: int) -> DrainWaiter:
        """Watch a replica until ``end``. Raises ResourceExhausted."""
        if self._count >= _WAITERS_MAX:
            raise ResourceExhausted(f"{_WAITERS_MAX} calls wait for a drain already; try later")
        waiter = DrainWaiter(space, seq)
        self._waiters.setdefault(space, set()).add(waiter)
        self._count += 1
        return waiter

    def end(self, waiter: DrainWaiter) -> None:
        """Watch no more."""
        waiters = self._waiters[waiter.space]
        waiters.remove(waiter)
        self._count -= 1
        if not waiters:
            del self._waiters[waiter.space]

    def transport_ended(self, signal: TransportEnded) -> None:
        """A transport ended."""
        for waiter in self._waiters.get(signal.space, ()):
            if waiter.seq == signal.replica_seq:
                waiter.went = signal.worker_key == NOBODY and signal.load == 0
                waiter.changed.set()

    def source_freed(self, signal: SourceFreed) -> None:
        """A replica of an artifact and view came, went or changed."""
        self._wake((signal.artifact_id, signal.view_id))

    def sources_freed(self, signal: SourcesFreed) -> None:
        """As ``source_freed``, for any number of artifacts and views."""
        for space in self._waiters.keys() & signal.spaces:
            self._wake(space)

    def _wake(self, space: Space) -> None:
        for waiter in self._waiters.get(space, ()):
            waiter.changed.set()
