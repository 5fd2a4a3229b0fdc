"""What follows from a worker's replicas, read once per change of them."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from globalstore.db import Store
from globalstore.liveness.workers import LiveWorker
from globalstore.registry.runtime import replica_lists

# What ``derived`` calls the digest of a worker's replicas.
_CHECKSUM = "checksum"

R = TypeVar("R")


class WorkerDigests:
    """Digests of what workers hold, kept with the workers until that changes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def checksum_of(self, worker: LiveWorker) -> str:
        """Return the digest of what a worker holds; see ``rules.checksums``.

        Raises DatabaseError. A cancelled look-up keeps nothing.
        """
        return await self.derived(
            worker,
            _CHECKSUM,
            lambda: self._store.read(replica_lists.checksum_of_worker, worker.key),
        )

    def known_checksum_of(self, worker: LiveWorker) -> str | None:
        """Return the digest if it was read since the worker's replicas last changed, else None."""
        revision, checksum = worker.derived.get(_CHECKSUM, (None, None))
        return cast("str", checksum) if revision == worker.replicas_revision else None

    async def derived(
        self, worker: LiveWorker, what: object, look_up: Callable[[], Awaitable[R]]
    ) -> R:
        """Return something that follows from a worker's replicas, read once per change of them."""
        revision = worker.replicas_revision
        known = worker.derived.get(what)
        if known is not None and known[0] == revision:
            return known[1]  # type: ignore[return-value]
        value = await look_up()
        if any(of != revision for of, _ in worker.derived.values()):
            worker.derived.clear()
        worker.derived[what] = revision, value
        return value
