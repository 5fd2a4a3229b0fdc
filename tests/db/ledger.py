"""A small schema, and operations on it, for the tests of the store."""

from globalstore.db import Migration, Snapshot, Transaction

MIGRATIONS = (
    Migration(
        1,
        "entries",
        """
        CREATE TABLE entry (name TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT, WITHOUT ROWID;
        CREATE TABLE blob (id INTEGER PRIMARY KEY, content BLOB NOT NULL) STRICT;
        CREATE TABLE note (
            id INTEGER PRIMARY KEY,
            entry TEXT NOT NULL REFERENCES entry (name) DEFERRABLE INITIALLY DEFERRED
        ) STRICT;
        """,
    ),
)


class Refusal(Exception):
    """What a business operation may raise."""


def add(tx: Transaction, name: str, size: int = 0) -> str:
    tx.run("INSERT INTO entry VALUES (:name, :size)", {"name": name, "size": size})
    tx.emit(name)
    return name


def add_and_refuse(tx: Transaction, name: str, refusal: Exception) -> None:
    add(tx, name)
    raise refusal


def add_blob(tx: Transaction, size: int) -> int:
    row = tx.one("INSERT INTO blob (content) VALUES (zeroblob(:size)) RETURNING id", {"size": size})
    assert row is not None
    tx.emit(row[0])
    return row[0]


def add_blob_or_lose_all(tx: Transaction, size: int) -> int:
    """Like ``add_blob``, but a full disk rolls back the whole transaction.

    SQLite undoes only the statement when it keeps a journal of it, as it does for RETURNING.
    """
    tx.run("INSERT INTO blob (content) VALUES (zeroblob(:size))", {"size": size})
    row = tx.one("SELECT last_insert_rowid()")
    assert row is not None
    tx.emit(row[0])
    return row[0]


def add_note(tx: Transaction, entry: str) -> int:
    tx.emit(f"note on {entry}")
    return tx.run("INSERT INTO note (entry) VALUES (?)", (entry,))


def names(tx: Snapshot) -> list[str]:
    return [name for (name,) in tx.all("SELECT name FROM entry ORDER BY name")]


def count(tx: Snapshot) -> int:
    row = tx.one("SELECT count(*) FROM entry")
    assert row is not None
    return row[0]


def nothing(tx: Snapshot) -> None:
    """An operation without effect."""
