"""One call, as a handler sees it."""

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

import trio
from purerpc import StatusCode

from globalstore.rpc import status as statuses
from globalstore.rpc.headers import RequestHead
from globalstore.rpc.method import Method
from globalstore.rpc.receipts import Undo
from globalstore.rpc.status import DRAINING, LATE, SHARE_TAKEN, Abort, Metadata, Status
from globalstore.rpc.wakeup import Wakeup

# A handler that sends without waiting lets others run this often at the latest.
MESSAGES_PER_TURN = 16


class CallChannel(Protocol):
    """What a call needs of its connection."""

    peer: str
    # What the client's certificate names it, if it had to show one.
    peer_names: frozenset[str]
    draining: trio.Event

    def write(self, call: "Call", payload: bytes) -> bool:
        """Queue a message; False if the sender should wait."""

    async def writable(self, call: "Call") -> None:
        """Wait until the call may send again."""

    def consumed(self, call: "Call", size: int) -> None:
        """Take in that the handler has read a message of ``size`` bytes."""

    def hold(self, call: "Call", size: int) -> bool:
        """Take in that the request takes ``size`` bytes more; False if that is too much."""

    async def answer_turn(self, call: "Call") -> None:
        """Wait until the client has taken most of what it asked for, and others' turn is over."""

    def park(self, calls: int) -> None:
        """Take in that so many calls more, or fewer if negative, only wait for something."""

    @property
    def suspect(self) -> bool:
        """Whether the client may be gone."""

    @property
    def turn(self) -> Hashable:
        """Whose calls take turns with others'."""


