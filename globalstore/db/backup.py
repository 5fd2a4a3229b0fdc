"""Copies of the database that are known to be whole."""

import os
import sqlite3
from pathlib import Path

from globalstore.db import limits, place
from globalstore.db.connection import connect
from globalstore.db.sites import Observer, Site
from globalstore.host import make_directories, sync_directory


class Unsound(Exception):
    """A copy is not what it should be."""


def create(connection: sqlite3.Connection, target: Path, observe: Observer) -> None:
    """Copy the database of ``connection``, which is in no transaction, to ``target``.

    The copy is written as ``<target>.partial``, made durable, verified against the source, and then
    takes its name; a former file of that name is replaced only by then. Raises OSError,
    sqlite3.Error, or Unsound; nothing is left behind then.
    """
    observe(Site.BEFORE_BACKUP)
    make_directories(target.parent)
    partial = target.with_name(target.name + ".partial")
    place.create_private(partial)
    try:
        connection.execute("VACUUM INTO ?", (os.fspath(partial),))
        observe(Site.BACKUP_COPIED)
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(target.parent)
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        verify(partial, schema, count_rows(connection))
        observe(Site.BACKUP_VERIFIED)
        partial.rename(target)
        sync_directory(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    observe(Site.BACKUP_RENAMED)


def verify(copy: Path, schema: int, rows: dict[str, int] | None = None) -> None:
    """Read a copy to its last row; raises Unsound, saying what is wrong with it.

    ``schema`` is the schema number that it should have; ``rows`` the number of rows of each table,
    if known: an empty copy of a full database passes every check that SQLite has.
    """
    try:
        connection = connect(copy, "ro")
        try:
            _verify(connection, schema, rows)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise Unsound(f"{copy} cannot be read: {error}") from error


def _verify(connection: sqlite3.Connection, schema: int, rows: dict[str, int] | None) -> None:
    execute = connection.execute
    if execute("PRAGMA application_id").fetchone() != (limits.APPLICATION_ID,):
        raise Unsound("the copy does not carry the application id")
    if execute("PRAGMA user_version").fetchone() != (schema,):
        raise Unsound(f"the copy does not carry schema number {schema}")
    (verdict,) = execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise Unsound(f"integrity check: {verdict}")
    if execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise Unsound("foreign key check: a row refers to a missing row")
    for table in _tables(connection):
        for _ in execute(f'SELECT * FROM "{table}"'):
            pass
    found = count_rows(connection)
    if rows is not None and found != rows:
        raise Unsound(f"row counts differ: expected {rows}, found {found}")


def count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the number of rows of every table."""
    return {
        table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
        for table in _tables(connection)
    }


def _tables(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute(
        "SELECT replace(name, '\"', '\"\"') FROM sqlite_schema"
        " WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
    )
    return [name for (name,) in names]
