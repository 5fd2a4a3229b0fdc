"""Tables that fill up: names that nobody uses are forgotten, and operators are told in time."""

from collections.abc import Callable, Mapping

from globalstore.db import Lane, Store
from globalstore.registry import row_limits
from globalstore.registry.forgetting import FORGETTABLE, Forgettable
from globalstore.registry.lease_clock import LeaseNow
from globalstore.telemetry import get_logger
from globalstore.telemetry.server import ServerMetrics

_log = get_logger("globalstore.database")

# The part of a bound from which on names are forgotten: what is in use fits easily, and there is
# time to forget before anything is refused.
_FORGOTTEN_PART = 0.5

# The part of a bound from which on an operator is warned: time is left to raise it, or to find out
# who it is.
_WARNED_PART = 0.8

# Rows that one transaction looks at, so that none holds the database for long.
_ROWS = 1000


class FullTables:
    """Keeps tables from filling up as far as that can be, and shows how full they are."""

    def __init__(
        self,
        store: Store,
        limits: Mapping[str, int],
        bytes_max: int,
        wall_us: Callable[[], int],
        lease_us: LeaseNow,
        metrics: ServerMetrics,
    ) -> None:
        self._store = store
        self._limits = limits
        self._bytes_max = bytes_max
        self._wall_us = wall_us
        self._lease_us = lease_us
        self._metrics = metrics
        for table, limit in limits.items():
            metrics.db_rows_limit.labels(table).set(limit)

    async def make_room(self) -> None:
        """Forget names that nobody uses in the tables that fill up, then look."""
        rows = (await self._fill()).rows
        for each in FORGETTABLE:
            if rows[each.table] > self._limits[each.table] * _FORGOTTEN_PART:
                await self._forget(each)
        await self.look()

    async def look(self) -> None:
        """Show how full the tables are, and warn of those that are nearly full."""
        fill = await self._fill()
        self._metrics.db_used_bytes.set(fill.used_bytes)
        if fill.used_bytes >= self._bytes_max * _WARNED_PART:
            _log.limited(
                "bytes",
                "the database fills up",
                key="database.max_bytes",
                used_bytes=fill.used_bytes,
                limit=self._bytes_max,
            )
        for table, count in fill.rows.items():
            self._metrics.db_rows.labels(table).set(count)
            limit = self._limits[table]
            if count >= limit * _WARNED_PART:
                _log.limited(
                    table, "a table fills up", key=f"limits.rows.{table}", rows=count, limit=limit
                )

    async def _fill(self) -> row_limits.Fill:
        return await self._store.write(row_limits.fill, self._bytes_max, lane=Lane.CONTROL)

    async def _forget(self, forgettable: Forgettable) -> None:
        last, forgotten = None, 0
        while True:
            looked = await self._store.bulk(
                forgettable.forget, last, self._wall_us(), self._lease_us, _ROWS
            )
            forgotten += looked.deleted
            self._metrics.gc_rows_deleted.labels(forgettable.table).inc(looked.deleted)
            last = looked.last
            if last is None:
                break
        _log.info("unused names forgotten", table=forgettable.table, rows=forgotten)
