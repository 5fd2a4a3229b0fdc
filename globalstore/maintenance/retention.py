"""Periodic maintenance: retention, and the database's own upkeep."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import attrs
import trio

from globalstore.db import DatabaseError, Store, repeat_in_slices
from globalstore.maintenance.abandoned_nodes import AbandonedNodes
from globalstore.maintenance.full_tables import FullTables
from globalstore.registry.retention import Retained
from globalstore.registry.runtime import replica_lists
from globalstore.telemetry import get_logger
from globalstore.telemetry.metrics import Metrics

_log = get_logger("globalstore.maintenance")


@attrs.frozen(kw_only=True)
class Schedule:
    """When maintenance runs, in seconds."""

    cleanup_interval_s: float
    optimize_interval_s: float

    @property
    def period_s(self) -> float:
        """Seconds from one pass to the next."""
        return max(1.0, self.cleanup_interval_s)


class Maintenance:
    """Runs one pass after the other; a task that fails does not keep the others from running."""

    def __init__(
        self,
        store: Store,
        schedule: Schedule,
        retained: Sequence[Retained],
        wall_us: Callable[[], int],
        metrics: Metrics,
        abandoned: AbandonedNodes,
        full_tables: FullTables,
    ) -> None:
        self._store = store
        self._schedule = schedule
        self._wall_us = wall_us
        self._metrics = metrics
        self._parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            # Before their chunks are deleted.
            ("abandoned nodes", abandoned.forget),
            *((each.table, partial(self._purge, each)) for each in retained),
            ("artifact series", self._drop_series),
            # After what was deleted.
            ("full tables", full_tables.make_room),
        ]

    async def run(self) -> None:
        """Run a pass each period, until cancelled."""
        while True:
            await trio.sleep(self._schedule.period_s)
            await self.run_pass()

    async def run_pass(self) -> None:
        """Run every task once; failures are logged and the next pass tries again."""
        for name, part in self._parts:
            await self._attempt(name, part)

    async def keep_database(self) -> None:
        """Look after the database itself at its own interval, until cancelled."""
        while True:
            await trio.sleep(self._schedule.optimize_interval_s)
            await self._attempt("optimize", self._store.maintain)

    async def _attempt(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        try:
            await part()
        except DatabaseError as error:
            # A full disk, a lock, a stop: no fault of the task, which comes again.
            _log.limited(name, "maintenance put off", part=name, reason=str(error))
        except Exception as error:  # noqa: BLE001  the other tasks go on; this one is retried
            _log.exception("maintenance failed", error, part=name)

    async def _purge(self, retained: Retained) -> None:
        if retained.age_s == float("inf"):
            return
        before_us = self._wall_us() - int(retained.age_s * 1_000_000)
        async for deleted in repeat_in_slices(
            self._store, retained.purge, before_us, retained.batch, until_below=retained.batch
        ):
            self._metrics.server.gc_rows_deleted.labels(retained.table).inc(deleted)

    async def _drop_series(self) -> None:
        """Free the room that artifacts without replicas take among metric labels."""
        labelled = sorted(self._metrics.labelled_artifacts())
        counts = await self._store.read(replica_lists.counts, labelled)
        for artifact_id, (count, _) in zip(labelled, counts, strict=True):
            if not count:
                self._metrics.remove_artifact(artifact_id)
