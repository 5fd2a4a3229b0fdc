"""From a path to open connections: lock, look, check, create, migrate."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from globalstore.db import limits, place
from globalstore.db.connection import connect, prepare_reader, prepare_writer
from globalstore.db.errors import (
    REPAIR,
    DatabaseDamaged,
    DatabaseFilesystem,
    DatabaseForeign,
    DatabaseNewer,
    mapped,
    start_refusal,
)
from globalstore.db.lock import FileLock
from globalstore.db.memory import MemoryPlace
from globalstore.db.migrations import Migration, migrate
from globalstore.db.options import StoreOptions
from globalstore.db.sites import Observer, Site
from globalstore.db.wal import Log
from globalstore.host import check_file_to_write, host_step, sync_directory

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100


@attrs.define
class Opened:
    """An open database: its connections, its log, its lock, and where it is."""

    writer: sqlite3.Connection
    readers: list[sqlite3.Connection]
    log: Log
    lock: FileLock | None
    directory: str
    # The real path, None for a database without a name.
    path: Path | None

    def close(self) -> None:
        """Close everything, the writer last, and release the lock."""
        for reader in self.readers:
            reader.close()
        self.writer.close()
        self.log.close()
        if self.lock is not None:
            self.lock.release()


class Examination:
    """The lock on a database file and its check, by a thread while its owner does other things.

    The check takes a second for each million replicas, during which SQLite works on its own.
    Nothing is changed; what was found is told when the result is taken.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration]) -> None:
        self._path = path
        self._newest = len(migrations)
        self._found: tuple[Path, FileLock, bool] | None = None
        self._error: BaseException | None = None
        # A daemon thread: a start that is given up does not wait for it.
        self._thread = threading.Thread(target=self._run, name="db check", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._found = _locked_and_examined(self._path, self._newest)
        except BaseException as error:  # noqa: BLE001 - raised where the result is taken
            self._error = error

    def result(self) -> tuple[Path, FileLock, bool]:
        """Wait; return the real path, the lock, and whether the database is still to be created.

        Raises a StartRefused with the lock released.
        """
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error
        assert self._found is not None
        found, self._found = self._found, None
        return found

    def give_up(self) -> None:
        """Release the lock if the check has ended and nobody has taken the result."""
        if not self._thread.is_alive() and self._found is not None:
            found, self._found = self._found, None
            found[1].release()


@contextmanager
def _border(path: Path) -> Iterator[None]:
    """Turn what the host and SQLite refuse into a StartRefused."""
    with host_step("database.db_file", path, DatabaseFilesystem):
        try:
            yield
        except sqlite3.Error as error:
            refusal = start_refusal(place.refined(mapped(error), os.fspath(path.parent)), path)
            if refusal is None:
                raise
            raise refusal from error


def check_place(path: Path) -> None:
    """Refuse a path that no database can be at, as far as that is told without opening it.

    Nothing is made. Raises DatabaseFilesystem.
    """
    with _border(path):
        real = place.examined(path)
        check_file_to_write(real)


def _locked_and_examined(path: Path, newest: int) -> tuple[Path, FileLock, bool]:
    with _border(path):
        real = place.prepare(path)
        lock = FileLock(real)
        try:
            is_new = _is_new(real)
            if not is_new:
                _examine(real, lock.head(_HEADER_BYTES), newest)
        except BaseException:
            lock.release()
            raise
    return real, lock, is_new


def open_file(
    path: Path,
    migrations: Sequence[Migration],
    options: StoreOptions,
    observe: Observer,
    examination: Examination | None = None,
) -> Opened:
    """Open, or create, the database at ``path``; blocks while it checks and migrates.

    ``examination`` is one of that path that was begun earlier. Raises a StartRefused with nothing
    left open and the lock released.
    """
    if examination is None:
        real, lock, is_new = _locked_and_examined(path, len(migrations))
    else:
        real, lock, is_new = examination.result()
    with _border(path):
        try:
            if is_new:
                _create(real, observe, lock)
            place.make_private(real)
            opened = _connect(real, migrations, options, observe, durable=True)
        except BaseException:
            lock.release()
            raise
    opened.lock, opened.path = lock, real
    return opened


def open_memory(
    migrations: Sequence[Migration], options: StoreOptions, observe: Observer
) -> Opened:
    """Open a new database without a name, lost when it is closed or the process ends."""
    with _border(Path("(in memory)")):
        memory = MemoryPlace()
        try:
            _create(memory.database, observe, None)
            opened = _connect(memory.database, migrations, options, observe, durable=False)
        finally:
            memory.vanish()
    opened.directory = memory.root
    return opened


def _is_new(path: Path) -> bool:
    if path.exists() and path.stat().st_size > 0:
        return False
    for suffix in ("-wal", "-journal"):
        if _has_content(path, suffix):
            left = path.with_name(path.name + suffix)
            # SQLite would play it into the new database.
            raise DatabaseDamaged(
                f"{left} is there without its database {path}; put the database back beside it, or"
                f" move {left} away to start with an empty one"
            )
    return True


def _has_content(path: Path, suffix: str) -> bool:
    beside = path.with_name(path.name + suffix)
    return beside.exists() and beside.stat().st_size > 0


def _create(path: Path, observe: Observer, lock: FileLock | None) -> None:
    """Make an empty database that has our application id when it gets its name.

    By then it is locked by ``lock``; without one it has no name for long and need not be durable.
    """
    partial = path.with_name(path.name + ".partial")
    for suffix in ("-journal", "-wal", "-shm"):
        partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    place.create_private(partial)
    connection = connect(partial, "rw")
    try:
        if lock is None:
            connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute(f"PRAGMA application_id={limits.APPLICATION_ID}")
        _use_log(connection, path)
    finally:
        connection.close()
    observe(Site.CREATED)
    if lock is not None:
        lock.hold_also(partial)
    partial.rename(path)
    if lock is not None:
        sync_directory(path.parent)
    observe(Site.CREATED_AND_RENAMED)


def _use_log(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise DatabaseFilesystem(
            f"{path} is on a file system without shared memory, which the write-ahead log needs;"
            " put database.db_file on a local disk"
        )


def _examine(path: Path, header: bytes, newest: int) -> None:
    """Refuse a file that is not ours, too new, or damaged, without changing a byte of it."""
    if len(header) < _HEADER_BYTES and _MAGIC.startswith(header[: len(_MAGIC)]):
        raise DatabaseDamaged(f"{path} is cut off after {len(header)} bytes; {REPAIR}")
    if not any(header):
        raise DatabaseDamaged(f"{path} begins with zeros; {REPAIR}")
    if not header.startswith(_MAGIC):
        raise _foreign(path, "it is not an SQLite database")
    # Our id is in the file itself from its creation on, but the newest schema number may be in
    # the log: it is asked for again below.
    if int.from_bytes(header[68:72]) != limits.APPLICATION_ID:
        raise _foreign(path, "its application id is another program's")
    _refuse_newer(path, int.from_bytes(header[60:64]), newest)
    if _has_content(path, "-journal"):
        # Left by a kill within a change of the journal mode: SQLite completes or undoes it.
        connection = connect(path, "rw")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        connection.close()
    # A read-only connection neither copies the log at its close nor removes it; without a log it
    # must be told that nobody writes, or it would create one.
    connection = connect(path, "ro" if _has_content(path, "-wal") else "ro&immutable=1")
    try:
        _check(connection, path, newest)
    finally:
        connection.close()


def _check(connection: sqlite3.Connection, path: Path, newest: int) -> None:
    _refuse_newer(path, connection.execute("PRAGMA user_version").fetchone()[0], newest)
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DatabaseDamaged(f"{path} failed its check: {verdict}; {REPAIR}")
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise DatabaseDamaged(
            f"{path} failed its check: a row of table {orphan[0]} refers to a missing row of"
            f" {orphan[2]}; {REPAIR}"
        )


def _refuse_newer(path: Path, schema: int, newest: int) -> None:
    if schema > newest:
        raise DatabaseNewer(
            f"{path} has schema {schema}, this program knows schemas up to {newest}; start the"
            " newer version of the program, or restore the backup made before its migration"
        )


def _foreign(path: Path, why: str) -> DatabaseForeign:
    return DatabaseForeign(
        f"{path} is not a database of this program ({why}); it was not changed: set"
        " database.db_file to another path"
    )


def _connect(
    path: Path,
    migrations: Sequence[Migration],
    options: StoreOptions,
    observe: Observer,
    *,
    durable: bool,
) -> Opened:
    """Open every connection so far that none of them asks for a file by its name later on."""
    writer = connect(path, "rw")
    readers: list[sqlite3.Connection] = []
    try:
        prepare_writer(writer, options.cache_bytes, durable=durable)
        _use_log(writer, path)
        # A log that a burst has stretched shrinks to this when it next starts over.
        writer.execute(f"PRAGMA journal_size_limit={options.max_wal_bytes // 4}")
        directory = options.backup_directory or path.parent
        migrate(writer, path, migrations, directory, observe)
        for _ in range(options.readers):
            reader = connect(path, "ro")
            readers.append(reader)
            prepare_reader(reader, options.cache_bytes)
            reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        log = Log(os.fspath(path) + "-wal")
    except BaseException:
        _close(writer, readers)
        raise
    return Opened(writer, readers, log, None, os.fspath(path.parent), None)


def _close(writer: sqlite3.Connection, readers: list[sqlite3.Connection]) -> None:
    for reader in readers:
        reader.close()
    writer.close()
