"""The protocol engine: HTTP/2 server state for gRPC, without I/O and without a clock.

Bytes in become events, calls out become bytes. h2's connection class would do this too, at
120 µs a call, most of a call's cost, and it turns faults of one stream into the end of the
connection; its settings, error codes and HPACK are used here, and its client side judges
every byte we write in the tests.
"""

import math
from collections.abc import Mapping

import attrs
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from purerpc import StatusCode

from globalstore.rpc import frames
from globalstore.rpc.blocks import BlockDecoder, http_status_block
from globalstore.rpc.bodies import BodiesHalf
from globalstore.rpc.events import (
    ConnectionFailed,
    Event,
    RequestMalformed,
    RequestReceived,
)
from globalstore.rpc.frames import ConnectionFault
from globalstore.rpc.headers import (
    Fields,
    Malformed,
    RequestHead,
    check_fields,
    list_bytes,
    parse_head,
)
from globalstore.rpc.ledger import Account
from globalstore.rpc.limits import Limits
from globalstore.rpc.messages import MessageReader
from globalstore.rpc.status import SHARE_TAKEN, Status
from globalstore.rpc.streams import Stream

# A call that waits, in memory: its task, scope and stream, but for its head and message.
STREAM_BYTES = 16 << 10

# To decode so many bytes of a head that is not remembered takes as long as to look at a frame.
_DECODED_BYTES_PER_FRAME = 256

_CROWDED = Status(StatusCode.UNAVAILABLE, SHARE_TAKEN)


