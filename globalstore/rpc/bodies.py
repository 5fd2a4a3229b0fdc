"""Requests as they arrive: DATA frames, windows, and what of it is held."""

from h2.errors import ErrorCodes
from purerpc import StatusCode

from globalstore.rpc import frames
from globalstore.rpc.control import ControlHalf
from globalstore.rpc.events import MessageReceived, RequestEnded, RequestFaulted, StreamReset
from globalstore.rpc.frames import ConnectionFault
from globalstore.rpc.ledger import Account
from globalstore.rpc.limits import Limits
from globalstore.rpc.messages import PREFIX_BYTES, MessageFault, MessageReader
from globalstore.rpc.status import SHARE_TAKEN
from globalstore.rpc.streams import Stream

_ALL_FULL = (
    "message: the memory for what clients send and wait for is full (server.limits.max_held_bytes,"
    " max_inbound_buffer_bytes): try again later"
)

# A part of a message that is smaller than this costs what a control frame costs.
_DATA_BYTES_MIN = 64

# What a message costs at least, whatever its size.
_MESSAGE_BYTES_MIN = 256


class BodiesHalf(ControlHalf):
    """Puts the messages of requests together, within windows and bounds."""

    def __init__(self, limits: Limits, account: Account, now: float) -> None:
        super().__init__(limits, account, now)
        self._receive_window = max(limits.connection_window_bytes, frames.WINDOW_DEFAULT)
        self._unreturned = 0

    def credit(self, stream_id: int, size: int) -> None:
        """Hand back window: the handler has read a message of ``size`` bytes."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.unconsumed -= PREFIX_BYTES + size
            if not stream.ended:  # of a stream of messages: those that were read are gone
                self._hold(stream, -max(size, _MESSAGE_BYTES_MIN))
            self._return_window(stream)

    def hold(self, stream_id: int, size: int) -> bool:
        """Take in that a call's request takes ``size`` bytes more; False if that is too much."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._hold(stream, size)
        return not self._account.is_full

    def end_for_memory(self, stream: Stream) -> bool:
        """End a call and let go of its bytes; False if it had ended already. Never raises.

        A message that arrives is RESOURCE_EXHAUSTED, a call that waits or runs UNAVAILABLE; one
        whose answer has begun is reset.
        """
        if self.streams.get(stream.id) is not stream:
            return False
        if stream.headers_sent or stream.outgoing:
            self.reset(stream.id, ErrorCodes.ENHANCE_YOUR_CALM)
            self._events.append(StreamReset(stream.id, ErrorCodes.ENHANCE_YOUR_CALM))
            self.interrupt()
            return True
        if stream.discard:
            return False
        code = StatusCode.UNAVAILABLE if stream.ended else StatusCode.RESOURCE_EXHAUSTED
        self._fault(stream, code, _ALL_FULL)
        self._release(stream)
        return True

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        data = frames.without_padding(flags, payload) if flags & frames.PADDED else payload
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCodes.FLOW_CONTROL_ERROR, "connection window overrun")
        self._unreturned += size
        if self._unreturned * 2 >= self._limits.connection_window_bytes:
            self._control(frames.window_update(0, self._unreturned))
            self._receive_window += self._unreturned
            self._unreturned = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            self._late_frame(stream_id)
            return
        if stream.ended:
            self._reset_for_fault(stream, ErrorCodes.STREAM_CLOSED)
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            self._reset_for_fault(stream, ErrorCodes.FLOW_CONTROL_ERROR)
            return
        stream.unreturned += size
        if data:
            stream.body_bytes += len(data)
            if not stream.discard:
                self._read(stream, data, ended=bool(flags & frames.END_STREAM))
        elif not flags & frames.END_STREAM:
            self._spend()
        if flags & frames.END_STREAM:
            self._request_ended(stream)
        else:
            self._return_window(stream)

    def _read(self, stream: Stream, data: bytes, *, ended: bool) -> None:
        reader = stream.reader
        began = reader.incomplete_bytes
        try:
            messages = reader.feed(data)
        except MessageFault as fault:
            self._hold(stream, reader.incomplete_bytes - began)
            self._fault(stream, fault.code, fault.message)
            return
        rest = reader.incomplete_bytes
        # A whole small request is part of what a call costs anyhow.
        if began or not ended or len(data) > _MESSAGE_BYTES_MIN:
            self._hold(stream, rest - began + sum(_cost(payload) for payload, _ in messages))
            if self._account.is_full and not stream.discard:
                self._fault(stream, StatusCode.RESOURCE_EXHAUSTED, f"message: {SHARE_TAKEN}")
            if stream.discard:
                return
        for payload, compressed in messages:
            if compressed and not stream.head.gzip:
                self._fault(
                    stream,
                    StatusCode.INVALID_ARGUMENT,
                    "message: compressed, but the request names no grpc-encoding",
                )
                return
            stream.unconsumed += PREFIX_BYTES + len(payload)
            self._events.append(MessageReceived(stream.id, payload, compressed))
        if not messages and not ended and len(data) < _DATA_BYTES_MIN:
            self._spend()  # no client sends so little at a time, but for the end of something
        if rest:
            self._ledger.arriving(stream, rest)
        elif began:
            self._ledger.arrived(stream)

    def _request_ended(self, stream: Stream) -> None:
        if self.streams.get(stream.id) is not stream:
            return
        expected = stream.head.content_length
        if expected is not None and expected != stream.body_bytes:
            self._reset_for_fault(stream, ErrorCodes.PROTOCOL_ERROR)
            return
        stream.ended = True
        if stream.discard:
            return
        try:
            stream.reader.finish()
        except MessageFault as fault:
            self._fault(stream, fault.code, fault.message)
        else:
            self._events.append(RequestEnded(stream.id))

    def _return_window(self, stream: Stream) -> None:
        """Hand back what no longer waits: whole messages that were read, parts at once."""
        if stream.ended:
            return
        size = stream.unreturned - max(0, stream.unconsumed)
        if size * 2 >= self._limits.stream_window_bytes:
            self._control(frames.window_update(stream.id, size))
            stream.receive_window += size
            stream.unreturned -= size

    def _late_frame(self, stream_id: int) -> None:
        """Take DATA for no open stream: its bytes were credited, and it cost the client a token."""
        if stream_id > self.highest_stream_id or not stream_id & 1:
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "DATA on a stream never opened")
        self._spend()
        if stream_id not in self._reset_by_us:
            self._control(frames.rst_stream(stream_id, ErrorCodes.STREAM_CLOSED))

    def _fault(self, stream: Stream, code: StatusCode, message: str) -> None:
        stream.discard = True
        self._ledger.arrived(stream)
        self._hold(stream, -stream.reader.incomplete_bytes)
        stream.reader = MessageReader(0)
        self._events.append(RequestFaulted(stream.id, code.value, message))
        self.interrupt()


def _cost(payload: bytes | bytearray) -> int:
    return max(len(payload), _MESSAGE_BYTES_MIN)
