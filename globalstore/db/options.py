"""What the owner of a store may choose."""

from enum import Enum, IntEnum
from pathlib import Path

import attrs


class Lane(IntEnum):
    """Which of the waiting operations goes first."""

    # What keeps leases and liveness true: heartbeat flushes, renewals, completions.
    CONTROL = 0
    # Everything that a client waits for.
    NORMAL = 1
    # Long work in chunks; each chunk has a transaction of its own.
    BULK = 2


class Runner(Enum):
    """Where batches run."""

    # On a writer thread and reader threads: the only choice for a server.
    THREADS = "threads"
    # On the event loop itself: for simulations under a mock clock, which waits for no thread.
    INLINE = "inline"


@attrs.frozen(kw_only=True)
class StoreOptions:
    """Settings of a store; the defaults are those of the configuration file."""

    # Size of the write-ahead log above which a warning is logged; from half of it on the writer
    # waits (briefly) for readers to let it start over.
    max_wal_bytes: int = 256 << 20
    # Free space below which a warning is logged.
    min_free_bytes: int = 1 << 30
    # Where the backup before a migration goes; None puts it beside the database.
    backup_directory: Path | None = None
    # Reader threads, 1 or 2. The second one keeps short reads short beside a long one, and costs a
    # little throughput, since both share one interpreter lock.
    readers: int = attrs.field(
        default=2, validator=[attrs.validators.ge(1), attrs.validators.le(2)]
    )
    # Page cache of each connection.
    cache_bytes: int = 64 << 20
    # Operations and queries that take longer are logged with their name.
    slow_operation_ms: int = 50
    # How long a cancelled caller waits for a batch that is already running. After that the disk
    # counts as dead: the store fails and says so to everybody.
    stall_timeout_s: float = 60.0
    # How long closing may take (queued operations, checkpoint) before threads are abandoned.
    close_timeout_s: float = 20.0
