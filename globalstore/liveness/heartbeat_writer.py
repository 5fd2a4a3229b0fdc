"""Storing heartbeats: now and then, in batches."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio

from globalstore.db import DatabaseError, Lane, Store, Transaction
from globalstore.liveness.heartbeats import Heartbeats
from globalstore.telemetry import get_logger

LivenessRow = TypeVar("LivenessRow")

_log = get_logger("globalstore.workers")

# Rows of one heartbeat flush: some milliseconds of the writer's time.
_FLUSH_ROWS = 512


def flush_interval_s(heartbeat_timeout_s: float) -> float:
    """Return how long heartbeats are gathered before they are written."""
    return min(max(heartbeat_timeout_s / 40, 0.05), 0.2)


def grace_s(heartbeat_timeout_s: float) -> float:
    """Return how long after the timeout a silent worker is expired: its heartbeat may be late."""
    return max(0.5, 4 * flush_interval_s(heartbeat_timeout_s))


class HeartbeatBuffer(Protocol[LivenessRow]):
    """What keeps heartbeats in memory: the workers or the instances."""

    heartbeats: Heartbeats

    def take_unwritten(self, limit: int) -> list[LivenessRow]:
        """Return what is to be stored of up to ``limit`` of them; it counts as written."""


class HeartbeatWriter(Generic[LivenessRow]):
    """Stores liveness in batches. Losing one interval in a crash is acceptable.

    ``record`` is the operation that stores a batch and returns how many rows it found; ``on_flush``
    gets both numbers, and the error when nothing of a batch was written.
    """

    def __init__(
        self,
        store: Store,
        buffer: HeartbeatBuffer[LivenessRow],
        record: Callable[[Transaction, list[LivenessRow]], int],
        on_flush: Callable[[int, int, DatabaseError | None], None] = lambda *_: None,
    ) -> None:
        self._store = store
        self._buffer = buffer
        self._record = record
        self._on_flush = on_flush
        self._interval_s = flush_interval_s(buffer.heartbeats.timeout_s)

    async def run(self) -> None:
        """Write what has gathered, until cancelled."""
        while True:
            await self._buffer.heartbeats.wait_unwritten()
            await trio.sleep(self._interval_s)
            try:
                await self.flush()
            except DatabaseError as error:
                # The next heartbeats repeat it; who is alive is decided in memory.
                _log.limited("heartbeats", "heartbeats not written", reason=str(error))

    async def flush(self) -> None:
        """Store all that is not stored yet.

        Raises DatabaseError; what was taken is not kept then.
        """
        while rows := self._buffer.take_unwritten(_FLUSH_ROWS):
            try:
                written = await self._store.write(self._record, rows, lane=Lane.CONTROL)
            except DatabaseError as error:
                self._on_flush(len(rows), 0, error)
                raise
            self._on_flush(len(rows), written, None)
