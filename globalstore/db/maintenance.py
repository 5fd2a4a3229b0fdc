"""What a database needs from time to time, in steps that hold the writer for milliseconds."""

from globalstore.db import limits
from globalstore.db.transaction import Transaction


def optimize(transaction: Transaction) -> None:
    """Refresh the statistics that the query planner goes by."""
    transaction.all(f"PRAGMA analysis_limit={limits.ANALYSIS_LIMIT}")
    transaction.all("PRAGMA optimize")


def prove_space(transaction: Transaction) -> None:
    """Write a page, without changing anything, to learn whether the disk takes it."""
    row = transaction.one("PRAGMA user_version")
    assert row is not None
    transaction.all(f"PRAGMA user_version={row[0]}")


def nothing(_transaction: Transaction) -> None:
    """Do nothing: the writer looks at its lock and its log whenever it has run something."""


def vacuum(transaction: Transaction) -> int:
    """Give some free pages back to the file system; returns how many are left."""
    for _ in range(limits.VACUUM_PAGES):
        # One page each: sqlite3 takes a single step of a statement without columns, and every
        # step of this one gives one page back, whatever number it was asked for.
        transaction.all("PRAGMA incremental_vacuum(1)")
    row = transaction.one("PRAGMA freelist_count")
    return row[0] if row is not None else 0
