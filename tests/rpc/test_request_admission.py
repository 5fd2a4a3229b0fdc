"""The way of a request: what is too much is refused early, and costs nobody else anything."""

import gzip
import random
import zlib
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio
from google.protobuf.wrappers_pb2 import StringValue
from purerpc import StatusCode

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rpc import Limits, RequestBounds, admission
from globalstore.rpc.admission import SMALL_BYTES, Admission
from globalstore.rpc.call import Call
from globalstore.rpc.fair_slots import FairSlots
from globalstore.rpc.headers import RequestHead
from globalstore.rpc.in_process import Channel
from globalstore.rpc.method import Method
from globalstore.rpc.status import Abort

from .echo import served, text
from .wire import head, message

UNARY = "/test.Echo/Unary"
INVENTORY = "tensorcast.global_store.v1.ReconcileWorkerStateRequest.inventory"


def call_with(payload: bytes, *, compressed: bool = False, room: bool = True) -> Call:
    class Roomy(Channel):
        def hold(self, call: Call, size: int) -> bool:
            return room

    call = Call(Roomy(trio.Event()), 1, RequestHead("/a/b"), Method("/a/b", "a", "b"), 0.0)
    call.deliver(payload, compressed)
    call.end_request()
    return call


async def taken_in(
    kind: type, payload: bytes, bounds: RequestBounds | None = None, **about: bool
) -> object:
    bounds = bounds or RequestBounds(bytes_max=64 << 20)
    return await Admission(kind, bounds, FairSlots(1)).next(call_with(payload, **about))


async def refusal_of(*args: object, **about: bool) -> tuple[StatusCode, str]:
    with pytest.raises(Abort) as refused:
        await taken_in(*args, **about)  # type: ignore[arg-type]
    return refused.value.status.code, refused.value.status.message


def snapshot(count: int) -> wire.ReconcileWorkerStateRequest:
    message = wire.ReconcileWorkerStateRequest(worker_id="w1")
    for number in range(count):
        message.inventory.add().ref.artifact_id = f"artifact-{number:060}"
    return message


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("count", [1, 300, 20_000])
async def test_requests_of_every_size_arrive_as_they_were_sent(count, compressed):
    sent = snapshot(count)
    data = sent.SerializeToString()
    payload = gzip.compress(data) if compressed else data
    assert await taken_in(type(sent), payload, compressed=compressed) == sent


async def test_a_large_request_lets_other_tasks_run_while_it_is_taken_in():
    data = snapshot(50_000).SerializeToString()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await taken_in(wire.ReconcileWorkerStateRequest, data)
        nursery.cancel_scope.cancel()
    assert turns > len(data) / SMALL_BYTES


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
async def test_fields_that_nobody_knows_are_dropped(size):
    sound = StringValue(value="x" * size)
    data = sound.SerializeToString()
    assert await taken_in(StringValue, data + b"\xfa\x01\x05other") == sound
    message = await taken_in(StringValue, b"\xfa\x01\x05other" + data)
    assert message.SerializeToString() == data


async def test_what_no_message_is_made_of_is_refused():
    for payload in (b"\xff", b"\xff" * SMALL_BYTES * 2, b"\x0a" + b"\xff" * 5 + b"x" * 100_000):
        code, text_ = await refusal_of(wire.ReconcileWorkerStateRequest, payload)
        assert code is StatusCode.INVALID_ARGUMENT
        assert text_.startswith("request: expected a serialized tensorcast.global_store.v1")


async def test_entries_are_counted_before_they_cost_anything():
    bounds = RequestBounds(bytes_max=64 << 20, entries_max={INVENTORY: 1000})
    data = snapshot(20_000).SerializeToString()
    code, text_ = await refusal_of(wire.ReconcileWorkerStateRequest, data, bounds)
    assert (code, text_) == (
        StatusCode.INVALID_ARGUMENT,
        "inventory has 1001 entries, expected at most 1000",
    )


