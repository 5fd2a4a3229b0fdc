"""The control half of the engine: settings, windows, pings, resets, and what they may cost."""

from collections.abc import Callable

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from globalstore.rpc import frames
from globalstore.rpc.events import (
    Event,
    FloodNoticed,
    PeerGoingAway,
    PingAcknowledged,
    StreamReset,
)
from globalstore.rpc.floods import Allowance
from globalstore.rpc.frames import ConnectionFault
from globalstore.rpc.ledger import Account, head_allowance
from globalstore.rpc.limits import Limits
from globalstore.rpc.sending import SendingHalf
from globalstore.rpc.streams import Stream

_KNOWN_SETTINGS = frozenset(
    (
        SettingCodes.HEADER_TABLE_SIZE,
        SettingCodes.ENABLE_PUSH,
        SettingCodes.MAX_CONCURRENT_STREAMS,
        SettingCodes.INITIAL_WINDOW_SIZE,
        SettingCodes.MAX_FRAME_SIZE,
        SettingCodes.MAX_HEADER_LIST_SIZE,
    )
)

# Settings of one frame that one token pays for: there are six of them, and few clients send more.
SETTINGS_PER_TOKEN = 8

# Streams whose windows one token lets SETTINGS change: what other control frames cost at most.
STREAMS_PER_TOKEN = 32


