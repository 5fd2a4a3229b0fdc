"""A client that makes one call after another and waits for each: what a command needs of gRPC.

The client of daemons stands on trio and purerpc, which take longer to import than a command takes
to be answered. This one needs a socket and hpack.
"""

import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hpack import Decoder, Encoder, HPACKError

import globalstore

if TYPE_CHECKING:
    import ssl

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

# Names of the status codes of gRPC, by number.
_STATUS_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

# Types and flags of HTTP/2 frames, and the settings that are of interest (RFC 9113). The server's
# module for them is part of a package that imports all of the server's side.
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_WINDOW_UPDATE, _CONTINUATION = 8, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _HAS_PRIORITY = 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW = 2, 4
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_BYTES_MAX: Final = 16384
_WINDOW_DEFAULT: Final = 65535
_HEADER_BYTES: Final = 9
_header = struct.Struct(">HBBBL")
_setting = struct.Struct(">HL")
_long = struct.Struct(">L")

# An answer has a thousand entries at most, a few hundred bytes each.
ANSWER_BYTES_MAX: Final = 64 << 20

# No answer's headers are longer; ours have some hundred bytes.
_BLOCK_BYTES_MAX: Final = 64 << 10

# The window that the server gets, for a call and for all of them together: the protocol's greatest,
# so that nothing has to be granted anew while a command lasts.
_WINDOW: Final = (1 << 31) - 1

# No message has been compressed, and its length follows.
_prefix = struct.Struct(">BL")


