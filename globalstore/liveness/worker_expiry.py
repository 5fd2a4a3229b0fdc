"""The heartbeat reaper, and the writing down of heartbeats."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import trio

from globalstore.db import DatabaseError, Lane, Store, Transaction
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.stalls import StallDetector
from globalstore.liveness.workers import LiveWorker, Workers
from globalstore.registry.runtime import workers as registry
from globalstore.telemetry import get_logger

LivenessRow = TypeVar("LivenessRow")

_log = get_logger("globalstore.workers")

# Rows of one heartbeat flush: some milliseconds of the writer's time.
_FLUSH_ROWS = 512

# Rows that one transaction hides when a process is gone and its replicas were not confirmed.
_HIDE_ROWS = 1000


def flush_interval_s(heartbeat_timeout_s: float) -> float:
    """Return how long heartbeats are gathered before they are written."""
    return min(max(heartbeat_timeout_s / 40, 0.05), 0.2)


def grace_s(heartbeat_timeout_s: float) -> float:
    """Return how long after the timeout a silent worker is expired: its heartbeat may be late."""
    return max(0.5, 4 * flush_interval_s(heartbeat_timeout_s))


class Reaper:
    """Expires workers that are silent, each at its own deadline."""

    def __init__(
        self,
        store: Store,
        workers: Workers,
        daemon_locks: DaemonLocks,
        stalls: StallDetector,
        wall_us: Callable[[], int],
        on_expired: Callable[[], None],
    ) -> None:
        self._store = store
        self._workers = workers
        self._daemon_locks = daemon_locks
        self._stalls = stalls
        self._wall_us = wall_us
        self._on_expired = on_expired

    async def run(self) -> None:
        """Expire whoever is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._workers.wait_due()
                if self._stalls.check():
                    continue
                for worker in self._workers.take_silent():
                    nursery.start_soon(self._expire, worker)
                for worker in self._workers.take_unconfirmed():
                    nursery.start_soon(self._hide_unconfirmed, worker)

    async def _expire(self, worker: LiveWorker) -> None:
        """End one worker; if that cannot be written now, it is tried again after the grace."""
        state = worker.state
        async with self._daemon_locks.hold(state.daemon_id, "maintenance", bounded=False):
            if not self._workers.begin_expiry(worker):
                return  # it was heard while this waited for its turn
            try:
                ended = await self._store.write(
                    registry.expire_worker,
                    worker.key,
                    state.generation,
                    self._wall_us(),
                    lane=Lane.CONTROL,
                )
            except DatabaseError as error:
                _log.error("worker not expired", worker_id=state.worker_id, reason=str(error))
                ended = False
            finally:
                self._workers.keep(worker)
        if ended:
            self._on_expired()
            _log.info("worker expired", **worker.state.log_fields())

    async def _hide_unconfirmed(self, worker: LiveWorker) -> None:
        """Take replicas out of use that a new process of their daemon has not confirmed."""
        async with self._daemon_locks.hold(worker.state.daemon_id, "maintenance", bounded=False):
            if not worker.state.needs_reconcile:
                return
            try:
                while await self._store.bulk(registry.hide_unconfirmed, worker.key, _HIDE_ROWS):
                    pass
            except DatabaseError as error:
                _log.error(
                    "replicas not hidden", worker_id=worker.state.worker_id, reason=str(error)
                )
                self._workers.confirm_later(worker.key)


class HeartbeatBuffer(Protocol[LivenessRow]):
    """Whoever keeps in memory what heartbeats said: workers or instances."""

    timeout_s: float

    async def wait_unwritten(self) -> None:
        """Return when there is liveness to store."""

    def take_unwritten(self, limit: int) -> list[LivenessRow]:
        """Return what is to be stored of up to ``limit`` of them; it counts as written."""


class HeartbeatWriter(Generic[LivenessRow]):
    """Writes liveness down in batches. Losing one interval in a crash is acceptable.

    ``record`` is the operation that stores a batch and tells how many rows it found; ``on_flush``
    is told both numbers.
    """

    def __init__(
        self,
        store: Store,
        buffer: HeartbeatBuffer[LivenessRow],
        record: Callable[[Transaction, list[LivenessRow]], int],
        on_flush: Callable[[int, int], None] = lambda taken, written: None,
    ) -> None:
        self._store = store
        self._buffer = buffer
        self._record = record
        self._on_flush = on_flush
        self._interval_s = flush_interval_s(buffer.timeout_s)

    async def run(self) -> None:
        """Write what has gathered, until cancelled."""
        while True:
            await self._buffer.wait_unwritten()
            await trio.sleep(self._interval_s)
            try:
                await self.flush()
            except DatabaseError as error:
                # The next heartbeats say it again; who is alive is decided in memory.
                _log.limited("heartbeats", "heartbeats not written", reason=str(error))

    async def flush(self) -> None:
        """Write all that is not written yet. Raises DatabaseError; what was taken is not kept."""
        while rows := self._buffer.take_unwritten(_FLUSH_ROWS):
            written = await self._store.write(self._record, rows, lane=Lane.CONTROL)
            self._on_flush(len(rows), written)
