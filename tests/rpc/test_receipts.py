"""What an answer handed out is taken back when its client was told otherwise."""

from contextlib import asynccontextmanager, nullcontext

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from globalstore.rpc import CallEnded, InProcess, Limits, ListenerOptions, frames
from globalstore.rpc.receipts import RECEIPT, Receipts

from .echo import Echo, dial, listening, served, text


def acknowledgements(peer):
    """The PINGs that the client has to answer, taken out of what it would send."""
    data, kept, found = peer.client.output(), b"", []
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        piece, data = data[:end], data[end:]
        if piece[3] == frames.PING and piece[9:] == RECEIPT:
            found.append(piece)
        else:
            kept += piece
    return found, kept


async def take(peer):
    """Read what came, and answer everything but receipts; return the answers to those."""
    peer.client.receive(bytes(await peer.stream.receive_some(1 << 16)))
    found, rest = acknowledgements(peer)
    if rest:
        await peer.stream.send_all(rest)
    return found


@asynccontextmanager
async def handing_out(**settings):
    echo = Echo()
    echo.release.set()
    async with served(echo, **settings) as peer:
        yield echo, peer
        await trio.testing.wait_all_tasks_blocked()


async def settled():
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize(("after", "taken_back"), [(0.0, ["a"]), (1.0, [])])
async def test_a_reset_right_behind_the_acknowledgement_counts_a_late_one_does_not(
    after, taken_back, autojump_clock
):
    async with handing_out() as (echo, peer):
        stream_id = await peer.call("HandOut", "a")
        assert (await peer.answer(stream_id)).status == "0"
        await settled()
        await trio.sleep(after)
        assert len(peer.connection._receipts) == 0
        await peer.cancel(stream_id)
        await settled()
        assert echo.taken_back == taken_back


async def test_a_call_that_was_cancelled_while_its_answer_was_under_way_is_undone():
    async with handing_out() as (echo, peer):
        stream_id = await peer.call("HandOut", "a")
        await settled()
        await peer.cancel(stream_id)
        await take(peer)
        await settled()
        assert echo.taken_back == ["a"]
        assert len(peer.connection._receipts) == 0


async def test_a_reset_without_an_error_is_a_client_that_has_read_its_answer():
    async with handing_out() as (echo, peer):
        stream_id = await peer.call("HandOut", "a")
        await settled()
        await peer.cancel(stream_id, ErrorCodes.NO_ERROR)
        await settled()
        assert echo.taken_back == []


async def test_one_ping_is_on_its_way_and_confirms_all_that_was_written_before():
    async with handing_out() as (echo, peer):
        first = await peer.call("HandOut", "a")
        await settled()
        pings = await take(peer)
        assert len(pings) == 1
        others = [await peer.call("HandOut", value) for value in "bcd"]
        await settled()
        assert await take(peer) == []
        await peer.stream.send_all(pings[0])
        await settled()
        pings = await take(peer)
        assert len(pings) == 1
        assert len(peer.connection._receipts) == 3
        await peer.cancel(others[1])
        await peer.stream.send_all(pings[0])
        await peer.cancel(first)
        await settled()
        assert echo.taken_back == ["c"]
        assert len(peer.connection._receipts) == 0


async def test_a_call_that_ends_otherwise_has_handed_out_nothing():
    async with handing_out() as (echo, peer):
        stream_id = await peer.call("HandOutAndHang", "a")
        await settled()
        await peer.cancel(stream_id)
        await settled()
        assert echo.taken_back == ["a"]


async def test_a_late_call_is_undone(autojump_clock):
    async with handing_out() as (echo, peer):
        stream_id = await peer.call("HandOutAndHang", "a", ("grpc-timeout", "1S"))
        assert (await peer.answer(stream_id)).status == "4"
        await settled()
        assert echo.taken_back == ["a"]


async def test_an_answer_that_never_left_is_undone():
    pair = trio.testing.lockstep_stream_pair()
    async with handing_out(pair=pair) as (echo, peer):
        await peer.call("HandOut", "a")
        await settled()
        await peer.stream.aclose()
        await peer.closed.wait()
        await settled()
        assert echo.taken_back == ["a"]


async def test_an_answer_without_window_is_undone_when_the_client_resets_it():
    async with handing_out() as (echo, peer):
        peer.client.credit = False
        stream_id = await peer.call("HandOut", "a 100000")
        await settled()
        while len(peer.client.answers[stream_id].data) < 65_000:
            await take(peer)
        await peer.cancel(stream_id)
        await settled()
        assert echo.taken_back == ["a 100000"]