class CallFailed(Exception):
    """The server answered with an error: the name of its status, and its text."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class BlockingConnection:
    """A connection on which one call is made at a time. Use as ``with``.

    ``patience_s`` is how long connecting and all calls may take together; afterwards TimeoutError
    is raised, with an ``errno`` of None. ``metadata`` goes with every call. Whatever else happens
    to a connection is an OSError.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: "ssl.SSLContext | None",
        metadata: tuple[tuple[str, str], ...],
        patience_s: float,
    ) -> None:
        self._until = time.monotonic() + patience_s
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._scheme = "http" if tls is None else "https"
        self._metadata = metadata
        self._encoder = Encoder()
        self._decoder = Decoder(max_header_list_size=_BLOCK_BYTES_MAX)
        self._received = bytearray()
        self._heard = False
        self._next_id = 1
        # How many bytes may be sent: on the whole connection, and at first in a call.
        self._window = self._first_window = _WINDOW_DEFAULT
        self._socket = self._connect(host, port)
        try:
            if tls is not None:
                self._socket.settimeout(self._left_s())
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            settings = _setting.pack(_ENABLE_PUSH, 0) + _setting.pack(_INITIAL_WINDOW, _WINDOW)
            self._send(
                _PREFACE
                + _frame(_SETTINGS, 0, 0, settings)
                + _frame(_WINDOW_UPDATE, 0, 0, _long.pack(_WINDOW - _WINDOW_DEFAULT))
            )
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def call(self, method: "MethodDescriptor", request: "Message") -> Any:
        """Make a call and return its answer. Raises CallFailed for an answer that is an error."""
        stream_id = self._next_id
        self._next_id += 2
        path = f"/{method.containing_service.full_name}/{method.name}"
        serialized = request.SerializeToString()
        self._send(_frame(_HEADERS, _END_HEADERS, stream_id, self._head(path)))
        try:
            answer = self._converse(stream_id, _prefix.pack(0, len(serialized)) + serialized)
        except struct.error:
            raise ConnectionError("a frame that is too short") from None
        try:
            return GetMessageClass(method.output_type).FromString(answer)
        except DecodeError:
            raise ConnectionError(f"the answer is no {method.output_type.name}") from None

    def _head(self, path: str) -> bytes:
        fields = (
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"globalstore/{globalstore.__version__}"),
            *self._metadata,
        )
        # Never indexed, so that the size of the server's table does not matter.
        return bytes(self._encoder.encode([(*field, True) for field in fields], huffman=False))

    def _converse(self, stream_id: int, unsent: bytes) -> bytes:
        """Send the message of a call as its window allows, and read until the call has ended."""
        window, data, block = self._first_window, bytearray(), bytearray()
        ends = False
        while True:
            while unsent and (size := min(len(unsent), window, self._window, _FRAME_BYTES_MAX)) > 0:
                piece, unsent = unsent[:size], unsent[size:]
                window -= size
                self._window -= size
                self._send(_frame(_DATA, 0 if unsent else _END_STREAM, stream_id, piece))
            kind, flags, of_stream, payload = self._receive()
            if kind == _SETTINGS and not flags & _ACK:
                window += self._take_settings(payload)
            elif kind == _PING and not flags & _ACK:
                self._send(_frame(_PING, _ACK, 0, payload))
            elif kind == _WINDOW_UPDATE:
                if of_stream == stream_id:
                    window += _long.unpack(payload)[0]
                elif of_stream == 0:
                    self._window += _long.unpack(payload)[0]
            elif kind == _GOAWAY and _long.unpack_from(payload)[0] < stream_id:
                raise ConnectionError("the server is leaving")
            elif of_stream != stream_id:
                continue
            elif kind == _RST_STREAM:
                raise ConnectionError("the server broke the call off")
            elif kind == _DATA:
                data += _unpadded(flags, payload)
                if len(data) > ANSWER_BYTES_MAX:
                    raise ConnectionError(f"the answer is longer than {ANSWER_BYTES_MAX} bytes")
                if flags & _END_STREAM:
                    raise ConnectionError("the answer has no status")
            elif kind in {_HEADERS, _CONTINUATION}:
                if kind == _HEADERS:
                    ends = bool(flags & _END_STREAM)
                    payload = _unpadded(flags, payload)
                    block = bytearray(payload[5:] if flags & _HAS_PRIORITY else payload)
                else:
                    block += payload
                if len(block) > _BLOCK_BYTES_MAX:
                    raise ConnectionError("the answer's headers are too long")
                if flags & _END_HEADERS:
                    fields = self._fields(bytes(block))
                    if ends:
                        return _message(fields, bytes(data))

    def _fields(self, block: bytes) -> dict[bytes, bytes]:
        try:
            decoded = self._decoder.decode(block, raw=True)
        except (HPACKError, IndexError) as error:
            raise ConnectionError(f"the answer's headers: {error}") from None
        fields = {bytes(name): bytes(value) for name, value in decoded}
        status = fields.get(b":status", b"200")
        if status != b"200":
            raise ConnectionError(f"no gRPC, but HTTP status {status.decode('latin-1')}")
        return fields

    def _take_settings(self, payload: bytes) -> int:
        """Acknowledge the server's settings; return by how much open windows grow."""
        before = self._first_window
        for key, value in _setting.iter_unpack(payload[: len(payload) // 6 * 6]):
            if key == _INITIAL_WINDOW:
                self._first_window = value
        self._send(_frame(_SETTINGS, _ACK, 0, b""))
        return self._first_window - before

    def _connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of the host that can be reached, each in its turn."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        late: OSError | None = None
        for number, (family, kind, protocol, _, address) in enumerate(found):
            reached = socket.socket(family, kind, protocol)
            try:
                reached.settimeout(self._left_s() / (len(found) - number))
                reached.connect(address)
                reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                reached.close()
                late = error if isinstance(error, TimeoutError) else None
            else:
                return reached
        if late is not None and late.errno is None:
            raise late
        raise OSError("All connection attempts failed")

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left_s())
        self._socket.sendall(data)

    def _receive(self) -> tuple[int, int, int, bytes]:
        """Return the next frame: its type, its flags, the number of its call, what it carries."""
        received = self._received
        while True:
            if len(received) >= _HEADER_BYTES:
                high, low, kind, flags, stream_id = _header.unpack_from(received)
                end = _HEADER_BYTES + (high << 8 | low)
                if not self._heard and kind != _SETTINGS:
                    raise ConnectionError("no gRPC, but something else")
                if end > _HEADER_BYTES + _FRAME_BYTES_MAX:
                    raise ConnectionError("a frame that is too long")
                self._heard = True
                if len(received) >= end:
                    payload = bytes(received[_HEADER_BYTES:end])
                    del received[:end]
                    return kind, flags, stream_id & 0x7FFFFFFF, payload
            self._socket.settimeout(self._left_s())
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the connection ended before the answer came")
            received += data

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return _header.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED and payload else payload


def _message(trailers: dict[bytes, bytes], data: bytes) -> bytes:
    """Return the message of a call that has ended. Raises CallFailed."""
    number = trailers.get(b"grpc-status", b"2")
    code = int(number) if number.isdigit() and int(number) < len(_STATUS_NAMES) else 2
    if code:
        text = trailers.get(b"grpc-message", b"").decode("latin-1")
        raise CallFailed(_STATUS_NAMES[code], unquote(text))
    if len(data) < _prefix.size or data[0] or _prefix.unpack_from(data)[1] != len(data) - 5:
        raise ConnectionError("the answer is not one plain message")
    return data[_prefix.size :]
