"""The write-ahead log: how long it is, and the checkpoints that keep it short."""

import os
import sqlite3
import time
from typing import Final

from globalstore.db import limits
from globalstore.db.errors import Damaged, Full, mapped
from globalstore.db.health import Health, Observers
from globalstore.db.options import StoreOptions
from globalstore.db.place import refined
from globalstore.db.sites import Observer, Site
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")

# The published format of the log (sqlite.org/fileformat2.html §4.1): a header whose salts change
# every time the log starts over, then frames that repeat the salts of their time.
_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24


class Log:
    """The log file, read beside SQLite through a descriptor of its own.

    SQLite tells the length of its log only to those who checkpoint it, at the cost of two fsyncs.
    Looking at the file costs microseconds. (No lock lives on this file, so that closing the
    descriptor releases none; on the database and its -shm file it would.)
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._salts = b""
        self._frames = 0
        self.generation = 0

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)

    def file_bytes(self) -> int:
        """Return the size of the file, which keeps its greatest extent until it is truncated."""
        return os.fstat(self._descriptor).st_size

    def frames(self) -> tuple[int, int]:
        """Return the number of pages since the log last started over, and the bytes of a page.

        ``generation`` is another one after the log has started over.
        """
        header = os.pread(self._descriptor, _HEADER_BYTES, 0)
        if len(header) < _HEADER_BYTES:
            self._frames = 0
            return 0, 0
        frame_bytes = _FRAME_HEADER_BYTES + int.from_bytes(header[8:12])
        if header[16:24] != self._salts:
            self._salts = header[16:24]
            self._frames = 0
            self.generation += 1
        last, step = self._frames, 1
        while self._is_current(last + step, frame_bytes):
            last += step
            step *= 2
        while step > 1:
            step //= 2
            if self._is_current(last + step, frame_bytes):
                last += step
        self._frames = last
        return last, frame_bytes

    def _is_current(self, frame: int, frame_bytes: int) -> bool:
        at = _HEADER_BYTES + (frame - 1) * frame_bytes + 8
        return os.pread(self._descriptor, 8, at) == self._salts


class Checkpointer:
    """Copies the log into the database between two groups, on the writer's connection.

    SQLite's own automatic checkpoint would run inside a COMMIT and delay its callers; here their
    answers are on the way already.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        log: Log,
        *,
        directory: str,
        options: StoreOptions,
        health: Health,
        observers: Observers,
        observe: Observer,
    ) -> None:
        self._connection = connection
        self._log = log
        self._directory = directory
        self._options = options
        self._health = health
        self._observers = observers
        self._observe = observe
        self._generation = 0
        self._tried_at_frame = 0
        self._warned = False
        self._full = False
        self._is_to_empty = False
        self.checkpoints = 0
        self.seconds = 0.0

    def empty_next(self) -> None:
        """Let a checkpoint after the next group empty the log, if no reader is in it then.

        May be called on any thread.
        """
        self._is_to_empty = True

    def between_groups(self) -> None:
        """Checkpoint if enough has been written since the last time, or it was asked for.

        Raises what the disk raises: after a failed fsync the kernel may call lost pages clean, so
        that a second checkpoint would throw away the log in good faith. The store has to stop, and
        the next start copies the whole log again.
        """
        if self._is_to_empty:
            self._is_to_empty = False
            self._checkpoint("PASSIVE", 0)
            self._checkpoint("TRUNCATE", 0)
        frames, frame_bytes = self._log.frames()
        if self._log.generation != self._generation:
            self._generation = self._log.generation
            self._tried_at_frame = 0
        if frames - self._tried_at_frame < limits.CHECKPOINT_FRAMES:
            return
        self._tried_at_frame = frames
        wal_bytes = frames * frame_bytes
        if wal_bytes > self._options.max_wal_bytes // 2:
            # The log starts over only when no reader is left in it. New readers go past it as soon
            # as it is copied, so the wait is for those reading now.
            self._checkpoint("RESTART", limits.CHECKPOINT_WAIT_MS)
        else:
            self._checkpoint("PASSIVE", 0)
        self._warn_of_size(wal_bytes)

    def at_close(self) -> None:
        """Copy everything and empty the log, which nobody reads any more.

        What finds no space stays in the log, from which the next start takes it. Raises
        sqlite3.Error for everything else.
        """
        self._observe(Site.BEFORE_CLOSE)
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            if not isinstance(refined(mapped(error), self._directory), Full):
                raise
            _log.warning("no space for a last checkpoint; the next start takes the log over")

    def _checkpoint(self, mode: str, wait_ms: int) -> None:
        self._observe(Site.BEFORE_CHECKPOINT)
        started = time.perf_counter()
        execute = self._connection.execute
        try:
            execute(f"PRAGMA busy_timeout={wait_ms}").fetchall()
            try:
                execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            finally:
                execute(f"PRAGMA busy_timeout={limits.BUSY_TIMEOUT_MS}").fetchall()
            self._full = False
        except sqlite3.Error as error:
            failure = refined(mapped(error), self._directory)
            if isinstance(failure, Damaged):
                self._health.note_damage(failure)
            elif not isinstance(failure, Full):
                raise failure from error
            elif not self._full:
                self._full = True
                _log.warning("no space for a checkpoint; the log grows until there is")
        seconds = time.perf_counter() - started
        self.checkpoints += 1
        self.seconds += seconds
        if self._observers.checkpointed is not None:
            self._observers.checkpointed(seconds)
        self._observe(Site.AFTER_CHECKPOINT)

    def _warn_of_size(self, wal_bytes: int) -> None:
        above = wal_bytes > self._options.max_wal_bytes
        if above and not self._warned:
            _log.warning(
                "write-ahead log above its limit, a reader holds it",
                wal_bytes=wal_bytes,
                max_wal_bytes=self._options.max_wal_bytes,
            )
        self._warned = above
