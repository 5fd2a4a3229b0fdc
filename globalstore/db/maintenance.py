"""What a database needs from time to time, in steps that hold the writer for milliseconds."""

from globalstore.db import limits
from globalstore.db.transaction import Transaction


def optimize(transaction: Transaction) -> None:
    """Refresh the statistics that the query planner goes by."""
    transaction.all(f"PRAGMA analysis_limit={limits.ANALYSIS_LIMIT}")
    transaction.all("PRAGMA optimize")


def vacuum(transaction: Transaction) -> int:
    """Give some free pages back to the file system; returns how many are left."""
    transaction.all(f"PRAGMA incremental_vacuum({limits.VACUUM_PAGES})")
    row = transaction.one("PRAGMA freelist_count")
    return row[0] if row is not None else 0
