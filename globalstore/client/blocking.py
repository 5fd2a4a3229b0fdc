"""A client that makes one call after another and waits for each: what a command needs of gRPC.

The client of daemons stands on trio and purerpc, which take longer to import than a command takes
to be answered. This one needs a socket and h2.
"""

import queue
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import unquote

from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from h2 import events
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

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

# An answer has a thousand entries at most, a few hundred bytes each.
ANSWER_BYTES_MAX: Final = 64 << 20

# The window that the server gets, for a call and for all of them together: the protocol's greatest,
# so that nothing has to be granted anew while a command lasts.
_WINDOW: Final = (1 << 31) - 1
_WINDOW_DEFAULT: Final = 65535

_READ_BYTES: Final = 1 << 16

# The type of a SETTINGS frame, the fourth byte of it.
_SETTINGS: Final = b"\x04"

_UNSEEN: Final = "the server is leaving and has not taken the call"
_LEAVING: Final = "the server is leaving, and what became of the call is not known"

# No message has been compressed, and its length follows.
_prefix = struct.Struct(">BL")


class CallFailed(Exception):
    """The server answered with an error: the name of its status, and its text."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class NotTaken(ConnectionError):
    """The server has not taken the call, so nothing was done."""


class BlockingConnection:
    """A connection on which one call is made at a time. Use as ``with``.

    ``patience_s`` is how long connecting and all calls may take together; afterwards TimeoutError
    is raised, with an ``errno`` of None. ``metadata`` goes with every call. Whatever else happens
    to a connection is an OSError: NotTaken where the server is known not to have taken the call.
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
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="latin-1"))
        self._settings_received = False
        self._socket = self._connect(host, port)
        try:
            if tls is not None:
                self._socket.settimeout(self._left_s())
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            self._h2.initiate_connection()
            self._h2.update_settings(
                {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW}
            )
            self._h2.increment_flow_control_window(_WINDOW - _WINDOW_DEFAULT)
            self._flush()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()

    def call(self, method: "MethodDescriptor", request: "Message") -> Any:
        """Make a call and return its answer. Raises CallFailed for an answer that is an error."""
        serialized = request.SerializeToString()
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            answer = self._converse(path, _prefix.pack(0, len(serialized)) + serialized)
        except ProtocolError as error:
            # h2 takes nothing more once the server has said goodbye, not even answers.
            closed = str(ConnectionState.CLOSED) in str(error)
            raise ConnectionError(_LEAVING if closed else f"broken HTTP/2: {error}") from None
        try:
            return GetMessageClass(method.output_type).FromString(answer)
        except DecodeError:
            raise ConnectionError(f"the answer is no {method.output_type.name}") from None

    def _converse(self, path: str, unsent: bytes) -> bytes:
        """Send the message of a call as its window allows, and read until the call has ended."""
        stream_id = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream_id, self._head(path))
        data, trailers = bytearray(), None
        while True:
            unsent = self._send_some(stream_id, unsent)
            for event in self._receive():
                match event:
                    case events.ConnectionTerminated(last_stream_id=last):
                        if last is not None and last < stream_id:
                            raise NotTaken(_UNSEEN)
                        raise ConnectionError(_LEAVING)
                    case events.StreamReset(stream_id=of) if of == stream_id:
                        raise ConnectionError("the server broke the call off")
                    case events.ResponseReceived():
                        trailers = _fields(event.headers)
                    case events.TrailersReceived():
                        trailers = _fields(event.headers)
                    case events.DataReceived():
                        data += event.data
                        if len(data) > ANSWER_BYTES_MAX:
                            raise ConnectionError(
                                f"the answer is longer than {ANSWER_BYTES_MAX} bytes"
                            )
                    case events.StreamEnded():
                        return _message(trailers or {}, bytes(data))

    def _head(self, path: str) -> list[tuple[str, str]]:
        return [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"globalstore/{globalstore.__version__}"),
            *self._metadata,
        ]

    def _send_some(self, stream_id: int, unsent: bytes) -> bytes:
        """Send what the windows allow; return the rest."""
        while unsent:
            size = min(
                len(unsent),
                self._h2.local_flow_control_window(stream_id),
                self._h2.max_outbound_frame_size,
            )
            if size <= 0:
                break
            piece, unsent = unsent[:size], unsent[size:]
            self._h2.send_data(stream_id, piece, end_stream=not unsent)
        self._flush()
        return unsent

    def _receive(self) -> list[events.Event]:
        self._socket.settimeout(self._left_s())
        data = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the connection ended before the answer came")
        # HTTP/2 begins with SETTINGS; of anything else h2 would wait for a very long frame's end.
        if not self._settings_received and data[3:4] not in {b"", _SETTINGS}:
            raise NotTaken("no gRPC, but something else")
        self._settings_received = True
        received: list[events.Event] = self._h2.receive_data(data)
        return received

    def _flush(self) -> None:
        self._socket.settimeout(self._left_s())
        self._socket.sendall(self._h2.data_to_send())

    def _connect(self, host: str, port: int) -> socket.socket:
        """Connect to one address of the host after the other; raise why the last one failed."""
        found = _addresses(host, port, self._left_s())
        failed: OSError | None = None
        for number, (family, kind, protocol, _, address) in enumerate(found):
            reached = socket.socket(family, kind, protocol)
            try:
                reached.settimeout(self._left_s() / (len(found) - number))
                reached.connect(address)
                reached.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                reached.close()
                failed = error
            else:
                return reached
        raise failed or OSError("the host has no address")

    def _left_s(self) -> float:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


def _addresses(host: str, port: int, patience_s: float) -> list[Any]:
    """Look up a host. A resolver that takes too long is left to itself, in a thread of its own."""
    answers: queue.SimpleQueue[list[Any] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except UnicodeError:
            answers.put(OSError("this cannot be the name of a host"))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=patience_s)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _fields(headers: list[tuple[Any, Any]]) -> dict[str, str]:
    """Return header fields as text. Raises NotTaken for what is no answer of gRPC."""
    fields = {_text(name): _text(value) for name, value in headers}
    status = fields.get(":status", "200")
    if status != "200":
        raise NotTaken(f"no gRPC, but HTTP status {status}")
    return fields


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


def _message(trailers: dict[str, str], data: bytes) -> bytes:
    """Return the message of a call that has ended. Raises CallFailed."""
    number = trailers.get("grpc-status")
    if number is None:
        raise ConnectionError("the answer has no status")
    code = int(number) if number.isdecimal() and int(number) < len(_STATUS_NAMES) else 2
    if code:
        raise CallFailed(_STATUS_NAMES[code], unquote(trailers.get("grpc-message", "")))
    if len(data) < _prefix.size or data[0] or _prefix.unpack_from(data)[1] != len(data) - 5:
        raise ConnectionError("the answer is not one plain message")
    return data[_prefix.size :]
