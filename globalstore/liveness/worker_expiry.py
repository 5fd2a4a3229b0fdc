"""The expiry of silent workers, and of replicas that a new process has not confirmed."""

from collections.abc import Callable

import trio

from globalstore.db import DatabaseError, Lane, Store, repeat_in_slices
from globalstore.liveness.daemon_locks import DaemonLocks
from globalstore.liveness.stalls import StallDetector
from globalstore.liveness.workers import LiveWorker, Workers
from globalstore.registry.runtime import workers as registry
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.workers")

# Rows that one transaction hides when a process is gone and its replicas were not confirmed.
_HIDE_ROWS = 1000


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
        """Expire workers at their deadlines, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_confirmations, nursery)
            nursery.start_soon(self._workers.watch_silence)
            while True:
                await self._workers.heartbeats.wait_due()
                if not self._stalls.check():
                    for worker in self._workers.take_silent():
                        nursery.start_soon(self._expire, worker)

    async def _watch_confirmations(self, nursery: trio.Nursery) -> None:
        while True:
            await self._workers.wait_unconfirmed()
            if not self._stalls.check():
                for worker in self._workers.take_unconfirmed():
                    nursery.start_soon(self._hide_unconfirmed, worker)

    async def _expire(self, worker: LiveWorker) -> None:
        """End one worker; if that cannot be written now, it is tried again after the grace."""
        async with self._daemon_locks.hold(worker.daemon_id, "maintenance", bounded=False):
            if not self._workers.heartbeats.begin_expiry(worker.key):
                return  # a heartbeat came while this waited for its turn
            try:
                ended = await self._store.write(
                    registry.expire_worker,
                    worker.key,
                    worker.generation,
                    self._wall_us(),
                    lane=Lane.CONTROL,
                )
            except DatabaseError as error:
                _log.error("worker not expired", worker_id=worker.worker_id, reason=str(error))
                ended = False
            finally:
                self._workers.heartbeats.end_expiry([worker.key])
        if ended:
            self._on_expired()
            _log.info("worker expired", **worker.log_fields())

    async def _hide_unconfirmed(self, worker: LiveWorker) -> None:
        """Take replicas out of use that a new process of their daemon has not confirmed."""
        async with self._daemon_locks.hold(worker.daemon_id, "maintenance", bounded=False):
            if not worker.needs_reconcile:
                return
            try:
                async for _ in repeat_in_slices(
                    self._store, registry.hide_unconfirmed, worker.key, _HIDE_ROWS
                ):
                    pass
            except DatabaseError as error:
                _log.error("replicas not hidden", worker_id=worker.worker_id, reason=str(error))
                self._workers.confirm_later(worker.key)
