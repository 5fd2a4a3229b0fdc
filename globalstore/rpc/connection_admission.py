"""Whether one more connection is served, which one makes room for it, and the lines that say so."""

import logging
import resource
import sys
from collections import OrderedDict

import attrs
import trio

from globalstore.rpc.ledger import Account
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# What is kept free is half of the files at most: a process that may open few still takes calls.
_RESERVED_SHARE = 2

# New connections are taken again when this part of a bound is free, or the lines that say so would
# follow each other as fast as clients come and go.
_FREE_SHARE = 16


@attrs.define(eq=False)
class Place:
    """The place of one connection, from before its handshake to its end."""

    account: Account
    peer: str
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)


class ConnectionAdmission:
    """Bounds the connections of each address, of all, and the files that others need.

    At a bound the oldest connection that never made a call which not everybody may make ends for
    the new one: silent connections keep nobody out. The system gives the lowest number that is free
    to each new file: one that comes near the limit tells that so many are open, whoever has opened
    them.
    """

    def __init__(self, connections_max: int, files_reserved: int) -> None:
        self._connections_max = connections_max
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._files_max = sys.maxsize
        if limit != resource.RLIM_INFINITY:
            self._files_max = limit - min(files_reserved, limit // _RESERVED_SHARE)
        self._unproven: OrderedDict[Place, None] = OrderedDict()
        self.open = 0
        # Connections that made room for others.
        self.ended_for_room = 0
        self._refused = 0
        self._reason = ""

    def admits(self, place: Place, file: int) -> bool:
        """Tell whether a connection with this file number is served, and count it if so."""
        account = place.account
        if account.connections >= account.connections_max:
            if not self._make_room(account):
                log.limited(
                    account.address,
                    "connections of an address refused",
                    address=account.address,
                    reason=f"it has as many as it may: {account.connections_max}"
                    " (server.limits.max_connections_per_address)",
                )
                return False
        elif self.open >= self._connections_max:
            if not self._replaces(
                f"as many connections as it may: {self._connections_max}"
                " (server.limits.max_connections)"
            ):
                return False
        elif file >= self._files_max:
            if not self._replaces(
                f"as many open files as it may, but for those kept free: {self._files_max}"
            ):
                return False
        elif self._reason and (
            self.open < self._connections_max - self._connections_max // _FREE_SHARE
            and file < self._files_max - self._files_max // _FREE_SHARE
        ):
            log.info("connections accepted again", refused=self._refused)
            self._reason, self._refused = "", 0
        self.open += 1
        account.connections += 1
        self._unproven[place] = None
        return True

    def prove(self, place: Place) -> None:
        """Take in that a connection has made a call which not everybody may make."""
        self._unproven.pop(place, None)

    def leave(self, place: Place) -> None:
        """Take in that an admitted connection has ended."""
        self._unproven.pop(place, None)
        self.open -= 1
        place.account.connections -= 1

    def refuse(self, reason: str) -> None:
        """Take in that a connection is not taken; say so if those before were."""
        self._refused += 1
        self._note(reason, "connections refused")

    def _note(self, reason: str, event: str) -> None:
        if not self._reason:
            self._reason = reason
            log.warning(event, reason=f"the server has {reason}")

    def _replaces(self, reason: str) -> bool:
        """Make room for a connection beyond a bound of all; False if there is none."""
        if self._make_room(None):
            self._note(reason, "connections without calls end for new ones")
            return True
        self.refuse(reason)
        return False

    def _make_room(self, account: Account | None) -> bool:
        """End the oldest unproven connection, of one address if it is given; False if none is."""
        for place in self._unproven:
            if account is None or place.account is account:
                break
        else:
            return False
        del self._unproven[place]
        self.ended_for_room += 1
        log.limited(
            place.account.address,
            "connection ended to make room: it never made a call that needs a token",
            level=logging.INFO,
            peer=place.peer,
        )
        place.scope.cancel()
        return True
