"""Every bound of the listener, named in one place with its reason."""

from typing import Any

import attrs


def _positive(_: object, field: "attrs.Attribute[Any]", value: float) -> None:
    if not value > 0:
        raise ValueError(f"{field.name}: expected more than 0, got {value!r}")


def _bound(default: float) -> float:
    return attrs.field(default=default, validator=_positive)


def _count(default: int) -> int:
    return attrs.field(default=default, validator=[attrs.validators.instance_of(int), _positive])


@attrs.frozen(kw_only=True)
class Limits:
    """What a client may cost the process. Sizes are bytes, times seconds."""

    # An artifact index or a full inventory must fit; nothing asked of this server is larger.
    message_bytes_max: int = _count(64 << 20)
    # Sum over all connections of messages that have begun and not ended. Without it 16384
    # clients could each hold back the last byte of a 64 MiB message.
    inbound_bytes_max: int = _count(256 << 20)
    # One daemon needs one connection; 16384 leaves a fleet room to reconnect while its old
    # connections still time out, and stays below a common file descriptor limit.
    connections_max: int = _count(16384)
    # gRPC's own libraries default to 8 to 16 KiB of metadata.
    header_list_bytes_max: int = _count(16 << 10)
    # Up to this size a header list is still decoded, so that only its stream is refused;
    # beyond it the compression state is given up and with it the connection. Decoding that
    # much takes 40 ms at worst; proxies, which carry calls of others, let less through.
    header_list_bytes_fatal: int = _count(256 << 10)
    # A header block of the fatal size fits sixteen full frames; more frames are a flood.
    continuations_max: int = _count(64)
    # Out of the way: a client that has so many calls open waits itself, its heartbeats with it.
    # The memory that calls hold ends first.
    streams_max: int = _count(65536)
    # What all clients make the process hold: calls, requests, answers not sent yet. Beyond it
    # whoever holds most loses the largest calls. Thirty thousand calls that wait.
    held_bytes_max: int = _count(512 << 20)
    # The same for the clients of one address: four messages of full size. More is refused.
    held_bytes_per_address_max: int = _count(256 << 20)
    # Calls at a time, those that wait included: one for each of 30 000 daemons.
    calls_max: int = _count(32768)
    # A machine runs a few daemons, and each waits for a few hundred sources at most.
    calls_per_address_max: int = _count(4096)
    # Many command-line tools and probes at once, beside a few daemons.
    connections_per_address_max: int = _count(1024)
    # Heads that have to be decoded: bytes ahead of earning them, by time and by answered call.
    # A client repeats most heads byte for byte, and these cost nothing. Half a MiB a second takes
    # a tenth of a processor at worst; a client that sends more is read more slowly.
    head_bytes_max: int = _count(1 << 20)
    head_bytes_per_second: float = _bound(512 << 10)
    head_bytes_per_call: int = _count(4 << 10)
    # What a client may send on a stream before its handler reads: covers 100 MB/s at 2 ms.
    stream_window_bytes: int = _count(256 << 10)
    # For all streams of a connection together; handed back on receipt, so that one handler
    # that does not read never stops its neighbours.
    connection_window_bytes: int = _count(1 << 20)
    # Bytes ready for a client that does not read; at this mark reading from it stops.
    outbound_bytes_max: int = _count(1 << 20)
    # Bytes of one streaming call that wait for the client's window before send() blocks.
    stream_outbound_bytes_max: int = _count(64 << 10)
    # Answers a client asked for but gives no window to receive; at this mark its new calls
    # wait until it takes some.
    blocked_bytes_max: int = _count(16 << 20)
    # The same for the clients of one address and answers of some MiB: their next one waits.
    unread_bytes_per_address_max: int = _count(32 << 20)
    # A client that takes nothing at all for this long has gone or is holding memory.
    stall_seconds: float = _bound(60.0)
    # The first bytes and a TLS handshake take two round trips; ten seconds suits any link.
    handshake_seconds: float = _bound(10.0)
    # A unary request of full size on a slow link; after this its stream is given up.
    request_seconds: float = _bound(300.0)
    # Control frames a client may send ahead of earning them: PING, SETTINGS, WINDOW_UPDATE,
    # PRIORITY, empty DATA, frames for streams that ended.
    control_frames_max: int = _count(2000)
    # Earned per request and per DATA frame that we send: common clients answer either with
    # a WINDOW_UPDATE and a PING. What clients send earns nothing, or floods would pay for
    # themselves.
    control_frames_per_request: int = _count(8)
    # Earned by time, so that keepalive on an idle connection never runs dry.
    control_frames_per_second: float = _bound(10.0)
    # Streams a client may open and reset at once before it must let some finish; always twice
    # as many as it has had open at once, for cancelling all of them is ordinary.
    resets_max: int = _count(512)
    # A call cancelled after this long cost the client patience; it is no flood.
    reset_age_seconds: float = _bound(1.0)
    # Earned by time: harmless to the processor, ample for clients with tight deadlines.
    resets_per_second: float = _bound(50.0)
    # Calls of a connection that is ended for a flood get this long to end: they may be of others
    # behind the same proxy. Most take milliseconds; those that wait for longer are repeated.
    calm_seconds: float = _bound(10.0)
    # Answers that are not confirmed yet and hand something out. A client that confirms nothing
    # gets this many before the oldest counts as arrived.
    receipts_max: int = _count(4096)
    # Taking back what an answer handed out is one commit.
    undo_seconds: float = _bound(5.0)
    # The client's answer to the ping that goes with the first GOAWAY takes one round trip.
    goaway_seconds: float = _bound(1.0)
    # After the grace period calls are cancelled and get this long to unwind.
    unwind_seconds: float = _bound(1.0)
    # The last answers and the GOAWAY get this long to reach the client.
    flush_seconds: float = _bound(2.0)

    def patience_s(self, bytes_max: int) -> float:
        """Return how long a request of so many bytes at most may take to arrive."""
        share = self.request_seconds * bytes_max / self.message_bytes_max
        return max(share, self.handshake_seconds)
