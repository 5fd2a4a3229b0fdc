"""The calls of a connection: each is started, answered and, if it has to be, stopped."""

import trio
from h2.errors import ErrorCodes
from purerpc import StatusCode

from globalstore.rpc.call import Call
from globalstore.rpc.dispatch import internal, status_of
from globalstore.rpc.engine import Engine
from globalstore.rpc.keepalive import Keepalive
from globalstore.rpc.receipts import Receipts
from globalstore.rpc.serving import Serving
from globalstore.rpc.status import DRAINING, OK, SHARE_TAKEN, Status
from globalstore.rpc.wakeup import Wakeup

# Calls stopped before others get a turn when a connection with many ends: cancelling one and the
# end of its task take some 30 microseconds.
STOPS_PER_TURN = 32

GONE = Status(StatusCode.CANCELLED, "the client reset the call or disconnected")
# Whatever an address holds, smaller answers are sent.
_LARGE_ANSWER_BYTES = 64 << 10

_UNREAD = Status(
    StatusCode.RESOURCE_EXHAUSTED, f"the call was carried out, but of its answer: {SHARE_TAKEN}"
)
_STOPPED = Status(StatusCode.UNAVAILABLE, DRAINING)


class CallingHalf:
    """What a connection does for its calls."""

    def __init__(self, serving: Serving, peer: str, address: str) -> None:
        now = trio.current_time()
        self.peer = peer
        self.peer_names: frozenset[str] = frozenset()
        self.draining = serving.draining
        # Whether a call was made that not everybody may make.
        self.proven = False
        self._serving = serving
        self._limits = serving.limits
        self._account = serving.ledger.account(address)
        # Whose calls take turns with others': an address, or one of the connections of a proxy.
        self.turn = peer if self._account.shared else address
        self._engine = Engine(serving.limits, self._account, now, serving.bytes_max)
        self._in_answer_turn: set[Call] = set()
        self._keepalive = Keepalive(serving.options, now)
        self._receipts = Receipts(serving.limits.receipts_max, serving.take_back)
        self._calls: dict[int, Call] = {}
        self._senders: set[Call] = set()
        self._output = Wakeup()
        self._parked = 0
        self._now = now

    @property
    def busy(self) -> bool:
        """Whether a call is in flight."""
        return bool(self._calls)

    @property
    def suspect(self) -> bool:
        """Whether the client has left a ping unanswered for longer than a network takes."""
        return self._keepalive.suspect

    def park(self, calls: int) -> None:
        """Take in that so many calls more, or fewer if negative, only wait for something."""
        self._parked += calls
        self._keepalive.watch_closely(bool(self._parked))

    def _start(self, call: Call) -> None:
        call.started = True
        if not self._answered_fast(call):
            self._serving.calls.start_soon(self._run, call)

    def _answered_fast(self, call: Call) -> bool:
        """Answer a call here and now if its method can."""
        route = self._serving.route(call)
        if route.fast_path is None or route.admission is None or call.deadline <= self._now:
            return False
        request = call.whole_request
        if (
            not isinstance(request, bytes)  # what is large comes as a bytearray
            or self._engine.queued_bytes > self._limits.blocked_bytes_max
        ):
            return False
        status = OK
        try:
            call.take()
            call.request = route.admission.at_once(request)
            call.reply = route.fast_path(call.request, call)
            if call.reply is None:
                call.request.DiscardUnknownFields()
                return False
        except Exception as error:  # noqa: BLE001 - it ends this call alone
            status = status_of(call, error, self._serving.map_error)
        self._finish(call, status)
        if self._engine.stream_queued_bytes(call.stream_id):
            self._serving.calls.start_soon(self._flushed, call)
        return True

    def _stop(self, call: Call, status: Status) -> None:
        if call.started:
            call.cancel(status)
        else:
            self._finish(call, status)

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
                await serving.route(call).serve(call)
            status = call.interruption or OK
        except Exception as error:  # noqa: BLE001 - every failure of a handler ends its call alone
            status = status_of(call, error, serving.map_error)
        finally:
            self._finish(call, status)
        if self._engine.stream_queued_bytes(call.stream_id):
            await self._flushed(call)

    async def _stop_all(self, calls: list[Call], status: Status) -> None:
        """Stop calls, however many, in turns."""
        for number, call in enumerate(calls, 1):
            self._stop(call, status)
            if number % STOPS_PER_TURN == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def _whole_request(self, call: Call) -> None:
        bytes_max = self._serving.route(call).bytes_max
        with trio.move_on_after(self._limits.patience_s(bytes_max)) as patience:
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
        if call.stream_id in self._engine.streams:
            self._engine.reset(call.stream_id, ErrorCodes.CANCEL)
            self._receipts.refused(call.stream_id)
            self._output.set()

    def _finish(self, call: Call, status: Status) -> None:
        if call.finished:
            return
        call.finished = True
        self._calls.pop(call.stream_id, None)
        account = self._account
        account.calls -= 1
        if not account.connections:
            account.ledger.tidy(account)
        if call in self._in_answer_turn:
            self._in_answer_turn.remove(call)
            account.answer_turn.release()
        if (
            status.code is StatusCode.OK
            and call.reply is not None
            and len(call.reply) > _LARGE_ANSWER_BYTES
            and not account.has_room(len(call.reply))
        ):
            status = _UNREAD
        try:
            queued = self._answer(call, status)
        except ValueError as error:
            # Nothing was sent: metadata is encoded before the first byte of an answer.
            status = internal(call, error)
            queued = self._engine.send_trailers(call.stream_id, status.code.value, status.message)
        if call.undo is not None:
            undo, call.undo = call.undo, None
            # Whoever is told anything but OK has been handed out nothing.
            if queued and status.code is StatusCode.OK:
                self._receipts.expect(call.stream_id, undo)
            else:
                self._serving.take_back(undo)
        self._output.set()
        if not self._calls:
            self._keepalive.idle_since = trio.current_time()
        heads = self._engine.heads
        if heads.tokens < heads.cap and self.proven:
            heads.earn(self._limits.head_bytes_per_call)
        self._serving.finish(call, status.code)

    def _answer(self, call: Call, status: Status) -> bool:
        """Queue how the call ends; False if its client has ended it already.

        Raises ValueError for metadata that cannot be sent.
        """
        engine, stream_id = self._engine, call.stream_id
        trailing = tuple(call.trailing_metadata)
        if status.code is not StatusCode.OK:
            return engine.send_trailers(
                stream_id, status.code.value, status.message, status.trailers + trailing
            )
        if call.reply is not None:
            return engine.send_unary(stream_id, call.reply, tuple(call.initial_metadata), trailing)
        return engine.send_trailers(stream_id, 0, "", trailing, tuple(call.initial_metadata))

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

    def _wake_senders(self) -> None:
        """Let calls that wait for the client to take something look again."""
        for call in list(self._senders):
            call.writable.set()

    def hold(self, call: Call, size: int) -> bool:
        """Take in that a call's request takes ``size`` bytes more; False if that is too much."""
        return self._engine.hold(call.stream_id, size)

    async def answer_turn(self, call: Call) -> None:
        """Wait for the turn to make a large answer; it ends with the call.

        Nobody has the turn while its client has yet to take something.
        """
        if call in self._in_answer_turn:
            return
        turn = self._account.answer_turn
        while True:
            await self._taken(call)
            await turn.acquire(self.turn)
            if self._has_taken(call):
                break
            turn.release()
        self._in_answer_turn.add(call)

    def _has_taken(self, call: Call) -> bool:
        account = self._account
        return account.unread_bytes <= account.unread_bytes_max and self._has_room(call)

    async def _taken(self, call: Call) -> None:
        """Wait until the clients of this address have taken most of what they asked for."""
        waiting = self._account.waiting_for_readers
        waiting.add(call.writable.set)
        self._senders.add(call)
        try:
            while not self._has_taken(call):
                await call.writable.wait()
        finally:
            waiting.discard(call.writable.set)
            self._senders.discard(call)

    def consumed(self, call: Call, size: int) -> None:
        """Take in that the handler has read ``size`` bytes: the client may send as much more."""
        engine = self._engine
        engine.credit(call.stream_id, size)
        if engine.ready_bytes:
            self._output.set()


def expected_one(got: str) -> Status:
    """Return the refusal of a request that is not one message."""
    return Status(StatusCode.INVALID_ARGUMENT, f"request: expected one message, got {got}")