async def test_a_client_that_closes_after_the_answer_was_sent_has_got_it():
    async with handing_out() as (echo, peer):
        await peer.call("HandOut", "a")
        await settled()
        await peer.stream.aclose()
        await peer.closed.wait()
        await settled()
        assert echo.taken_back == []


async def test_a_client_that_answers_no_ping_has_got_nothing(autojump_clock):
    options = ListenerOptions(keepalive_time=30, keepalive_timeout=10)
    async with handing_out(options=options) as (echo, peer):
        await peer.call("HandOut", "a")
        await peer.closed.wait()
        assert trio.current_time() == pytest.approx(10.0)
        await settled()
        assert echo.taken_back == ["a"]


async def test_an_undo_that_fails_or_hangs_ends_nothing_else(autojump_clock, caplog):
    async with handing_out(limits=Limits(undo_seconds=3)) as (_, peer):

        async def fail():
            raise ValueError("no")

        peer.serving.take_back(fail)
        peer.serving.take_back(trio.sleep_forever)
        await peer.serving.all_undone()
        assert trio.current_time() == pytest.approx(3.0)
        assert "was not undone in time" in caplog.text
        assert (await peer.answer(await peer.call("Unary"))).status == "0"


async def test_a_drain_waits_for_what_is_taken_back():
    echo = Echo()
    echo.release.set()
    async with listening(echo.service) as listener:
        peer = await dial(listener)
        await peer.call("HandOutAndHang", "a")
        await echo.running.wait()
        async with trio.open_nursery() as nursery:

            async def read():
                while await peer.read():
                    pass

            nursery.start_soon(read)
            await listener.drain(0)
            assert echo.taken_back == ["a"]
            nursery.cancel_scope.cancel()


def test_answers_that_nobody_confirms_are_bounded():
    undone = []
    receipts = Receipts(10, undone.append)
    for number in range(1000):
        receipts.expect(2 * number + 1, number)
        receipts.leaving(())
        receipts.left()
    assert len(receipts) == 10
    receipts.end(silent=True)
    assert undone == list(range(990, 1000))


@pytest.mark.parametrize("loses_answer", [False, True])
async def test_a_call_within_the_process_loses_its_answer_if_asked_to(loses_answer):
    echo = Echo()
    echo.release.set()
    calls = InProcess([echo.service])
    with pytest.raises(CallEnded) if loses_answer else nullcontext():
        await calls.call("/test.Echo/HandOut", text("a"), loses_answer=loses_answer)
    assert echo.taken_back == ["a"] * loses_answer


async def test_a_caller_within_the_process_that_goes_has_what_it_got_undone():
    echo = Echo()
    calls = InProcess([echo.service])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(calls.call, "/test.Echo/HandOutAndHang", text("a"))
        await echo.running.wait()
        nursery.cancel_scope.cancel()
    assert echo.taken_back == ["a"]


async def blocked(peer):
    """Have a client get an answer for which it gives no window; return the stream."""
    peer.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    await peer.flush()
    await settled()
    stream_id = await peer.call("HandOut", "a")
    await settled()
    return stream_id


@pytest.mark.parametrize("is_broken", [True, False])
async def test_what_waits_for_a_window_when_the_connection_ends_did_not_leave(
    autojump_clock, is_broken
):
    async with handing_out() as (echo, peer):
        stream_id = await blocked(peer)
        assert peer.connection._engine.stream_queued_bytes(stream_id)
        if is_broken:
            await peer.stream.send_all(frames.frame(frames.DATA, 0, 99, b"x"))
            await settled()
        await peer.stream.aclose()
        await trio.sleep(5)
        assert echo.taken_back == ["a"]


async def test_a_drain_takes_back_what_the_connections_that_it_ends_did_not_deliver(autojump_clock):
    echo = Echo()
    echo.release.set()
    limits = Limits(flush_seconds=0.2, unwind_seconds=0.2, goaway_seconds=0.1)
    async with listening(echo.service, limits=limits) as listener:
        peer = await dial(listener)
        await blocked(peer)
        await listener.drain(0.2)
        assert echo.taken_back == ["a"]


def test_a_client_that_confirms_nothing_costs_no_more_for_each_answer():
    receipts = Receipts(answers_max=10, take_back=lambda undo: None)
    for stream_id in range(1, 2001, 2):
        receipts.expect(stream_id, nobody)
        receipts.leaving(())
        receipts.left()
    assert len(receipts) == 10
    assert len(receipts._unasked) <= 20


async def nobody():
    """Undo nothing."""
