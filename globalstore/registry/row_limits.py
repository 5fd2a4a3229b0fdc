"""How many rows tables have, and how many they may have.

Rows are counted by triggers on the writer's own connection, in a table that only it has: counts are
exact whatever is undone, cost a microsecond a row, and leave nothing in the file. An insertion
beyond the bound is refused wherever it comes from; an upsert that finds its row inserts nothing,
and nothing else is ever refused.
"""

from collections.abc import Mapping

from globalstore.db import Transaction
from globalstore.rules.values import INTEGER_MAX

# Tables without a bound of their own, and what bounds them.
BOUNDED_OTHERWISE: Mapping[str, str] = {
    "cluster": "one row",
    "lease_clock": "one row",
    "generation_floors": "one row for each kind of name",
    "worker_liveness": "one row for each of workers",
    "worker_cursors": "one row for each of workers",
    "lease_holders": "a trigger deletes what no row of shard_leases names",
    "selections": "made with a version set, at most one for each of version_set_parts",
    "chunk_batches": "made by calls under way, and deleted when applied or given up",
    "chunk_parts": "parts of chunk_batches, of calls under way",
}


def count_rows(tx: Transaction, limits: Mapping[str, int]) -> None:
    """Count the rows of some tables, and refuse from now on whatever would pass their bounds.

    ``limits`` has the bound of each table by its name. To be run once, before anything else writes.
    """
    tx.run(
        "CREATE TEMP TABLE row_counts"
        " (table_key INTEGER PRIMARY KEY, table_name TEXT NOT NULL, rows INTEGER NOT NULL)"
    )
    for key, (table, limit) in enumerate(limits.items()):
        tx.run(f"INSERT INTO row_counts SELECT {key}, '{table}', count(*) FROM {table}")
        refusal = f"limits.rows.{table} is {limit}, and there are as many: delete some, or raise it"
        tx.run(
            f"CREATE TEMP TRIGGER {table}_grew AFTER INSERT ON main.{table} BEGIN"
            f" UPDATE row_counts SET rows = rows + 1 WHERE table_key = {key};"
            f" SELECT RAISE(ABORT, '{refusal}') FROM row_counts"
            f" WHERE table_key = {key} AND rows > {min(limit, INTEGER_MAX)}; END"
        )
        tx.run(
            f"CREATE TEMP TRIGGER {table}_shrank AFTER DELETE ON main.{table} BEGIN"
            f" UPDATE row_counts SET rows = rows - 1 WHERE table_key = {key}; END"
        )


def counted_rows(tx: Transaction) -> dict[str, int]:
    """Return how many rows each counted table has; of the writer, which alone knows."""
    return dict(tx.all("SELECT table_name, rows FROM row_counts"))
