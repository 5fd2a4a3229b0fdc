"""One client connection: a reader, one writer, and a task for each call."""

import logging
from typing import Protocol

import trio
from h2.errors import ErrorCodes
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import UNKNOWN_ROUTE, internal, status_of
from globalstore.rpc.engine import Engine
from globalstore.rpc.events import (
    ConnectionFailed,
    Event,
    MessageReceived,
    PeerGoingAway,
    PingAcknowledged,
    RequestEnded,
    RequestFaulted,
    RequestMalformed,
    RequestReceived,
    StreamReset,
)
from globalstore.rpc.headers import RequestHead
from globalstore.rpc.keepalive import Keepalive
from globalstore.rpc.method import UNKNOWN
from globalstore.rpc.serving import Serving
from globalstore.rpc.status import DRAINING, OK, Status
from globalstore.rpc.wakeup import Wakeup

log = logging.getLogger("globalstore.rpc")

# One read. The small one brings some thirty small calls, whose start takes half a millisecond;
# the large one follows only on a read that was full and brought few frames: a large message.
READ_BYTES = 2 << 10
READ_BYTES_BULK = 64 << 10
FRAMES_BULK_MAX = 16

# Calls that one read may have answered at once: half a millisecond. Others get tasks.
FAST_MAX = 16

_DRAINING = b"leaving\x00"

