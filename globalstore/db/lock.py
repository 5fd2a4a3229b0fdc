"""One process per database file, by whatever path it is reached."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path
from typing import Final

from globalstore.db import limits
from globalstore.db.errors import DatabaseLocked

# Files that locks of this process are held on, by device and inode. They must not even be opened
# again: closing any descriptor of a database drops the locks that SQLite has on it in this process.
_held: Final[set[tuple[int, int]]] = set()

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class FileLock:
    """An exclusive advisory lock on ``<database>.lock`` and on the database file itself.

    The first is what other tools look at, and names the holder. The second follows the file: a
    link, a mount, or a lock file that was deleted leads to the same lock. Both are held until
    released or the process ends, and the descriptor of the database stays open as long, since
    closing it would drop SQLite's own locks; it is released after the last connection.

    ``flock`` and not ``lockf``: a lock of the latter kind is one of SQLite's, and does not keep
    out a second store in the same process. The lock file stays when the lock is released: removing
    it would let two processes lock two files of one name.
    """

    def __init__(self, database: Path) -> None:
        """Take the lock, or raise DatabaseLocked with the holder's process id within two seconds.

        Where no database is, an empty file is made, so that only one process creates it. Raises
        OSError when a file cannot be created, opened for writing or locked.
        """
        self._database = database
        self._descriptors: list[int] = []
        self._identities: list[tuple[int, int]] = []
        self._made = False
        try:
            self._hold(database.with_name(database.name + ".lock"))
            is_missing = not database.exists()
            self._hold(database)
            self._made = is_missing
        except BaseException:
            self.release()
            raise
        name = self._descriptors[0]
        # A courtesy for whoever is refused, which a full disk must not turn into a refusal.
        with contextlib.suppress(OSError):
            os.fchmod(name, 0o600)
            os.ftruncate(name, 0)
            os.pwrite(name, b"%d\n" % os.getpid(), 0)

    def hold_also(self, path: Path) -> None:
        """Lock a file that is about to take the place of the database."""
        self._hold(path)

    def head(self, count: int) -> bytes:
        """Return the first bytes of the database, without opening it again."""
        return os.pread(self._descriptors[1], count, 0)

    def is_named(self) -> bool:
        """Tell whether the path still leads to the locked file."""
        try:
            return _identity(self._database) == self._identities[-1]
        except NotADirectoryError:
            return False
        except OSError:
            return True  # it cannot be looked at now, which says nothing

    def release(self) -> None:
        """Let another process have the database; an empty file that was made for it goes."""
        with contextlib.suppress(OSError):
            if len(self._descriptors) > 1:
                os.ftruncate(self._descriptors[0], 0)
            if self._made and self._database.stat().st_size == 0:
                self._database.unlink()
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        _held.difference_update(self._identities)
        self._descriptors, self._identities = [], []

    def _hold(self, path: Path) -> None:
        """Lock the file that ``path`` names; the database only if it still has that name then."""
        for _ in range(limits.LOCK_TRIES_MAX):
            if _identity(path) in _held:
                raise _locked(self._database, path, os.getpid())
            descriptor = os.open(path, _OPEN, 0o600)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "it is not a regular file", str(path))
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise _locked(self._database, path, _holder(descriptor, found)) from None
                if path != self._database or _identity(path) == _identity_of(found):
                    self._descriptors.append(descriptor)
                    self._identities.append(_identity_of(found))
                    _held.add(_identity_of(found))
                    return
            except BaseException:
                os.close(descriptor)
                raise
            # Whoever had it locked until now has put another file into its place.
            os.close(descriptor)
        raise OSError(errno.EBUSY, "other files take its place all the time", str(path))


def _locked(database: Path, held: Path, pid: int | None) -> DatabaseLocked:
    holder = f"process {pid}" if pid is not None else "another process"
    return DatabaseLocked(
        f"{database} is in use by {holder}, which holds {held}; stop that process first, or give"
        " this one a database.db_file of its own",
        pid,
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return _identity_of(os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _identity_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _holder(descriptor: int, found: os.stat_result) -> int | None:
    # The holder writes its id into the lock file right after locking: until then that is empty, or
    # names the holder before it, which is usually not alive any more.
    deadline = time.monotonic() + limits.LOCK_PID_WAIT_S
    while True:
        pid = _written_id(descriptor) or _listed_holder(found)
        if pid is not None or time.monotonic() >= deadline:
            return pid
        time.sleep(0.02)


def _written_id(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, 0).strip()
    pid = int(text) if text.isdigit() else 0
    return pid if pid and _is_alive(pid) else None


def _listed_holder(found: os.stat_result) -> int | None:
    """Return who has locked a file by the system's own list, which not every container shows."""
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        match line.split():
            case [_, "FLOCK", _, _, pid, where, *_] if where == device and int(pid) > 0:
                return int(pid)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
