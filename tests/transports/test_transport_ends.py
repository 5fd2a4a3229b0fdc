"""How a transport ends: completed, expired, with a worker that is lost; and over a restart."""

import uuid
from pathlib import Path

import pytest
import trio
import trio.testing
from claims import LOADS, OK, OUTCOMES, TIMED_OUT, parked, source, start
from purerpc import StatusCode
from servers import configuration, memory_info, pass_time, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

# Completion


@pytest.mark.parametrize("transport_id", ["", "no-uuid", "1" * 31])
async def test_a_transport_id_is_a_uuid(transport_id: str) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "transport_id"):
        await store.complete(transport_id)


@pytest.mark.parametrize("outcome", [0, 5, -1])
async def test_an_outcome_is_explicit_whether_or_not_the_transport_is_known(outcome: int) -> None:
    async with serving() as store:
        await source(store)
        granted = await store.claim()
        for transport_id in (granted.transport_id, str(uuid.uuid4())):
            async with refused(StatusCode.INVALID_ARGUMENT, "explicit outcome"):
                await store.complete(transport_id, outcome)
        assert await store.read(LOADS) == [(1,)]


async def test_an_unknown_transport_is_not_found() -> None:
    async with serving() as store:
        answer = await store.complete(str(uuid.uuid4()))
        assert answer.status == wire.STATUS_NOT_FOUND


@pytest.mark.parametrize("first", [1, 2, 3, 4])
@pytest.mark.parametrize("later", [1, 2])
async def test_the_first_end_stays_and_frees_one_slot(first: int, later: int) -> None:
    now_us = 1_000
    async with serving(wall=lambda: now_us) as store:
        await source(store, slots=3)
        granted = await store.claim()
        await store.claim()
        assert (
            await store.complete(granted.transport_id.upper(), first, outcome_detail=" why\n ")
        ).status == OK
        ended = "SELECT outcome, outcome_detail, completed_at FROM transports LIMIT 1"
        assert await store.read(ended) == [(first, "why", 1_000)]
        now_us += 5
        again = await store.complete(granted.transport_id, later, outcome_detail="later")
        assert again.status == OK
        assert await store.read(ended) == [(first, "why", 1_000)]
        assert await store.read(LOADS) == [(1,)]


async def test_a_detail_may_be_any_text_and_is_kept_up_to_a_length() -> None:
    async with serving() as store:
        await source(store)
        granted = await store.claim()
        await store.complete(granted.transport_id, 2, outcome_detail="line\n\tline\0" + "x" * 9999)
        ((_, detail),) = await store.read(OUTCOMES)
        assert detail.startswith("line\n\tline\0xxx")
        assert len(detail) == 4096


async def test_thirty_two_completions_at_once_free_one_slot() -> None:
    async with serving() as store:
        await source(store, slots=2)
        granted = await store.claim()
        await store.claim()
        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(store.complete, granted.transport_id, 1 + number % 4)
        assert await store.read(LOADS) == [(1,)]


# Expiry


async def test_a_transport_expires_exactly_after_its_time_to_live(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = 1_700_000_000_000_000
    config = configuration(worker_policy={"transport_ttl": "5s"})
    async with serving(config, wall=lambda: now_us) as store:
        await source(store, slots=2)
        first = await store.claim()
        await pass_time(mock_clock, 2)
        await store.claim(wait_s=0.5)
        await pass_time(mock_clock, 2.75)
        assert await store.read(LOADS) == [(2,)]
        now_us += 5_000_000
        await pass_time(mock_clock, 0.25)
        while await store.read(LOADS) != [(1,)]:
            pass
        assert await store.read(OUTCOMES) == [
            (3, "not completed in time: expired after 5 s"),
            (0, ""),
        ]
        assert (await store.complete(first.transport_id)).status == OK
        assert (await store.read(OUTCOMES))[0][0] == 3
        assert await store.read(LOADS) == [(1,)]
        await pass_time(mock_clock, 2)
        while await store.read(LOADS) != [(0,)]:
            pass


async def test_a_stall_of_the_server_expires_no_transport(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"transport_ttl": "5s", "heartbeat_timeout": "600s"})
    async with serving(config) as store:
        await source(store)
        await store.claim()
        await pass_time(mock_clock, 4)
        mock_clock.jump(300)
        await trio.testing.wait_all_tasks_blocked()
        assert (await store.claim()).status == TIMED_OUT
        assert await store.read(LOADS) == [(1,)]
        await pass_time(mock_clock, 1.5)
        while await store.read(LOADS) != [(0,)]:
            pass


