"""What follows from a worker's replicas, read once per change of them."""

from collections.abc import Awaitable, Callable
from typing import cast

from globalstore.db import Store
from globalstore.liveness.workers import LiveWorker
from globalstore.registry.runtime import replica_lists

# What a worker's ``derived`` has: the digest of its replicas, and that of the latest list of
# artifacts all of which it holds.
_CHECKSUM = "checksum"
_HELD_LIST = "held list"


class WorkerDigests:
    """Digests of what workers hold, kept with the workers until that changes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def checksum_of(self, worker: LiveWorker) -> str:
        """Return the digest of what a worker holds; see ``rules.checksums``.

        Raises DatabaseError. A cancelled look-up keeps nothing.
        """
        revision = worker.replicas_revision
        checksum = self.known_checksum_of(worker)
        if checksum is None:
            checksum = await self._store.read(replica_lists.checksum_of_worker, worker.key)
            worker.derived[_CHECKSUM] = revision, checksum
        return checksum

    def known_checksum_of(self, worker: LiveWorker) -> str | None:
        """Return the digest if it was read since the worker's replicas last changed, else None."""
        revision, checksum = worker.derived.get(_CHECKSUM, (None, None))
        return cast("str", checksum) if revision == worker.replicas_revision else None

    async def not_held(
        self, worker: LiveWorker, digest: bytes, look_up: Callable[[], Awaitable[list[str]]]
    ) -> list[str]:
        """Return what a worker lists and does not hold; ``digest`` is that of its list.

        Only that it holds all of its latest list is kept: a list of what it lacks may be long, and
        asks the daemon for a reconcile, after which it is another one.
        """
        revision = worker.replicas_revision
        if worker.derived.get(_HELD_LIST) == (revision, digest):
            return []
        missing = await look_up()
        if not missing:
            worker.derived[_HELD_LIST] = revision, digest
        return missing
