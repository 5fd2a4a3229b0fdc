"""What the engine reports: small immutable values."""

from typing import NamedTuple

from globalstore.rpc.headers import RequestHead


class RequestReceived(NamedTuple):
    """A call has begun."""

    stream_id: int
    head: RequestHead


class MessageReceived(NamedTuple):
    """One whole message of a call; ``compressed`` as its prefix said."""

    stream_id: int
    payload: bytes | bytearray
    compressed: bool


class RequestEnded(NamedTuple):
    """The client has sent all it will send on this call."""

    stream_id: int


class RequestFaulted(NamedTuple):
    """The call cannot go on and must be answered with this gRPC code and text."""

    stream_id: int
    code: int
    message: str


class RequestMalformed(NamedTuple):
    """A request that never became a call; the engine has answered it.

    ``code`` is the gRPC code that describes it best.
    """

    stream_id: int
    code: int
    reason: str


class StreamReset(NamedTuple):
    """The client, or a fault of its, has reset the stream; it may have been answered already."""

    stream_id: int
    error_code: int


class PingAcknowledged(NamedTuple):
    """The answer to a ping of ours."""

    payload: bytes


class PeerGoingAway(NamedTuple):
    """The client will open no more streams; calls in flight go on."""

    error_code: int


class FloodNoticed(NamedTuple):
    """The client sends too much that is no call: a GOAWAY is ready, no new call is taken."""

    reason: str


class ConnectionFailed(NamedTuple):
    """The last event of a connection: a GOAWAY that says why is ready to be sent."""

    error_code: int
    reason: str


Event = (
    RequestReceived
    | MessageReceived
    | RequestEnded
    | RequestFaulted
    | RequestMalformed
    | StreamReset
    | PingAcknowledged
    | PeerGoingAway
    | FloodNoticed
    | ConnectionFailed
)
