"""One process per database file."""

import fcntl
import os
import time
from pathlib import Path

from globalstore.db import limits
from globalstore.db.errors import DatabaseLocked


class FileLock:
    """An exclusive advisory lock on ``<database>.lock``, held until released or the process ends.

    ``flock`` and not ``lockf``: a lock of the latter kind is lost as soon as anything in the
    process closes any descriptor of the same file, and does not keep out a second store in the
    same process. The file stays when the lock is released: removing it would let two processes
    lock two files of one name.
    """

    def __init__(self, database: Path) -> None:
        """Take the lock, or raise DatabaseLocked with the holder's process id within two seconds.

        Raises OSError when the lock file cannot be created.
        """
        path = database.with_name(database.name + ".lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _holder(descriptor)
            os.close(descriptor)
            raise DatabaseLocked(database, path, pid) from None
        except OSError:
            os.close(descriptor)
            raise
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another process have the database."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _holder(descriptor: int) -> int | None:
    # The holder writes its id right after locking: until then the file is empty, or names the
    # holder before it, which is usually not alive any more.
    deadline = time.monotonic() + limits.LOCK_PID_WAIT_S
    while True:
        text = os.pread(descriptor, 20, 0).strip()
        pid = int(text) if text.isdigit() else None
        if (pid is not None and _is_alive(pid)) or time.monotonic() >= deadline:
            return pid
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
