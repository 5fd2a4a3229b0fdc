"""Calls that are answered without a task of their own."""

import gzip

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from globalstore.rpc import Limits, StatusCode

from .echo import Peer, Recorder, served, text
from .wire import head, message


async def reply(peer: Peer, stream_id: int) -> bytes:
    answer = await peer.answer(stream_id)
    assert answer.status == "0"
    return bytes(answer.data)


async def test_a_call_that_need_not_wait_has_no_task():
    tasks = []

    def count(_, handler):
        async def counted(call):
            tasks.append(call.path)
            await handler(call)

        return counted

    async with served(interceptors=[count]) as peer:
        assert await reply(peer, await peer.call("Quick", "q")) == message(text("at once q"))
        assert tasks == []
        assert await reply(peer, await peer.call("Quick", "r")) == message(text("later r"))
        assert tasks == ["/test.Echo/Quick"]


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [("x", StatusCode.ABORTED, "no x"), ("!", StatusCode.INTERNAL, "internal error, reference")],
)
async def test_an_error_ends_the_call_alone(value, code, says):
    async with served() as peer:
        refused, other = await peer.call("Quick", value), await peer.call("Quick", "q")
        answer = await peer.answer(refused)
        assert answer.status == str(code.value)
        assert says in (answer.headers | answer.trailers)["grpc-message"]
        assert "secret" not in (answer.headers | answer.trailers)["grpc-message"]
        assert await reply(peer, other) == message(text("at once q"))


async def test_what_is_no_message_is_refused_like_everywhere():
    async with served() as peer:
        stream_id = peer.client.call(b"\xff", head("/test.Echo/Quick"))
        await peer.flush()
        answer = await peer.answer(stream_id)
        assert answer.status == str(StatusCode.INVALID_ARGUMENT.value)


async def test_a_compressed_request_takes_the_long_way():
    async with served() as peer:
        stream_id = await peer.begin("Quick", ("grpc-encoding", "gzip"))
        data = message(gzip.compress(text("q")), compressed=True)
        peer.client.h2.send_data(stream_id, data, end_stream=True)
        await peer.flush()
        assert await reply(peer, stream_id) == message(text("later q"))


async def test_a_request_in_pieces_takes_the_long_way():
    async with served() as peer:
        stream_id = await peer.begin("Quick")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send(stream_id, "q", end=True)
        assert await reply(peer, stream_id) == message(text("later q"))


async def test_a_call_whose_time_is_up_is_not_answered():
    async with served() as peer:
        stream_id = await peer.call("Quick", "q", ("grpc-timeout", "0n"))
        answer = await peer.answer(stream_id)
        assert answer.status == str(StatusCode.DEADLINE_EXCEEDED.value)


async def test_observers_see_it():
    recorder = Recorder()
    async with served(observers=[recorder]) as peer:
        await reply(peer, await peer.call("Quick", "q"))
        assert recorder.started_paths == ["/test.Echo/Quick"]
        assert recorder.ended == [("Quick", "OK")]
        assert not peer.serving.in_flight


async def test_an_answer_nobody_gives_window_for_is_given_up(autojump_clock):
    async with served(limits=Limits(stall_seconds=60)) as peer:
        peer.client.credit = False
        sizes = [60_000, 10_000]  # together more than the window of the connection
        for size in sizes:
            stream_id = await peer.begin("Quick")
            data = message(text("q" * size))
            for at in range(0, len(data), 16_000):
                piece = data[at : at + 16_000]
                peer.client.h2.send_data(stream_id, piece, end_stream=at + 16_000 >= len(data))
                await peer.flush()
            answer = await peer.answer(stream_id)
        assert answer.reset == ErrorCodes.CANCEL
        assert trio.current_time() == pytest.approx(60.0)
        assert peer.connection.buffered_bytes == 0