class Engine(BodiesHalf):
    """One HTTP/2 connection, seen from the server.

    ``receive`` never raises: whatever the client sends, the worst is a ConnectionFailed event.
    """

    def __init__(
        self,
        limits: Limits,
        account: Account,
        now: float,
        bytes_max: Mapping[str, int] | None = None,
    ) -> None:
        """Make the engine of one connection; ``account`` is that of its address.

        ``now`` in seconds. ``bytes_max`` are the largest messages of each path; others take none.
        """
        super().__init__(limits, account, now)
        self._bytes_max = bytes_max or {}
        self._bytes_max_of_others = limits.message_bytes_max if bytes_max is None else 0
        self._decoder = BlockDecoder(limits.header_list_bytes_fatal)
        self._buffer = b""
        self._preface_left = frames.PREFACE
        self._failed = False
        # Frames that were looked at last: what that cost, whatever the bytes.
        self.frames_read = 0
        # Whether whole frames may be left to look at.
        self.is_pending = False
        # The header block that CONTINUATION frames are still to complete.
        self._block_stream_id = 0
        self._block_flags = 0
        self._block_frames = 0
        self._block = bytearray()
        self._on_frame = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    def start(self) -> None:
        """Queue the server's preface: its SETTINGS and the connection's window."""
        limits = self._limits
        self._control(
            frames.settings(
                (
                    (SettingCodes.ENABLE_PUSH, 0),
                    (SettingCodes.MAX_CONCURRENT_STREAMS, limits.streams_max),
                    (SettingCodes.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (SettingCodes.MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
                )
            )
        )
        if (more := self._receive_window - frames.WINDOW_DEFAULT) > 0:
            self._control(frames.window_update(0, more))

    @property
    def preface_read(self) -> bool:
        """Whether the client's preface has arrived, or something that is none."""
        return self._settings_read or self._failed

    @property
    def failed(self) -> bool:
        """Whether the connection is beyond use but for sending what is queued."""
        return self._failed

    @property
    def buffered_bytes(self) -> int:
        """Bytes kept of a frame or header block that is not complete."""
        return len(self._buffer) + len(self._block)

    def receive(self, data: bytes, now: float, *, frames_max: float = math.inf) -> list[Event]:
        """Take bytes from the client at ``now`` seconds; return what they mean.

        Stops after ``frames_max`` frames, or fewer that cost as much; then ``is_pending`` is True,
        and the rest is looked at when this is called again, with more bytes or none.
        """
        self._now = now
        if not self._failed:
            try:
                self._consume(self._buffer + data if self._buffer else data, frames_max)
            except ConnectionFault as fault:
                self.fail(fault.code, fault.reason)
        return self.events()

    def events(self) -> list[Event]:
        """Return the events that came about outside ``receive`` and were not returned yet."""
        events, self._events = self._events, []
        return events

    def fail(self, code: int, reason: str) -> None:
        """End the connection with a GOAWAY; streams are dropped, nothing more is read."""
        if not self._failed:
            self._failed = True
            self._buffer = b""
            self._drop_block()
            self._control(frames.goaway(self.highest_stream_id, code, reason))
            for stream in list(self.streams.values()):
                self._forget(stream)
            self._events.append(ConnectionFailed(code, reason))

    # --- frames -------------------------------------------------------------------------

    def _consume(self, data: bytes, frames_max: float) -> None:
        position = 0
        self.is_pending = False
        if self._preface_left:
            position = self._consume_preface(data)
        end = len(data)
        self.frames_read = 0
        while end - position >= frames.HEADER_BYTES:
            high, low, kind, flags, stream_id = frames.read_header(data, position)
            size = high << 8 | low
            if size > frames.FRAME_BYTES_MAX:
                raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, f"frame of {size} bytes")
            body = position + frames.HEADER_BYTES
            if end - body < size:
                break
            if self.frames_read >= frames_max:
                self.is_pending = True
                break
            position = body + size
            self.frames_read += 1
            stream_id &= frames.STREAM_ID_MAX
            if self._block_stream_id and (
                kind != frames.CONTINUATION or stream_id != self._block_stream_id
            ):
                raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "frame within a header block")
            if not self._settings_read and (kind != frames.SETTINGS or flags & frames.ACK):
                raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "expected SETTINGS first")
            if kind <= frames.CONTINUATION:
                self._on_frame[kind](flags, stream_id, data[body:position])
                if self._failed:
                    return
            else:
                self._spend()
        self._buffer = data[position:]

    def _consume_preface(self, data: bytes) -> int:
        expected = self._preface_left[: len(data)]
        if data[: len(expected)] != expected:
            raise ConnectionFault(
                ErrorCodes.PROTOCOL_ERROR, "expected the HTTP/2 preface; is this another protocol?"
            )
        self._preface_left = self._preface_left[len(expected) :]
        return len(expected)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "HEADERS on a stream of ours")
        if flags & frames.PADDED:
            payload = frames.without_padding(flags, payload)
        if flags & frames.PRIORITY_FLAG:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, "HEADERS without its priority")
            payload = payload[5:]  # priorities are not heeded
        if flags & frames.END_HEADERS:
            self._header_block(stream_id, flags, payload)
        else:
            self._block_stream_id = stream_id
            self._block_flags = flags
            self._block_frames = 0
            self._block += payload
            self._account.hold(len(payload))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_stream_id:
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block_frames += 1
        self._block += payload
        self._account.hold(len(payload))
        if (
            self._block_frames > self._limits.continuations_max
            or len(self._block) > self._limits.header_list_bytes_fatal
        ):
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, "header block over its bounds")
        if flags & frames.END_HEADERS:
            block = bytes(self._block)
            self._drop_block()
            self._block_stream_id = 0
            self._header_block(stream_id, self._block_flags, block)

    def _drop_block(self) -> None:
        self._account.hold(-len(self._block))
        self._block.clear()

    def _header_block(self, stream_id: int, flags: int, block: bytes) -> None:
        ended = bool(flags & frames.END_STREAM)
        if stream_id > self.highest_stream_id:
            self.highest_stream_id = stream_id
            self._open(stream_id, block, ended=ended)
            return
        fields, _ = self._decode(block)  # always: both tables must stay the same
        stream = self.streams.get(stream_id)
        if stream is None:
            self._spend()
            if stream_id not in self._reset_by_us:
                self._control(frames.rst_stream(stream_id, ErrorCodes.STREAM_CLOSED))
        elif stream.ended:
            self._reset_for_fault(stream, ErrorCodes.STREAM_CLOSED)
        else:
            try:
                check_fields(fields, trailers=True)
            except Malformed:
                ended = False
            if ended:
                self._request_ended(stream)
            else:
                self._reset_for_fault(stream, ErrorCodes.PROTOCOL_ERROR)

    def _open(self, stream_id: int, block: bytes, *, ended: bool) -> None:
        head = self._decoder.recall(block)
        head_bytes = 0  # what is remembered is shared
        if head is None:
            fields, steady = self._decode(block)
            head_bytes = list_bytes(fields)
            if head_bytes > self._limits.header_list_bytes_max:
                # Decoding it took long, and the more so the larger it is.
                self._spend_reset(head_bytes // self._limits.header_list_bytes_max)
            if stream_id > self._last_accepted_id:
                return self._refuse_stream(stream_id, ErrorCodes.REFUSED_STREAM, "going away")
            try:
                head = parse_head(fields, self._limits.header_list_bytes_max)
            except Malformed as fault:
                return self._refuse_stream(stream_id, ErrorCodes.PROTOCOL_ERROR, str(fault))
            if steady and self._decoder.remember(block, head, head_bytes):
                head_bytes = 0
        if stream_id > self._last_accepted_id:
            return self._refuse_stream(stream_id, ErrorCodes.REFUSED_STREAM, "going away")
        if len(self.streams) >= self._limits.streams_max:
            return self._refuse_stream(stream_id, ErrorCodes.REFUSED_STREAM, "too many streams")
        self._control_frames.earn(self._limits.control_frames_per_request)
        stream = Stream(
            self,
            stream_id,
            head,
            reader=MessageReader(self._bytes_max.get(head.path, self._bytes_max_of_others)),
            receive_window=self._limits.stream_window_bytes,
            send_window=self._peer.initial_window_size,
            opened_at=self._now,
        )
        self.streams[stream_id] = stream
        if len(self.streams) * 2 > self._resets.cap:
            self._resets.raise_cap(2)  # ending all calls at once is ordinary
        if head.refusal is None and not self._account.has_room(STREAM_BYTES + head_bytes):
            head = attrs.evolve(head, refusal=_CROWDED)
        if head.http_status is not None:
            return self._answer_http(stream, head, ended=ended)
        self._events.append(RequestReceived(stream_id, head))
        self._hold(stream, STREAM_BYTES + head_bytes)
        if head.refusal is not None:
            stream.discard = True
        if ended:
            self._request_ended(stream)
        return None

    def _decode(self, block: bytes) -> tuple[Fields, bool]:
        """Decode a block that is not remembered; its size is owed for, see ``heads_wait_s``."""
        fields, steady = self._decoder.decode(block)
        size = len(block) + list_bytes(fields)
        self.heads.owe(self._now, size)
        self.frames_read += size // _DECODED_BYTES_PER_FRAME
        return fields, steady

    def _answer_http(self, stream: Stream, head: RequestHead, *, ended: bool) -> None:
        stream.ended = ended
        self._headers(stream, http_status_block(head.http_status or 415), end=True)
        self._closed(stream)
        self._spend_reset()
        reason = f"not gRPC, answered HTTP {head.http_status}"
        self._events.append(RequestMalformed(stream.id, StatusCode.UNIMPLEMENTED.value, reason))

    def _refuse_stream(self, stream_id: int, code: ErrorCodes, reason: str) -> None:
        self._control(frames.rst_stream(stream_id, code))
        self._remember_reset(stream_id)
        refused = code is ErrorCodes.REFUSED_STREAM
        # A client that has not seen our bounds or our GOAWAY yet may rightly exceed them.
        if refused:
            self._spend()
        else:
            self._spend_reset()
        status = StatusCode.UNAVAILABLE if refused else StatusCode.INVALID_ARGUMENT
        self._events.append(RequestMalformed(stream_id, status.value, reason))
