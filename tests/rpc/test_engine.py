"""The engine against a strict client: what it means, and what it writes."""

from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from globalstore.rpc import frames
from globalstore.rpc.engine import Engine
from globalstore.rpc.events import (
    MessageReceived,
    PeerGoingAway,
    RequestEnded,
    RequestFaulted,
    RequestMalformed,
    RequestReceived,
    StreamReset,
)
from globalstore.rpc.ledger import Ledger
from globalstore.rpc.limits import Limits

from .wire import Pair, StrictClient, message


def kinds(events):
    return [type(event) for event in events]


def test_a_unary_exchange_is_accepted_by_a_strict_client():
    pair = Pair()
    stream_id = pair.client.call(b"question")
    events = pair.pump()
    assert kinds(events) == [RequestReceived, MessageReceived, RequestEnded]
    assert events[1].payload == b"question"
    assert pair.engine.send_unary(stream_id, b"answer")
    pair.pump()
    answer = pair.client.answers[stream_id]
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert answer.data == message(b"answer")
    assert answer.status == "0"
    assert answer.ended
    assert not pair.engine.streams


def test_bytes_may_arrive_one_by_one():
    client = StrictClient()
    client.call(b"question")
    engine = Engine(Limits(), Ledger(Limits()).account("a"), 0.0)
    events = []
    for byte in client.output():
        events += engine.receive(bytes((byte,)), 0.0)
    assert kinds(events) == [RequestReceived, MessageReceived, RequestEnded]


def test_several_messages_in_one_frame_and_one_message_in_several():
    pair = Pair()
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, message(b"a") + message(b"b") + message(b"cde")[:6])
    first = pair.pump()
    pair.client.h2.send_data(stream_id, b"de", end_stream=True)
    second = pair.pump()
    payloads = [e.payload for e in first + second if isinstance(e, MessageReceived)]
    assert payloads == [b"a", b"b", b"cde"]
    assert kinds(second)[-1] is RequestEnded


def test_a_client_without_a_header_table_understands_every_answer():
    pair = Pair(settings={SettingCodes.HEADER_TABLE_SIZE: 0})
    for _ in range(3):
        stream_id = pair.client.call()
        pair.pump()
        pair.engine.send_unary(stream_id, b"x", (("a", "b"),), (("c-bin", b"\x00\xff"),))
        pair.pump()
        answer = pair.client.answers[stream_id]
        assert answer.headers["a"] == "b"
        assert answer.trailers["c-bin"] == "AP8"


def test_a_failure_without_messages_is_one_header_list():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.engine.send_trailers(stream_id, 5, "käse 100%\n")
    pair.pump()
    answer = pair.client.answers[stream_id]
    assert answer.headers["grpc-status"] == "5"
    assert answer.headers["grpc-message"] == "k%C3%A4se 100%25%0A"
    assert answer.ended


def test_a_status_text_of_any_length_fits_the_headers_of_common_clients():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.engine.send_trailers(stream_id, 13, "ß" * 100_000)
    pair.pump()
    assert len(pair.client.answers[stream_id].status_message) <= 6 * 2000


def test_a_large_answer_goes_out_within_the_windows_and_arrives_whole():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    payload = bytes(range(256)) * 4000
    pair.engine.send_unary(stream_id, payload)
    pair.pump()
    assert pair.client.answers[stream_id].data == message(payload)
    assert pair.client.answers[stream_id].status == "0"


def test_a_finished_answer_that_waits_for_window_stays_until_it_is_through():
    pair = Pair()
    pair.client.credit = False
    stream_id = pair.client.call()
    pair.pump()
    pair.engine.send_unary(stream_id, b"x" * 100_000)
    pair.pump()
    answer = pair.client.answers[stream_id]
    assert len(answer.data) == 65535
    assert answer.status is None
    assert pair.engine.stream_queued_bytes(stream_id) == 100_005 - 65535
    pair.client.h2.acknowledge_received_data(65535, stream_id)
    pair.client.credit = True
    pair.pump()
    assert answer.data == message(b"x" * 100_000)
    assert answer.status == "0"
    assert pair.engine.queued_bytes == 0


def test_long_answers_take_turns_and_short_ones_do_not_wait_for_them():
    pair = Pair()
    pair.client.h2.increment_flow_control_window(10 << 20)
    streams = [pair.client.call() for _ in range(3)]
    for stream_id in streams:
        pair.client.h2.increment_flow_control_window(1 << 20, stream_id)
    pair.pump()
    for stream_id in streams[:2]:
        pair.engine.send_unary(stream_id, b"x" * 500_000)
    pair.engine.send_unary(streams[2], b"short")
    pair.client.receive(pair.engine.take())
    sizes = [len(pair.client.answers[s].data) for s in streams]
    assert pair.client.answers[streams[2]].ended
    assert abs(sizes[0] - sizes[1]) <= frames.FRAME_BYTES_MAX
    assert 0 < sizes[0] < 500_000


