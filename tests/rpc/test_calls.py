"""Calls from beginning to end: answers, refusals, deadlines, cancellation."""

import gzip
import logging
import re

import purerpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue
from h2.errors import ErrorCodes

from globalstore.rpc import Abort, Limits, Status, StatusCode
from globalstore.rpc.dispatch import routes

from .echo import Echo, Recorder, served, text
from .wire import head, message


async def test_a_handler_answers_one_message_with_one():
    async with served() as peer:
        answer = await peer.answer(await peer.call("Unary", "hello"))
        assert answer.data == message(text("hello"))
        assert answer.status == "0"


async def test_a_handler_may_do_without_the_call():
    async with served() as peer:
        answer = await peer.answer(await peer.call("Plain", "x"))
        assert answer.data == message(text("plain x"))


async def test_metadata_travels_both_ways():
    async with served() as peer:
        answer = await peer.answer(await peer.call("Metadata", "", ("who", "me"), ("b-bin", "AAE")))
        assert answer.headers["early"] == "1"
        assert answer.trailers["late-bin"] == "AAE"
        assert answer.data == message(text("{'who': 'me', 'b-bin': b'\\x00\\x01'}"))


async def test_a_handler_answers_one_message_with_many():
    async with served() as peer:
        answer = await peer.answer(await peer.call("Count", "3"))
        assert answer.data == b"".join(message(text(str(n))) for n in range(3))
        assert answer.status == "0"


async def test_a_stream_without_messages_is_answered_too():
    async with served() as peer:
        answer = await peer.answer(await peer.call("Count", "0"))
        assert (answer.data, answer.status) == (b"", "0")


async def test_a_handler_answers_many_messages_with_one():
    async with served() as peer:
        stream_id = await peer.begin("Collect")
        await peer.send(stream_id, "a")
        await peer.send(stream_id, "b", end=True)
        assert (await peer.answer(stream_id)).data == message(text("a,b"))


async def test_a_handler_talks_back_while_the_client_still_talks():
    async with served() as peer:
        stream_id = await peer.begin("Chat")
        answer = peer.client.answers[stream_id]
        for value in ("a", "b"):
            await peer.send(stream_id, value)
            while not answer.data.endswith(message(text(value))):
                await peer.read()
        peer.client.h2.end_stream(stream_id)
        await peer.flush()
        assert (await peer.answer(stream_id)).status == "0"


@pytest.mark.parametrize(
    ("method", "code", "pattern"),
    [
        ("Abort", StatusCode.ABORTED, "try again"),
        ("NotFound", StatusCode.NOT_FOUND, "no such thing"),
        ("Missing", StatusCode.UNIMPLEMENTED, "method is not implemented"),
        ("MissingStream", StatusCode.UNIMPLEMENTED, "method is not implemented"),
        ("NoSuchMethod", StatusCode.UNIMPLEMENTED, "no method '/test.Echo/NoSuchMethod'.*"),
        ("Fail", StatusCode.INTERNAL, "internal error, reference [0-9a-f]{8}"),
        ("BadMetadata", StatusCode.INTERNAL, "internal error, reference [0-9a-f]{8}"),
    ],
)
async def test_a_failure_reaches_the_client_with_its_code(method, code, pattern):
    async with served() as peer:
        answer = await peer.answer(await peer.call(method))
        assert answer.status == str(code.value)
        assert re.fullmatch(pattern, answer.status_message)
        if method == "Abort":
            assert answer.headers["hint"] == "soon"
        assert (await peer.answer(await peer.call("Unary"))).status == "0"


async def test_an_unexpected_error_is_in_the_log_under_the_number_the_client_got(caplog):
    async with served() as peer:
        answer = await peer.answer(await peer.call("Fail"))
        reference = answer.status_message.rpartition(" ")[2]
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert record.fields["reference"] == reference
        assert "a secret of the server" in str(record.exc_info[1])
        assert "secret" not in answer.status_message


async def test_the_application_maps_its_own_errors_even_from_within_a_nursery():
    def map_error(error):
        if isinstance(error, KeyError):
            return Status(StatusCode.FAILED_PRECONDITION, "mapped", (("why", "key"),))
        return None

    async with served(map_error=map_error) as peer:
        answer = await peer.answer(await peer.call("FailInNursery"))
        assert (answer.status, answer.status_message) == ("9", "mapped")
        assert answer.headers["why"] == "key"
        assert (await peer.answer(await peer.call("Fail"))).status == "13"