async def test_every_part_is_checked_with_its_place_in_the_whole():
    seen = []

    def check(message: wire.ReconcileWorkerStateRequest, before: dict[str, int] = {}) -> None:  # noqa: B006
        seen.append((before.get("inventory", 0), len(message.inventory)))

    bounds = RequestBounds(bytes_max=64 << 20, check=check, unchecked_bytes=100)
    await taken_in(wire.ReconcileWorkerStateRequest, snapshot(5000).SerializeToString(), bounds)
    assert seen[0][0] == 0
    assert all(end[0] + end[1] == start[0] for end, start in pairwise(seen))
    assert sum(count for _, count in seen) == 5000
    seen.clear()
    await taken_in(wire.ReconcileWorkerStateRequest, b"", bounds)
    assert not seen  # too small to break a bound
    await taken_in(wire.ReconcileWorkerStateRequest, snapshot(3).SerializeToString(), bounds)
    assert seen == [(0, 3)]


async def test_a_large_message_within_is_checked_as_a_whole():
    request = wire.BeginOrJoinGroupRealizationRequest()
    names = request.version.explicit_selection.tensor_names
    names.extend(f"model.layers.{number}.weight" for number in range(5000))
    seen = []

    def check(message: wire.BeginOrJoinGroupRealizationRequest, before: object = None) -> None:
        seen.append(len(message.version.explicit_selection.tensor_names))

    def in_turns(message: wire.BeginOrJoinGroupRealizationRequest) -> Iterator[None]:
        check(message)
        yield

    bounds = RequestBounds(bytes_max=64 << 20, check=check, check_in_turns=in_turns)
    assert await taken_in(type(request), request.SerializeToString(), bounds) == request
    assert seen[-1] == 5000


async def test_decompression_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(admission, "SECONDS_MAX", -1)
    data = gzip.compress(random.Random(1).randbytes(1 << 20))
    code, text_ = await refusal_of(StringValue, data, compressed=True)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert "of processor time to read" in text_


async def test_a_body_of_blocks_that_hold_nothing_takes_bounded_time():
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = deflater.compress(b"x")
    for _ in range(1000):
        data += deflater.flush(zlib.Z_FULL_FLUSH)
    data += b"\0\0\0\xff\xff" * 800_000 + deflater.flush()
    code, _ = await refusal_of(StringValue, data, compressed=True)
    assert code in (StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED)


async def test_what_becomes_of_a_request_counts_however_small_it_was(monkeypatch):
    """Memory is measured, for nothing else tells how much a few bytes become."""
    grown = iter(range(0, 1 << 40, 10 << 20))
    monkeypatch.setattr(admission, "resident_bytes", lambda: next(grown))
    data = snapshot(5000).SerializeToString()
    call = call_with(data)
    held = []
    monkeypatch.setattr(Call, "hold", lambda _, size: held.append(size))
    bounds = RequestBounds(bytes_max=64 << 20)
    await Admission(wire.ReconcileWorkerStateRequest, bounds, FairSlots(1)).next(call)
    assert held[0] == len(data)
    assert sum(held) > 100 << 20


async def test_what_is_inflated_counts_for_its_address():
    data = gzip.compress(text("x" * 100_000))
    code, text_ = await refusal_of(StringValue, data, compressed=True, room=False)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert "server.limits.max_held_bytes_per_address" in text_


async def test_large_requests_are_taken_in_one_at_a_time():
    turn, order = FairSlots(1), []
    large = snapshot(30_000).SerializeToString()
    assert len(large) > 1 << 20

    async def take(name: str, payload: bytes) -> None:
        bounds = RequestBounds(bytes_max=64 << 20)
        await Admission(wire.ReconcileWorkerStateRequest, bounds, turn).next(call_with(payload))
        order.append(name)

    async with trio.open_nursery() as nursery:
        await turn.acquire("another large one")
        nursery.start_soon(take, "large", large)
        nursery.start_soon(take, "small", snapshot(3).SerializeToString())
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["small"]
        turn.release()
    assert order == ["small", "large"]
    assert turn.busy == 0