class Call:
    """A call in progress: its head, its deadline, its messages and how it ends."""

    __slots__ = (
        "_channel",
        "_messages",
        "_sent",
        "_waits",
        "arrival",
        "deadline",
        "died",
        "end",
        "finished",
        "head",
        "initial_metadata",
        "method",
        "received_at",
        "reply",
        "request",
        "request_ended",
        "scope",
        "started",
        "stream_id",
        "trailing_metadata",
        "undo",
        "writable",
    )

    def __init__(
        self,
        channel: CallChannel,
        stream_id: int,
        head: RequestHead,
        method: Method,
        received_at: float,
    ) -> None:
        self._channel = channel
        self._messages: deque[tuple[bytes | bytearray, bool]] = deque()
        self._sent = 0
        self._waits = 0
        self.stream_id = stream_id
        self.head = head
        self.method = method
        # Trio's time at which the head arrived.
        self.received_at = received_at
        # Trio's time at which the client stops waiting; infinite if it named none.
        self.deadline = (
            math.inf if head.timeout_seconds is None else received_at + head.timeout_seconds
        )
        self.scope = trio.CancelScope(deadline=self.deadline)
        # Sent before the first message; of no effect later.
        self.initial_metadata: list[tuple[str, str | bytes]] = []
        # Sent with the status.
        self.trailing_metadata: list[tuple[str, str | bytes]] = []
        # The request of a method that takes one, parsed and checked, for its handler.
        self.request: Any = None
        # The serialized answer of a method that answers once.
        self.reply: bytes | None = None
        # Takes back what the answer hands out, should it not arrive.
        self.undo: Undo | None = None
        # How the call was ended from outside, if it was.
        self.end: Status | None = None
        # Whether its handler died of something nobody foresaw: then no code is its own.
        self.died = False
        self.request_ended = False
        self.started = False
        self.finished = False
        self.arrival = Wakeup()
        self.writable = Wakeup()

    def __repr__(self) -> str:
        state = "finished" if self.finished else "running" if self.started else "arriving"
        return (
            f"<Call {self.method.path} from {self.peer} [{state}, waiting: {len(self._messages)}]>"
        )

    @property
    def path(self) -> str:
        """The path as the client sent it, ``/package.Service/Method``."""
        return self.head.path

    @property
    def peer(self) -> str:
        """The client's address, ``10.1.0.7:40312`` or ``[fd00::7]:40312``."""
        return self._channel.peer

    @property
    def turn(self) -> Hashable:
        """With which calls this one shares its turns for what many want: those of its address.

        Calls through a proxy may be anybody's: each of its connections has turns of its own.
        """
        return self._channel.turn

    @property
    def peer_names(self) -> frozenset[str]:
        """The names in the client's certificate: CN and alternative names; none without one."""
        return self._channel.peer_names

    @property
    def metadata(self) -> Metadata:
        """The client's own metadata; values of ``-bin`` names as bytes."""
        return self.head.metadata

    @property
    def authority(self) -> str:
        """The name by which the client reached the server."""
        return self.head.authority

    @property
    def draining(self) -> trio.Event:
        """Set when the listener begins to drain; who only waits ends UNAVAILABLE then."""
        return self._channel.draining

    @property
    def suspect(self) -> bool:
        """Whether the client may be gone: it has left a ping unanswered.

        Whatever the call waits for, others should get it first.
        """
        return self._channel.suspect

    def if_undelivered(self, undo: Undo) -> None:
        """Have ``undo`` awaited, in a task of its own, should the client not get the answer.

        That is when the call ends with another status than OK, when its client has cancelled it
        before the answer arrived, when the answer never left, and when the client is dropped for
        its silence. A client that closes its connection after the answer was sent has got it.
        ``undo`` has ``Limits.undo_seconds``; one given later takes the place of an earlier one.
        """
        self.undo = undo

    @property
    def time_remaining(self) -> float:
        """Seconds until the deadline, never below 0; infinite if there is none."""
        return max(0.0, self.deadline - trio.current_time())

    def metadata_values(self, name: str) -> list[str]:
        """Return the values under ``name``, which is none of a ``-bin`` value."""
        raw_name = name.encode()
        return [raw.decode("latin-1") for key, raw in self.head.fields if key == raw_name]

    def abort(
        self,
        code: StatusCode,
        message: str = "",
        trailers: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """End the call with ``code``, a text for people and trailing metadata."""
        statuses.abort(code, message, trailers)

    @contextmanager
    def only_waiting(self) -> Iterator[None]:
        """Mark a stretch in which the call does nothing but wait for something to happen.

        When the listener begins to drain, or does so already, a call within it ends
        UNAVAILABLE at once instead of using up the grace period. The wait is cancelled.
        """
        if self.draining.is_set():
            raise Abort(StatusCode.UNAVAILABLE, DRAINING)
        self._waits += 1
        self._channel.park(1)
        try:
            yield
        finally:
            self._waits -= 1
            self._channel.park(-1)

    def drain(self) -> None:
        """End the call if it only waits: the listener begins to drain."""
        if self._waits:
            self.cancel(Status(StatusCode.UNAVAILABLE, DRAINING))

    def cancel(self, status: Status) -> None:
        """End the call from outside: its handler is cancelled, the client told ``status``."""
        if self.end is None:
            self.end = status
        self.scope.cancel()

    @property
    def interruption(self) -> Status | None:
        """How the call was ended before its handler was, or None.

        A handler that was done only after the deadline is late too: its caller has given up.
        """
        if self.scope.cancelled_caught:
            return self.end or LATE
        return LATE if self.end is None and self.scope.cancel_called else None

    def deliver(self, payload: bytes | bytearray, compressed: bool) -> None:
        """Take a message that has arrived."""
        self._messages.append((payload, compressed))
        self.arrival.set()

    @property
    def messages_waiting(self) -> int:
        """Messages that have arrived and were not read."""
        return len(self._messages)

    def end_request(self) -> None:
        """Take in that the client has sent all it will send."""
        self.request_ended = True
        self.arrival.set()

    @property
    def whole_request(self) -> bytes | bytearray | None:
        """The only message of a request that has arrived whole and plain; it stays where it is."""
        if not self.request_ended or len(self._messages) != 1:
            return None
        payload, compressed = self._messages[0]
        return None if compressed else payload

    async def arrived(self) -> bool:
        """Wait for the next message; False after the last. It stays where it is."""
        while not self._messages:
            if self.request_ended:
                return False
            await self.arrival.wait()
        return True

    def hold(self, size: int) -> None:
        """Take in that the request takes ``size`` bytes more of memory.

        Raises Abort, RESOURCE_EXHAUSTED, if its client's address then holds too much.
        """
        if not self._channel.hold(self, size):
            raise Abort(StatusCode.RESOURCE_EXHAUSTED, f"message: {SHARE_TAKEN}")

    async def large_answer(self) -> None:
        """Wait for the turn to make an answer of some MiB; the turn ends with the call.

        One call of an address has it at a time, and only once the client has taken most of what
        it asked for before.
        """
        await self._channel.answer_turn(self)

    def take(self) -> tuple[bytes | bytearray, bool]:
        """Take the next of the messages that wait; return it and whether it is compressed."""
        payload, compressed = self._messages.popleft()
        self._channel.consumed(self, len(payload))
        return payload, compressed

    async def send(self, payload: bytes) -> None:
        """Send one serialized message; waits while the client does not keep up.

        A message once queued is sent even if the wait after it is cancelled.
        """
        self._sent += 1
        if not self._channel.write(self, payload):
            await self._channel.writable(self)
        elif self._sent % MESSAGES_PER_TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()


class Requests(Protocol):
    """Takes the requests of a method in; see ``admission``."""

    async def next(self, call: Call) -> Any:
        """Wait for the next message and return it, parsed and checked; None at the end."""


class RequestStream:
    """The messages of a streaming request, parsed, as an asynchronous iterator."""

    __slots__ = ("_call", "_requests")

    def __init__(self, call: Call, requests: Requests) -> None:
        self._call = call
        self._requests = requests

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> Any:
        message = await self._requests.next(self._call)
        if message is None:
            raise StopAsyncIteration
        return message
