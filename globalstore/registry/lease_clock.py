"""The clock of leases, and how far it is ahead of the wall clock."""

from collections.abc import Callable

from globalstore.db import Snapshot, Transaction

# Reads the lease clock in microseconds; see ``leases.clock``. Operations read it inside their
# transaction.
LeaseNow = Callable[[], int]


def clock_ahead(tx: Snapshot) -> int:
    """Return how far the lease clock is ahead of the wall clock, in microseconds."""
    row = tx.one("SELECT ahead FROM lease_clock")
    return 0 if row is None else row[0]


def remember_clock(tx: Transaction, ahead_us: int) -> None:
    """Store how far the lease clock is ahead of the wall clock."""
    tx.run(
        "INSERT INTO lease_clock VALUES (1, :ahead)"
        " ON CONFLICT (clock_key) DO UPDATE SET ahead = :ahead",
        {"ahead": ahead_us},
    )
