"""What passes by itself, and what nobody would notice: looked at each second, whoever writes."""

from collections.abc import Awaitable, Callable

import trio

from globalstore.db import limits, maintenance
from globalstore.db.errors import Busy, Damaged, Full, QueueFull
from globalstore.db.health import Health, Statistics
from globalstore.db.opening import Opened
from globalstore.db.transaction import Transaction
from globalstore.db.wal import Checkpointer

# An operation of the writer that nobody else waits for.
Run = Callable[[Callable[[Transaction], object]], Awaitable[object]]


class Watch:
    """Looks at the file, its log and the free space, and lets the writer act on what it sees.

    ``run`` has the writer run an operation after all others.
    """

    def __init__(
        self,
        run: Run,
        statistics: Callable[[], Statistics],
        opened: Opened,
        checkpointer: Checkpointer,
        health: Health,
        min_free_bytes: int,
    ) -> None:
        self._run = run
        self._statistics = statistics
        self._opened = opened
        self._checkpointer = checkpointer
        self._health = health
        self._min_free_bytes = min_free_bytes
        self._groups = 0
        self._missed = 0

    async def run(self) -> None:
        """Look each second, until cancelled. Raises Closed when the store has stopped."""
        while True:
            await trio.sleep(limits.WATCH_S)
            self._look_for_file()
            try:
                await self._look()
            except (Full, Busy, Damaged, QueueFull):
                continue  # noted where it was met; the next look tries again

    async def empty_log(self) -> None:
        """Let the writer copy the log and empty it, if no reader is in it then."""
        self._checkpointer.empty_next()
        await self._run(maintenance.nothing)

    def _look_for_file(self) -> None:
        lock = self._opened.lock
        self._missed = 0 if lock is None or lock.is_named() else self._missed + 1
        if self._missed == limits.LOST_LOOKS:
            # What is written from now on would end with this process.
            self._health.note_damage(
                Damaged(f"{self._opened.path} was removed or replaced while this process uses it")
            )

    async def _look(self) -> None:
        found = self._statistics()
        is_quiet, self._groups = found.groups == self._groups, found.groups
        self._health.note_free_bytes(found.free_bytes, self._min_free_bytes)
        if self._health.damage is not None:
            return  # nothing may touch the file but a restart
        if self._health.locked:
            await self._run(maintenance.nothing)
        elif self._health.full and found.free_bytes >= limits.SPACE_BYTES_MIN:
            await self._run(maintenance.prove_space)
            self._health.note_written()
        elif is_quiet and found.wal_bytes > limits.QUIET_LOG_BYTES_MAX:
            await self.empty_log()
