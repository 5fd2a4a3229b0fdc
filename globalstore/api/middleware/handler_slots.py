"""How many handlers may be at work at a time (``server.max_workers``)."""

import math

import trio

from globalstore.rpc import Call, Handler, Method

# Services whose calls are about the server itself: an overload must not look like death.
_EXEMPT_PREFIXES = ("grpc.",)
_EXEMPT_METHODS = frozenset({"HealthCheck"})


class HandlerSlots:
    """Slots for handlers; a call gives its slot back as soon as it only waits.

    What counts as waiting: a commit, a source, a drain, a barrier. ``limit`` 0 means no bound.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._limiter = trio.CapacityLimiter(limit or math.inf)
        self._holders: set[Call] = set()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return self._limiter.statistics().tasks_waiting

    def interceptor(self, method: Method, handler: Handler) -> Handler:
        """Let the handlers of ordinary methods run in a slot."""
        if method.service.startswith(_EXEMPT_PREFIXES) or method.name in _EXEMPT_METHODS:
            return handler

        async def in_slot(call: Call) -> None:
            try:
                self._limiter.acquire_on_behalf_of_nowait(call)
            except trio.WouldBlock:
                await self._limiter.acquire_on_behalf_of(call)
            self._holders.add(call)
            try:
                await handler(call)
            finally:
                self.release(call)

        return in_slot

    def release(self, call: Call) -> None:
        """Give a call's slot back, if it still has one."""
        if call in self._holders:
            self._holders.remove(call)
            self._limiter.release_on_behalf_of(call)
