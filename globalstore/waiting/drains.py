"""Calls that wait until a replica serves no transport any more, and what wakes them."""

from contextlib import AbstractContextManager

import attrs
import trio

from globalstore.registry.signals import SourceFreed, SourcesFreed, Space, TransportEnded
from globalstore.registry.worker_ids import NOBODY
from globalstore.waiting.watchers import Watchers

# Calls that wait for a drain at a time. There is one for each replica that is to be retired, so
# this is a cluster that is shut down at once; each costs a parked task.
_WAITERS_MAX = 65_536


@attrs.define(eq=False)
class DrainWaiter:
    """Something happened to a replica, or may have, when ``changed`` is set.

    ``went`` when it was hidden and its last transport has ended: then the row is gone as well.
    """

    seq: int
    went: bool = False
    changed: trio.Event = attrs.Factory(trio.Event)


class Drains:
    """All calls that wait for a replica to be drained."""

    def __init__(self) -> None:
        self._watchers: Watchers[Space, DrainWaiter] = Watchers(
            "{} calls wait for a drain already; try later", total_max=_WAITERS_MAX
        )

    def __len__(self) -> int:
        return len(self._watchers)

    def __repr__(self) -> str:
        return f"<Drains [waiters: {len(self)}]>"

    def waiting(self, space: Space, seq: int) -> AbstractContextManager[DrainWaiter]:
        """Watch a replica for as long as the block runs. Raises Unavailable."""
        return self._watchers.watching(space, DrainWaiter(seq))

    def transport_ended(self, signal: TransportEnded) -> None:
        """Take in that a transport ended."""
        for waiter in self._watchers.of(signal.space):
            if waiter.seq == signal.replica_seq:
                waiter.went = signal.worker_key == NOBODY and signal.load == 0
                waiter.changed.set()

    def source_freed(self, signal: SourceFreed) -> None:
        """Take in that a replica of an artifact and view came, went or changed."""
        for waiter in self._watchers.of((signal.artifact_id, signal.view_id)):
            waiter.changed.set()

    def sources_freed(self, signal: SourcesFreed) -> None:
        """Do as ``source_freed`` for any number of artifacts and views."""
        for waiter in self._watchers.of_any(signal.spaces):
            waiter.changed.set()
