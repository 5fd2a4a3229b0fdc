"""The schema, brought up to date in numbered steps."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from globalstore.db import backup
from globalstore.db.errors import DatabaseError, MigrationFailed, mapped
from globalstore.db.sites import Observer, Site
from globalstore.db.transaction import Transaction
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")


def _statements(change: object) -> object:
    if not isinstance(change, str):
        return change
    found, text = [], ""
    for line in change.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            found.append(text.strip())
            text = ""
    if text.strip():
        raise ValueError(f"the last statement of a migration lacks its semicolon: {text.strip()}")
    return tuple(found)


@attrs.frozen
class Migration:
    """One step of the schema, from ``number - 1`` to ``number``.

    ``change`` is a script of SQL statements, each ending a line with a semicolon; a sequence of
    statements; or a function of a transaction. It runs with foreign keys unchecked, so that tables
    can be rebuilt, and all of them are checked before it commits.
    """

    number: int
    name: str
    change: Sequence[str] | Callable[[Transaction], None] = attrs.field(converter=_statements)


def checked(migrations: Sequence[Migration]) -> tuple[Migration, ...]:
    """Return the migrations, numbered from 1 without gaps; raises ValueError if they are not."""
    for number, migration in enumerate(migrations, start=1):
        if migration.number != number:
            raise ValueError(
                f"migration {migration.name} is number {number}, not {migration.number}"
            )
    return tuple(migrations)


def migrate(
    connection: sqlite3.Connection,
    path: Path,
    migrations: Sequence[Migration],
    backup_directory: Path,
    observe: Observer,
) -> None:
    """Run the migrations that the database lacks, each in a transaction with its number.

    A database that holds anything is backed up before the first of them. Raises MigrationFailed;
    steps that committed before the failed one stay, and the next start goes on from there.
    """
    (present,) = connection.execute("PRAGMA user_version").fetchone()
    missing = migrations[present:]
    if not missing:
        return
    if connection.execute("SELECT 1 FROM sqlite_schema").fetchone() is not None:
        copy = backup_directory / f"pre-migration-{present}-{len(migrations)}"
        try:
            backup.create(connection, copy, observe)
        except (OSError, sqlite3.Error, backup.Unsound) as error:
            raise MigrationFailed(
                f"{path} was not migrated from schema {present} to {len(migrations)}, because the"
                f" backup {copy} failed: {error}; make space there and start again"
            ) from error
        _log.info("backup made before migration", path=copy)
    connection.execute("PRAGMA foreign_keys=OFF")
    for migration in missing:
        try:
            _apply(connection, migration, observe)
        except Exception as error:
            if connection.in_transaction:
                connection.rollback()
            raise MigrationFailed(
                f"migration {migration.number} ({migration.name}) of {path} failed:"
                f" {mapped(error)}; the database is as it was before it. Make space if the disk is"
                " full; otherwise start the previous version of the program and report this line"
            ) from error
        _log.info("migrated", schema=migration.number, name=migration.name)
        observe(Site.MIGRATION_COMMITTED)
    connection.execute("PRAGMA foreign_keys=ON")


def _apply(connection: sqlite3.Connection, migration: Migration, observe: Observer) -> None:
    connection.execute("BEGIN IMMEDIATE")
    observe(Site.MIGRATION_BEGUN)
    transaction = Transaction(connection)
    if callable(migration.change):
        migration.change(transaction)
        if transaction.broken is not None:
            raise transaction.broken
    else:
        for statement in migration.change:
            transaction.run(statement)
    orphan = transaction.one("PRAGMA foreign_key_check")
    if orphan is not None:
        raise DatabaseError(f"a row of table {orphan[0]} refers to a missing row of {orphan[2]}")
    connection.execute(f"PRAGMA user_version={migration.number}")
    observe(Site.MIGRATION_BEFORE_COMMIT)
    connection.execute("COMMIT")
