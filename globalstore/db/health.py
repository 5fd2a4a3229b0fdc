"""What the store knows of its own condition, and says once rather than once per operation."""

import math
import os
import time
from collections.abc import Callable

import attrs

from globalstore.db import limits
from globalstore.db.errors import Damaged
from globalstore.telemetry import get_logger

_log = get_logger("globalstore.db")


@attrs.frozen
class Observers:
    """Functions that learn what the threads did.

    They are called on those threads: they must not block and must not raise.
    """

    # Number of operations of a group, and seconds from BEGIN to COMMIT.
    group_committed: Callable[[int, float], None] | None = None
    # Seconds that a checkpoint took.
    checkpointed: Callable[[float], None] | None = None


@attrs.frozen
class Statistics:
    """A look at a running store."""

    waiting_control: int
    waiting_normal: int
    waiting_bulk: int
    waiting_reads: int
    groups: int
    operations: int
    # Operations of the largest group so far.
    operations_most: int
    queries: int
    # Time that the writer has spent on groups and checkpoints.
    busy_seconds: float
    checkpoints: int
    checkpoint_seconds: float
    wal_bytes: int
    free_bytes: int


class Health:
    """Conditions under which the store goes on with less than everything.

    Written by the threads of the store, read by anybody; each change is one assignment.
    """

    __slots__ = ("_locked_since", "_locked_told", "_low", "damage", "full")

    def __init__(self) -> None:
        self.damage: Damaged | None = None
        self.full = False
        self._low = False
        self._locked_since: float | None = None
        self._locked_told = -math.inf

    @property
    def locked(self) -> bool:
        """Whether another program holds the database locked."""
        return self._locked_since is not None

    @property
    def degraded(self) -> str | None:
        """Why not everything works, in words for an operator, or None."""
        if self.damage is not None:
            return f"the database is damaged: {self.damage}"
        if self.locked:
            return "another program holds the database locked; writes are refused until it lets go"
        if self.full:
            return "the disk is full; writes are refused until there is space"
        return None

    def note_damage(self, error: Damaged) -> None:
        """Refuse writes from now on: a write into a damaged file can only make it worse."""
        if self.damage is None:
            self.damage = error
            _log.error("database damaged, writes are refused from now on", reason=str(error))

    def note_full(self) -> None:
        """Note that a write found no space."""
        if not self.full:
            self.full = True
            _log.error("disk full, writes are refused until there is space; reads go on")

    def note_written(self) -> None:
        """Note that a write found space."""
        if self.full:
            self.full = False
            _log.warning("disk has space again, writes go on")

    def note_locked(self) -> None:
        """Note that somebody else's lock kept a transaction from beginning."""
        if self._locked_since is None:
            self._locked_since = now = time.monotonic()
            if now - self._locked_told >= limits.LOCKED_WARNING_S:
                self._locked_told = now
                _log.warning(
                    "another program holds the database locked, writes are refused until it lets go"
                )

    def note_unlocked(self) -> None:
        """Note that a transaction could begin."""
        if self._locked_since is not None:
            since, self._locked_since = self._locked_since, None
            if since == self._locked_told:
                _log.warning(
                    "no other program holds the database locked any more",
                    seconds=round(time.monotonic() - since, 1),
                )

    def note_free_bytes(self, free: int, least: int) -> None:
        """Warn when free space falls below ``least``, once each time it does."""
        if free < least and not self._low:
            _log.warning("little free space", free_bytes=free, min_free_bytes=least)
        self._low = free < least


def free_bytes(directory: str) -> int:
    """Return how many bytes an unprivileged process may still write below ``directory``.

    0 where that cannot be known, as when it is gone.
    """
    try:
        facts = os.statvfs(directory)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize
