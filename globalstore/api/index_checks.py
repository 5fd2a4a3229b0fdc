"""What is looked at of the index of an artifact before it is stored, however large it is."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import trio

from globalstore.api.middleware.handler_slots import HandlerSlots
from globalstore.rpc import Call, FairSlots
from globalstore.rules.json_objects import NotAnObject, check_object
from globalstore.rules.refusals import InvalidArgument

R = TypeVar("R")

# An index of this many bytes is hashed in some 25 µs; longer ones in a thread.
_HASHED_AT_ONCE_BYTES = 32 << 10


class IndexChecks:
    """Hashes and parses indexes without holding the event loop up."""

    def __init__(self, handler_slots: HandlerSlots) -> None:
        self._handler_slots = handler_slots
        # Others get a turn after each piece of a long index; with several of these at once, all of
        # them would be in between.
        self._parsing = FairSlots(1)

    async def digest(self, call: Call, data: bytes) -> bytes:
        """Return the SHA-256 of an index."""
        return await self.beside(call, data, lambda: hashlib.sha256(data).digest())

    async def beside(self, call: Call, data: bytes, hashed: Callable[[], R]) -> R:
        """Return what a function makes that hashes an index: beside the event loop if it is long.

        The interpreter is free while bytes are hashed.
        """
        if len(data) <= _HASHED_AT_ONCE_BYTES:
            return hashed()
        self._handler_slots.release(call)
        return await trio.to_thread.run_sync(hashed)

    async def check_object(self, call: Call, field: str, data: bytes) -> None:
        """Refuse bytes that are not a JSON object; what its entries say is not looked at."""
        steps = check_object(data)
        try:
            # Most indexes are one piece.
            if next(steps, True) or next(steps, True):
                return
            self._handler_slots.release(call)
            await self._parsing.acquire(call.turn)
            try:
                for _ in steps:
                    await trio.lowlevel.checkpoint()
            finally:
                self._parsing.release()
        except NotAnObject as error:
            raise InvalidArgument(f"{field} {error}") from None
