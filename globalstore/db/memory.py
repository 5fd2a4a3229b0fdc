"""A place for a database that nobody shall find again.

SQLite's own memory databases know no snapshots beside a writer: with a shared cache readers meet
table locks, and the memory file system knows no write-ahead log, so readers and the writer would
shut each other out. Here the same engine, log and locks run on files in shared memory whose names
are removed as soon as every connection is open; the kernel frees them with the last descriptor,
however the process ends. A process killed within the milliseconds before that leaves its directory
behind; the next one to come removes it.
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from globalstore.db import limits
from globalstore.db.health import free_bytes

_SHARED_MEMORY: Final = "/dev/shm"
_PREFIX: Final = "globalstore-memory-"


class MemoryPlace:
    """A directory of our own, locked while its names exist."""

    def __init__(self, root: str | None = None) -> None:
        """Create it in shared memory, or in the directory for temporary files if that is small."""
        self.root = root or _roomiest()
        _sweep(self.root)
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.root))
        self._descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self.database = self.directory / "database"

    def vanish(self) -> None:
        """Remove every name; what is open stays usable."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._descriptor)


def _roomiest() -> str:
    try:
        if (
            os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
            and free_bytes(_SHARED_MEMORY) >= limits.MEMORY_FREE_BYTES_MIN
        ):
            return _SHARED_MEMORY
    except OSError:
        pass
    return tempfile.gettempdir()


def _sweep(root: str) -> None:
    for left in Path(root).glob(_PREFIX + "*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One made this instant is not locked yet, and is empty.
            if any(left.iterdir()):
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(descriptor)
