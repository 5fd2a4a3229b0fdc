"""Explains requests that were refused: why no replica could serve them."""

from collections import Counter
from collections.abc import Callable

import trio

from globalstore.db import DatabaseError, Store
from globalstore.liveness.workers import Workers
from globalstore.registry.runtime import source_reasons
from globalstore.registry.signals import Space
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.transports")

# Time between two explanations. Refusals in between share one for each artifact and view, so that a
# thousand of them cost no more than one.
_INTERVAL_S = 0.1

# Artifacts and views that wait to be explained. Those beyond are not explained: a cluster that asks
# for that many within an interval has another problem than a missing source.
_SPACES_MAX = 64

# Replicas of one of them that are examined: as many as a choice compares. With both bounds the
# explanations take a fifth of a reader's time at worst.
_REPLICAS_MAX = 128


class Refusals:
    """Counts, and logs at DEBUG, why requests were refused.

    ``count`` takes an artifact, a reason and a number of replicas; ``wall_us`` reads the wall clock
    in microseconds.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        count: Callable[[str, str, int], None],
        wall_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._workers = workers
        self._count = count
        self._wall_us = wall_us
        self._refused: Counter[Space] = Counter()
        self._some = trio.Event()

    def __repr__(self) -> str:
        return f"<Refusals [to explain: {self._refused.total()}]>"

    def note(self, space: Space) -> None:
        """Note that a request for an artifact and view was refused although it has replicas."""
        if space in self._refused or len(self._refused) < _SPACES_MAX:
            self._refused[space] += 1
            self._some.set()

    async def run(self) -> None:
        """Explain what was refused, until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await self.explain()
            await trio.sleep(_INTERVAL_S)

    async def explain(self) -> None:
        """Explain all that was refused so far."""
        refused, self._refused = self._refused, Counter()
        for space, requests in refused.items():
            try:
                examined = await self._store.read(source_reasons.examine, *space, _REPLICAS_MAX)
            except DatabaseError as error:
                _log.limited("refusals", "refusals not explained", reason=str(error))
                return
            workers = self._workers.reachable()
            reasons = source_reasons.counted(examined, workers, self._wall_us())
            for reason, replicas in reasons.items():
                self._count(space[0], reason, replicas * requests)
            _log.debug(
                "no source",
                artifact_id=space[0],
                view_id=space[1],
                requests=requests,
                replicas=len(examined),
                **reasons,
            )
