"""A few places that many want: each client's address gets its turn, however many wait for it."""

import math
from collections import OrderedDict
from collections.abc import Hashable

import trio


class FairSlots:
    """Places, handed from one to the next: addresses in turn, in each the first come first."""

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.busy = 0
        self.waiting = 0
        # Since when, on trio's clock, somebody has waited; infinite while nobody does.
        self.waited_since = math.inf
        self._lines: OrderedDict[Hashable, OrderedDict[trio.lowlevel.Task, None]] = OrderedDict()

    def acquire_nowait(self) -> bool:
        """Take a place if one is free, and tell so."""
        if self.busy >= self.limit:
            return False
        self.busy += 1
        return True

    async def acquire(self, address: Hashable, *, goes_on: bool = False) -> None:
        """Wait for a place. A cancelled wait takes none.

        Who ``goes_on`` had a place and let others have a turn: it is before those of its address.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.acquire_nowait():
            return
        task = trio.lowlevel.current_task()
        line = self._lines.setdefault(address, OrderedDict())
        line[task] = None
        if goes_on:
            line.move_to_end(task, last=False)
        if not self.waiting:
            self.waited_since = trio.current_time()
        self.waiting += 1

        def withdraw(_: object) -> trio.lowlevel.Abort:
            del line[task]
            if not line:
                del self._lines[address]
            self._one_less()
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(withdraw)

    def release(self) -> None:
        """Hand a place to the first of the address whose turn it is, or leave it free."""
        if not self._lines:
            self.busy -= 1
            return
        address, line = self._lines.popitem(last=False)
        task, _ = line.popitem(last=False)
        if line:
            self._lines[address] = line
        self._one_less()
        trio.lowlevel.reschedule(task)

    def _one_less(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.waited_since = math.inf
