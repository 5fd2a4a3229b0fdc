"""Connections to SQLite."""

import sqlite3
from pathlib import Path

from globalstore.db import limits


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Return a connection to an existing file, without hidden transactions.

    ``mode`` is ``ro`` or ``rw``, with further URI parameters after an ampersand.
    """
    uri = path.absolute().as_uri() + f"?mode={mode}"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        # A connection is used by one thread at a time, and opened and closed by others.
        check_same_thread=False,
        timeout=limits.BUSY_TIMEOUT_MS / 1e3,
        cached_statements=limits.CACHED_STATEMENTS,
    )


def prepare_writer(connection: sqlite3.Connection, cache_bytes: int, *, durable: bool) -> None:
    """Give the read-write connection its settings.

    ``durable`` is false only for a database without a name: nothing of it can be read after a power
    cut, so nothing of it needs to be on a disk.
    """
    _prepare(connection, cache_bytes)
    # FULL, not NORMAL: of a log that is synced only at checkpoints a power cut takes the last
    # seconds, answered or not.
    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
    connection.execute("PRAGMA wal_autocheckpoint=0")


def prepare_reader(connection: sqlite3.Connection, cache_bytes: int) -> None:
    """Give a read-only connection its settings."""
    _prepare(connection, cache_bytes)
    connection.execute("PRAGMA query_only=ON")


def _prepare(connection: sqlite3.Connection, cache_bytes: int) -> None:
    for setting in (
        "foreign_keys=ON",
        "trusted_schema=OFF",
        "cell_size_check=ON",
        f"cache_size={-(cache_bytes // 1024)}",
    ):
        connection.execute(f"PRAGMA {setting}")
