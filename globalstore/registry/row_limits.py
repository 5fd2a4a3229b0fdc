"""How many rows tables have, and how many they may have.

Rows are counted by triggers on the writer's own connection, in a table that only it has: counts are
exact whatever is undone, cost a microsecond a row, and leave nothing in the file. An insertion
beyond the bound is refused wherever it comes from; an upsert that finds its row inserts nothing,
and nothing else is ever refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs

from globalstore.db import LimitReached, Snapshot, Transaction
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
    # most is the bound, or how many there are as long as the file has reached its own bound.
    tx.run(
        "CREATE TEMP TABLE row_counts (table_key INTEGER PRIMARY KEY, table_name TEXT NOT NULL,"
        " rows INTEGER NOT NULL, bound INTEGER NOT NULL, most INTEGER NOT NULL,"
        " refusal TEXT NOT NULL)"
    )
    for key, (table, limit) in enumerate(limits.items()):
        bound = min(limit, INTEGER_MAX)
        refusal = (
            f"limits.rows.{table} is {limit}, and there are as many (or database.max_bytes is"
            " used up): delete some, or raise it"
        )
        tx.run(
            "INSERT INTO row_counts"
            f" SELECT {key}, '{table}', count(*), {bound}, {bound}, '{refusal}' FROM {table}"
        )
        tx.run(
            f"CREATE TEMP TRIGGER {table}_grew AFTER INSERT ON main.{table} BEGIN"
            f" UPDATE row_counts SET rows = rows + 1 WHERE table_key = {key};"
            f" SELECT RAISE(ABORT, '{refusal}') FROM row_counts"
            f" WHERE table_key = {key} AND rows > most; END"
        )
        tx.run(
            f"CREATE TEMP TRIGGER {table}_shrank AFTER DELETE ON main.{table} BEGIN"
            f" UPDATE row_counts SET rows = rows - 1 WHERE table_key = {key}; END"
        )


def check_room(tx: Snapshot, table: str, rows: int) -> None:
    """Raise LimitReached unless a table may have so many more rows; for what is to be added later.

    It is then added ``beyond_bound``, whoever else has added something meanwhile.
    """
    if not _is_counting(tx):
        return
    full = tx.one(
        "SELECT refusal FROM row_counts WHERE table_name = ? AND rows + ? > most", (table, rows)
    )
    if full is not None:
        raise LimitReached(full[0])


@contextmanager
def beyond_bound(tx: Transaction, table: str) -> Iterator[None]:
    """Let a table grow although it is full, for what was accepted when there was room."""
    row = None
    if _is_counting(tx):
        row = tx.one("SELECT most FROM row_counts WHERE table_name = ?", (table,))
        _set_most(tx, table, INTEGER_MAX)
    yield
    if row is not None:
        _set_most(tx, table, row[0])


def _is_counting(tx: Snapshot) -> bool:
    return tx.one("SELECT 1 FROM sqlite_temp_schema WHERE name = 'row_counts'") is not None


def _set_most(tx: Transaction, table: str, most: int) -> None:
    tx.run("UPDATE row_counts SET most = ? WHERE table_name = ?", (most, table))


@attrs.frozen
class Fill:
    """How many rows each table has, and how many bytes of the file are in use."""

    rows: Mapping[str, int]
    used_bytes: int


def fill(tx: Transaction, bytes_max: int) -> Fill:
    """Return how full tables and file are; to be asked of the writer, which alone has the counts.

    Above ``bytes_max`` no table grows until it is asked again and less is in use.
    """
    used_bytes = (_number(tx, "page_count") - _number(tx, "freelist_count")) * _number(
        tx, "page_size"
    )
    tx.run(
        "UPDATE row_counts SET most = iif(:is_full, min(rows, bound), bound)",
        {"is_full": used_bytes >= bytes_max},
    )
    return Fill(dict(tx.all("SELECT table_name, rows FROM row_counts")), used_bytes)


def _number(tx: Transaction, pragma: str) -> int:
    row = tx.one(f"PRAGMA main.{pragma}")
    assert row is not None
    number: int = row[0]
    return number