async def test_a_mapping_that_fails_itself_ends_only_its_call():
    def map_error(error):
        raise RuntimeError("broken hook")

    async with served(map_error=map_error) as peer:
        assert (await peer.answer(await peer.call("Fail"))).status == "13"
        assert (await peer.answer(await peer.call("Unary"))).status == "0"


async def test_a_request_that_does_not_parse_is_refused_naming_what_was_expected():
    async with served() as peer:
        stream_id = peer.client.call(b"\xff\xff", head("/test.Echo/Unary"))
        await peer.flush()
        answer = await peer.answer(stream_id)
        assert answer.status == str(StatusCode.INVALID_ARGUMENT.value)
        assert answer.status_message == "request: expected a serialized google.protobuf.StringValue"


@pytest.mark.parametrize(("count", "got"), [(0, "none"), (2, "several")])
async def test_a_unary_request_has_exactly_one_message(count, got):
    async with served() as peer:
        stream_id = await peer.begin("Unary")
        peer.client.h2.send_data(stream_id, message(text("x")) * count, end_stream=True)
        await peer.flush()
        answer = await peer.answer(stream_id)
        assert answer.status == str(StatusCode.INVALID_ARGUMENT.value)
        assert answer.status_message == f"request: expected one message, got {got}"


async def test_a_compressed_request_is_understood():
    async with served() as peer:
        stream_id = await peer.begin("Unary", ("grpc-encoding", "gzip"))
        data = message(gzip.compress(text("z" * 1000)), compressed=True)
        peer.client.h2.send_data(stream_id, data, end_stream=True)
        await peer.flush()
        assert (await peer.answer(stream_id)).data == message(text("z" * 1000))


async def test_a_deadline_ends_the_handler_and_is_answered(autojump_clock):
    echo = Echo()
    async with served(echo) as peer:
        answer = await peer.answer(await peer.call("Hang", "x", ("grpc-timeout", "3S")))
        assert answer.status == str(StatusCode.DEADLINE_EXCEEDED.value)
        assert trio.current_time() == pytest.approx(3.0)
        assert echo.log == ["cancelled"]


async def test_a_deadline_holds_while_the_request_is_still_arriving(autojump_clock):
    async with served() as peer:
        stream_id = await peer.begin("Unary", ("grpc-timeout", "3S"))
        assert (await peer.answer(stream_id)).status == "4"
        assert trio.current_time() == pytest.approx(3.0)


async def test_a_deadline_of_nothing_never_reaches_the_handler():
    echo = Echo()
    async with served(echo) as peer:
        answer = await peer.answer(await peer.call("Hang", "x", ("grpc-timeout", "0S")))
        assert answer.status == "4"
        assert not echo.running.is_set()


async def test_a_request_that_never_completes_is_given_up(autojump_clock):
    async with served(limits=Limits(request_seconds=30)) as peer:
        answer = await peer.answer(await peer.begin("Unary"))
        assert answer.status == "4"
        assert answer.status_message == "the request did not arrive in time"
        assert trio.current_time() == pytest.approx(30.0)


async def test_resetting_a_stream_cancels_its_handler():
    echo, seen = Echo(), Recorder()
    async with served(echo, observers=[seen]) as peer:
        stream_id = await peer.call("Hang")
        await echo.running.wait()
        peer.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        await peer.flush()
        await seen.until(1)
        assert echo.log == ["cancelled"]
        assert seen.ended == [("Hang", "CANCELLED")]


async def test_losing_the_connection_cancels_its_handlers():
    echo, seen = Echo(), Recorder()
    async with served(echo, observers=[seen]) as peer:
        await peer.call("Hang")
        await echo.running.wait()
        await peer.stream.aclose()
        await peer.closed.wait()
        await seen.until(1)
        assert echo.log == ["cancelled"]


async def test_a_handler_that_swallows_its_cancellation_harms_nobody():
    echo, seen = Echo(), Recorder()
    async with served(echo, observers=[seen]) as peer:
        stream_id = await peer.call("Stubborn")
        await echo.running.wait()
        peer.client.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        await peer.flush()
        await seen.until(1)
        assert echo.log == ["swallowed"]
        assert (await peer.answer(await peer.call("Unary"))).status == "0"


