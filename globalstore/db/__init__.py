"""The database thread: transactions, group commit, readers, migrations.

A :class:`Store` owns one SQLite file. Operations go to its only writer, which commits many of them
at once; queries go to readers. Nothing else in the program touches SQL connections.
"""

from globalstore.db.errors import (
    Busy,
    Closed,
    Constraint,
    Damaged,
    DatabaseDamaged,
    DatabaseError,
    DatabaseFilesystem,
    DatabaseForeign,
    DatabaseLocked,
    DatabaseNewer,
    Full,
    IoFailed,
    LimitReached,
    MigrationFailed,
    OutcomeUnknown,
    QueueFull,
    StartRefused,
    start_refusal,
)
from globalstore.db.health import Observers, Statistics
from globalstore.db.migrations import Migration
from globalstore.db.opening import Examination, check_place
from globalstore.db.options import Lane, Runner, StoreOptions
from globalstore.db.sites import Site, fail_at
from globalstore.db.slices import Ready, Slice, repeat_in_slices, write_in_slices
from globalstore.db.store import Store
from globalstore.db.transaction import Parameters, Row, Snapshot, Transaction

__all__ = [
    "Busy",
    "Closed",
    "Constraint",
    "Damaged",
    "DatabaseDamaged",
    "DatabaseError",
    "DatabaseFilesystem",
    "DatabaseForeign",
    "DatabaseLocked",
    "DatabaseNewer",
    "Examination",
    "Full",
    "IoFailed",
    "Lane",
    "LimitReached",
    "Migration",
    "MigrationFailed",
    "Observers",
    "OutcomeUnknown",
    "Parameters",
    "QueueFull",
    "Ready",
    "Row",
    "Runner",
    "Site",
    "Slice",
    "Snapshot",
    "StartRefused",
    "Statistics",
    "Store",
    "StoreOptions",
    "Transaction",
    "check_place",
    "fail_at",
    "repeat_in_slices",
    "start_refusal",
    "write_in_slices",
]
