"""What can go wrong in the database, named once at this border.

Errors of sqlite3 never leave this package as they are: :func:`mapped` turns each into one of the
classes below. Exceptions that an operation raises on purpose pass through unchanged.
"""

import sqlite3
from pathlib import Path
from typing import ClassVar, Final


class DatabaseError(Exception):
    """The database could not do what it was asked for.

    ``code`` is SQLite's own name of the error (``SQLITE_FULL``), or None when it is ours.
    """

    code: str | None = None


class Full(DatabaseError):
    """No space for the write. Nothing of it was applied; it works again when space is back."""


class Busy(DatabaseError):
    """Somebody else held a lock on the file for too long. Nothing was applied."""


class Damaged(DatabaseError):
    """The file contradicts itself. Writes stay refused until the file has been repaired."""


class IoFailed(DatabaseError):
    """The disk failed before COMMIT. Nothing was applied."""


class OutcomeUnknown(DatabaseError):
    """The disk failed at COMMIT: the operation may or may not be found after the restart."""


class Closed(DatabaseError):
    """The store is not open (any more). Nothing was applied."""


class QueueFull(DatabaseError):
    """Too many operations wait already. Nothing was applied; try again later."""


class Constraint(DatabaseError):
    """The statement broke a constraint of the schema and was undone; ``code`` says which kind."""


class LimitReached(DatabaseError):
    """A bound of the database's owner is reached, which the text names; the write was undone."""


class StartRefused(DatabaseError):
    """The database cannot be opened; the file is untouched. ``word`` is the stable word for it."""

    word: ClassVar[str] = "internal"


class DatabaseLocked(StartRefused):
    """Another program has this file; ``pid`` is its process id if that is known."""

    word = "db-locked"

    def __init__(self, text: str, pid: int | None = None) -> None:
        super().__init__(text)
        self.pid = pid


class DatabaseForeign(StartRefused):
    """The file is something else than a database of this program."""

    word = "db-foreign"


class DatabaseNewer(StartRefused):
    """A newer version of the program wrote this file."""

    word = "db-newer"


class DatabaseDamaged(StartRefused):
    """The file failed its checks at start."""

    word = "db-damaged"


class DatabaseFilesystem(StartRefused):
    """The place of the file cannot carry a database: a network file system, or no access."""

    word = "db-filesystem"


class MigrationFailed(StartRefused):
    """The schema could not be brought up to date; it is as it was before the failed step."""

    word = "migration"


# What to do about a file that contradicts itself.
REPAIR: Final = (
    "restore the newest backup of it; the file was not changed, keep a copy for examination"
)

_KINDS_EXTENDED: dict[int, type[DatabaseError]] = {
    # Of the errors of the disk, one that says that there is no space, for what readers share.
    sqlite3.SQLITE_IOERR_SHMSIZE: Full,
    # Triggers refuse nothing but what goes beyond a bound.
    sqlite3.SQLITE_CONSTRAINT_TRIGGER: LimitReached,
}

# What SQLite says of these does not tell a caller what to do. Nobody but a foreign program has a
# lock on our file.
_PLAIN: dict[type[DatabaseError], str] = {
    Busy: "another program holds the database locked; nothing was stored, try again",
    Full: "the disk is full; nothing was stored, try again when there is space",
}

_KINDS: dict[int, type[DatabaseError]] = {
    sqlite3.SQLITE_FULL: Full,
    sqlite3.SQLITE_BUSY: Busy,
    sqlite3.SQLITE_LOCKED: Busy,
    sqlite3.SQLITE_PROTOCOL: Busy,
    sqlite3.SQLITE_CORRUPT: Damaged,
    sqlite3.SQLITE_NOTADB: Damaged,
    sqlite3.SQLITE_IOERR: IoFailed,
    sqlite3.SQLITE_CANTOPEN: IoFailed,
    sqlite3.SQLITE_CONSTRAINT: Constraint,
}


def mapped(error: Exception) -> Exception:
    """Return the error of this module that says the same as an error of sqlite3.

    Errors without an SQLite code (a closed cursor, a wrong number of parameters, an integer beyond
    64 bits) are mistakes of the calling code, and come back as they are.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    kind = _KINDS_EXTENDED.get(code) or _KINDS.get(code & 0xFF, DatabaseError)
    own = kind(f"{_PLAIN[kind]} ({error})" if kind in _PLAIN else str(error))
    own.code = getattr(error, "sqlite_errorname", None)
    return own


def start_refusal(error: Exception, path: Path) -> StartRefused | None:
    """Return the refusal to start on ``path`` for an error of the database, None for any other."""
    match error:
        case StartRefused():
            return error
        case Busy():
            return DatabaseLocked(
                f"{path} is locked by another program; close what has it open (`fuser {path}` names"
                " it) and start again"
            )
        case Damaged():
            return DatabaseDamaged(f"{path} cannot be read: {error}; {REPAIR}")
        case Full():
            return DatabaseFilesystem(
                f"cannot use {path}: no space on its disk; make space there, or set"
                " database.db_file to another path"
            )
        case OutcomeUnknown():
            return DatabaseFilesystem(str(error))
        case DatabaseError():
            return DatabaseFilesystem(
                f"cannot use {path}: {error}; give this user write access to the file and its"
                " directory, look at the disk, or set database.db_file to another path"
            )
    return None
