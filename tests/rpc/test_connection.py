"""A connection's life: keepalive, idleness, age, clients that do not read, leave-taking."""

import math

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from globalstore.rpc import Limits, ListenerOptions
from globalstore.rpc.connection import Connection
from globalstore.rpc.keepalive import MISSED_SECONDS, WATCHED_PING_SECONDS
from globalstore.rpc.serving import Serving
from globalstore.rpc.wakeup import Wakeup

from .echo import Echo, InMemory, Recorder, served, text
from .wire import head, message


def lasting(**options):
    """Options without pings, which a client that sleeps would not answer."""
    return ListenerOptions(keepalive_time=math.inf, random=lambda: 0.5, **options)


async def drained(peer):
    """Read until the server ends the connection."""
    while await peer.read():
        pass


async def test_a_silent_client_is_pinged_and_one_that_answers_is_kept(autojump_clock):
    options = ListenerOptions(keepalive_time=10, keepalive_timeout=5)
    async with served(options=options) as peer:
        while trio.current_time() < 50:
            await peer.read()
        assert not peer.closed.is_set()


async def test_a_client_that_does_not_answer_pings_is_dropped(autojump_clock):
    echo = Echo()
    options = ListenerOptions(keepalive_time=10, keepalive_timeout=5)
    async with served(echo, options=options) as peer:
        await peer.call("Hang")
        await peer.closed.wait()
        assert trio.current_time() == pytest.approx(15.0)
        await echo.ended.wait()
        assert echo.log == ["cancelled"]


async def test_an_idle_connection_is_ended_gently(autojump_clock):
    async with served(options=lasting(max_connection_idle=30)) as peer:
        await trio.sleep(20)
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
        await drained(peer)
        assert trio.current_time() == pytest.approx(50.0, abs=1.5)
        assert peer.client.goaway.error_code == ErrorCodes.NO_ERROR


async def test_a_connection_with_a_call_is_not_idle(autojump_clock):
    echo = Echo()
    async with served(echo, options=lasting(max_connection_idle=30)) as peer:
        stream_id = await peer.call("Held")
        await trio.sleep(100)
        assert not peer.closed.is_set()
        echo.release.set()
        assert (await peer.answer(stream_id)).status == "0"
        await drained(peer)
        assert trio.current_time() == pytest.approx(130.0, abs=1.5)


async def test_an_old_connection_drains_and_its_calls_end_first(autojump_clock):
    echo = Echo()
    async with served(echo, options=lasting(max_connection_age=60)) as peer:
        stream_id = await peer.call("Held")
        await trio.sleep(59)
        assert repr(peer.connection).endswith("OPEN, calls: 1]>")
        await trio.sleep(10)
        assert repr(peer.connection).endswith("DRAINING, calls: 1]>")
        assert not peer.closed.is_set()
        echo.release.set()
        assert (await peer.answer(stream_id)).data == message(text("x"))
        await drained(peer)


async def test_a_client_that_has_introduced_itself_may_be_silent(autojump_clock):
    pair = trio.testing.memory_stream_pair()
    async with served(pair=pair, limits=Limits(handshake_seconds=10)) as peer:
        await peer.answer(await peer.call("Unary"))  # this one has spoken
        await trio.sleep(100)
        assert not peer.closed.is_set()


async def test_a_client_that_never_finishes_its_preface_is_dropped(autojump_clock):
    near, far = trio.testing.memory_stream_pair()
    serving = Serving(
        routes={},
        limits=Limits(handshake_seconds=10),
        options=ListenerOptions(),
        observers=(),
        authorize=None,
        map_error=None,
    )
    async with trio.open_nursery() as nursery:
        serving.calls = nursery
        nursery.start_soon(Connection(serving, InMemory(far), "slow:1").run)
        for byte in b"PRI * HTTP/2.0\r\n":
            await near.send_all(bytes((byte,)))
            await trio.sleep(0.1)
    assert trio.current_time() == pytest.approx(10.0)


