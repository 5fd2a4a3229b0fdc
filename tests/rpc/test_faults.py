"""Faults of clients: what resets a stream, what ends a connection, and what each leaves alone."""

import pytest
from h2.errors import ErrorCodes

from globalstore.rpc import frames
from globalstore.rpc.engine import Engine
from globalstore.rpc.events import (
    ConnectionFailed,
    MessageReceived,
    RequestEnded,
    RequestMalformed,
    RequestReceived,
    StreamReset,
)
from globalstore.rpc.ledger import Ledger
from globalstore.rpc.limits import Limits

from .wire import Pair, head


def kinds(events):
    return [type(event) for event in events]


STREAM_FAULTS = {
    "capitals in a name": [*head(), ("Upper", "x")],
    "a connection header": [*head(), ("connection", "close")],
    "te other than trailers": [*head()[:4], ("te", "gzip"), *head()[5:]],
    "a pseudo-header twice": [(":method", "POST"), *head()],
    "a pseudo-header late": [*head(), (":late", "x")],
    "an unknown pseudo-header": [(":status", "200"), *head()],
    "no path": [h for h in head() if h[0] != ":path"],
    "an empty path": [(n, "" if n == ":path" else v) for n, v in head()],
    "no method": head()[1:],
    "a line break in a value": [*head(), ("x", "a\r\nb")],
    "NUL in a value": [*head(), ("x", "a\0b")],
    "a content-length that is none": [*head(), ("content-length", "x")],
    "two content-lengths": [*head(), ("content-length", "5"), ("content-length", "6")],
    "a content-length that is wrong": [*head(), ("content-length", "3")],
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_malformed_request_resets_its_stream_and_nothing_else(name):
    pair = Pair()
    good = pair.client.call(b"before")
    pair.pump()
    pair.client.h2.config.validate_outbound_headers = False
    pair.client.h2.config.normalize_outbound_headers = False
    bad = pair.client.call(b"x", STREAM_FAULTS[name])
    events = pair.pump()
    assert pair.client.answers[bad].reset == ErrorCodes.PROTOCOL_ERROR
    assert kinds(events)[-1] in (RequestMalformed, StreamReset)
    pair.engine.send_unary(good, b"x")
    pair.pump()
    assert pair.client.answers[good].status == "0"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (
            [("GET" if v == "POST" else v) and (n, "GET" if v == "POST" else v) for n, v in head()],
            "405",
        ),
        ([(n, "text/html" if n == "content-type" else v) for n, v in head()], "415"),
        ([h for h in head() if h[0] != "content-type"], "415"),
        ([(n, "application/grpcx" if n == "content-type" else v) for n, v in head()], "415"),
    ],
)
def test_what_is_not_grpc_gets_an_http_status(headers, status):
    pair = Pair()
    stream_id = pair.client.start(headers, end=True)
    assert kinds(pair.pump()) == [RequestMalformed]
    assert pair.client.answers[stream_id].headers[":status"] == status
    assert pair.client.answers[stream_id].ended


def test_content_types_with_a_suffix_are_grpc_too():
    pair = Pair()
    headers = [(n, "application/grpc+proto" if n == "content-type" else v) for n, v in head()]
    pair.client.start(headers)
    assert kinds(pair.pump()) == [RequestReceived]


def test_an_unknown_encoding_is_refused_with_the_ones_we_take():
    pair = Pair()
    pair.client.start(head("/a/b", ("grpc-encoding", "snappy")))
    (event,) = pair.pump()
    assert event.head.refusal.code.name == "UNIMPLEMENTED"
    assert event.head.refusal.trailers == (("grpc-accept-encoding", "identity,gzip"),)


def test_trailers_from_a_client_end_its_request():
    pair = Pair()
    stream_id = pair.client.start()
    pair.client.h2.send_headers(stream_id, [("x", "y")], end_stream=True)
    assert kinds(pair.pump()) == [RequestReceived, RequestEnded]


def test_trailers_that_do_not_end_the_request_reset_it():
    pair = Pair()
    stream_id = pair.client.start()
    pair.pump()
    events = pair.raw(
        frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, b"\x00\x01x\x01y")
    )
    assert kinds(events) == [StreamReset]
    assert pair.client.answers[stream_id].reset == ErrorCodes.PROTOCOL_ERROR


def test_data_after_the_end_of_a_request_resets_it():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.raw(frames.frame(frames.DATA, 0, stream_id, b"late"))
    assert pair.client.answers[stream_id].reset == ErrorCodes.STREAM_CLOSED


