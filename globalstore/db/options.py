"""What the owner of a store may choose."""

from enum import Enum, IntEnum
from pathlib import Path

import attrs


class Lane(IntEnum):
    """Which of the waiting operations goes first."""

    CONTROL = 0
    """What keeps leases and liveness true: heartbeat flushes, renewals, completions."""
    NORMAL = 1
    """Everything that a client waits for."""
    BULK = 2
    """Long work in chunks; each chunk has a transaction of its own."""


class Runner(Enum):
    """Where batches run."""

    THREADS = "threads"
    """On a writer thread and reader threads: the only choice for a server."""
    INLINE = "inline"
    """On the event loop itself: for simulations under a mock clock, which waits for no thread."""


@attrs.frozen(kw_only=True)
class StoreOptions:
    """Settings of a store; the defaults are those of the configuration file."""

    max_wal_bytes: int = 256 << 20
    """Size of the write-ahead log above which a warning is logged; from half of it on the writer
    waits (briefly) for readers to let it start over."""
    min_free_bytes: int = 1 << 30
    """Free space below which a warning is logged."""
    backup_directory: Path | None = None
    """Where the backup before a migration goes; None puts it beside the database."""
    readers: int = attrs.field(
        default=2, validator=[attrs.validators.ge(1), attrs.validators.le(2)]
    )
    """Reader threads, 1 or 2. The second one keeps short reads short beside a long one, and costs a
    little throughput, since both share one interpreter lock."""
    cache_bytes: int = 64 << 20
    """Page cache of each connection."""
    slow_operation_ms: int = 50
    """Operations and queries that take longer are logged with their name."""
    stall_timeout_s: float = 60.0
    """How long a cancelled caller waits for a batch that is already running. After that the disk
    counts as dead: the store fails and says so to everybody."""
    close_timeout_s: float = 20.0
    """How long closing may take (queued operations, checkpoint) before threads are abandoned."""