class ControlHalf(SendingHalf):
    """Frames that carry no call: each is checked, paid for and acted upon."""

    def __init__(self, limits: Limits, account: Account, now: float) -> None:
        super().__init__(account)
        self._limits = limits
        self.heads = head_allowance(limits) if account.shared else account.heads
        self._now = now
        self._peer = Settings(client=True)
        self._settings_read = False
        self.highest_stream_id = 0
        self._last_accepted_id = frames.STREAM_ID_MAX
        self._calming = False
        self._events: list[Event] = []
        # Called when an event arises, for an owner that must know outside ``receive``.
        self.interrupt: Callable[[], None] = _nobody
        self._control_frames = Allowance(
            limits.control_frames_max, limits.control_frames_per_second, now
        )
        self._resets = Allowance(limits.resets_max, limits.resets_per_second, now)

    def _forget(self, stream: Stream) -> None:
        if self._ledger.arriving_bytes:
            self._ledger.arrived(stream)
        super()._forget(stream)

    def _data(self, stream: Stream, data: bytes | memoryview) -> None:
        self._control_frames.earn(self._limits.control_frames_per_request)
        super()._data(stream, data)

    def goaway(self, code: int = 0, reason: str = "", *, final: bool = True) -> None:
        """Tell the client to open no more streams; those it has go on.

        Not ``final``: a warning that still admits streams under way. Final: streams above
        the highest seen so far are not served, and the client knows that it may repeat them.
        """
        if final:
            self._last_accepted_id = min(self._last_accepted_id, self.highest_stream_id)
        self._control(frames.goaway(self._last_accepted_id, code, reason))

    def _spend(self, tokens: int = 1) -> None:
        if not self._control_frames.spend(self._now, tokens):
            self._flooded("more control frames than the calls made justify")

    def _flooded(self, reason: str) -> None:
        """Take no new calls; a client that then floods as much again loses its connection."""
        if self._calming:
            raise ConnectionFault(ErrorCodes.ENHANCE_YOUR_CALM, reason)
        self._calming = True
        self._control_frames.refill()
        self._resets.refill()
        self.goaway(ErrorCodes.ENHANCE_YOUR_CALM, reason)
        self._events.append(FloodNoticed(reason))

    def _reset_for_fault(self, stream: Stream, code: ErrorCodes) -> None:
        """End a stream for its fault, and nothing else."""
        self.reset(stream.id, code)
        self._events.append(StreamReset(stream.id, code))
        self._spend_reset()

    def _spend_reset(self, tokens: int = 1) -> None:
        if not self._resets.spend(self._now, tokens):
            self._flooded("streams are opened and reset too fast")

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, "RST_STREAM not of 4 bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id > self.highest_stream_id or not stream_id & 1:
                raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
            # It crossed our answer, or an attempt to end the stream for a fault.
            self._events.append(StreamReset(stream_id, int.from_bytes(payload, "big")))
            self._spend()
            return
        self._forget(stream)
        self._events.append(StreamReset(stream_id, int.from_bytes(payload, "big")))
        if self._now - stream.opened_at < self._limits.reset_age_seconds:
            self._spend_reset()

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._settings_read = True
        if stream_id or len(payload) % 6 or (flags & frames.ACK and payload):
            code = ErrorCodes.PROTOCOL_ERROR if stream_id else ErrorCodes.FRAME_SIZE_ERROR
            raise ConnectionFault(code, "malformed SETTINGS")
        self._spend(1 + len(payload) // (6 * SETTINGS_PER_TOKEN))
        if flags & frames.ACK:
            return
        peer = self._peer
        window_before = peer.initial_window_size
        for at in range(0, len(payload), 6):
            key = int.from_bytes(payload[at : at + 2], "big")
            if key not in _KNOWN_SETTINGS:
                continue
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            try:
                peer[SettingCodes(key)] = value
            except ProtocolError as error:
                raise ConnectionFault(ErrorCodes(error.error_code), str(error)) from None
        peer.acknowledge()
        self._frame_bytes_max = min(peer.max_frame_size, frames.FRAME_BYTES_MAX)
        if change := peer.initial_window_size - window_before:
            self._spend(len(self.streams) // STREAMS_PER_TOKEN)
            for stream in self.streams.values():
                stream.send_window += change  # may turn negative, and is then waited out
                if stream.send_window > frames.WINDOW_MAX:
                    raise ConnectionFault(ErrorCodes.FLOW_CONTROL_ERROR, "window overflow")
                self._unpark(stream)
        self._control(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCodes.FRAME_SIZE_ERROR, "WINDOW_UPDATE not of 4 bytes")
        self._spend()
        increment = int.from_bytes(payload, "big") & frames.WINDOW_MAX
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > frames.WINDOW_MAX:
                code = ErrorCodes.FLOW_CONTROL_ERROR if increment else ErrorCodes.PROTOCOL_ERROR
                raise ConnectionFault(code, "connection window: bad increment")
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id > self.highest_stream_id or not stream_id & 1:
                raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "WINDOW_UPDATE on idle stream")
            return
        stream.send_window += increment
        if not increment or stream.send_window > frames.WINDOW_MAX:
            code = ErrorCodes.FLOW_CONTROL_ERROR if increment else ErrorCodes.PROTOCOL_ERROR
            self._reset_for_fault(stream, code)
            return
        self._unpark(stream)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != 8:
            code = ErrorCodes.PROTOCOL_ERROR if stream_id else ErrorCodes.FRAME_SIZE_ERROR
            raise ConnectionFault(code, "malformed PING")
        self._spend()
        if flags & frames.ACK:
            self._events.append(PingAcknowledged(payload))
        else:
            self._control(frames.ping(payload, ack=True))

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        self._spend()
        if not stream_id:
            raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "PRIORITY on the connection")
        # RFC 9113 §6.3: a fault of that stream; what priorities say is not heeded any more.
        if len(payload) != 5 and (stream := self.streams.get(stream_id)) is not None:
            self._reset_for_fault(stream, ErrorCodes.FRAME_SIZE_ERROR)

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) < 8:
            code = ErrorCodes.PROTOCOL_ERROR if stream_id else ErrorCodes.FRAME_SIZE_ERROR
            raise ConnectionFault(code, "malformed GOAWAY")
        self._spend()
        self._events.append(PeerGoingAway(int.from_bytes(payload[4:8], "big")))


def _nobody() -> None:
    pass
