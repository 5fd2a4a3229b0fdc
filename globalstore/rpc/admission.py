"""The way of a request to its handler. Each step costs little beside what it keeps out.

1. *head*: read, checked, paid for by its size                            ``engine``, ``headers``
2. *route*, and whether the client may call it                            ``Serving.refusal``
3. *bytes*: no message larger than its method takes                       ``MessageReader``
4. *inflate*: the same bound; one gzip member; ratio and time bounded     here
5. *parse*: small ones at once, large ones in pieces that are counted     here
6. *check*: every string and list against its bound                       here
7. *slot*: only now the request takes one of the places of handlers       interceptors

Steps 4 to 6 of a large request let other calls run after each piece, and one large request goes
through them at a time, the clients' addresses in turn.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import thread_time
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.messages import inflate
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.status import Abort
from globalstore.rpc.wire_walk import PIECE_BYTES, Repeated, Shape, TooMany, Unparsable, merge

# Parsed at once: half a millisecond, whatever is in it.
SMALL_BYTES: Final = 2 * PIECE_BYTES
# A request that may inflate to more goes through alone.
_ALONE_BYTES: Final = 1 << 20
# Calls that wait have no larger requests; to drop what nobody knows of them takes a millisecond.
_DISCARDED_BYTES_MAX: Final = 2 << 20
# Processor time, ten times what 64 MiB take.
INFLATE_SECONDS_MAX: Final = 2.0


class Admission:
    """Takes the requests of one method in."""

    def __init__(self, message_type: Any, bounds: RequestBounds, large_turn: FairSlots) -> None:
        """Prepare for a method; ``large_turn`` is shared by all methods of a listener."""
        self.bounds = bounds
        self._type = message_type
        self._from_string = message_type.FromString
        self._shape = Shape(message_type.DESCRIPTOR, bounds.entries_max)
        self._large_turn = large_turn

    def at_once(self, payload: bytes | bytearray) -> Any:
        """Return a request of at most ``SMALL_BYTES``, parsed and checked.

        Raises Abort if it is none of the method, and what the method's check raises.
        """
        try:
            message = self._from_string(payload)
        except DecodeError:
            raise self._unparsable() from None
        if len(payload) > self.bounds.unchecked_bytes and self.bounds.check is not None:
            self.bounds.check(message)
        return message

    async def next(self, call: Call) -> Any:
        """Wait for the next message of a call and return it parsed and checked; None at the end.

        Raises Abort, and what the method's check raises.
        """
        if not await call.arrived():
            return None
        payload, compressed = call.take()
        if not compressed and len(payload) <= SMALL_BYTES:
            return self._small(payload)
        async with self._alone(call, compressed, len(payload)):
            if compressed:
                inflated = await _inflated(payload, self.bounds.bytes_max)
                call.hold(len(inflated) - len(payload))
                payload = inflated
            if len(payload) <= SMALL_BYTES:
                return self._small(payload)
            return await self._in_pieces(payload)

    def _small(self, payload: bytes | bytearray) -> Any:
        message = self.at_once(payload)
        message.DiscardUnknownFields()  # nobody reads them, and a call may wait for long
        return message

    @asynccontextmanager
    async def _alone(self, call: Call, compressed: bool, size: int) -> AsyncIterator[None]:
        if (self.bounds.bytes_max if compressed else size) <= _ALONE_BYTES:
            yield
            return
        await self._large_turn.acquire(call.turn)
        try:
            yield
        finally:
            self._large_turn.release()

    async def _in_pieces(self, payload: bytes | bytearray) -> Any:
        message = self._type()
        try:
            whole = await self._fill(message, self._shape, memoryview(payload), check=True)
        except (Unparsable, DecodeError):
            raise self._unparsable() from None
        except Repeated as error:
            raise Abort(StatusCode.INVALID_ARGUMENT, str(error)) from None
        except TooMany as error:
            if self.bounds.too_many is not None:
                raise self.bounds.too_many(error.field.full_name, error.count) from None
            raise Abort(StatusCode.INVALID_ARGUMENT, str(error)) from None
        if not whole and self.bounds.check_in_turns is not None:
            for _ in self.bounds.check_in_turns(message):
                await trio.lowlevel.checkpoint()
        if len(payload) <= _DISCARDED_BYTES_MAX:
            message.DiscardUnknownFields()
        return message

    async def _fill(self, message: Any, shape: Shape, data: memoryview, *, check: bool) -> bool:
        """Parse ``data`` into ``message`` and check it; False if parts of it were not checked."""
        checked = check
        for piece in shape.pieces(data):
            if piece.field is None:
                content = bytes(data[piece.start : piece.end])
                if check and self.bounds.check is not None:
                    self.bounds.check(self._from_string(content), piece.before)
                message.MergeFromString(content)
                await trio.lowlevel.checkpoint()
            else:
                inner = merge(message, piece.field)
                part = data[piece.start : piece.end]
                await self._fill(inner, shape.inner(piece.field), part, check=False)
                checked = False
        return checked

    def _unparsable(self) -> Abort:
        name = self._type.DESCRIPTOR.full_name
        return Abort(StatusCode.INVALID_ARGUMENT, f"request: expected a serialized {name}")


async def _inflated(payload: bytes | bytearray, bytes_max: int) -> bytearray:
    whole = bytearray()
    pieces = inflate(payload, bytes_max)
    seconds_left = INFLATE_SECONDS_MAX
    while seconds_left > 0:
        began = thread_time()
        piece = next(pieces, None)
        seconds_left -= thread_time() - began
        if piece is None:
            return whole
        whole += piece
        await trio.lowlevel.checkpoint()
    raise Abort(
        StatusCode.RESOURCE_EXHAUSTED,
        f"message: decompression takes more than {INFLATE_SECONDS_MAX} s",
    )
