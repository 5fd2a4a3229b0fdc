"""What one client takes does not become another's wait: heads, answers, connections, watches."""

import math
import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from globalstore.rpc import Limits, ListenerOptions
from globalstore.rpc.connection import FRAMES_PER_TURN

from .echo import Echo, Peer, dial, listening, served, text
from .wire import head


def heads(count: int, size: int) -> list[tuple[str, str]]:
    dice = random.Random(3)
    return [("x-noise", dice.randbytes(size // 2).hex()) for _ in range(count)]


async def test_heads_that_cost_too_much_are_read_slowly(autojump_clock):
    limits = Limits(head_bytes_max=50_000, head_bytes_per_second=10_000, head_bytes_per_call=100)
    async with served(limits=limits) as peer:
        began = trio.current_time()
        for each in heads(20, 5_000):
            assert (await peer.answer(await peer.call("Unary", "x", each))).status == "0"
        took_s = trio.current_time() - began
    # Some 10 000 bytes each, encoded and decoded, but for those that were free.
    assert 10 < took_s < 16


async def test_heads_that_repeat_or_are_small_cost_no_time(autojump_clock):
    async with served() as peer:
        began = trio.current_time()
        for number in range(5_000):
            await peer.answer(await peer.call("Unary", "x", ("x-number", str(number))))
        assert trio.current_time() == began


async def test_answers_that_a_client_does_not_read_do_not_pile_up():
    echo = Echo()
    async with served(echo, limits=Limits(blocked_bytes_max=500_000)) as peer:
        streams = [await peer.call("Large", "1000000") for _ in range(20)]
        await wait_all_tasks_blocked()
        assert echo.made == 1
        for stream in streams:
            answer = peer.client.answers[stream]
            while not answer.ended:
                peer.client.h2.increment_flow_control_window(1_000_000)
                peer.client.h2.increment_flow_control_window(1_000_000, stream)
                await peer.flush()
                await peer.read()
            assert answer.status == "0"
        assert echo.made == 20


async def test_answers_that_other_connections_of_an_address_do_not_read_count_too():
    limits = Limits(unread_bytes_per_address_max=500_000)
    echo = Echo()
    async with listening(echo.service, limits=limits) as listener:
        first, second = [await dial(listener) for _ in range(2)]
        await first.call("Large", "1000000")
        while not echo.made:
            await trio.lowlevel.checkpoint()
        waiting = await second.call("Large", "1000")
        assert (await second.answer(await second.call("Unary"))).status == "0"
        assert echo.made == 1
        await first.stream.aclose()
        assert (await second.answer(waiting)).status == "0"


async def test_a_call_that_leaves_gives_its_turn_away():
    echo = Echo()
    async with served(echo, limits=Limits(blocked_bytes_max=500_000)) as peer:
        first, second, third = [await peer.call("Large", "1000000") for _ in range(3)]
        await wait_all_tasks_blocked()
        await peer.cancel(second)
        await peer.cancel(first)
        await wait_all_tasks_blocked()
        assert echo.made == 2
        assert peer.connection._account.answer_turn.busy == 0
        await peer.cancel(third)


async def test_an_answer_beyond_the_share_of_its_address_is_told_not_made():
    limits = Limits(held_bytes_per_address_max=500_000)
    async with served(limits=limits) as peer:
        answer = await peer.answer(await peer.call("Large", "1000000"))
        assert answer.status == "8"
        assert "server.limits.max_held_bytes_per_address" in answer.status_message
        assert (await peer.answer(await peer.call("Large", "1000"))).status == "0"
        await wait_all_tasks_blocked()
        assert peer.serving.ledger.held_bytes == 0


@pytest.mark.parametrize("open_call", [False, True])
async def test_silent_connections_make_room_for_those_that_call(open_call):
    open_paths = frozenset({"/test.Echo/Plain"})
    limits = Limits(connections_max=3)
    async with listening(limits=limits, open_paths=open_paths) as listener:
        first = await dial(listener)
        await first.answer(await first.call("Plain" if open_call else "Unary"))
        silent = [await trio.open_tcp_stream("127.0.0.1", listener.port) for _ in range(2)]
        while listener.statistics().connections < 3:
            await trio.lowlevel.checkpoint()
        peer = await dial(listener)
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
        if open_call:  # a call that everybody may make proves nothing
            assert not await first.read()
        else:
            assert (await first.answer(await first.call("Unary"))).status == "0"
            while await silent[0].receive_some():
                pass
        assert listener.statistics().ended_for_room == 1
        for stream in silent:
            await stream.aclose()


async def test_who_has_few_calls_is_served_whatever_others_have_open():
    async with listening(Echo().service, limits=Limits(calls_max=4)) as listener:
        greedy = await dial(listener)
        held = [await greedy.call("Hang") for _ in range(4)]
        refused = await greedy.answer(await greedy.call("Hang"))
        assert refused.status == "14"
        assert "server.limits.max_calls" in refused.status_message
        stream = await trio.open_tcp_stream("127.0.0.1", listener.port, local_address="127.0.0.2")
        modest = Peer(stream, None, None)
        await modest.flush()
        assert (await modest.answer(await modest.call("Unary"))).status == "0"
        for each in held:
            await greedy.cancel(each)


async def test_addresses_that_are_turned_away_leave_nothing():
    async with listening(Echo().service, limits=Limits(connections_max=1)) as listener:
        peer = await dial(listener)
        await peer.answer(await peer.call("Unary"))
        for number in range(2, 12):
            stream = await trio.open_tcp_stream(
                "127.0.0.1", listener.port, local_address=f"127.0.0.{number}"
            )
            while await stream.receive_some():
                pass
            await stream.aclose()
        assert listener._serving.ledger.addresses == 1


async def test_one_address_may_not_take_all_connections():
    limits = Limits(connections_per_address_max=2)
    async with listening(limits=limits) as listener:
        peers = [await dial(listener) for _ in range(2)]
        for peer in peers:
            await peer.answer(await peer.call("Unary"))
        third = await trio.open_tcp_stream("127.0.0.1", listener.port)
        data = b""
        while more := await third.receive_some():
            data += bytes(more)
        assert b"as many connections as it may" in data
        assert listener.statistics().connections == 2


async def test_small_answers_that_are_not_read_count_for_their_address(autojump_clock):
    limits = Limits(held_bytes_per_address_max=200_000)
    pair = trio.testing.lockstep_stream_pair()
    async with served(pair=pair, limits=limits) as peer:
        peer.client.h2.remote_settings.max_concurrent_streams = 1000
        peer.client.h2.remote_settings.acknowledge()
        peer.client.h2.increment_flow_control_window(10 << 20)
        with trio.move_on_after(10):
            for _ in range(900):
                await peer.call("Unary", "y" * 1000)
        account = peer.connection._account
        assert 150_000 < peer.connection._engine.ready_bytes < 400_000
        assert account.held_bytes > limits.held_bytes_per_address_max - 20_000
    assert account.held_bytes == 0


async def test_many_small_frames_that_come_at_once_let_others_have_their_turn():
    async with served() as peer:
        peer.client.h2.remote_settings.max_concurrent_streams = 1000
        peer.client.h2.remote_settings.acknowledge()
        streams = [peer.client.call(text("x")) for _ in range(600)]
        data = peer.client.output()
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await wait_all_tasks_ready()
            before = turns
            await peer.connection._received(data)
            assert turns - before >= 2 * len(streams) // FRAMES_PER_TURN - 1
            nursery.cancel_scope.cancel()
        for stream in streams:
            assert (await peer.answer(stream)).status == "0"


async def wait_all_tasks_ready() -> None:
    for _ in range(5):
        await trio.lowlevel.checkpoint()


async def test_idle_time_of_a_paused_reader_is_bounded(autojump_clock):
    limits = Limits(head_bytes_max=1, head_bytes_per_second=1, head_bytes_per_call=1)
    options = ListenerOptions(keepalive_time=math.inf)
    async with served(limits=limits, options=options) as peer:
        began = trio.current_time()
        await peer.answer(await peer.call("Unary"))
        peer.client.call(b"", head("/test.Echo/Hang"))
        await peer.flush()
        await trio.sleep(5)
        assert len(peer.serving.in_flight) == 1
        assert trio.current_time() - began < 10
