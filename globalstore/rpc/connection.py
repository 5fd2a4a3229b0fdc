"""One client connection: a reader, one writer, and a task for each call."""

import logging
from collections.abc import Callable
from typing import Protocol

import trio
from h2.errors import ErrorCodes
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.calling import GONE, STOPS_PER_TURN, CallingHalf, expected_one
from globalstore.rpc.dispatch import UNKNOWN_ROUTE
from globalstore.rpc.events import (
    ConnectionFailed,
    Event,
    FloodNoticed,
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
from globalstore.rpc.method import UNKNOWN
from globalstore.rpc.receipts import RECEIPT, RESET_AFTER_SECONDS
from globalstore.rpc.serving import Serving
from globalstore.rpc.status import Status
from globalstore.rpc.wakeup import Wakeup
from globalstore.telemetry import get_logger

log = get_logger("globalstore.rpc")

# One read. The small one brings some thirty small calls, whose start takes half a millisecond;
# the large one follows only on a read that was full and brought few frames: a large message.
READ_BYTES = 2 << 10
READ_BYTES_BULK = 64 << 10
FRAMES_BULK_MAX = 16

# Frames looked at before others get a turn, however many came at once: sixteen calls that are
# answered at once take half a millisecond.
FRAMES_PER_TURN = 32

# Bytes ready to be written that are part of what every connection costs.
_READY_BYTES_FREE = 32 << 10

# A client whose heads cost too much is not read for so long at a time; what it sends meanwhile
# waits in the system's buffers.
_PAUSE_SECONDS_MAX = 1.0

_DRAINING = b"leaving\x00"

_MALFORMED = RequestHead(path="malformed")
_CALLS_TAKEN = Status(
    StatusCode.UNAVAILABLE,
    "this address has as many calls open as it may (server.limits.max_calls_per_address):"
    " let some end first",
)
_FULL = Status(
    StatusCode.UNAVAILABLE,
    "as many calls are open as may be (server.limits.max_calls), and this address has more than its"
    " equal part: try again later",
)
_CALMED = Status(
    StatusCode.UNAVAILABLE, "the connection ends: a client on it sends too much that is no call"
)


class Transport(Protocol):
    """A byte stream: a socket, or TLS over one."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return bytes that arrived; empty at the end."""

    async def send_all(self, data: bytes) -> None:
        """Send all of ``data``."""

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes."""


class Connection(CallingHalf):
    """Serves one client until it leaves, breaks the protocol, or the listener drains."""

    def __init__(
        self, serving: Serving, transport: Transport, peer: str, address: str = ""
    ) -> None:
        """Prepare to serve a client; ``address`` is that of ``peer`` without its port."""
        super().__init__(serving, peer, address or peer)
        self._transport = transport
        self._engine.interrupt = self._interrupt
        self._unstarted: list[Call] = []
        self._room = Wakeup()
        self._drain_acknowledged = trio.Event()
        self._is_draining = False
        self._last = False
        self._silent = False
        self._receiving = False
        # Bytes of the write that is going on, and what of them and of those ready is counted.
        self._sending_bytes = 0
        self._ready_held = 0
        self._nursery: trio.Nursery | None = None
        # Called when the client has made a call that not everybody may make.
        self.prove: Callable[[], None] = _nobody

    def __repr__(self) -> str:
        state = "FAILED" if self._engine.failed else "DRAINING" if self._is_draining else "OPEN"
        return f"<Connection [{self.peer}, {state}, calls: {len(self._calls)}]>"

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
        self._account.holders.add(self._engine)
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
            log.debug("connection lost", peer=self.peer, reason=str(broken.exceptions[0]))
        finally:
            self._engine.fail(ErrorCodes.NO_ERROR, "")
            self._handle(self._engine.events())
            self._receipts.end(silent=self._silent)
            self._account.hold(-self._ready_held)
            self._account.holders.discard(self._engine)

    def begin_drain(self) -> None:
        """Take no new calls: no new calls, end when those in flight have ended."""
        if not self._is_draining and self._nursery is not None:
            self._is_draining = True
            self._nursery.start_soon(self._drain)

    def close(self) -> None:
        """End the connection now, whatever is left."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def tidy(self, now: float) -> None:
        """Forget what is over by now."""
        self._receipts.forget(now)

    def drop(self) -> None:
        """End the connection now: its client is silent, and has read nothing of late."""
        self._silent = True
        self.close()

    async def _drain(self) -> None:
        self._engine.goaway(final=False)
        self.ping(_DRAINING)
        with trio.move_on_after(self._limits.goaway_seconds):
            await self._drain_acknowledged.wait()
        self._engine.goaway()
        self._last = True
        self._output.set()

    async def _calm(self) -> None:
        """Let the calls that run end, for they may be other clients' behind a proxy."""
        await trio.sleep(self._limits.calm_seconds)
        await self._stop_all(list(self._calls.values()), _CALMED)
        await trio.sleep(self._limits.unwind_seconds)
        self.close()

    # --- reading ------------------------------------------------------------------------

    async def _read(self) -> None:
        receive_some = self._transport.receive_some
        first_by = trio.current_time() + self._limits.handshake_seconds
        has_begun = False
        with trio.CancelScope(deadline=first_by):
            while not self._engine.preface_read:
                if not (data := await receive_some(READ_BYTES)):
                    return
                has_begun = True
                await self._received(data)
        if not self._engine.preface_read:
            if has_begun:
                _note("client sent no HTTP/2 preface in time", self.peer)
            else:
                log.debug("client opened a connection and sent nothing", peer=self.peer)
            return
        size = READ_BYTES
        while data := await receive_some(size):
            await self._received(data)
            bulk = len(data) >= size and self._engine.frames_read <= FRAMES_BULK_MAX
            size = READ_BYTES_BULK if bulk else READ_BYTES

    async def _received(self, data: bytes) -> None:
        await self._look_at(data)
        while self._engine.is_pending and not self._engine.failed:
            await trio.lowlevel.checkpoint()
            await self._look_at(b"")

    async def _look_at(self, data: bytes) -> None:
        engine = self._engine
        self._now = trio.current_time()
        self._keepalive.heard(self._now)
        self._receipts.forget(self._now)
        self._receiving = True
        events = engine.receive(data, self._now, frames_max=FRAMES_PER_TURN)
        self._receiving = False
        if events:
            self._handle(events)
        if engine.ready_bytes or engine.queued_bytes or engine.failed:
            self._output.set()
        if engine.ready_bytes > _READY_BYTES_FREE:
            await self._room_to_write()
        if (heads := engine.heads).tokens < 0:
            await trio.sleep(min(heads.wait_s(self._now), _PAUSE_SECONDS_MAX))

    async def _room_to_write(self) -> None:
        """Read nothing more while too much waits to be written."""
        engine, account = self._engine, self._account
        while engine.ready_bytes > _READY_BYTES_FREE and not engine.failed:
            self._hold_ready()
            if engine.ready_bytes <= self._limits.outbound_bytes_max and not account.is_full:
                return
            await self._room.wait()

    def _hold_ready(self) -> None:
        """Let bytes that wait to be written count, but for what any connection has."""
        ready = max(0, self._engine.ready_bytes + self._sending_bytes - _READY_BYTES_FREE)
        self._account.hold(ready - self._ready_held)
        self._ready_held = ready

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
                        self._stop(call, expected_one("several"))
            elif isinstance(event, RequestEnded):
                if (call := calls.get(event.stream_id)) is not None:
                    self._request_ended(call)
            elif isinstance(event, StreamReset):
                if (call := calls.get(event.stream_id)) is not None:
                    self._stop(call, GONE)
                elif event.error_code != ErrorCodes.NO_ERROR:
                    self._receipts.refused(event.stream_id)
                if self._engine.queued_bytes <= self._limits.blocked_bytes_max:
                    self._wake_senders()  # what was queued for it may have held them up
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
                _note("connection refused", self.peer, event.reason)
            calls = list(self._calls.values())
            for call in calls[:STOPS_PER_TURN]:
                self._stop(call, GONE)
            if calls[STOPS_PER_TURN:]:
                self._serving.calls.start_soon(self._stop_all, calls[STOPS_PER_TURN:], GONE)
            self._wake_senders()
            self._room.set()
        elif isinstance(event, PingAcknowledged):
            if event.payload == RECEIPT:
                if self._receipts.confirmed(self._now):
                    self._output.set()
                self._keepalive.wake_at(self._now + RESET_AFTER_SECONDS)
            elif event.payload == _DRAINING:
                self._drain_acknowledged.set()
        elif isinstance(event, PeerGoingAway):
            self._is_draining = self._last = True
            self._output.set()
        elif isinstance(event, FloodNoticed):
            _note("flood, connection drained", self.peer, event.reason)
            self._is_draining = self._last = True
            self._output.set()
            if self._nursery is not None:
                self._nursery.start_soon(self._calm)
        elif isinstance(event, RequestMalformed):
            log.debug("request refused", peer=self.peer, reason=event.reason)
            call = Call(self, event.stream_id, _MALFORMED, UNKNOWN, self._now)
            self._serving.begin(call)
            call.finished = True
            self._serving.finish(call, StatusCode(event.code))

    def _request_received(self, stream_id: int, head: RequestHead) -> None:
        serving = self._serving
        route = serving.routes.get(head.path, UNKNOWN_ROUTE)
        call = Call(self, stream_id, head, route.method, self._now)
        self._calls[stream_id] = call
        self._account.calls += 1
        serving.begin(call)
        refusal = head.refusal or self._refusal(call)
        if refusal is not None:
            self._finish(call, refusal)
        elif route.method.streams_requests:
            self._start(call)
        else:
            self._unstarted.append(call)

    def _refusal(self, call: Call) -> Status | None:
        """Return why the call must not reach its handler, or None."""
        account, in_flight = self._account, len(self._serving.in_flight)
        if account.calls > account.calls_max:
            return _CALLS_TAKEN
        if in_flight > self._limits.calls_max and account.calls > account.equal_calls:
            return _FULL
        refusal = self._serving.refusal(call)
        if refusal is None and not self.proven and not self._serving.is_open(call):
            self.proven = True
            self.prove()
        return refusal

    def _request_ended(self, call: Call) -> None:
        if not call.method.streams_requests and not call.messages_waiting:
            self._stop(call, expected_one("none"))
            return
        call.end_request()
        if not call.started:
            self._start(call)

    # --- writing ------------------------------------------------------------------------

    async def _write(self, nursery: trio.Nursery) -> None:
        engine, transport, receipts = self._engine, self._transport, self._receipts
        while True:
            data = engine.take()
            self._sending_bytes = len(data)
            if self._ready_held or len(data) > _READY_BYTES_FREE:
                self._hold_ready()
            # What a connection that has failed still had queued is gone, and did not leave.
            ping = b"" if receipts.idle or engine.failed else receipts.leaving(engine.streams)
            data += ping
            if data:
                with trio.move_on_after(self._limits.stall_seconds) as patience:
                    await transport.send_all(data)
                if patience.cancelled_caught:
                    _note("client takes nothing, dropped", self.peer)
                    self.drop()
                    return  # half a frame may be out: nothing sound can follow
                receipts.left()
                if ping:
                    self._keepalive.asked()
                self._room.set()
                self._wake_senders()
            elif engine.failed or (self._last and not engine.streams and not self._calls):
                break
            else:
                await self._output.wait()
        nursery.cancel_scope.deadline = trio.current_time() + self._limits.flush_seconds
        await transport.send_eof()


def _nobody() -> None:
    pass


def _note(event: str, peer: str, reason: str = "") -> None:
    """Log what a client did to its connection; the same of many clients is one line a minute."""
    log.limited(f"{event} {reason}", event, level=logging.INFO, peer=peer, reason=reason)