_GONE = Status(StatusCode.CANCELLED, "the client reset the call or disconnected")
_LATE = Status(StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")
_STOPPED = Status(StatusCode.UNAVAILABLE, DRAINING)
_MALFORMED = RequestHead(path="malformed")


class Transport(Protocol):
    """A byte stream: a socket, or TLS over one."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return bytes that arrived; empty at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send all of ``data``."""

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes."""


class Connection:
    """Serves one client until it leaves, breaks the protocol, or the listener drains."""

    def __init__(self, serving: Serving, transport: Transport, peer: str) -> None:
        self.peer = peer
        self.draining = serving.draining
        self.message_bytes_max = serving.limits.message_bytes_max
        self._serving = serving
        self._limits = serving.limits
        self._transport = transport
        now = trio.current_time()
        self._engine = Engine(serving.limits, serving.memory, now)
        self._engine.interrupt = self._interrupt
        self._calls: dict[int, Call] = {}
        self._unstarted: list[Call] = []
        self._senders: set[Call] = set()
        self._output = Wakeup()
        self._room = Wakeup()
        self._drain_acknowledged = trio.Event()
        self._is_draining = False
        self._last = False
        self._receiving = False
        self._now = now
        self._fast_left = 0
        self._keepalive = Keepalive(serving.options, now)
        self._nursery: trio.Nursery | None = None

    def __repr__(self) -> str:
        state = "FAILED" if self._engine.failed else "DRAINING" if self._is_draining else "OPEN"
        return f"<Connection [{self.peer}, {state}, calls: {len(self._calls)}]>"

    @property
    def busy(self) -> bool:
        """Whether a call is in flight."""
        return bool(self._calls)

    @property
    def is_draining(self) -> bool:
        """Whether no new call is taken, by either side."""
        return self._is_draining

    def ping(self, payload: bytes) -> None:
        """Ask the client for a sign of life."""
        self._engine.ping(payload)
        self._output.set()

    @property
    def buffered_bytes(self) -> int:
        """Bytes in memory for this client, both ways."""
        engine = self._engine
        return engine.ready_bytes + engine.queued_bytes + engine.buffered_bytes

    async def run(self) -> None:
        """Serve until the connection ends. Cancellation ends it at once, with its calls."""
        self._engine.start()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write, nursery)
                if self._serving.watches_connections:
                    nursery.start_soon(self._keepalive.run, self)
                if self.draining.is_set():
                    self.begin_drain()
                try:
                    await self._read()
                finally:
                    self._nursery = None  # from here on it takes no more tasks
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError) as broken:
            log.debug("connection lost peer=%s reason=%s", self.peer, broken.exceptions[0])
        finally:
            self._engine.fail(ErrorCodes.NO_ERROR, "")
            self._handle(self._engine.events())

    def begin_drain(self) -> None:
        """Take no new calls: no new calls, end when those in flight have ended."""
        if not self._is_draining and self._nursery is not None:
            self._is_draining = True
            self._nursery.start_soon(self._drain)

    def close(self) -> None:
        """End the connection now, whatever is left."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def _drain(self) -> None:
        self._engine.goaway(final=False)
        self.ping(_DRAINING)
        with trio.move_on_after(self._limits.goaway_seconds):
            await self._drain_acknowledged.wait()
        self._engine.goaway()
        self._last = True
        self._output.set()

    # --- reading ------------------------------------------------------------------------

    async def _read(self) -> None:
        receive_some = self._transport.receive_some
        first_by = trio.current_time() + self._limits.handshake_seconds
        with trio.CancelScope(deadline=first_by):
            while not self._engine.preface_read:
                if not (data := await receive_some(READ_BYTES)):
                    return
                await self._received(data)
        if not self._engine.preface_read:
            log.info("client sent no HTTP/2 preface in time peer=%s", self.peer)
            return
        size = READ_BYTES
        while data := await receive_some(size):
            await self._received(data)
            bulk = len(data) >= size and self._engine.frames_read <= FRAMES_BULK_MAX
            size = READ_BYTES_BULK if bulk else READ_BYTES

    async def _received(self, data: bytes) -> None:
        engine = self._engine
        self._now = self._keepalive.received_at = trio.current_time()
        self._fast_left = FAST_MAX
        self._receiving = True
        events = engine.receive(data, self._now)
        self._receiving = False
        if events:
            self._handle(events)
        if engine.ready_bytes or engine.queued_bytes or engine.failed:
            self._output.set()
        while engine.ready_bytes > self._limits.outbound_bytes_max and not engine.failed:
            await self._room.wait()

    def _interrupt(self) -> None:
        """Take up an event of the engine although nothing was read: shared memory ran out."""
        if not self._receiving:
            self._handle(self._engine.events())
            self._output.set()

    def _handle(self, events: list[Event]) -> None:
        calls = self._calls
        for event in events:
            kind = type(event)
            if kind is RequestReceived:
                self._request_received(event.stream_id, event.head)  # type: ignore[union-attr]
            elif isinstance(event, MessageReceived):
                if (call := calls.get(event.stream_id)) is not None:
                    call.deliver(event.payload, event.compressed)
                    if call.messages_waiting > 1 and not call.method.streams_requests:
                        self._stop(call, _expected_one("several"))
            elif isinstance(event, RequestEnded):
                if (call := calls.get(event.stream_id)) is not None:
                    self._request_ended(call)
            elif isinstance(event, StreamReset):
                if (call := calls.get(event.stream_id)) is not None:
                    self._stop(call, _GONE)
            elif isinstance(event, RequestFaulted):
                if (call := calls.get(event.stream_id)) is not None:
                    self._stop(call, Status(StatusCode(event.code), event.message))
            else:
                self._handle_rare(event)
        if self._unstarted:
            for call in self._unstarted:
                if not call.started and not call.finished:
                    self._start(call)
            self._unstarted.clear()

    def _handle_rare(self, event: Event) -> None:
        if isinstance(event, ConnectionFailed):
            if event.reason:
                log.info("connection refused peer=%s reason=%s", self.peer, event.reason)
            for call in list(self._calls.values()):
                self._stop(call, _GONE)
            for call in list(self._senders):
                call.writable.set()
            self._room.set()
        elif isinstance(event, PingAcknowledged):
            if event.payload == _DRAINING:
                self._drain_acknowledged.set()
        elif isinstance(event, PeerGoingAway):
            self._is_draining = self._last = True
            self._output.set()
        elif isinstance(event, RequestMalformed):
            log.debug("request refused peer=%s reason=%s", self.peer, event.reason)
            call = Call(self, event.stream_id, _MALFORMED, UNKNOWN, self._now)
            self._serving.begin(call)
            call.finished = True
            self._serving.finish(call, StatusCode(event.code))

    def _request_received(self, stream_id: int, head: RequestHead) -> None:
        serving = self._serving
        route = serving.routes.get(head.path, UNKNOWN_ROUTE)
        call = Call(self, stream_id, head, route.method, self._now)
        self._calls[stream_id] = call
        serving.begin(call)
        refusal = head.refusal or serving.refusal(call)
        if refusal is not None:
            self._finish(call, refusal)
        elif route.method.streams_requests:
            self._start(call)
        else:
            self._unstarted.append(call)

    def _request_ended(self, call: Call) -> None:
        if not call.method.streams_requests and not call.messages_waiting:
            self._stop(call, _expected_one("none"))
            return
        call.end_request()
        if not call.started:
            self._start(call)

    def _start(self, call: Call) -> None:
        call.started = True
        if not self._answered_fast(call):
            self._serving.calls.start_soon(self._run, call)

    def _answered_fast(self, call: Call) -> bool:
        """Answer a call here and now if its method can, and others have not waited for long."""
        answer = self._serving.route(call).fast_path
        if answer is None or self._fast_left == 0 or call.deadline <= self._now:
            return False
        request = call.whole_request
        if request is None or self._engine.queued_bytes > self._limits.blocked_bytes_max:
            return False
        self._fast_left -= 1
        status = OK
        try:
            call.reply = answer(request, call)
            if call.reply is None:
                return False
        except Exception as error:  # noqa: BLE001 - it ends this call alone
            status = status_of(call, error, self._serving.map_error)
        call.take()
        self._finish(call, status)
        if self._engine.stream_queued_bytes(call.stream_id):
            self._serving.calls.start_soon(self._flushed, call)
        return True

    def _stop(self, call: Call, status: Status) -> None:
        if call.started:
            call.cancel(status)
        else:
            self._finish(call, status)

    # --- calls --------------------------------------------------------------------------

    async def _run(self, call: Call) -> None:
        serving = self._serving
        status = _STOPPED
        try:
            with call.scope:
                if not call.request_ended and not call.method.streams_requests:
                    await self._whole_request(call)
                if self._engine.queued_bytes > self._limits.blocked_bytes_max:
                    await self.writable(call)
                if call.scope.cancel_called:
                    await trio.lowlevel.checkpoint()  # it was over before its turn came
                await serving.route(call).handler(call)
            status = call.end or _LATE if call.scope.cancelled_caught else OK
        except Exception as error:  # noqa: BLE001 - every failure of a handler ends its call alone
            status = status_of(call, error, serving.map_error)
        finally:
            self._finish(call, status)
        if self._engine.stream_queued_bytes(call.stream_id):
            await self._flushed(call)

    async def _whole_request(self, call: Call) -> None:
        with trio.move_on_after(self._limits.request_seconds) as patience:
            while not call.request_ended:
                await call.arrival.wait()
        if patience.cancelled_caught:
            call.abort(StatusCode.DEADLINE_EXCEEDED, "the request did not arrive in time")

    async def _flushed(self, call: Call) -> None:
        """Wait until the client took the answer; one that never does is reset."""
        with trio.move_on_after(self._limits.stall_seconds):
            while self._engine.stream_queued_bytes(call.stream_id):
                self._senders.add(call)
                await call.writable.wait()
        self._senders.discard(call)
        self._engine.reset(call.stream_id, ErrorCodes.CANCEL)
        self._output.set()

    def _finish(self, call: Call, status: Status) -> None:
        if call.finished:
            return
        call.finished = True
        self._calls.pop(call.stream_id, None)
        try:
            self._answer(call, status)
        except ValueError as error:
            # Nothing was sent: metadata is encoded before the first byte of an answer.
            status = internal(call, error)
            self._engine.send_trailers(call.stream_id, status.code.value, status.message)
        self._output.set()
        if not self._calls:
            self._keepalive.idle_since = trio.current_time()
        self._serving.finish(call, status.code)

    def _answer(self, call: Call, status: Status) -> None:
        """Send how the call ends. Raises ValueError for metadata that cannot be sent."""
        engine, stream_id = self._engine, call.stream_id
        trailing = tuple(call.trailing_metadata)
        if status.code is not StatusCode.OK:
            engine.send_trailers(
                stream_id, status.code.value, status.message, status.trailers + trailing
            )
        elif call.reply is not None:
            engine.send_unary(stream_id, call.reply, tuple(call.initial_metadata), trailing)
        else:
            engine.send_trailers(stream_id, 0, "", trailing, tuple(call.initial_metadata))

    def write(self, call: Call, payload: bytes) -> bool:
        """Queue a message of a streaming call; False if it should wait before the next."""
        engine = self._engine
        if call.initial_metadata:
            engine.send_headers(call.stream_id, tuple(call.initial_metadata))
            call.initial_metadata.clear()
        engine.send_message(call.stream_id, payload)
        self._output.set()
        return self._has_room(call)

    def _has_room(self, call: Call) -> bool:
        engine, limits = self._engine, self._limits
        return (
            engine.stream_queued_bytes(call.stream_id) <= limits.stream_outbound_bytes_max
            and engine.ready_bytes <= limits.outbound_bytes_max
            and engine.queued_bytes <= limits.blocked_bytes_max
        )

    async def writable(self, call: Call) -> None:
        """Wait until the client has taken enough for the call to send on."""
        try:
            while True:
                self._senders.add(call)
                await call.writable.wait()
                if self._has_room(call):
                    return
        finally:
            self._senders.discard(call)

    def consumed(self, call: Call, size: int) -> None:
        """Take in that the handler has read ``size`` bytes: the client may send as much more."""
        engine = self._engine
        engine.credit(call.stream_id, size)
        if engine.ready_bytes:
            self._output.set()

    # --- writing ------------------------------------------------------------------------

    async def _write(self, nursery: trio.Nursery) -> None:
        engine, transport = self._engine, self._transport
        while True:
            data = engine.take()
            if data:
                with trio.move_on_after(self._limits.stall_seconds) as patience:
                    await transport.send_all(data)
                if patience.cancelled_caught:
                    log.info("client takes nothing, dropped peer=%s", self.peer)
                    self.close()
                    return  # half a frame may be out: nothing sound can follow
                self._room.set()
                if self._senders:
                    for call in list(self._senders):
                        call.writable.set()
            elif engine.failed or (self._last and not engine.streams and not self._calls):
                break
            else:
                await self._output.wait()
        nursery.cancel_scope.deadline = trio.current_time() + self._limits.flush_seconds
        await transport.send_eof()


def _expected_one(got: str) -> Status:
    return Status(StatusCode.INVALID_ARGUMENT, f"request: expected one message, got {got}")
