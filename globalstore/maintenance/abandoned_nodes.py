"""Forgetting the chunks of nodes that have been without a live worker for long."""

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
    """Forgets a node that has had no live worker and no report for ``threshold_s``.

    That time is counted on trio's clock, from the first look that found neither: steps of the wall
    clock and the time that the server itself was down do not count.
    """

    def __init__(self, store: Store, workers: Workers, threshold_s: float) -> None:
        self._store = store
        self._workers = workers
        self._threshold_s = threshold_s
        self._absent: dict[str, _Absence] = {}

    async def forget(self) -> None:
        """Look once, and hide the chunks of abandoned nodes; maintenance deletes them later."""
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