async def test_a_streaming_handler_waits_for_a_client_without_window():
    echo, seen = Echo(), Recorder()
    async with served(echo, observers=[seen]) as peer:
        peer.client.credit = False
        stream_id = await peer.call("Count", "1000000")
        answer = peer.client.answers[stream_id]
        while len(answer.data) < 65535 - 20:
            await peer.read()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.sent < 30_000
        assert peer.connection.buffered_bytes < 200_000
        before = echo.sent
        peer.client.h2.increment_flow_control_window(1 << 20)
        peer.client.h2.increment_flow_control_window(1 << 20, stream_id)
        await peer.flush()
        await peer.read()
        await trio.testing.wait_all_tasks_blocked()
        assert echo.sent > before


async def test_a_client_that_reads_nothing_holds_back_only_itself(autojump_clock):
    echo = Echo()
    pair = trio.testing.lockstep_stream_pair()
    async with served(echo, pair=pair, limits=Limits(outbound_bytes_max=100_000)) as peer:
        # Every answer is small, so no window ever stops them; only reading does.
        peer.client.h2.remote_settings.max_concurrent_streams = 1000
        peer.client.h2.remote_settings.acknowledge()
        peer.client.h2.increment_flow_control_window(10 << 20)
        sent = 0
        with trio.move_on_after(10):
            while sent < 900:
                peer.client.call(text("y" * 1000), head("/test.Echo/Unary"))
                sent += 1
                await peer.flush()
        assert 50 < sent < 900
        assert peer.connection.buffered_bytes < 1_000_000


async def test_a_client_that_takes_nothing_for_long_is_dropped(autojump_clock):
    pair = trio.testing.lockstep_stream_pair()
    async with served(pair=pair, limits=Limits(stall_seconds=60)) as peer:
        await peer.call("Unary")
        await peer.closed.wait()
        assert trio.current_time() == pytest.approx(60.0)


async def test_an_answer_nobody_gives_window_for_is_given_up(autojump_clock):
    async with served(limits=Limits(stall_seconds=60)) as peer:
        peer.client.credit = False
        stream_id = await peer.call("Unary", "x")
        await peer.answer(stream_id)
        big = await peer.begin("Unary")
        peer.client.h2.send_data(big, message(text("z" * 60_000))[:16000])
        await peer.flush()
        for at in (16000, 32000, 48000):
            data = message(text("z" * 60_000))[at : at + 16000]
            peer.client.h2.send_data(big, data, end_stream=at == 48000)
            await peer.flush()
        await peer.answer(big)
        second = await peer.begin("Unary")
        data = message(text("z" * 10_000))
        peer.client.h2.send_data(second, data, end_stream=True)
        await peer.flush()
        answer = await peer.answer(second)
        assert answer.reset == ErrorCodes.CANCEL
        assert trio.current_time() == pytest.approx(60.0)
        assert peer.connection.buffered_bytes == 0


async def test_new_calls_wait_while_answers_nobody_takes_pile_up(autojump_clock):
    echo, seen = Echo(), Recorder()
    limits = Limits(blocked_bytes_max=50_000, stall_seconds=math.inf)
    async with served(echo, observers=[seen], limits=limits) as peer:
        peer.client.credit = False
        for _ in range(3):
            stream_id = await peer.begin("Unary")
            data = message(text("z" * 60_000))
            for at in range(0, len(data), 15_000):
                piece = data[at : at + 15_000]
                peer.client.h2.send_data(stream_id, piece, end_stream=at + 15_000 >= len(data))
                await peer.flush()
        await trio.testing.wait_all_tasks_blocked()
        late = await peer.call("Hang")
        await trio.testing.wait_all_tasks_blocked()
        assert not echo.running.is_set()
        peer.client.h2.increment_flow_control_window(1 << 20)
        await peer.flush()
        await echo.running.wait()
        peer.client.h2.reset_stream(late)
        await peer.flush()


