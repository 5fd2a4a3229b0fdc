"""A strict HTTP/2 client without I/O: the judge of every byte the server writes."""

from typing import Any

import attrs
import h2.config
import h2.connection
import h2.events
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from globalstore.rpc import frames
from globalstore.rpc.engine import Engine
from globalstore.rpc.ledger import Ledger
from globalstore.rpc.limits import Limits

Headers = list[tuple[str, str]]


def message(payload: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message with its prefix."""
    return bytes((compressed,)) + len(payload).to_bytes(4, "big") + payload


def head(path: str = "/test.Echo/Unary", *extra: tuple[str, str]) -> Headers:
    """A request head as gRPC clients send it."""
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *extra,
    ]


@attrs.define
class Answer:
    """What came back on one stream."""

    headers: dict[str, str] = attrs.Factory(dict)
    data: bytes = b""
    trailers: dict[str, str] = attrs.Factory(dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> str | None:
        """The grpc-status, wherever it stood."""
        return self.trailers.get("grpc-status", self.headers.get("grpc-status"))

    @property
    def status_message(self) -> str | None:
        """The grpc-message, wherever it stood."""
        return self.trailers.get("grpc-message", self.headers.get("grpc-message"))


class StrictClient:
    """h2's client side with validation on, and the answers it has collected."""

    def __init__(self, settings: dict[SettingCodes, int] | None = None) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        if settings:
            for key, value in settings.items():
                self.h2.local_settings[key] = value
                self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.events: list[Any] = []
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.credit = True
        self._pending = b""
        self._extra = b""

    def start(self, headers: Headers | None = None, *, end: bool = False) -> int:
        """Open a stream."""
        stream_id = self.h2.get_next_available_stream_id()
        self.answers[stream_id] = Answer()
        self.h2.send_headers(stream_id, headers or head(), end_stream=end)
        return stream_id

    def call(self, payload: bytes = b"", headers: Headers | None = None) -> int:
        """Open a stream, send one message and end it."""
        stream_id = self.start(headers)
        self.h2.send_data(stream_id, message(payload), end_stream=True)
        return stream_id

    def cancel(self, stream_id: int, code: int = ErrorCodes.CANCEL) -> None:
        """Reset a stream, also one whose answer is under way or was read: h2 would not."""
        self._extra += frames.rst_stream(stream_id, code)

    def output(self) -> bytes:
        """Bytes for the server."""
        extra, self._extra = self._extra, b""
        return self.h2.data_to_send() + extra

    def receive(self, data: bytes) -> None:
        """Judge bytes of the server; raises if they break the protocol."""
        self._pending += data
        while len(self._pending) >= 9:
            end = 9 + int.from_bytes(self._pending[:3], "big")
            if len(self._pending) < end:
                break
            frame, self._pending = self._pending[:end], self._pending[end:]
            self._judge(frame)
            # h2 takes a GOAWAY for the end; RFC 9113 §6.8 lets streams in flight go on.
            if self.h2.state_machine.state is ConnectionState.CLOSED:
                self.h2.state_machine.state = ConnectionState.CLIENT_OPEN

    def _judge(self, frame: bytes) -> None:
        for event in self.h2.receive_data(frame):
            self.events.append(event)
            answer = self.answers.get(getattr(event, "stream_id", None) or 0)
            if isinstance(event, h2.events.ConnectionTerminated):
                self.goaway = event
            elif answer is None:
                continue
            elif isinstance(event, h2.events.ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                answer.data += event.data
                if self.credit:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                answer.ended = True
            elif isinstance(event, h2.events.StreamReset):
                answer.reset = int(event.error_code)


class Pair:
    """An engine and a strict client, joined without a network."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        ledger: Ledger | None = None,
        address: str = "10.0.0.1",
        settings: dict[SettingCodes, int] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.ledger = ledger or Ledger(self.limits)
        self.account = self.ledger.account(address)
        self.engine = Engine(self.limits, self.account, 0.0)
        self.account.holders.add(self.engine)
        self.engine.start()
        self.client = StrictClient(settings)
        self.now = 0.0
        self.pump()

    def pump(self) -> list[Any]:
        """Carry bytes both ways until neither side has any; return the engine's events."""
        events: list[Any] = []
        while True:
            up = self.client.output()
            if up:
                events += self.engine.receive(up, self.now)
            down = self.engine.take()
            if down:
                self.client.receive(down)
            if not up and not down:
                return events

    def raw(self, data: bytes) -> list[Any]:
        """Give the engine bytes that no strict client would send, then carry on."""
        return self.engine.receive(data, self.now) + self.pump()
