"""Who is alive: exact deadlines, no blame for stalls of the server, no trust in the wall clock."""

import pytest
import trio
import trio.testing
from servers import configuration, pass_time, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

CONFIG = {"heartbeat_timeout": "10s"}  # grace 1 s: 4 flush intervals of a 40th of it


async def test_a_silent_worker_is_routed_to_until_the_timeout_and_not_after(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id, max_concurrency=9)
        await pass_time(mock_clock, 9.75)
        assert (await store.claim()).status == wire.STATUS_OK
        await pass_time(mock_clock, 0.25)
        assert (await store.claim()).status == wire.STATUS_TIMED_OUT
        assert await store.active() == []


async def test_a_late_heartbeat_within_the_grace_saves_a_worker(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await pass_time(mock_clock, 10.75)
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_OK
        assert (await store.claim()).status == wire.STATUS_OK


async def test_after_the_grace_it_is_expired_and_its_transports_end(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        granted = await store.claim()
        await pass_time(mock_clock, 11)
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_NOT_FOUND
        assert await store.counts("model") == [(1, 0)]
        rows = await store.read("SELECT outcome, outcome_detail FROM transports")
        assert rows == [(3, f"source_worker_lost {worker.worker_id}")]
        rows = await store.read("SELECT current_requests FROM replicas")
        assert rows == [(0,)]
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK
        expired = store.components.metrics.registry.get_sample_value("tc_worker_expired_total")
        assert expired == 1


async def test_each_worker_has_a_deadline_of_its_own(mock_clock: trio.testing.MockClock) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        first = await store.register("d1")
        await pass_time(mock_clock, 5)
        second = await store.register("d2")
        await pass_time(mock_clock, 6)
        assert (await store.beat(first.worker_id)).status == wire.STATUS_NOT_FOUND
        assert (await store.beat(second.worker_id)).status == wire.STATUS_OK


@pytest.mark.parametrize("stall_s", [12, 60, 86400])
async def test_a_stall_of_the_server_expires_nobody(
    mock_clock: trio.testing.MockClock, stall_s: float
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        await pass_time(mock_clock, 5)
        mock_clock.jump(stall_s)
        await trio.testing.wait_all_tasks_blocked()
        assert len(await store.active()) == 1
        assert (await store.claim()).status == wire.STATUS_OK
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_OK


async def test_after_a_stall_a_worker_has_what_it_had_left_and_no_more(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await pass_time(mock_clock, 5)
        mock_clock.jump(300)
        await trio.testing.wait_all_tasks_blocked()
        await pass_time(mock_clock, 6.5)
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_NOT_FOUND


@pytest.mark.parametrize("step_us", [-(10**13), 10**13])
async def test_steps_of_the_wall_clock_change_nobodys_age(
    mock_clock: trio.testing.MockClock, step_us: int
) -> None:
    now_us = 1_700_000_000_000_000
    async with serving(configuration(worker_policy=CONFIG), wall=lambda: now_us) as store:
        alive = await store.register("d1")
        dead = await store.register("d2")
        now_us += step_us
        await pass_time(mock_clock, 5)
        assert len(await store.active()) == 2
        await store.beat(alive.worker_id)
        await pass_time(mock_clock, 6)
        assert [worker.daemon_id for worker in await store.active()] == ["d1"]
        assert (await store.beat(dead.worker_id)).status == wire.STATUS_NOT_FOUND


async def test_two_hundred_workers_that_die_together_expire_together(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        for number in range(200):
            await store.register(f"d{number}")
        survivor = await store.register("survivor")
        await pass_time(mock_clock, 5)
        await store.beat(survivor.worker_id)
        await pass_time(mock_clock, 6)
        while len(store.components.workers) > 1:
            await trio.lowlevel.checkpoint()
        active = await store.read("SELECT count(*) FROM workers WHERE inactive_at IS NULL")
        assert active == [(1,)]


async def test_a_heartbeat_during_the_expiry_is_told_how_that_ends(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=CONFIG)) as store:
        worker = await store.register("d1")
        await pass_time(mock_clock, 10.75)
        mock_clock.jump(0.25)
        answers = []

        async def beat() -> None:
            answers.append((await store.beat(worker.worker_id)).status)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(beat)
        # Whoever came first decides; nobody hears OK from a worker that is then expired.
        assert len(set(answers)) == 1
        again = (await store.beat(worker.worker_id)).status
        assert again == answers[0]
