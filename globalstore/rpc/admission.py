"""The way of a request to its handler. Each step costs little beside what it keeps out.

1. *head*: read, checked, paid for by its size                            ``engine``, ``headers``
2. *route*, and whether the client may call it                            ``Serving.refusal``
3. *bytes*: no message larger than its method takes                       ``MessageReader``
4. *inflate*: the same bound; one gzip member; ratio and time bounded     here
5. *parse*: small ones at once, large ones in pieces that are counted     here
6. *check*: every string and list against its bound                       here
7. *slot*: only now the request takes one of the places of handlers       interceptors

Steps 4 to 6 of a large request let other calls run after each piece, and one large request at a
time goes on with them, the clients' addresses in turn.
"""

import math
from time import thread_time
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.messages import inflate
from globalstore.rpc.request_bounds import RequestBounds
from globalstore.rpc.resident import resident_bytes
from globalstore.rpc.status import Abort
from globalstore.rpc.wire_walk import PIECE_BYTES, Repeated, Shape, TooMany, Unparsable, merge

# Parsed at once: half a millisecond, whatever is in it.
SMALL_BYTES: Final = 2 * PIECE_BYTES
# A request that may inflate to more goes through alone.
_ALONE_BYTES: Final = 1 << 20
# Calls that wait have no larger requests; to drop what nobody knows of them takes a millisecond.
_DISCARDED_BYTES_MAX: Final = 2 << 20
# Processor time that inflating, parsing and checking one request may take: several times what an
# honest one of its size does.
SECONDS_MAX: Final = 2.0
SECONDS_PER_BYTE: Final = 0.03e-6
# Of that, what a large one takes before another one has its turn.
_TURN_SECONDS: Final = 0.05


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
        alone = (self.bounds.bytes_max if compressed else len(payload)) > _ALONE_BYTES
        async with _Work(call, self._large_turn if alone else None) as work:
            if compressed:
                inflated = await _inflated(call, payload, self.bounds.bytes_max, work)
                call.hold(-len(payload))
                payload = inflated
            if len(payload) <= SMALL_BYTES:
                return self._small(payload)
            work.expect(len(payload))
            return await self._in_pieces(payload, work)

    def _small(self, payload: bytes | bytearray) -> Any:
        message = self.at_once(payload)
        message.DiscardUnknownFields()  # nobody reads them, and a call may wait for long
        return message

    async def _in_pieces(self, payload: bytes | bytearray, work: "_Work") -> Any:
        message = self._type()
        try:
            whole = await self._fill(message, self._shape, memoryview(payload), work, check=True)
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
                await work.rest()
        if len(payload) <= _DISCARDED_BYTES_MAX:
            message.DiscardUnknownFields()
        return message

    async def _fill(
        self, message: Any, shape: Shape, data: memoryview, work: "_Work", *, check: bool
    ) -> bool:
        """Parse ``data`` into ``message`` and check it; False if parts of it were not checked."""
        checked = check
        for piece in shape.pieces(data):
            if piece.field is None:
                content = bytes(data[piece.start : piece.end])
                if check and self.bounds.check is not None:
                    self.bounds.check(self._from_string(content), piece.before)
                message.MergeFromString(content)
                await work.rest(len(content))
            else:
                inner = merge(message, piece.field)
                part = data[piece.start : piece.end]
                await self._fill(inner, shape.inner(piece.field), part, work, check=False)
                checked = False
        return checked

    def _unparsable(self) -> Abort:
        name = self._type.DESCRIPTOR.full_name
        return Abort(StatusCode.INVALID_ARGUMENT, f"request: expected a serialized {name}")


class _Work:
    """The work on one request: bounded, and in turns with others where it is large.

    What a client sends may be small and take long, and what it becomes may be large.
    """

    def __init__(self, call: Call, turns: FairSlots | None) -> None:
        self._call = call
        self._turns = turns
        self._has_turn = False
        self._spent_s = 0.0
        self._turn_began_s = 0.0
        self._bytes = 0
        self._resumed_at = 0.0
        # What is made of the request: bytes that it is expected to take, and those it was seen to.
        self._expected = math.inf
        self._grown = 0
        self._resident = 0

    async def __aenter__(self) -> "_Work":
        await self._take_turn()
        self._resumed_at = thread_time()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._has_turn and self._turns is not None:
            self._turns.release()

    async def _take_turn(self, *, goes_on: bool = False) -> None:
        if self._turns is not None:
            await self._turns.acquire(self._call.turn, goes_on=goes_on)
            self._has_turn = True
            self._turn_began_s = self._spent_s

    def expect(self, size: int) -> None:
        """Have so many bytes held for what is made of the request, and whatever it takes more.

        Raises Abort if its client's address then holds too much.
        """
        self._call.hold(size)
        self._expected = size
        self._resident = resident_bytes()

    def _measure(self) -> None:
        """Hold what the process has grown by: an entry of two bytes may become fifty."""
        self._grown += resident_bytes() - self._resident
        if self._grown > self._expected:
            self._call.hold(self._grown - int(self._expected))
            self._expected = self._grown

    async def rest(self, size: int = 0) -> None:
        """Let others run after ``size`` bytes of the request; raises Abort if it takes too long."""
        self._spent_s += thread_time() - self._resumed_at
        self._bytes += size
        allowed_s = SECONDS_MAX + self._bytes * SECONDS_PER_BYTE
        if self._spent_s > allowed_s:
            raise Abort(
                StatusCode.RESOURCE_EXHAUSTED,
                f"request: takes more than {allowed_s:.1f} s of processor time to read",
            )
        if self._expected < math.inf:
            self._measure()
        turns = self._turns
        if turns is None or not turns.waiting or self._spent_s < self._turn_began_s + _TURN_SECONDS:
            await trio.lowlevel.checkpoint()
        else:
            self._has_turn = False
            turns.release()
            await self._take_turn(goes_on=True)
        self._resumed_at = thread_time()
        if self._expected < math.inf:
            self._resident = resident_bytes()


async def _inflated(
    call: Call, payload: bytes | bytearray, bytes_max: int, work: _Work
) -> bytearray:
    whole = bytearray()
    for piece in inflate(payload, bytes_max):
        whole += piece
        call.hold(len(piece))
        await work.rest(len(piece))
    return whole