# Over a connection.


async def test_a_message_larger_than_its_method_takes_is_refused_from_its_first_bytes():
    bounds = {UNARY: RequestBounds(bytes_max=1000)}
    async with served(bounds=bounds) as peer:
        stream = await peer.begin("Unary")
        peer.client.h2.send_data(stream, b"\0\0\0\x03\xe9")  # 1001 bytes are to come
        await peer.flush()
        answer = await peer.answer(stream)
        assert (answer.status, answer.status_message) == (
            "8",
            "message: expected at most 1000 bytes, got 1001",
        )
        assert (await peer.answer(await peer.call("Unary", "x" * 900))).status == "0"
        stream = peer.client.start(head(UNARY, ("grpc-encoding", "gzip")))
        body = message(gzip.compress(text("x" * 2000)), compressed=True)
        peer.client.h2.send_data(stream, body, end_stream=True)
        await peer.flush()
        answer = await peer.answer(stream)
        assert answer.status_message == "message: expected at most 1000 bytes after decompression"


@pytest.mark.parametrize("method", ["Unary", "Quick"])
async def test_a_check_refuses_with_and_without_a_fast_path(method):
    def check(message: StringValue, before: object = None) -> None:
        if len(message.value) > 5:
            raise Abort(StatusCode.INVALID_ARGUMENT, "value: expected at most 5 characters")

    bounds = {f"/test.Echo/{method}": RequestBounds(bytes_max=1000, check=check)}
    async with served(bounds=bounds) as peer:
        for value, status in (("quick", "0"), ("quicker", "3")):
            assert (await peer.answer(await peer.call(method, value))).status == status


async def test_handlers_start_only_when_the_request_is_sound():
    entered = []

    def interceptor(method: Method, handler: object) -> object:
        async def noted(call: Call) -> None:
            entered.append(call.request.value)
            await handler(call)  # type: ignore[operator]

        return noted

    async with served(interceptors=[interceptor]) as peer:
        broken = peer.client.call(b"\xff", head(UNARY))
        bomb = peer.client.start(head(UNARY, ("grpc-encoding", "gzip")))
        body = message(gzip.compress(b"\0" * (5 << 20)), compressed=True)
        peer.client.h2.send_data(bomb, body, end_stream=True)
        await peer.flush()
        assert (await peer.answer(broken)).status == "3"
        assert (await peer.answer(bomb)).status == "8"
        assert (await peer.answer(await peer.call("Unary", "sound"))).status == "0"
    assert entered == ["sound"]


async def test_a_request_that_waits_keeps_its_message_and_not_its_bytes():
    async with served() as peer:
        await peer.call("Hang", "x" * 10_000)
        await trio.testing.wait_all_tasks_blocked()
        (call,) = peer.serving.in_flight
        assert call.messages_waiting == 0


async def test_calls_beyond_those_of_an_address_or_of_all_are_refused_and_say_the_key():
    for limits, key in (
        (Limits(calls_per_address_max=2), "max_calls_per_address"),
        (Limits(calls_max=2), "max_calls)"),
    ):
        async with served(limits=limits) as peer:
            for _ in range(2):
                await peer.call("Hang")
            answer = await peer.answer(await peer.call("Unary"))
            assert answer.status == "14"
            assert f"server.limits.{key}" in answer.status_message


async def test_a_small_request_has_less_time_to_arrive_than_a_large_one(autojump_clock):
    bounds = {UNARY: RequestBounds(bytes_max=64 << 10)}
    async with served(bounds=bounds) as peer:
        for method, patience_s in (("Unary", 10.0), ("Hang", 300.0)):
            began = trio.current_time()
            answer = await peer.answer(await peer.begin(method))
            assert answer.status == "4"
            assert trio.current_time() - began == pytest.approx(patience_s)