def test_more_streams_than_agreed_are_refused_one_by_one():
    pair = Pair(Limits(streams_max=2))
    first, second = pair.client.call(), pair.client.call()
    pair.pump()
    pair.client.h2.remote_settings.max_concurrent_streams = 100
    pair.client.h2.remote_settings.acknowledge()
    third = pair.client.call()
    pair.pump()
    assert pair.client.answers[third].reset == ErrorCodes.REFUSED_STREAM
    for stream_id in (first, second):
        pair.engine.send_unary(stream_id, b"")
    pair.pump()
    assert pair.client.answers[second].status == "0"


def test_a_window_update_of_nothing_on_a_stream_resets_only_that_stream():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.raw(frames.window_update(stream_id, 0))
    assert pair.client.answers[stream_id].reset == ErrorCodes.PROTOCOL_ERROR
    assert not pair.engine.failed


def test_a_stream_window_beyond_the_maximum_resets_only_that_stream():
    pair = Pair()
    stream_id = pair.client.call()
    pair.pump()
    pair.raw(frames.window_update(stream_id, frames.WINDOW_MAX))
    assert pair.client.answers[stream_id].reset == ErrorCodes.FLOW_CONTROL_ERROR
    assert not pair.engine.failed


def test_a_stream_that_overruns_its_window_is_reset():
    pair = Pair(Limits(stream_window_bytes=10_000))
    stream_id = pair.client.start()
    pair.pump()
    pair.raw(frames.frame(frames.DATA, 0, stream_id, b"x" * 10_001))
    assert pair.client.answers[stream_id].reset == ErrorCodes.FLOW_CONTROL_ERROR
    assert not pair.engine.failed


CONNECTION_FAULTS = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", ErrorCodes.PROTOCOL_ERROR),
    "no settings first": (frames.PREFACE + frames.ping(b"x" * 8), ErrorCodes.PROTOCOL_ERROR),
}
FAULTS_LATER = {
    "an even stream": (frames.frame(1, 5, 2, b"\x82"), ErrorCodes.PROTOCOL_ERROR),
    "data on an idle stream": (frames.frame(0, 0, 99, b"x"), ErrorCodes.PROTOCOL_ERROR),
    "a naked continuation": (frames.frame(9, 4, 1, b""), ErrorCodes.PROTOCOL_ERROR),
    "a frame too large": (b"\x00\x40\x01\x00\x00\x00\x00\x00\x01", ErrorCodes.FRAME_SIZE_ERROR),
    "a push": (frames.frame(5, 4, 1, b"\0\0\0\2"), ErrorCodes.PROTOCOL_ERROR),
    "a short ping": (frames.frame(6, 0, 0, b"x"), ErrorCodes.FRAME_SIZE_ERROR),
    "an undecodable header block": (
        frames.frame(1, 5, 1, b"\xff\xff"),
        ErrorCodes.COMPRESSION_ERROR,
    ),
    "a frame within a header block": (
        frames.frame(1, 0, 1, b"\x82") + frames.ping(b"x" * 8),
        ErrorCodes.PROTOCOL_ERROR,
    ),
    "padding beyond the frame": (frames.frame(1, 0xC, 1, b"\x09x"), ErrorCodes.PROTOCOL_ERROR),
    "a window beyond the maximum": (
        frames.window_update(0, frames.WINDOW_MAX),
        ErrorCodes.FLOW_CONTROL_ERROR,
    ),
    "a bad setting": (frames.settings(((2, 7),)), ErrorCodes.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_a_client_that_does_not_speak_http2_is_told_and_dropped(name):
    data, code = CONNECTION_FAULTS[name]
    engine = Engine(Limits(), Ledger(Limits()).account("a"), 0.0)
    (event,) = engine.receive(data, 0.0)
    assert isinstance(event, ConnectionFailed)
    assert event.error_code == code


@pytest.mark.parametrize("name", FAULTS_LATER)
def test_a_fault_of_the_connection_ends_it_with_a_reason(name):
    data, code = FAULTS_LATER[name]
    pair = Pair()
    events = pair.raw(data)
    assert kinds(events)[-1] is ConnectionFailed
    assert pair.client.goaway.error_code == code
    assert pair.engine.receive(frames.ping(b"x" * 8), 0.0) == []
    assert pair.engine.take() == b""


def test_what_came_before_a_fault_is_still_reported():
    pair = Pair()
    pair.client.call(b"good")
    events = pair.engine.receive(pair.client.output() + frames.ping(b"x" * 8)[:-1] + b"", 0.0)
    assert kinds(events) == [RequestReceived, MessageReceived, RequestEnded]
