"""Keepalive, idleness and age of a connection, by one task that sleeps until one is due."""

import logging
import math
from typing import Protocol

import trio

from globalstore.rpc.serving import ListenerOptions

log = logging.getLogger("globalstore.rpc")

_KEEPALIVE = b"alive?\x00\x00"


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

    def close(self) -> None:
        """End the connection now."""


class Keepalive:
    """Knows when a connection was last heard of and last busy, and acts on it."""

    def __init__(self, options: ListenerOptions, now: float) -> None:
        self._options = options
        self._opened_at = now
        self.received_at = now
        self.idle_since = now

    async def run(self, connection: KeptAlive) -> None:
        """Ping a silent client, drop one that does not answer, part from idle and old ones."""
        options = self._options
        pinged_at = math.inf
        while True:
            now = trio.current_time()
            if self.received_at >= pinged_at:
                pinged_at = math.inf
            quiet_at = self.received_at + options.keepalive_time
            if quiet_at <= now and pinged_at == math.inf:
                pinged_at = now
                connection.ping(_KEEPALIVE)
            if pinged_at + options.keepalive_timeout <= now:
                log.info("keepalive unanswered, dropped peer=%s", connection.peer)
                connection.close()
                return
            due = [pinged_at + options.keepalive_timeout if pinged_at < math.inf else quiet_at]
            if not connection.is_draining:
                # A busy connection is looked at again when it could first be idle for so long.
                idle_since = now if connection.busy else self.idle_since
                ends = (
                    idle_since + options.max_connection_idle,
                    self._opened_at + options.max_connection_age,
                )
                if min(ends) <= now:
                    connection.begin_drain()
                else:
                    due += ends
            await trio.sleep_until(min(due))
