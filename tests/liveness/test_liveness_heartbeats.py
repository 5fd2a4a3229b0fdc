"""The machine that workers and instances share: silence, expiry, and what is to be stored."""

import pytest
import trio
import trio.testing

from globalstore.liveness.heartbeats import Heartbeats

TIMEOUT_S, GRACE_S = 10.0, 1.0


@pytest.fixture
def heartbeats(mock_clock: trio.testing.MockClock):
    """Made inside trio by each test, since it notes the time."""
    return lambda: Heartbeats(TIMEOUT_S, GRACE_S)


async def test_silence_beyond_timeout_and_grace_is_to_be_expired(heartbeats, mock_clock):
    beats = heartbeats()
    beats.registered(1)
    mock_clock.jump(10.9)
    assert beats.take_silent(9) == []
    mock_clock.jump(0.1)
    assert beats.take_silent(9) == [1]
    assert beats.take_silent(9) == []


async def test_who_speaks_after_being_taken_is_not_expired(heartbeats, mock_clock):
    beats = heartbeats()
    beats.registered(1)
    mock_clock.jump(11)
    assert beats.take_silent(9) == [1]
    beats.received(1)
    assert not beats.begin_expiry(1)
    assert not beats.is_expiring(1)


async def test_an_answer_waits_until_the_end_is_decided(heartbeats, mock_clock, nursery):
    beats, answered = heartbeats(), trio.Event()

    async def answer() -> None:
        await beats.decided(1)
        answered.set()

    beats.registered(1)
    mock_clock.jump(11)
    assert beats.begin_expiry(*beats.take_silent(9))
    nursery.start_soon(answer)
    await trio.testing.wait_all_tasks_blocked()
    assert not answered.is_set()
    beats.ended(1)
    await answered.wait()


async def test_an_end_that_could_not_be_written_is_tried_again(heartbeats, mock_clock):
    beats = heartbeats()
    beats.registered(1)
    mock_clock.jump(11)
    assert beats.begin_expiry(*beats.take_silent(9))
    beats.end_expiry([1])
    assert not beats.is_expiring(1)
    mock_clock.jump(GRACE_S)
    assert beats.take_silent(9) == [1]


async def test_a_registration_during_expiry_has_its_whole_time(heartbeats, mock_clock):
    beats = heartbeats()
    beats.registered(1)
    mock_clock.jump(11)
    assert beats.begin_expiry(*beats.take_silent(9))
    beats.registered(1)
    beats.end_expiry([1])
    mock_clock.jump(10.9)
    assert beats.take_silent(9) == []


async def test_news_is_stored_soon_and_the_rest_a_third_of_the_timeout_later(
    heartbeats, mock_clock
):
    beats = heartbeats()
    beats.registered(1)
    beats.changed(1, news=False)
    assert beats.take_unwritten(9) == []
    beats.changed(1, news=True)
    assert beats.take_unwritten(9) == [1]
    mock_clock.jump(TIMEOUT_S / 3)
    beats.changed(1, news=False)
    assert beats.take_unwritten(9) == [1]


async def test_a_stall_gives_everybody_more_time(heartbeats, mock_clock):
    beats = heartbeats()
    beats.restored(1)
    mock_clock.jump(11)
    beats.postpone(5)
    assert beats.take_silent(9) == []
    mock_clock.jump(5)
    assert beats.take_silent(9) == [1]


async def test_whoever_waits_for_the_next_end_wakes_when_it_comes(
    heartbeats, autojump_clock, nursery
):
    beats, woken = heartbeats(), trio.Event()

    async def wait() -> None:
        await beats.wait_due()
        woken.set()

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    beats.registered(1)
    await woken.wait()
    assert trio.current_time() - began == pytest.approx(TIMEOUT_S + GRACE_S)
