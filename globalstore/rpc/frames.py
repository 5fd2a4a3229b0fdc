"""HTTP/2 frames as bytes: the types, flags and the few frames a server writes (RFC 9113)."""

from collections.abc import Iterable
from struct import Struct

from h2.errors import ErrorCodes

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
# The protocol's least and default: larger frames would only let one message hold the line longer.
FRAME_BYTES_MAX = 16384
WINDOW_MAX = (1 << 31) - 1
STREAM_ID_MAX = (1 << 31) - 1
WINDOW_DEFAULT = 65535

# length (high 16 bits, low 8), type, flags, stream
read_header = Struct(">HBBBL").unpack_from
_header = Struct(">HBBBL").pack
_setting = Struct(">HL").pack
_long = Struct(">L").pack


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCodes, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    length = len(payload)
    return _header(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """Return a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_setting(key, value) for key, value in values))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame for a stream, or for the connection if ``stream_id`` is 0."""
    return frame(WINDOW_UPDATE, 0, stream_id, _long(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return an RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _long(code))


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """Return a PING frame with its eight bytes of payload."""
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: int, reason: str = "") -> bytes:
    """Return a GOAWAY frame; the reason travels as its debug data."""
    return frame(GOAWAY, 0, 0, _long(last_stream_id) + _long(code) + reason.encode()[:200])


def header_frames(stream_id: int, block: bytes, frame_bytes_max: int, *, end: bool) -> list[bytes]:
    """Return a header block as HEADERS and, if it is long, CONTINUATION frames."""
    flags = END_STREAM if end else 0
    if len(block) <= frame_bytes_max:
        return [frame(HEADERS, flags | END_HEADERS, stream_id, block)]
    pieces = [block[i : i + frame_bytes_max] for i in range(0, len(block), frame_bytes_max)]
    return [
        frame(HEADERS, flags, stream_id, pieces[0]),
        *(frame(CONTINUATION, 0, stream_id, piece) for piece in pieces[1:-1]),
        frame(CONTINUATION, END_HEADERS, stream_id, pieces[-1]),
    ]


def without_padding(flags: int, payload: bytes) -> bytes:
    """Return the content of a DATA or HEADERS frame whose padding, if any, is taken off.

    Raises ConnectionFault if the padding is longer than the frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCodes.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[1 : len(payload) - payload[0]]
