"""How many handlers may be at work at a time (``server.max_workers``)."""

import math

import trio

from globalstore.rpc import Call, FairSlots, Handler, Method

# Services whose calls are about the server itself: an overload must not look like death.
_EXEMPT_PREFIXES = ("grpc.",)
_EXEMPT_METHODS = frozenset({"HealthCheck"})


class HandlerSlots:
    """Slots for handlers; a call gives its slot back as soon as it only waits.

    What counts as waiting: a commit, a source, a drain, a barrier. Clients' addresses get free
    slots in turn. ``limit`` 0 means no bound.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slots = FairSlots(limit or math.inf)
        self._holders: set[Call] = set()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return len(self._holders)

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot."""
        return self._slots.waiting

    def full_s(self) -> float:
        """Return for how many seconds no slot has been free for those that waited."""
        return max(0.0, trio.current_time() - self._slots.waited_since)

    def interceptor(self, method: Method, handler: Handler) -> Handler:
        """Let the handlers of ordinary methods run in a slot."""
        if method.service.startswith(_EXEMPT_PREFIXES) or method.name in _EXEMPT_METHODS:
            return handler

        async def in_slot(call: Call) -> None:
            if not self._slots.acquire_nowait():
                await self._slots.acquire(call.turn)
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
            self._slots.release()