async def test_the_time_to_live_follows_the_other_intervals_unless_it_is_set(
    mock_clock: trio.testing.MockClock,
) -> None:
    policy = {"heartbeat_timeout": "40s", "cleanup_interval": "1s"}
    async with serving(configuration(worker_policy=policy)) as store:
        worker = await source(store)
        await store.claim()
        for _ in range(3):
            await pass_time(mock_clock, 26.5)
            await store.beat(worker.worker_id)
        assert await store.read(LOADS) == [(1,)]
        await pass_time(mock_clock, 0.75)
        while await store.read(LOADS) != [(0,)]:
            pass


async def test_more_transports_than_one_transaction_ends_expire_together(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"transport_ttl": "5s"})
    async with serving(config) as store:
        await source(store, slots=600)
        async with trio.open_nursery() as nursery:
            for _ in range(6):

                async def claim() -> None:
                    for _ in range(100):
                        await store.claim()

                nursery.start_soon(claim)
        assert await store.read(LOADS) == [(600,)]
        await pass_time(mock_clock, 5.25)
        while await store.read(LOADS) != [(0,)]:
            pass
        assert len(store.components.transport_expiry) == 0


# Loss of a worker


async def test_the_loss_of_a_worker_ends_what_it_served_and_what_it_had_asked_for() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        lost = await store.register("d1")
        other = await store.register("d2")
        await store.replica(lost.worker_id, "of-lost", max_concurrency=2)
        await store.replica(other.worker_id, "of-other", node="d2")
        served = await store.claim("of-lost")
        by_lost = await store.claim("of-other", requester_worker_id=lost.worker_id)
        await store.claim("of-lost", requester_worker_id="never-registered")
        waiter = start(nursery, store, "of-other")
        await parked(store, 1)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=lost.worker_id, is_graceful_shutdown=False)
        )
        assert await waiter.status() == OK
        assert await store.read(OUTCOMES) == [
            (3, f"source_worker_lost {lost.worker_id}"),
            (3, f"requester_worker_lost {lost.worker_id}"),
            (3, f"source_worker_lost {lost.worker_id}"),
            (0, ""),
        ]
        assert await store.read(LOADS) == [(0,), (1,)]
        for late in (served, by_lost):
            assert (await store.complete(late.transport_id)).status == OK
        assert await store.read(LOADS) == [(0,), (1,)]
        assert await store.counts("of-lost", "of-other") == [(1, 0), (1, 1)]


@pytest.mark.parametrize("moved_by", ["registration", "recovery"])
async def test_a_transport_shares_the_fate_of_the_worker_its_replica_moved_to(
    moved_by: str,
) -> None:
    async with serving() as store:
        old = await store.register("d1")
        await store.replica(old.worker_id)
        await store.claim()
        if moved_by == "registration":
            new = await store.register("d2")
            await store.replica(new.worker_id)
            await store.runtime.UnregisterWorker(
                wire.UnregisterWorkerRequest(worker_id=old.worker_id)
            )
        else:
            await store.components.store.write(lambda tx: tx.run("DELETE FROM workers"))
            new = await store.register(
                "d2", is_recovery_registration=True, previous_worker_id=old.worker_id
            )
        assert await store.read(OUTCOMES) == [(0, "")]
        await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=new.worker_id))
        assert await store.read(OUTCOMES) == [(3, f"source_worker_lost {new.worker_id}")]
        assert await store.read(LOADS) == [(0,)]


