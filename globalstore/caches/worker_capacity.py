"""How many transports each worker may serve at once, without asking the database each time."""

from typing import NamedTuple

import trio

from globalstore.db import Store
from globalstore.liveness.workers import LiveWorker, Workers
from globalstore.registry.runtime import chunks

# Replicas of a worker above which their slots are added up once a second at most: that takes longer
# than all the rest of a query. The load of a node is a hint.
REPLICAS_MANY = 10_000
_SLOTS_KEPT_S = 1.0


class _Known(NamedTuple):
    worker: LiveWorker
    revision: int
    good_until: float
    slots: int


class WorkerCapacity:
    """How many transports each worker may serve at once, added up when its replicas changed."""

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._known: dict[int, _Known] = {}

    async def of(self, worker_key: int) -> int:
        """Return the slots of a worker; of one with very many replicas, as of the last second."""
        live = self._workers.of_key(worker_key)
        if live is None:
            return (await self._store.read(chunks.slots, worker_key))[0]
        known = self._known.get(worker_key)
        if known is not None and known.worker is live:
            unchanged = known.revision == live.replicas_revision
            if unchanged or known.good_until > trio.current_time():
                return known.slots
        revision = live.replicas_revision
        slots, replicas = await self._store.read(chunks.slots, worker_key)
        kept_s = _SLOTS_KEPT_S if replicas >= REPLICAS_MANY else 0.0
        if len(self._known) > 2 * len(self._workers):
            self._known.clear()  # most of them have ended
        self._known[worker_key] = _Known(live, revision, trio.current_time() + kept_s, slots)
        return slots
