"""Keepalive, idleness and age of a connection, by one task that sleeps until one is due."""

import logging
import math
from typing import Protocol

import trio

from globalstore.rpc.serving import ListenerOptions
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

_KEEPALIVE = b"alive?\x00\x00"

# A client with calls that wait is pinged this often: whatever frees for one that is gone waits for
# it in the meantime. 400 connections then cost 80 pings a second, a thousandth of a processor.
WATCHED_PING_SECONDS = 5.0

# A ping that is unanswered for so long was missed, for the while. A round trip around the earth
# takes 0.3 s, and most pauses of a client are shorter too.
MISSED_SECONDS = 1.0

# Connections end at an age up to this part sooner or later, so that those made together, after a
# restart, do not all come back in one moment.
AGE_JITTER = 0.1

# Woken this much too late, we were stopped ourselves: answers may be there and not be read yet.
_LATE_SECONDS = 2.0


class KeptAlive(Protocol):
    """What the keepalive needs of a connection."""

    peer: str

    @property
    def busy(self) -> bool:
        """Whether a call is in flight."""

    @property
    def is_draining(self) -> bool:
        """Whether no new call is taken."""

    def ping(self, payload: bytes) -> None:
        """Ask the client for a sign of life."""

    def begin_drain(self) -> None:
        """Take no new calls."""

    def tidy(self, now: float) -> None:
        """Forget what is over by now."""

    def drop(self) -> None:
        """End the connection now: its client is silent."""


class Keepalive:
    """Knows when a connection was last heard of and last busy, and acts on it."""

    def __init__(self, options: ListenerOptions, now: float) -> None:
        self._options = options
        jitter = 1 + AGE_JITTER * (2 * options.random() - 1)
        self._ends_at = now + options.max_connection_age * jitter
        self._heard_at = now
        # The first ping since anything was heard; infinite without one.
        self._pinged_at = math.inf
        self._ping_after = options.keepalive_time
        self._sleep = trio.CancelScope()
        self.idle_since = now

    @property
    def suspect(self) -> bool:
        """Whether a ping was missed, and nothing was heard since."""
        return (
            self._pinged_at < math.inf and trio.current_time() >= self._pinged_at + MISSED_SECONDS
        )

    def heard(self, now: float) -> None:
        """Take in that something arrived."""
        self._heard_at = now
        if self._pinged_at < math.inf:
            self._pinged_at = math.inf
            self.wake_at(now + self._ping_after)

    def asked(self) -> None:
        """Take in that a ping is sent; without keepalive nobody has to answer it in time."""
        if self._pinged_at == math.inf and self._options.keepalive_time < math.inf:
            self._pinged_at = trio.current_time()
            self.wake_at(self._pinged_at + self._options.keepalive_timeout)

    def watch_closely(self, closely: bool) -> None:
        """Ping more often from now on, or as usual again."""
        self._ping_after = self._options.keepalive_time
        if closely and self._ping_after < math.inf:
            self._ping_after = min(self._ping_after, WATCHED_PING_SECONDS)
        self.wake_at(self._heard_at + self._ping_after)

    def wake_at(self, at: float) -> None:
        """Look at the connection then, or sooner."""
        if at < self._sleep.deadline:  # noqa: PLR1730  setting it costs more than a look
            self._sleep.deadline = at

    async def run(self, connection: KeptAlive) -> None:
        """Ping a silent client, drop one that does not answer, part from idle and old ones."""
        options = self._options
        while True:
            now = trio.current_time()
            connection.tidy(now)
            if now > self._sleep.deadline + _LATE_SECONDS and self._pinged_at < math.inf:
                self._pinged_at = now
            if self._pinged_at == math.inf and self._heard_at + self._ping_after <= now:
                self._pinged_at = now
                connection.ping(_KEEPALIVE)
            if self._pinged_at + options.keepalive_timeout <= now:
                log.limited(
                    "unanswered",
                    "keepalive unanswered, dropped",
                    level=logging.INFO,
                    peer=connection.peer,
                )
                connection.drop()
                return
            due = [
                self._heard_at + self._ping_after
                if self._pinged_at == math.inf
                else self._pinged_at + options.keepalive_timeout
            ]
            if not connection.is_draining:
                # A busy connection is looked at again when it could first be idle for so long.
                idle_since = now if connection.busy else self.idle_since
                ends = (idle_since + options.max_connection_idle, self._ends_at)
                if min(ends) <= now:
                    connection.begin_drain()
                else:
                    due += ends
            with trio.CancelScope(deadline=min(due)) as self._sleep:
                await trio.sleep_forever()
