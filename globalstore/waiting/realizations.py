"""Who waits for the end of a group's realization.

A waiter is a parked call: it costs no thread and no look at the database. The commit that ends a
realization wakes all of them at once and tells them how.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import trio

from globalstore.registry.signals import RealizationEnded
from globalstore.rules.refusals import ResourceExhausted


@attrs.define(eq=False)
class Waiters:
    """Those who wait for one realization; ``state`` is None until it has ended."""

    state: int | None = None
    ended: trio.Event = attrs.Factory(trio.Event)
    count: int = 0


class RealizationWaiters:
    """All calls that wait for realizations, by fingerprint.

    ``on_count`` is told how many there are whenever that changes.
    """

    def __init__(self, max_per_group: int, on_count: Callable[[int], None]) -> None:
        self._max_per_group = max_per_group
        self._on_count = on_count
        self._waiters: dict[bytes, Waiters] = {}
        self._count = 0

    def __repr__(self) -> str:
        return f"<GroupWaiters [waiters: {self._count}, groups: {len(self._waiters)}]>"

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def waiting(self, fingerprint: bytes) -> Iterator[Waiters]:
        """Belong to those who wait for a realization, for as long as the block runs.

        The state is to be looked up inside the block: what ends the realization after that look
        sets ``ended``. Raises ResourceExhausted when too many wait for it already.
        """
        waiters = self._waiters.setdefault(fingerprint, Waiters())
        if waiters.count >= self._max_per_group:
            raise ResourceExhausted(
                f"{waiters.count} calls are waiting for this group realization already"
            )
        waiters.count += 1
        self._changed(1)
        try:
            yield waiters
        finally:
            waiters.count -= 1
            self._changed(-1)
            if not waiters.count and self._waiters.get(fingerprint) is waiters:
                del self._waiters[fingerprint]

    def ended(self, signal: RealizationEnded) -> None:
        """A commit has ended a realization: wake everybody who waits for it."""
        waiters = self._waiters.pop(signal.fingerprint, None)
        if waiters is not None:
            waiters.state = signal.state
            waiters.ended.set()

    def _changed(self, by: int) -> None:
        self._count += by
        self._on_count(self._count)
