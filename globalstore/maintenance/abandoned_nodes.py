"""Chunks of nodes that have been without a live worker for long are forgotten."""

import attrs
import trio

from globalstore.db import Store
from globalstore.liveness.workers import Workers
from globalstore.registry.runtime import chunks
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.chunks")


@attrs.frozen
class _Absence:
    since: float
    reports: int


class AbandonedNodes:
    """Forgets a node when none of its workers was heard, and nothing reported, for a while.

    ``threshold_s`` is counted on trio's clock, from the first look that found nobody: neither a
    step of the wall clock nor the time that the server itself was down counts.
    """

    def __init__(self, store: Store, workers: Workers, threshold_s: float) -> None:
        self._store = store
        self._workers = workers
        self._threshold_s = threshold_s
        self._absent: dict[str, _Absence] = {}

    async def forget(self) -> None:
        """Look once; what is forgotten is hidden at once, and for maintenance to delete."""
        alive = {worker.node_id for worker in self._workers.listed(0, True)}
        known = dict(await self._store.read(chunks.nodes))
        now = trio.current_time()
        before, self._absent = self._absent, {}
        for node_id, reports in known.items():
            if node_id in alive:
                continue
            absence = before.get(node_id)
            if absence is None or absence.reports != reports:
                absence = _Absence(now, reports)
            if now - absence.since < self._threshold_s:
                self._absent[node_id] = absence
            elif await self._store.write(chunks.forget_node, node_id, reports):
                _log.info("chunks of a node forgotten", node_id=node_id)
