"""grpcio, the client most daemons use, against the listener. It blocks, so it has a thread."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import trio
import trio.lowlevel
from google.protobuf.wrappers_pb2 import StringValue

from globalstore.rpc import Limits, ListenerOptions

from .echo import Echo, Recorder, listening

# Far beyond what any call here takes; it only bounds a test that would hang.
TIMEOUT = 30


class Client:
    """Stubs for the service, by kind."""

    def __init__(self, port: int, **options: Any) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", list(options.items()))

    def stub(self, kind: str, method: str) -> Any:
        return getattr(self.channel, kind)(
            f"/test.Echo/{method}", StringValue.SerializeToString, StringValue.FromString
        )

    def unary(self, method: str, value: str = "x", **extra: Any) -> Any:
        return self.stub("unary_unary", method)(
            StringValue(value=value), **{"timeout": TIMEOUT} | extra
        )


async def with_client(use: Callable[[Client], Any], echo: Echo | None = None, **settings: Any):
    """Run ``use`` in a thread with a client of a fresh listener; return what it returns."""
    async with listening((echo or Echo()).service, **settings) as listener:

        def run() -> Any:
            client = Client(listener.port)
            with client.channel:
                return use(client)

        return await trio.to_thread.run_sync(run)


async def test_unary_calls_of_any_size():
    def use(client):
        for size in (0, 1, 16_384, 100_000, 3_000_000):
            assert client.unary("Unary", "x" * size).value == "x" * size

    await with_client(use)


async def test_every_kind_of_stream():
    def use(client):
        values = [StringValue(value=str(n)) for n in range(500)]
        count = client.stub("unary_stream", "Count")(StringValue(value="500"), timeout=TIMEOUT)
        assert list(count) == values
        collect = client.stub("stream_unary", "Collect")(iter(values), timeout=TIMEOUT)
        assert collect.value == ",".join(str(n) for n in range(500))
        chat = client.stub("stream_stream", "Chat")(iter(values), timeout=TIMEOUT)
        assert list(chat) == values

    await with_client(use)


async def test_two_hundred_calls_at_once_on_one_channel():
    def use(client):
        stub = client.stub("unary_unary", "Unary")
        futures = [stub.future(StringValue(value=str(n)), timeout=TIMEOUT) for n in range(200)]
        assert [f.result().value for f in futures] == [str(n) for n in range(200)]

    await with_client(use)


async def test_metadata_both_ways():
    def use(client):
        stub = client.stub("unary_unary", "Metadata")
        answer, call = stub.with_call(
            StringValue(), metadata=[("who", "me"), ("b-bin", b"\x00\xff")], timeout=TIMEOUT
        )
        assert "'b-bin': b'\\x00\\xff'" in answer.value
        assert ("early", "1") in [(m.key, m.value) for m in call.initial_metadata()]
        assert ("late-bin", b"\x00\x01") in [(m.key, m.value) for m in call.trailing_metadata()]

    await with_client(use)


async def test_gzip_requests():
    def use(client):
        value = "z" * 2_000_000
        assert client.unary("Unary", value, compression=grpc.Compression.Gzip).value == value
        chat = client.stub("stream_stream", "Chat")(
            iter([StringValue(value="a" * 1000)] * 20),
            compression=grpc.Compression.Gzip,
            timeout=TIMEOUT,
        )
        assert len(list(chat)) == 20

    await with_client(use)


async def test_deflate_is_refused_with_what_we_take():
    def use(client):
        with pytest.raises(grpc.RpcError) as refused:
            client.unary("Unary", "z" * 1000, compression=grpc.Compression.Deflate)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "identity, gzip" in refused.value.details()

    await with_client(use)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("Abort", grpc.StatusCode.ABORTED),
        ("NotFound", grpc.StatusCode.NOT_FOUND),
        ("Fail", grpc.StatusCode.INTERNAL),
        ("Missing", grpc.StatusCode.UNIMPLEMENTED),
        ("NoSuch", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_failures_arrive_with_their_codes(method, code):
    def use(client):
        with pytest.raises(grpc.RpcError) as failed:
            client.unary(method)
        assert failed.value.code() is code

    await with_client(use)


async def test_a_deadline_ends_the_handler():
    echo, seen = Echo(), Recorder()

    def use(client):
        with pytest.raises(grpc.RpcError) as failed:
            client.unary("Hang", timeout=0.05)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    await with_client(use, echo, observers=[seen])
    assert echo.log == ["cancelled"]


async def test_cancelling_a_call_cancels_its_handler():
    echo = Echo()
    async with listening(echo.service) as listener:
        cancelled = threading.Event()

        def use() -> None:
            client = Client(listener.port)
            with client.channel:
                future = client.stub("unary_unary", "Hang").future(StringValue(value="x"))
                trio.from_thread.run(echo.running.wait)
                future.cancel()
                cancelled.set()
                trio.from_thread.run(echo.ended.wait)

        await trio.to_thread.run_sync(use)
        assert cancelled.is_set()
        assert echo.log == ["cancelled"]


async def test_a_message_over_the_limit_is_refused_alone():
    def use(client):
        with pytest.raises(grpc.RpcError) as failed:
            client.unary("Unary", "x" * 50_000)
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert client.unary("Unary", "small").value == "small"

    await with_client(use, limits=Limits(message_bytes_max=10_000))


async def test_a_client_that_pings_without_calls_is_answered():
    async with listening() as listener:

        def use() -> str:
            client = Client(
                listener.port,
                **{
                    "grpc.keepalive_time_ms": 1000,
                    "grpc.keepalive_permit_without_calls": 1,
                    "grpc.http2.max_pings_without_data": 0,
                },
            )
            with client.channel:
                return client.unary("Unary", "x").value

        assert await trio.to_thread.run_sync(use) == "x"


async def test_fifty_calls_in_flight_finish_while_the_listener_drains():
    echo = Echo()
    async with listening(echo.service, options=ListenerOptions()) as listener:

        def use() -> list[str]:
            client = Client(listener.port)
            with client.channel:
                stub = client.stub("unary_unary", "Held")
                futures = [stub.future(StringValue(value=str(n))) for n in range(50)]
                trio.from_thread.run(_all_in_flight)
                trio.from_thread.run_sync(nursery.start_soon, listener.drain, 60)
                trio.from_thread.run(listener.draining.wait)
                trio.from_thread.run_sync(echo.release.set)
                return [f.result(timeout=TIMEOUT).value for f in futures]

        async def _all_in_flight() -> None:
            while listener.statistics().calls_in_flight < 50:
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            values = await trio.to_thread.run_sync(use)
    assert values == [str(n) for n in range(50)]


async def test_calls_never_fail_because_their_connection_grew_old():
    options = ListenerOptions(max_connection_age=0.05)
    limits = Limits(goaway_seconds=0.5, flush_seconds=0.05)
    async with listening(options=options, limits=limits) as listener:

        def use() -> set[str]:
            peers = set()
            client = Client(listener.port)
            with client.channel:
                while len(peers) < 4:  # until the client has been moved on three times
                    stub = client.stub("unary_unary", "Metadata")
                    futures = [stub.future(StringValue(), timeout=TIMEOUT) for _ in range(20)]
                    for future in futures:
                        future.result()
                        peers.update(m.value for m in future.trailing_metadata() if m.key == "peer")
            return peers

        assert len(await trio.to_thread.run_sync(use)) == 4


async def test_a_thousand_calls_that_wait_hold_back_no_other_and_may_all_be_cancelled_at_once():
    seen = Recorder()
    async with listening(Echo().service, observers=[seen]) as listener:

        async def all_wait() -> None:
            while listener.statistics().calls_in_flight < 1000:
                await trio.lowlevel.checkpoint()

        def use() -> None:
            client = Client(listener.port)
            with client.channel:
                stub = client.stub("unary_unary", "Wait")
                futures = [stub.future(StringValue(value="x")) for _ in range(1000)]
                trio.from_thread.run(all_wait)
                assert client.unary("Unary").value == "x"
                for future in futures:
                    future.cancel()
                trio.from_thread.run(seen.until, 1001)
                assert client.unary("Unary").value == "x"
                assert listener.statistics().connections == 1
                (connection,) = listener._connections
                assert not connection.is_draining

        await trio.to_thread.run_sync(use)


async def test_large_metadata_ends_its_call_alone():
    def use(client):
        waiting = client.stub("unary_unary", "Held").future(StringValue(value="x"))
        with pytest.raises(grpc.RpcError) as caught:
            client.unary("Unary", metadata=[("x-large", "y" * 100_000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trio.from_thread.run_sync(echo.release.set)
        assert waiting.result(TIMEOUT).value == "x"

    echo = Echo()
    await with_client(use, echo)
