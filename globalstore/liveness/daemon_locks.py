"""Changes of one daemon's state, one at a time and in the order in which they came.

Every daemon has a lock of its own while something holds it or waits for it, so that daemons never
wait for each other. Locks are gathered in shards only to bound and to count what waits.
"""

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import trio

from globalstore.rules.refusals import Unavailable

# Shards with series of their own in the metrics, whatever is configured: a dozen series each.
SHARDS_MAX = 64


class DaemonLockFull(Unavailable):
    """Too many changes wait in the shard of this daemon."""


class Observer(Protocol):
    """What the metrics learn of the locks."""

    def waiting(self, shard: int, count: int) -> None:
        """Take in how many changes wait in a shard now."""

    def entered(self, seconds: float) -> None:
        """Take in how long a change has waited for its turn."""

    def intent(self, shard: int, kind: str, result: str) -> None:
        """Take in that a change was submitted, overloaded, succeeded or failed."""


@attrs.define(eq=False)
class _DaemonLock:
    mutex: trio.Lock = attrs.Factory(trio.Lock)
    users: int = 0


class DaemonLocks:
    """All locks. ``capacity`` bounds the changes that wait in one shard."""

    def __init__(self, shards: int, capacity: int, observer: Observer) -> None:
        self._shards = min(shards, SHARDS_MAX)
        self._capacity = capacity
        self._observer = observer
        self._locks: dict[str, _DaemonLock] = {}
        self._waiting = [0] * self._shards

    def __repr__(self) -> str:
        return f"<DaemonLocks [in use: {len(self._locks)}, waiting: {sum(self._waiting)}]>"

    @asynccontextmanager
    async def hold(self, daemon_id: str, kind: str, *, bounded: bool = True) -> AsyncIterator[None]:
        """Wait for a daemon's lock and hold it.

        ``kind`` names the change in the metrics. Raises DaemonLockFull when the shard has no room
        and the change is ``bounded``. A wait that is cancelled leaves the lock as it was.
        """
        shard = self._shard_of(daemon_id)
        lock = self._locks.get(daemon_id)
        self._observer.intent(shard, kind, "submitted")
        if bounded and lock is not None and self._waiting[shard] >= self._capacity:
            self._observer.intent(shard, kind, "overloaded")
            raise DaemonLockFull(
                f"{self._capacity} changes of daemons wait already, try again later;"
                " see worker_policy.control_reducer.queue_capacity"
            )
        if lock is None:
            lock = self._locks[daemon_id] = _DaemonLock()
        lock.users += 1
        try:
            await self._enter(lock, shard)
            try:
                yield
            except BaseException:
                self._observer.intent(shard, kind, "failed")
                raise
            else:
                self._observer.intent(shard, kind, "succeeded")
            finally:
                lock.mutex.release()
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[daemon_id]

    def passed(self, daemon_id: str, kind: str, *, succeeded: bool = True) -> None:
        """Count a change that was made, or refused, without the daemon's lock."""
        shard = self._shard_of(daemon_id)
        self._observer.intent(shard, kind, "submitted")
        self._observer.intent(shard, kind, "succeeded" if succeeded else "failed")

    def _shard_of(self, daemon_id: str) -> int:
        return zlib.crc32(daemon_id.encode()) % self._shards

    async def _enter(self, lock: _DaemonLock, shard: int) -> None:
        try:
            lock.mutex.acquire_nowait()
        except trio.WouldBlock:
            began = trio.current_time()
            self._count(shard, 1)
            try:
                await lock.mutex.acquire()
            finally:
                self._count(shard, -1)
            self._observer.entered(trio.current_time() - began)
        else:
            self._observer.entered(0.0)

    def _count(self, shard: int, change: int) -> None:
        self._waiting[shard] += change
        self._observer.waiting(shard, self._waiting[shard])