async def test_a_handler_that_does_not_end_never_keeps_the_connection_open():
    echo = Echo()
    async with served(echo) as peer:
        await peer.call("Immovable")
        await echo.running.wait()
        await peer.stream.aclose()
        await peer.closed.wait()
        echo.release.set()


async def test_a_handler_that_reads_late_loses_nothing_and_holds_nobody_up():
    echo = Echo()
    async with served(echo, limits=Limits(stream_window_bytes=20_000)) as peer:
        slow = await peer.begin("LateChat")
        for number in range(20):
            await peer.send(slow, str(number) * 100)
        for _ in range(3):
            assert (await peer.answer(await peer.call("Unary", "y" * 10_000))).status == "0"
        echo.release.set()
        peer.client.h2.end_stream(slow)
        await peer.flush()
        answer = await peer.answer(slow)
        assert answer.data == b"".join(message(text(str(n) * 100)) for n in range(20))


async def test_observers_see_every_call_also_those_refused_before_a_handler():
    seen = Recorder()

    def authorize(call):
        if call.metadata_values("token") != ["right"]:
            raise Abort(StatusCode.UNAUTHENTICATED, "no")

    token = ("token", "right")
    limits = Limits(message_bytes_max=1000)
    async with served(observers=[seen], authorize=authorize, limits=limits) as peer:
        await peer.answer(await peer.call("Unary", "x", token))
        await peer.answer(await peer.call("Unary"))
        await peer.answer(await peer.call("MadeUp/Path", "x", token))
        await peer.answer(await peer.call("Unary", "x", token, ("grpc-timeout", "x")))
        await peer.answer(await peer.call("Unary", "x" * 2000, token))
        await peer.answer(await peer.call("Unary", "x", token, ("grpc-timeout", "0S")))
        peer.client.h2.config.validate_outbound_headers = False
        peer.client.h2.config.normalize_outbound_headers = False
        await peer.answer(await peer.call("Unary", "x", ("connection", "close")))
        assert seen.ended == [
            ("Unary", "OK"),
            ("Unary", "UNAUTHENTICATED"),
            ("unknown", "UNIMPLEMENTED"),
            ("Unary", "INVALID_ARGUMENT"),
            ("Unary", "RESOURCE_EXHAUSTED"),
            ("Unary", "DEADLINE_EXCEEDED"),
            ("unknown", "INVALID_ARGUMENT"),
        ]
        assert len(seen.started_paths) == 7
        assert not peer.serving.in_flight


async def test_an_observer_that_fails_is_logged_and_ends_no_call(caplog):
    class Broken(Recorder):
        def finished(self, call, code, seconds):
            raise RuntimeError("broken observer")

    async with served(observers=[Broken()]) as peer:
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
        assert "observer failed" in caplog.text


async def test_interceptors_wrap_the_handler_the_first_outermost():
    log = []

    def named(name):
        def interceptor(method, handler):
            async def wrapped(call):
                log.append(f"{name} {method.name}")
                await handler(call)
                log.append(f"{name} done")

            return wrapped

        return interceptor

    async with served(interceptors=[named("outer"), named("inner")]) as peer:
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
        assert (await peer.answer(await peer.call("Count", "1"))).status == "0"
    assert log[:4] == ["outer Unary", "inner Unary", "inner done", "outer done"]
    assert log[4] == "outer Count"


async def test_a_call_knows_its_peer_its_time_and_tells_its_state(mock_clock):
    seen = {}

    async def look(message, request):
        seen.update(
            peer=request.peer, left=request.time_remaining, path=request.path, text=repr(request)
        )
        return StringValue()

    class Looking(Echo):
        @property
        def service(self):
            service = purerpc.Service("test.Echo")
            service.add_method(
                "Look",
                look,
                purerpc.RPCSignature(purerpc.Cardinality.UNARY_UNARY, StringValue, StringValue),
            )
            return service

    async with served(Looking()) as peer:
        await peer.answer(await peer.call("Look", "x", ("grpc-timeout", "2S")))
        assert seen["peer"] == "client:1"
        assert seen["left"] == pytest.approx(2.0)
        assert seen["text"] == "<Call /test.Echo/Look from client:1 [running, waiting: 0]>"
        assert repr(peer.connection) == "<Connection [client:1, OPEN, calls: 0]>"


def test_one_name_offered_twice_is_refused_at_start():
    with pytest.raises(ValueError, match="offered twice"):
        routes([Echo().service, Echo().service], ())
