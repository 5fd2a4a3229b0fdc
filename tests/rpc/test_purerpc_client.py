"""purerpc's own client against the listener."""

import purerpc
import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue

from .echo import C, Echo, listening


def stub(channel, name, cardinality):
    client = purerpc.Client("test.Echo", channel)
    signature = purerpc.RPCSignature(cardinality, StringValue, StringValue)
    return client.get_method_stub(name, signature)


async def values(count):
    for number in range(count):
        yield StringValue(value=str(number))


async def test_every_kind_of_call():
    async with (
        listening() as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
    ):
        unary = stub(channel, "Unary", C.UNARY_UNARY)
        assert (await unary(StringValue(value="x" * 200_000))).value == "x" * 200_000
        count = stub(channel, "Count", C.UNARY_STREAM)
        assert [m.value async for m in count(StringValue(value="3"))] == ["0", "1", "2"]
        collect = stub(channel, "Collect", C.STREAM_UNARY)
        assert (await collect(values(3))).value == "0,1,2"
        chat = stub(channel, "Chat", C.STREAM_STREAM)
        assert [m.value async for m in chat(values(3))] == ["0", "1", "2"]


async def test_failures_arrive_as_their_exceptions():
    async with (
        listening() as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
    ):
        for name, error in (
            ("Abort", purerpc.AbortedError),
            ("NotFound", purerpc.NotFoundError),
            ("Fail", purerpc.InternalError),
            ("NoSuch", purerpc.UnimplementedError),
        ):
            with pytest.raises(error):
                await stub(channel, name, C.UNARY_UNARY)(StringValue(value="x"))


async def test_many_calls_at_once():
    echo = Echo()
    async with (
        listening(echo.service) as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
        trio.open_nursery() as nursery,
    ):
        unary = stub(channel, "Unary", C.UNARY_UNARY)
        got = []

        async def one(number):
            got.append((await unary(StringValue(value=str(number)))).value)

        for number in range(100):
            nursery.start_soon(one, number)
    assert sorted(got, key=int) == [str(n) for n in range(100)]
