"""What is done now and then: retention, and the database's own upkeep."""

from collections.abc import Awaitable, Callable

import attrs
import trio

from globalstore.db import Store, Transaction
from globalstore.maintenance.abandoned_nodes import AbandonedNodes
from globalstore.registry import idempotency, memory_tiers
from globalstore.registry.catalog import keys, realizations
from globalstore.registry.runtime import (
    chunks,
    instances,
    replica_lists,
    replicas,
    transport_ends,
    workers,
)
from globalstore.telemetry import get_logger
from globalstore.telemetry.metrics import Metrics

_log = get_logger("globalstore.maintenance")

# Rows that one transaction deletes, so that none holds the database for long.
_ROWS = 1000

# How long recorded answers, and whatever has ended, stay: a retry comes within a day or never.
_DAY_S = 86400.0

Purge = Callable[[Transaction, int, int], int]


@attrs.frozen(kw_only=True)
class Schedule:
    """When maintenance runs, in seconds; ``transport_retention_s`` 0 keeps transports for good."""

    cleanup_interval_s: float
    optimize_interval_s: float
    transport_retention_s: float
    tier_lease_retention_s: float

    @property
    def period_s(self) -> float:
        return max(1.0, self.cleanup_interval_s)


class Maintenance:
    """One pass after the other; a part that fails does not keep the others from running."""

    def __init__(
        self,
        store: Store,
        schedule: Schedule,
        wall_us: Callable[[], int],
        metrics: Metrics,
        abandoned: AbandonedNodes,
    ) -> None:
        self._store = store
        self._schedule = schedule
        self._wall_us = wall_us
        self._metrics = metrics
        self._abandoned = abandoned
        self._optimize_at = trio.current_time() + schedule.optimize_interval_s

    async def run(self) -> None:
        """Run a pass each period, until cancelled."""
        while True:
            await trio.sleep(self._schedule.period_s)
            await self.run_pass()

    async def run_pass(self) -> None:
        """Run every part once; failures are logged and the next pass tries again."""
        retention_s = self._schedule.transport_retention_s
        parts: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("replicas", lambda: self._purge("replicas", replicas.remove_expired, 0.0)),
            (
                "recorded_replies",
                lambda: self._purge("recorded_replies", idempotency.purge_replies, _DAY_S),
            ),
            ("workers", lambda: self._purge("workers", workers.purge_workers, _DAY_S)),
            ("instances", lambda: self._purge("instances", instances.purge_instances, _DAY_S)),
            ("key history", lambda: self._purge("key_generations", keys.purge_history, _DAY_S)),
            ("key swaps", lambda: self._purge("key_swaps", keys.purge_swaps, _DAY_S)),
            ("groups", lambda: self._purge("group_members", realizations.purge_members, _DAY_S)),
            ("abandoned nodes", self._abandoned.forget),
            ("chunk_blocks", lambda: self._purge("chunk_blocks", chunks.purge_chunks, 0.0)),
            (
                "memory_tier_leases",
                lambda: self._purge(
                    "memory_tier_leases",
                    memory_tiers.purge_tier_leases,
                    self._schedule.tier_lease_retention_s,
                ),
            ),
            ("artifact series", self._drop_series),
            ("optimize", self._optimize),
        ]
        if retention_s > 0:
            parts.append(
                (
                    "transports",
                    lambda: self._purge("transports", transport_ends.purge_transports, retention_s),
                )
            )
        for name, part in parts:
            try:
                await part()
            except Exception as error:  # noqa: BLE001  the other parts go on; this one is retried
                _log.exception("maintenance failed", error, part=name)

    async def _purge(self, table: str, purge: Purge, age_s: float) -> None:
        before_us = self._wall_us() - int(age_s * 1_000_000)
        while True:
            deleted = await self._store.bulk(purge, before_us, _ROWS)
            self._metrics.server.gc_rows_deleted.labels(table).inc(deleted)
            if deleted < _ROWS:
                return

    async def _drop_series(self) -> None:
        """Give the room of metric labels back that artifacts without replicas have taken."""
        labelled = sorted(self._metrics.labelled_artifacts())
        counts = await self._store.read(replica_lists.counts, labelled)
        for artifact_id, (count, _) in zip(labelled, counts, strict=True):
            if not count:
                self._metrics.remove_artifact(artifact_id)

    async def _optimize(self) -> None:
        if trio.current_time() >= self._optimize_at:
            self._optimize_at = trio.current_time() + self._schedule.optimize_interval_s
            await self._store.maintain()
