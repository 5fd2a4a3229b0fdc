"""Calls that wait for the end of a realization; the commit that ends it wakes them."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import attrs
import trio

from globalstore.registry.signals import RealizationEnded
from globalstore.rules.refusals import ResourceExhausted
from globalstore.waiting.watchers import Watchers


@attrs.define(eq=False)
class RealizationWaiter:
    """A call that waits for a realization; ``state`` is None until ``ended``."""

    state: int | None = None
    ended: trio.Event = attrs.Factory(trio.Event)


class RealizationWaiters:
    """All calls that wait for realizations, by fingerprint.

    ``on_count`` gets their number whenever that changes.
    """

    def __init__(self, max_per_realization: int, on_count: Callable[[int], None]) -> None:
        self._watchers: Watchers[bytes, RealizationWaiter] = Watchers(
            "{} calls are waiting for this group realization already; see"
            " worker_policy.group_realization.max_waiters_per_transaction",
            per_key_max=max_per_realization,
            refused_as=ResourceExhausted,
            on_count=on_count,
        )

    def __repr__(self) -> str:
        return f"<RealizationWaiters [waiters: {len(self)}]>"

    def __len__(self) -> int:
        return len(self._watchers)

    def waiting(self, fingerprint: bytes) -> AbstractContextManager[RealizationWaiter]:
        """Wait for a realization for as long as the block runs. Raises ResourceExhausted.

        The state is to be looked up inside the block: what ends the realization after that look
        sets ``ended``.
        """
        return self._watchers.watching(fingerprint, RealizationWaiter())

    def ended(self, signal: RealizationEnded) -> None:
        """Take in that a commit has ended a realization: wake all calls that wait for it."""
        for waiter in self._watchers.take(signal.fingerprint):
            waiter.state = signal.state
            waiter.ended.set()