async def test_a_protocol_fault_is_answered_before_the_connection_ends():
    echo = Echo()
    async with served(echo) as peer:
        await peer.call("Hang")
        await echo.running.wait()
        await peer.stream.send_all(b"\xff" * 100)
        await drained(peer)
        assert peer.client.goaway.error_code == ErrorCodes.FRAME_SIZE_ERROR
        await echo.ended.wait()
        await peer.stream.aclose()
        await peer.closed.wait()
        assert echo.log == ["cancelled"]


async def test_two_tasks_may_not_wait_on_one_wakeup():
    wakeup = Wakeup()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeup.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await wakeup.wait()
        wakeup.set()


async def test_a_flood_ends_its_connection_when_the_calls_that_run_have_ended(autojump_clock):
    echo = Echo()
    async with served(echo, limits=Limits(resets_max=20, calm_seconds=10)) as peer:
        held, hangs = await peer.call("Held"), await peer.call("Hang")
        for _ in range(30):
            stream_id = await peer.call("Wait")
            peer.client.h2.reset_stream(stream_id)
            await peer.flush()
        await peer.read()
        assert peer.client.goaway.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await trio.sleep(5)
        echo.release.set()
        assert (await peer.answer(held)).status == "0"
        answer = await peer.answer(hangs)
        assert answer.status == "14"
        assert "sends too much" in answer.status_message
        assert trio.current_time() == pytest.approx(10.0)
        await drained(peer)


async def test_a_thousand_calls_of_a_lost_connection_are_stopped_in_turns():
    echo = Echo()
    async with served(echo) as peer:
        peer.client.h2.remote_settings.max_concurrent_streams = 2000
        peer.client.h2.remote_settings.acknowledge()
        for _ in range(1000):
            await peer.call("Wait")
        await trio.testing.wait_all_tasks_blocked()
        assert len(peer.serving.in_flight) == 1000
        await peer.stream.aclose()
        await peer.closed.wait()
        assert 0 < len(peer.serving.in_flight) < 1000
        while peer.serving.in_flight:
            await trio.lowlevel.checkpoint()


async def test_ages_differ_by_a_tenth_at_most(autojump_clock):
    ages = []
    for number in (0.0, 0.5, 1.0):
        options = ListenerOptions(
            keepalive_time=math.inf, max_connection_age=100, random=lambda number=number: number
        )
        began = trio.current_time()
        async with served(options=options) as peer:
            while peer.client.goaway is None:
                await peer.read()
            ages.append(trio.current_time() - began)
    assert ages == pytest.approx([90, 100, 110])


async def test_a_client_with_calls_that_wait_is_pinged_more_often(autojump_clock):
    options = ListenerOptions(keepalive_time=30, keepalive_timeout=10)
    async with served(options=options) as peer:
        await peer.call("Wait")
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(WATCHED_PING_SECONDS + MISSED_SECONDS - 0.1)
        assert not peer.connection.suspect
        await trio.sleep(0.2)
        assert peer.connection.suspect
        await peer.read()
        await trio.testing.wait_all_tasks_blocked()
        assert not peer.connection.suspect
        await peer.closed.wait()
        assert trio.current_time() == pytest.approx(2 * WATCHED_PING_SECONDS + 11.1)


async def test_our_own_stall_drops_nobody(mock_clock):
    options = ListenerOptions(keepalive_time=30, keepalive_timeout=10)
    async with served(options=options) as peer:
        mock_clock.jump(30)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(3600)
        await trio.testing.wait_all_tasks_blocked()
        assert not peer.closed.is_set()
        for _ in range(11):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        assert peer.closed.is_set()


async def test_without_keepalive_a_silent_client_is_not_dropped(autojump_clock):
    echo = Echo()
    echo.release.set()
    async with served(echo, options=lasting()) as peer:
        await peer.call("HandOut")
        await trio.sleep(10_000)
        assert not peer.closed.is_set()
        assert not peer.connection.suspect
