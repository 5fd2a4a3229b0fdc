"""The sending half of the engine: calls out become bytes, within the client's windows."""

from collections import OrderedDict, deque

from h2.errors import ErrorCodes

from globalstore.rpc import frames
from globalstore.rpc.blocks import (
    RESPONSE,
    TABLE_SIZE_ZERO,
    TRAILERS_OK,
    metadata_block,
    trailers_block,
)
from globalstore.rpc.ledger import Account
from globalstore.rpc.status import Metadata
from globalstore.rpc.streams import Stream

# One write: long enough to make system calls rare, short enough that a small answer never
# waits behind a large one and the event loop is not held.
TAKE_BYTES = 256 << 10
# Streams we reset are remembered so that frames the client had under way are no fault of its.
# Four times the usual streams of a connection.
RESETS_REMEMBERED_MAX = 1024

_RESPONSE_FRAME = len(RESPONSE).to_bytes(3, "big") + b"\x01\x04"
_TRAILERS_OK_FRAME = len(TRAILERS_OK).to_bytes(3, "big") + b"\x01\x05"


class SendingHalf:
    """Output of one connection. Small answers become frames at once; long ones take turns."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._ledger = account.ledger
        self.streams: dict[int, Stream] = {}
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._table_zeroed = False
        self._send_window = frames.WINDOW_DEFAULT
        self._frame_bytes_max = frames.FRAME_BYTES_MAX
        self._round: OrderedDict[Stream, None] = OrderedDict()
        self._reset_by_us: set[int] = set()
        self._reset_order: deque[int] = deque()
        # Bytes of messages that no frame carries yet.
        self.queued_bytes = 0

    @property
    def ready_bytes(self) -> int:
        """Bytes of frames that wait to be taken."""
        return self._out_bytes

    def stream_queued_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a call no frame carries yet; 0 if the call is over."""
        stream = self.streams.get(stream_id)
        return stream.outgoing_bytes if stream is not None else 0

    def take(self) -> bytes:
        """Return what may be sent now, at most about ``TAKE_BYTES``; empty if nothing may."""
        if self._round and self._send_window > 0:
            self._fill()
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    def send_headers(self, stream_id: int, metadata: Metadata = ()) -> bool:
        """Send the response's head. False if the call is over and nothing was sent."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if not stream.headers_sent:
            block = RESPONSE + metadata_block(metadata) if metadata else RESPONSE
            self._headers(stream, block, end=False)
        return True

    def send_message(self, stream_id: int, payload: bytes) -> bool:
        """Send one message, its head first if need be. False if the call is over."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        if not stream.headers_sent:
            self._headers(stream, RESPONSE, end=False)
        self._message(stream, payload)
        return True

    def send_unary(
        self, stream_id: int, payload: bytes, initial: Metadata = (), trailing: Metadata = ()
    ) -> bool:
        """Send a whole successful answer. False if the call is over and nothing was sent."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return False
        size = len(payload) + 5
        if (
            initial
            or trailing
            or not self._table_zeroed
            or stream.headers_sent
            or size > stream.send_window
            or size > self._send_window
            or size > self._frame_bytes_max
            or self._round
        ):
            tail = trailers_block(0, "", trailing)
            self.send_headers(stream_id, initial)
            self._message(stream, payload)
            if stream_id not in self.streams:
                return False  # all clients together hold too much, and this call most
            self._finish(stream, tail)
            return True
        stream.send_window -= size
        self._send_window -= size
        sid = stream_id.to_bytes(4, "big")
        data = b"%b%b%b%b\x00\x00%b\x00%b%b%b%b%b" % (
            _RESPONSE_FRAME,
            sid,
            RESPONSE,
            size.to_bytes(3, "big"),
            sid,
            (size - 5).to_bytes(4, "big"),
            payload,
            _TRAILERS_OK_FRAME,
            sid,
            TRAILERS_OK,
        )
        self._out.append(data)
        self._out_bytes += len(data)
        self._closed(stream)
        return True

    def send_trailers(
        self,
        stream_id: int,
        code: int,
        message: str = "",
        metadata: Metadata = (),
        initial: Metadata = (),
    ) -> bool:
        """End a call with a status, after what was sent before. False if the call is over.

        ``initial`` is sent ahead of it if no message was. Raises ValueError, having sent
        nothing, if metadata holds what a header may not.
        """
        stream = self.streams.get(stream_id)
        if stream is None or stream.tail is not None:
            return False
        block = trailers_block(code, message, metadata)
        if initial:
            self.send_headers(stream_id, initial)
        self._finish(stream, block)
        return True

    def reset(self, stream_id: int, error_code: int) -> None:
        """End a stream at once; what was queued on it is dropped."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._control(frames.rst_stream(stream_id, error_code))
            self._forget(stream)
            self._remember_reset(stream_id)

    def ping(self, payload: bytes) -> None:
        """Ask the client for a sign of life; ``payload`` is eight bytes."""
        self._control(frames.ping(payload))

    def _control(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def _headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        if not self._table_zeroed:
            self._table_zeroed = True
            block = TABLE_SIZE_ZERO + block
        stream.headers_sent = True
        for data in frames.header_frames(stream.id, block, self._frame_bytes_max, end=end):
            self._control(data)

    def _message(self, stream: Stream, payload: bytes) -> None:
        size = len(payload) + 5
        first = self._frame_bytes_max - 5  # the rest of a large message is not copied
        data = b"\x00%b%b" % (len(payload).to_bytes(4, "big"), payload[:first])
        if (
            not stream.outgoing
            and not self._round
            and size <= self._frame_bytes_max
            and size <= stream.send_window
            and size <= self._send_window
        ):
            self._data(stream, data)
            return
        if not stream.outgoing:
            if stream.send_window > 0:
                self._round[stream] = None
            else:
                stream.parked = True
        stream.outgoing.append(memoryview(data))
        if len(payload) > first:
            stream.outgoing.append(memoryview(payload)[first:])
        stream.outgoing_bytes += size
        self.queued_bytes += size
        self._account.unread(size)
        self._hold(stream, size)

    def _data(self, stream: Stream, data: bytes | memoryview) -> None:
        stream.send_window -= len(data)
        self._send_window -= len(data)
        self._control(frames.frame(frames.DATA, 0, stream.id, bytes(data)))

    def _fill(self) -> None:
        """Let the streams with queued messages take turns, a frame each."""
        rotation = self._round
        while rotation and self._send_window > 0 and self._out_bytes < TAKE_BYTES:
            stream, _ = rotation.popitem(last=False)
            chunk = stream.outgoing[0]
            size = min(len(chunk), stream.send_window, self._send_window, self._frame_bytes_max)
            if size <= 0:
                stream.parked = True
                continue
            self._data(stream, chunk[:size])
            stream.outgoing_bytes -= size
            self.queued_bytes -= size
            self._account.unread(-size)
            self._hold(stream, -size)
            if size < len(chunk):
                stream.outgoing[0] = chunk[size:]
            else:
                stream.outgoing.popleft()
            if stream.outgoing:
                rotation[stream] = None
            elif stream.tail is not None:
                self._end(stream, stream.tail)

    def _finish(self, stream: Stream, block: bytes) -> None:
        """Queue the trailers: a blocked answer stays registered until it is through."""
        if stream.outgoing:
            stream.tail = block
        else:
            self._end(stream, block)

    def _end(self, stream: Stream, block: bytes) -> None:
        if not stream.headers_sent:
            block = RESPONSE + block  # a status without messages is one header list
        self._headers(stream, block, end=True)
        self._closed(stream)

    def _closed(self, stream: Stream) -> None:
        """Take in that our side has ended the stream; if the client has not, ask it to stop."""
        if not stream.ended:
            self._control(frames.rst_stream(stream.id, ErrorCodes.NO_ERROR))
            self._remember_reset(stream.id)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self._release(stream)
        if stream.outgoing:
            self.queued_bytes -= stream.outgoing_bytes
            self._account.unread(-stream.outgoing_bytes)
            stream.outgoing_bytes = 0
            stream.outgoing.clear()
            if not stream.parked:
                self._round.pop(stream, None)

    def _hold(self, stream: Stream, size: int) -> None:
        """Take in that a call keeps ``size`` bytes more in memory."""
        stream.held_bytes += size
        # As ``Account.hold``, for every call comes here.
        self._account.held_bytes += size
        ledger = self._ledger
        ledger.held_bytes += size
        if ledger.held_bytes > ledger.bytes_max and size > 0:
            ledger.relieve()

    def _release(self, stream: Stream) -> None:
        """Take in that a call keeps nothing any more, or soon will not."""
        self._account.held_bytes -= stream.held_bytes
        self._ledger.held_bytes -= stream.held_bytes
        stream.held_bytes = 0

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_by_us.add(stream_id)
        self._reset_order.append(stream_id)
        if len(self._reset_order) > RESETS_REMEMBERED_MAX:
            self._reset_by_us.discard(self._reset_order.popleft())

    def _unpark(self, stream: Stream) -> None:
        if stream.parked and stream.send_window > 0:
            stream.parked = False
            if stream.outgoing:
                self._round[stream] = None
