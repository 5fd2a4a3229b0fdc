"""Floods end the connection that makes them; ordinary clients never come near the bounds."""

import pytest
from h2.errors import ErrorCodes

from globalstore.rpc import frames
from globalstore.rpc.events import ConnectionFailed, RequestEnded, StreamReset
from globalstore.rpc.limits import Limits

from .wire import Pair

LIMITS = Limits(control_frames_max=100, resets_max=20)

FLOODS = {
    "PING": frames.ping(b"x" * 8),
    "PING answers": frames.ping(b"x" * 8, ack=True),
    "SETTINGS": frames.settings(()),
    "WINDOW_UPDATE": frames.window_update(0, 1),
    "PRIORITY": frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\0\0"),
    "unknown frames": frames.frame(77, 0, 0, b"x"),
    "GOAWAY": frames.goaway(0, 0),
    "empty DATA": frames.frame(frames.DATA, 0, 1),
    "padding alone": frames.frame(frames.DATA, frames.PADDED, 1, b"\x03\0\0\0"),
    "WINDOW_UPDATE on a stream that ended": frames.window_update(1, 1),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_control_frames_ends_the_connection(name):
    pair = Pair(LIMITS)
    stream_id = pair.client.start()
    pair.pump()
    if "ended" in name:
        pair.engine.reset(stream_id, 8)
        pair.pump()
    events = pair.raw(FLOODS[name] * 99)
    assert not any(isinstance(event, ConnectionFailed) for event in events)
    events = pair.engine.receive(FLOODS[name] * 1000, pair.now)
    assert events[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert pair.engine.ready_bytes < 20_000


def test_control_frames_come_back_with_time_so_keepalive_never_runs_dry():
    pair = Pair(LIMITS)
    for minute in range(1000):
        pair.now = 60.0 * minute
        pair.raw(frames.ping(b"x" * 8) * 6)
    assert not pair.engine.failed


def test_a_client_that_pings_and_updates_windows_at_every_answer_is_ordinary():
    pair = Pair(LIMITS)
    for _ in range(2000):
        stream_id = pair.client.call(b"x")
        pair.client.h2.ping(b"x" * 8)
        pair.client.h2.increment_flow_control_window(10)
        pair.pump()
        pair.engine.send_unary(stream_id, b"y")
        pair.pump()
    assert not pair.engine.failed


def test_a_client_that_does_so_at_every_message_of_a_long_stream_is_ordinary():
    pair = Pair(LIMITS)
    stream_id = pair.client.call(b"x")
    pair.pump()
    for _ in range(2000):
        pair.engine.send_message(stream_id, b"y")
        pair.pump()
        pair.client.h2.ping(b"x" * 8)
        pair.client.h2.increment_flow_control_window(10)
        pair.client.h2.increment_flow_control_window(10, stream_id)
        pair.pump()
    assert not pair.engine.failed


def test_a_flood_does_not_pay_for_itself_with_bytes_of_a_message():
    pair = Pair(LIMITS)
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, b"\0\0\1\0\0")
    pair.pump()
    piece = frames.frame(frames.DATA, 0, stream_id, b"x") + frames.ping(b"x" * 8) * 2
    events = pair.engine.receive(piece * 1000, pair.now)
    assert events[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_rapid_reset_ends_the_connection():
    pair = Pair(LIMITS)
    events = []
    for _ in range(22):
        stream_id = pair.client.call(b"x")
        pair.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        events += pair.engine.receive(pair.client.output(), pair.now)
    assert events[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert sum(isinstance(event, StreamReset) for event in events) == 21


def test_cancelling_calls_that_waited_for_long_is_no_flood():
    pair = Pair(LIMITS)
    for second in range(100):
        streams = [pair.client.call(b"x") for _ in range(50)]
        pair.pump()
        pair.now = second * 2.0 + 1.5
        for stream_id in streams:
            pair.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        pair.pump()
        pair.now += 0.5
    assert not pair.engine.failed


def test_requests_made_to_be_refused_are_a_flood_too():
    pair = Pair(LIMITS)
    block = b"\x82\x86\x84"  # a GET: neither gRPC nor the client's own reset
    events = []
    for number in range(30):
        events += pair.engine.receive(frames.frame(frames.HEADERS, 5, 2 * number + 1, block), 0.0)
    assert events[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_burst_of_calls_before_the_client_knows_the_bound_is_no_flood():
    pair = Pair(Limits(streams_max=10, resets_max=20))
    pair.client.h2.remote_settings.max_concurrent_streams = 1000
    pair.client.h2.remote_settings.acknowledge()
    streams = [pair.client.call(b"x") for _ in range(500)]
    pair.pump()
    assert not pair.engine.failed
    refused = [s for s in streams if pair.client.answers[s].reset == ErrorCodes.REFUSED_STREAM]
    assert len(refused) == 490


def test_continuations_without_end_are_a_flood():
    pair = Pair(LIMITS)
    pair.engine.receive(frames.frame(frames.HEADERS, 0, 1, b""), 0.0)
    events = pair.engine.receive(frames.frame(frames.CONTINUATION, 0, 1, b"") * 1000, 0.0)
    assert events[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_header_block_may_not_grow_without_bound():
    pair = Pair()
    pair.engine.receive(frames.frame(frames.HEADERS, 0, 1, b""), 0.0)
    data = frames.frame(frames.CONTINUATION, 0, 1, b"x" * 16384) * 5
    assert pair.engine.receive(data, 0.0)[-1].error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert pair.engine.buffered_bytes == 0


def test_a_header_block_in_many_frames_is_still_a_request():
    pair = Pair()
    pair.client.call(b"x")
    data = pair.client.output()
    size = int.from_bytes(data[:3], "big")
    block = data[9 : 9 + size]
    split = frames.frame(frames.HEADERS, 0, 1, block[:10])
    for at in range(10, size, 10):
        last = at + 10 >= size
        split += frames.frame(frames.CONTINUATION, 4 if last else 0, 1, block[at : at + 10])
    events = pair.engine.receive(split + data[9 + size :], 0.0)
    assert isinstance(events[-1], RequestEnded)