def test_a_settings_change_that_turns_a_window_negative_is_waited_out():
    pair = Pair()
    pair.client.credit = False
    stream_id = pair.client.call()
    pair.pump()
    pair.engine.send_message(stream_id, b"x" * 50_000)
    pair.pump()
    pair.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    pair.pump()
    assert pair.engine.streams[stream_id].send_window == 1000 - 50_005
    pair.engine.send_message(stream_id, b"y" * 500)
    pair.engine.send_trailers(stream_id, 0)
    pair.pump()
    assert len(pair.client.answers[stream_id].data) == 50_005
    pair.client.h2.increment_flow_control_window(60_000, stream_id)
    pair.pump()
    assert pair.client.answers[stream_id].data.endswith(message(b"y" * 500))
    assert pair.client.answers[stream_id].ended


def test_data_of_streams_that_ended_is_credited_to_the_connection():
    pair = Pair()
    for _ in range(200):
        stream_id = pair.client.start()
        pair.pump()
        pair.client.h2.send_data(stream_id, b"x" * 16000)
        late = pair.client.output()
        pair.engine.send_trailers(stream_id, 8, "enough")
        pair.raw(late)
    assert pair.client.h2.outbound_flow_control_window > 0


def test_goaway_does_not_stop_answers_in_flight():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.engine.goaway()
    assert pair.engine.send_unary(stream_id, b"still here")
    pair.pump()
    assert pair.client.goaway.last_stream_id == stream_id
    assert pair.client.answers[stream_id].data == message(b"still here")


def test_streams_after_the_final_goaway_are_refused_so_that_clients_may_repeat_them():
    pair = Pair()
    pair.client.call()
    pair.pump()
    pair.engine.goaway()
    client_bytes = pair.client
    client_bytes.call()
    events = pair.engine.receive(client_bytes.output(), 0.0)
    assert kinds(events) == [RequestMalformed]
    assert frames.rst_stream(3, ErrorCodes.REFUSED_STREAM) in pair.engine.take()


def test_the_clients_goaway_leaves_its_calls_alone():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    events = pair.engine.receive(frames.goaway(0, 0), 0.0)
    assert kinds(events) == [PeerGoingAway]
    pair.engine.send_unary(stream_id, b"x")
    pair.pump()
    assert pair.client.answers[stream_id].status == "0"


def test_the_client_may_reset_a_stream_and_late_output_goes_nowhere():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
    assert kinds(pair.pump()) == [StreamReset]
    assert not pair.engine.send_unary(stream_id, b"late")
    assert pair.engine.take() == b""


def test_an_early_answer_asks_the_client_to_stop_sending():
    pair = Pair()
    stream_id = pair.client.start()
    pair.pump()
    pair.engine.send_trailers(stream_id, 7, "no")
    pair.pump()
    assert pair.client.answers[stream_id].status == "7"
    assert pair.client.answers[stream_id].reset == ErrorCodes.NO_ERROR


def test_a_request_cut_within_a_message_is_a_fault_of_that_call():
    pair = Pair()
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, b"\x00\x00\x00\x00\x09abc", end_stream=True)
    events = pair.pump()
    assert kinds(events) == [RequestReceived, RequestFaulted]
    assert "ends within a message" in events[1].message


def test_a_message_larger_than_allowed_is_refused_before_it_is_kept():
    pair = Pair(Limits(message_bytes_max=1000))
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, message(b"x" * 1001)[:100])
    events = pair.pump()
    assert events[-1].message == "message: expected at most 1000 bytes, got 1001"
    pair.client.h2.send_data(stream_id, b"x" * 900, end_stream=True)
    assert pair.pump() == []
    assert pair.ledger.arriving_bytes == 0


def test_a_message_larger_than_the_window_still_gets_through():
    pair = Pair(Limits(stream_window_bytes=20_000))
    stream_id = pair.client.start()
    data = message(b"x" * 300_000)
    events = []
    while data:
        size = min(16384, pair.client.h2.local_flow_control_window(stream_id), len(data))
        assert size > 0
        pair.client.h2.send_data(stream_id, data[:size], end_stream=size == len(data))
        data = data[size:]
        events += pair.pump()
    assert kinds(events) == [RequestReceived, MessageReceived, RequestEnded]


def test_messages_that_nobody_reads_use_up_the_stream_window_and_reading_returns_it():
    pair = Pair(Limits(stream_window_bytes=20_000))
    stream_id = pair.client.start()
    for _ in range(19):
        pair.client.h2.send_data(stream_id, message(b"x" * 1000))
        pair.pump()
    assert pair.client.h2.local_flow_control_window(stream_id) < 1100
    for _ in range(19):
        pair.engine.credit(stream_id, 1000)
    pair.pump()
    assert pair.client.h2.local_flow_control_window(stream_id) > 10_000


def test_messages_without_content_use_up_the_window_too():
    pair = Pair(Limits(stream_window_bytes=1000))
    stream_id = pair.client.start()
    sent = 0
    while pair.client.h2.local_flow_control_window(stream_id) >= 5:
        pair.client.h2.send_data(stream_id, message(b""))
        sent += 1
        pair.pump()
        assert sent <= 200
    assert sent == 200
