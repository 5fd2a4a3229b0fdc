"""Telling before a table is full: how many rows each has, and how many it may have."""

from collections.abc import Mapping

from globalstore.db import Lane, Store
from globalstore.registry import row_limits
from globalstore.telemetry import get_logger
from globalstore.telemetry.server import ServerMetrics

_log = get_logger("globalstore.database")

# The part of a bound from which on an operator is warned: time is left to raise it, or to find out
# who it is.
_WARNED_PART = 0.8


class FullTables:
    """Shows how full the tables are, and warns of those that fill up; maintenance has it look."""

    def __init__(self, store: Store, limits: Mapping[str, int], metrics: ServerMetrics) -> None:
        self._store = store
        self._limits = limits
        self._metrics = metrics
        for table, limit in limits.items():
            metrics.db_rows_limit.labels(table).set(limit)

    async def look(self) -> None:
        """Count once."""
        rows = await self._store.write(row_limits.counted_rows, lane=Lane.CONTROL)
        for table, count in rows.items():
            self._metrics.db_rows.labels(table).set(count)
            limit = self._limits[table]
            if count >= limit * _WARNED_PART:
                _log.limited(
                    table, "a table fills up", key=f"limits.rows.{table}", rows=count, limit=limit
                )
