"""Keepalive, idleness and age of a connection, by one task that sleeps until one is due."""

import logging
import math
from typing import Protocol

import trio

from globalstore.rpc.serving import ListenerOptions

log = logging.getLogger("globalstore.rpc")

_KEEPALIVE = b"alive?\x00\x00"


class Patrolled(Protocol):
    """What the patrol needs of a connection."""

    peer: str

    @property
    def busy(self) -> bool:
        """Whether a call is in flight."""

    @property
    def leaving(self) -> bool:
        """Whether leave has been taken."""

    def ping(self, payload: bytes) -> None:
        """Ask the client for a sign of life."""

    def leave(self) -> None:
        """Take leave of the client."""

    def close(self) -> None:
        """End the connection now."""


class Patrol:
    """Knows when a connection was last heard of and last busy, and acts on it."""

    def __init__(self, options: ListenerOptions, now: float) -> None:
        self._options = options
        self._opened_at = now
        self.heard_at = now
        self.idle_since = now

    async def walk(self, connection: Patrolled) -> None:
        """Ping a silent client, drop one that does not answer, part from idle and old ones."""
        options = self._options
        asked_at = math.inf
        while True:
            now = trio.current_time()
            if self.heard_at >= asked_at:
                asked_at = math.inf
            quiet_at = self.heard_at + options.keepalive_time
            if quiet_at <= now and asked_at == math.inf:
                asked_at = now
                connection.ping(_KEEPALIVE)
            if asked_at + options.keepalive_timeout <= now:
                log.info("keepalive unanswered, dropped peer=%s", connection.peer)
                connection.close()
                return
            due = [asked_at + options.keepalive_timeout if asked_at < math.inf else quiet_at]
            if not connection.leaving:
                # A busy connection is looked at again when it could first be idle for so long.
                idle_since = now if connection.busy else self.idle_since
                ends = (
                    idle_since + options.max_connection_idle,
                    self._opened_at + options.max_connection_age,
                )
                if min(ends) <= now:
                    connection.leave()
                else:
                    due += ends
            await trio.sleep_until(min(due))
