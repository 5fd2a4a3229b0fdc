"""Floods end the connection that makes them; ordinary clients never come near the bounds."""

from functools import partial

import pytest
from h2.errors import ErrorCodes

from globalstore.rpc import frames
from globalstore.rpc.engine import STREAM_BYTES
from globalstore.rpc.events import (
    ConnectionFailed,
    FloodNoticed,
    RequestEnded,
    RequestFaulted,
    RequestReceived,
    StreamReset,
)
from globalstore.rpc.limits import Limits

from .wire import Pair, head, message

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


def rapid_resets(pair, count):
    events = []
    for _ in range(count):
        stream_id = pair.client.call(b"x")
        pair.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        events += pair.engine.receive(pair.client.output(), pair.now)
    return events


def test_rapid_reset_admits_no_more_calls_and_lets_those_that_run_end():
    pair = Pair(LIMITS)
    running = pair.client.call(b"x")
    events = rapid_resets(pair, 21)
    assert isinstance(events[-1], FloodNoticed)
    pair.pump()
    assert pair.client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
    assert pair.client.goaway.last_stream_id == pair.engine.highest_stream_id
    late = pair.client.call(b"x")
    pair.engine.send_unary(running, b"y")
    pair.pump()
    assert pair.client.answers[running].status == "0"
    assert pair.client.answers[late].reset == ErrorCodes.REFUSED_STREAM


def test_rapid_reset_that_goes_on_ends_the_connection():
    pair = Pair(LIMITS)
    events = rapid_resets(pair, 200)
    assert sum(isinstance(event, StreamReset) for event in events) >= 21
    assert events[-1] == ConnectionFailed(ErrorCodes.ENHANCE_YOUR_CALM, events[-1].reason)


def test_cancelling_all_calls_of_a_connection_at_once_is_no_flood():
    pair = Pair(LIMITS)
    pair.client.h2.remote_settings.max_concurrent_streams = 5000
    pair.client.h2.remote_settings.acknowledge()
    for _ in range(2):
        streams = [pair.client.call(b"x") for _ in range(1000)]
        pair.pump()
        for stream_id in streams:
            pair.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        assert not any(isinstance(event, FloodNoticed) for event in pair.pump())


def test_settings_cost_the_more_the_more_streams_they_change():
    pair = Pair(LIMITS)
    pair.client.h2.remote_settings.max_concurrent_streams = 5000
    pair.client.h2.remote_settings.acknowledge()
    for _ in range(1000):
        pair.client.call(b"x")
    pair.pump()
    changes = [frames.settings(((4, 60_000 + number),)) for number in range(8)]
    events = pair.engine.receive(b"".join(changes), pair.now)
    assert isinstance(events[-1], ConnectionFailed)


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
    assert any(isinstance(event, FloodNoticed) for event in events)
    for number in range(30, 300):
        events += pair.engine.receive(frames.frame(frames.HEADERS, 5, 2 * number + 1, block), 0.0)
    assert isinstance(events[-1], ConnectionFailed)


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
    data = frames.frame(frames.CONTINUATION, 0, 1, b"x" * 16384) * 17
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


def plainly(pair):
    """Have the client encode without Huffman, which takes the hpack library half a minute here."""
    encoder = pair.client.h2.encoder
    encoder.encode = partial(encoder.encode, huffman=False)
    return pair


def test_metadata_above_the_bound_is_refused_on_its_stream_and_others_go_on():
    pair = plainly(Pair())
    other = pair.client.call(b"x")
    large = pair.client.call(b"x", head("/test.Echo/Unary", ("x-large", "y" * 200_000)))
    events = pair.pump()
    refused = next(e for e in events if isinstance(e, RequestReceived) and e.stream_id == large)
    assert refused.head.refusal.code.name == "RESOURCE_EXHAUSTED"
    assert "at most 16384 bytes" in refused.head.refusal.message
    pair.engine.send_unary(other, b"y")
    third = pair.client.call(b"x", head("/test.Echo/Unary", ("x-large", "z")))
    assert any(isinstance(event, RequestEnded) for event in pair.pump())
    pair.engine.send_unary(third, b"y")
    pair.pump()
    assert pair.client.answers[other].status == pair.client.answers[third].status == "0"


def test_metadata_that_takes_long_to_decode_is_a_flood_when_it_comes_again_and_again():
    pair = plainly(Pair(LIMITS))
    events = []
    for _ in range(3):
        pair.client.call(b"x", head("/test.Echo/Unary", ("x-large", "y" * 200_000)))
        events += pair.pump()
    assert any(isinstance(event, FloodNoticed) for event in events)


def test_calls_are_refused_when_those_before_hold_as_much_memory_as_they_may():
    pair = Pair(Limits(held_bytes_per_address_max=10 * STREAM_BYTES + 0))
    streams = [pair.client.call(b"x") for _ in range(20)]
    heads = {e.stream_id: e.head for e in pair.pump() if isinstance(e, RequestReceived)}
    refused = [s for s in streams if heads[s].refusal is not None]
    assert 9 <= len(streams) - len(refused) <= 10
    assert heads[refused[0]].refusal.code.name == "UNAVAILABLE"
    for stream_id in streams:
        pair.engine.send_unary(stream_id, b"")
    late = pair.client.call(b"x")
    assert [e.head.refusal for e in pair.pump() if isinstance(e, RequestReceived)] == [None]
    pair.engine.send_unary(late, b"")
    assert pair.account.held_bytes == 0


def test_messages_count_as_long_as_their_call_and_those_of_a_stream_until_they_are_read():
    pair = Pair(Limits(held_bytes_per_address_max=8 * STREAM_BYTES + 0))
    unary = pair.client.call(b"x" * 10_000)
    pair.pump()
    pair.engine.credit(unary, 10_000)
    assert pair.account.held_bytes >= STREAM_BYTES + 10_000
    stream_id = pair.client.start()
    for _ in range(50):
        pair.client.h2.send_data(stream_id, message(b"x" * 10_000))
        pair.pump()
        pair.engine.credit(stream_id, 10_000)
    assert pair.account.held_bytes < 2 * STREAM_BYTES + 11_000
    faults = []
    for _ in range(15):
        pair.client.h2.send_data(stream_id, message(b"x" * 10_000))
        faults += [e for e in pair.pump() if isinstance(e, RequestFaulted)]
    assert [fault.code for fault in faults] == [8]


def test_settings_cost_by_their_number():
    pair = plainly(Pair(LIMITS))
    frame = frames.settings([(4, 65535)] * 2730)
    events = []
    for _ in range(LIMITS.control_frames_max // 300 + 1):
        events += pair.engine.receive(frame, 0.0)
    assert any(isinstance(event, FloodNoticed) for event in events)


def test_a_message_in_frames_of_one_byte_is_a_flood():
    pair = plainly(Pair(LIMITS))
    stream = pair.client.start()
    pair.pump()
    data = frames.frame(frames.DATA, 0, stream, b"\0") + frames.frame(
        frames.DATA, 0, stream, b"\0\1\0\0"
    )
    events = pair.engine.receive(data, 0.0)
    for _ in range(LIMITS.control_frames_max + 20):
        events += pair.engine.receive(frames.frame(frames.DATA, 0, stream, b"x"), 0.0)
    assert any(isinstance(event, FloodNoticed) for event in events)