async def test_a_worker_that_stops_accepting_or_says_goodbye_lets_transports_run() -> None:
    async with serving() as store:
        worker = await source(store, slots=2)
        granted = await store.claim()
        await store.beat(worker.worker_id, accepting_new_requests=False)
        assert (await store.claim()).status == TIMED_OUT
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=worker.worker_id, is_graceful_shutdown=True)
        )
        assert await store.read(LOADS) == [(1,)]
        await store.complete(granted.transport_id)
        assert await store.read(OUTCOMES) == [(1, "")]


# Restart


async def test_after_a_restart_transports_live_on_and_nothing_is_routed_unconfirmed(
    tmp_path: Path,
) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        worker = await source(store, slots=3)
        ended = await store.claim()
        await store.complete(ended.transport_id)
        running = await store.claim(request_id="r")
        waiting = await store.claim(request_id="waited", wait_s=0.001, artifact_id="model")
        assert waiting.status == OK
    async with serving(config) as store, trio.open_nursery() as nursery:
        assert await store.read(LOADS) == [(2,)]
        assert len(store.components.transport_expiry) == 2
        assert len(store.components.queues) == 0
        assert await store.counts("model") == [(1, 0)]
        assert (await store.beat(worker.worker_id)).state_sync_required
        waiter = start(nursery, store)
        await parked(store, 1)
        again = await store.claim(request_id="r")
        assert again.transport_id == running.transport_id
        await store.complete(running.transport_id)
        assert await store.read(LOADS) == [(1,)]
        assert not waiter.ended.is_set()
        await store.replica(worker.worker_id, max_concurrency=3)
        assert await waiter.status() == OK
        assert await store.counts("model") == [(1, 1)]


async def test_wrong_counters_are_set_right_when_a_server_takes_over(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        worker = await source(store, slots=5)
        for device, _ in enumerate(range(2), start=1):
            info = memory_info(device_id=device)
            await store.replica(worker.worker_id, max_concurrency=5, mem_info=info)
        for _ in range(4):
            await store.claim()
        loads = await store.read(LOADS)
        await store.components.store.write(
            lambda tx: tx.run("UPDATE replicas SET current_requests = (seq * 7) % 5")
        )
        assert await store.read(LOADS) != loads
    async with serving(config) as store:
        assert await store.read(LOADS) == loads


@pytest.mark.parametrize("age_s", [4, 6, -100])
async def test_what_is_left_of_a_time_to_live_counts_after_a_restart(
    mock_clock: trio.testing.MockClock, tmp_path: Path, age_s: int
) -> None:
    now_us = 1_700_000_000_000_000
    config = configuration(
        database={"db_file": str(tmp_path / "store.db")}, worker_policy={"transport_ttl": "5s"}
    )
    async with serving(config, wall=lambda: now_us) as store:
        await source(store)
        await store.claim()
    now_us += age_s * 1_000_000
    async with serving(config, wall=lambda: now_us) as store:
        left_s = {4: 1, 6: 0, -100: 5}[age_s]
        if left_s:
            await pass_time(mock_clock, left_s - 0.5)
            assert await store.read(LOADS) == [(1,)]
            await pass_time(mock_clock, 0.75)
        while await store.read(LOADS) != [(0,)]:
            pass
        ((outcome, _),) = await store.read(OUTCOMES)
        assert outcome == 3


async def test_ended_transports_are_forgotten_after_their_retention(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = 1_700_000_000_000_000
    config = configuration(worker_policy={"cleanup_interval": "1s", "transport_retention": "10s"})
    async with serving(config, wall=lambda: now_us) as store:
        await source(store, slots=2)
        granted = await store.claim(request_id="r")
        await store.claim()
        await store.complete(granted.transport_id)
        now_us += 10_000_001
        while await store.read(OUTCOMES) != [(0, "")]:
            await pass_time(mock_clock, 0.25)
        again = await store.claim(request_id="r")
        assert (again.status, again.transport_id != granted.transport_id) == (OK, True)
