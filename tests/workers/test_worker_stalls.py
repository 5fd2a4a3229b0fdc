"""The server's own sickness kills nobody and keeps nobody alive: stops, a stuck disk, the clock."""

import re
import signal
import threading
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import grpc
import pytest
import trio
import trio.testing
from server_process import PATIENCE_S, Client, Process, running
from servers import (
    Serving,
    claim_request,
    configuration,
    eventually,
    pass_time,
    replica_request,
    serving,
    worker_request,
)
from stuck_disk import StuckDisk

from globalstore.db import Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.workers import Heartbeat

DAY_US = 86_400 * 10**6
NOW_US = 1_700_000_000_000_000
POLICY = {"heartbeat_timeout": "10s"}  # grace 1 s: 4 flush intervals of a 40th of it

# What the process tests run with: timeout and the grace that follows from it, in seconds.
SHORT_TIMEOUT_S, SHORT_GRACE_S = 1.0, 0.5


def beat(client: Client, worker_id: str) -> int:
    request = wire.WorkerHeartbeatRequest(
        worker_id=worker_id, state_version=1, accepting_new_requests=True
    )
    return int(client.runtime("WorkerHeartbeat", request).status)


def gauge(process: Process, name: str) -> float:
    url = f"http://127.0.0.1:{process.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found is not None
    return float(found.group(1))


def moment(line: str) -> float:
    return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()


def test_a_process_stopped_beyond_the_timeout_loses_nobody_and_then_the_dead(
    tmp_path: Path,
) -> None:
    policy = {"heartbeat_timeout": f"{SHORT_TIMEOUT_S:g}s"}
    with running(tmp_path, worker_policy=policy) as process, Client(process.port) as client:
        dead = client.runtime("RegisterWorker", worker_request("dead")).worker_id
        healthy = client.runtime("RegisterWorker", worker_request("d1")).worker_id
        client.runtime("RegisterReplica", replica_request(healthy))
        granted = client.runtime("RequestReplicaTransport", claim_request())
        assert granted.status == wire.STATUS_OK
        process.signal(signal.SIGSTOP)
        with pytest.raises(grpc.RpcError):
            # A call that nobody answers measures the stop: longer than timeout and grace.
            client.admin("HealthCheck", wire.HealthCheckRequest(), timeout=2.5)
        process.signal(signal.SIGCONT)
        assert beat(client, healthy) == wire.STATUS_OK
        stalled = process.wait_for("server was stalled.* seconds=").string

        stop = threading.Event()
        answers = set()

        def keep_alive() -> None:
            while not stop.wait(0.1):
                answers.add(beat(client, healthy))

        heart = threading.Thread(target=keep_alive)
        heart.start()
        try:
            expired = process.wait_for("worker expired").string
        finally:
            stop.set()
            heart.join(PATIENCE_S)
        assert f"worker_id={dead}" in expired
        assert answers == {wire.STATUS_OK}
        # Every further stall of a busy machine is time that nobody is blamed for.
        again = sum(
            float(found.group(1))
            for line in process.lines
            if line != stalled and (found := re.search(r"was stalled.* seconds=(\S+)", line))
        )
        late_s = moment(expired) - moment(stalled) - again
        assert late_s <= SHORT_TIMEOUT_S + SHORT_GRACE_S + 1
        assert sum("worker expired" in line for line in process.lines) == 1
        # The transport still holds the only slot of its source.
        assert gauge(process, "tc_active_transports") == 1
        second = client.runtime("RequestReplicaTransport", claim_request())
        assert second.status == wire.STATUS_TIMED_OUT
        ended = wire.CompleteReplicaTransportRequest(
            transport_id=granted.transport_id, outcome=wire.TRANSPORT_COMPLETION_OUTCOME_SUCCESS
        )
        assert client.runtime("CompleteReplicaTransport", ended).status == wire.STATUS_OK
        assert gauge(process, "tc_active_transports") == 0


async def test_while_the_disk_is_stuck_heartbeats_are_answered_and_nobody_healthy_expires(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    config = configuration(worker_policy=POLICY, database={"db_file": str(tmp_path / "store.db")})
    async with serving(config, runner=Runner.THREADS) as store:
        healthy = await store.register("healthy")
        dead = await store.register("dead")
        await store.replica(healthy.worker_id, max_concurrency=9)
        async with StuckDisk(store, nursery):
            for _ in range(10):
                await pass_time(mock_clock, 3)
                answer = await store.beat(healthy.worker_id)
                assert answer.status == wire.STATUS_OK
            assert [worker.daemon_id for worker in await store.active()] == ["healthy"]
        # The end of the dead one was decided in the meantime, and is written now.
        await eventually(lambda: store.components.workers.find(dead.worker_id) is None)
        assert (await store.beat(dead.worker_id)).status == wire.STATUS_NOT_FOUND
        assert (await store.beat(healthy.worker_id)).status == wire.STATUS_OK
        assert (await store.claim()).status == wire.STATUS_OK
        rows = await store.read("SELECT daemon_id FROM workers WHERE inactive_at IS NULL")
        assert rows == [("healthy",)]


async def test_a_worker_that_dies_while_the_disk_is_stuck_is_not_routed_to_and_ends_after(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    config = configuration(worker_policy=POLICY, database={"db_file": str(tmp_path / "store.db")})
    async with serving(config, runner=Runner.THREADS) as store:
        worker = await store.register("d1")
        await store.replica(worker.worker_id)
        async with StuckDisk(store, nursery):
            await pass_time(mock_clock, 30)
            assert store.components.workers.routable() == frozenset()
            assert await store.active() == []
            late: list[int] = []

            async def speak() -> None:
                late.append((await store.beat(worker.worker_id)).status)

            nursery.start_soon(speak)
            await pass_time(mock_clock, 1)
            # Nobody may be told that it lives while its end is being written.
            assert late == []
        await eventually(lambda: late)
        assert late == [wire.STATUS_NOT_FOUND]
        # Counted by who expires, after those are answered who waited for it.
        registry = store.components.metrics.registry
        await eventually(lambda: registry.get_sample_value("tc_worker_expired_total"))
        assert registry.get_sample_value("tc_worker_expired_total") == 1


class Wall:
    """A wall clock that somebody sets."""

    def __init__(self) -> None:
        self.us = NOW_US

    def __call__(self) -> int:
        return self.us


Steps = list[int]


@pytest.mark.parametrize(
    "steps_us",
    [[DAY_US], [-DAY_US], [DAY_US, -DAY_US], [-DAY_US, DAY_US]],
    ids=["forward", "back", "forward and back", "back and forward"],
)
async def test_setting_the_wall_clock_kills_nobody_saves_nobody_and_turns_nothing_back(
    mock_clock: trio.testing.MockClock, steps_us: Steps
) -> None:
    wall = Wall()
    async with serving(configuration(worker_policy=POLICY), wall=wall) as store:
        alive = await store.register("alive")
        await store.register("dead")
        await store.replica(alive.worker_id)
        granted = await store.claim()
        seen = [NOW_US]
        for second in range(12):
            if second < 2 * len(steps_us) and second % 2 == 0:
                wall.us += steps_us[second // 2]
            await pass_time(mock_clock, 1)
            wall.us += 10**6
            assert (await store.beat(alive.worker_id)).status == wire.STATUS_OK
            listed = await store.active(include_unavailable=True)
            expected = ["alive", "dead"] if second < 9 else ["alive"]
            # The last heard comes first, whatever the stored times say.
            assert [worker.daemon_id for worker in listed] == expected
            assert {worker.status for worker in listed} == {wire.CONNECTION_STATUS_CONNECTED}
            seen.append(listed[0].last_heartbeat_ts.ToMicroseconds())
        assert seen == sorted(seen)
        await eventually(lambda: len(store.components.workers) == 1)
        assert await inactive(store) == ["dead"]
        assert (await store.complete(granted.transport_id)).status == wire.STATUS_OK


async def inactive(store: Serving) -> list[str]:
    rows = await store.read("SELECT daemon_id FROM workers WHERE inactive_at IS NOT NULL")
    return [daemon_id for (daemon_id,) in rows]


async def test_a_heartbeat_time_once_shown_is_kept_in_the_file_too(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    wall = Wall()
    config = configuration(worker_policy=POLICY, database={"db_file": str(tmp_path / "store.db")})
    shown = []
    async with serving(config, wall=wall) as store:
        worker = await store.register("d1")
        wall.us += DAY_US
        await pass_time(mock_clock, 4)
        await store.beat(worker.worker_id)
        [listed] = await store.active()
        shown.append(listed.last_heartbeat_ts.ToMicroseconds())
    wall.us -= DAY_US
    async with serving(config, wall=wall) as store:
        assert (await store.beat(worker.worker_id)).status == wire.STATUS_OK
        [listed] = await store.active()
        assert listed.last_heartbeat_ts.ToMicroseconds() >= shown[0]


@pytest.mark.parametrize("look", ["routable", "live"])
async def test_whoever_asks_first_after_a_stall_sees_everybody_as_before_it(
    mock_clock: trio.testing.MockClock, look: str
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await store.register("d1")
        ask: Callable[[], frozenset[int]] = getattr(store.components.workers, look)
        before = ask()
        assert len(before) == 1
        mock_clock.jump(60)
        # Nothing else had its turn yet: not even the one who measures stalls.
        assert ask() == before


async def test_registering_again_does_not_turn_the_shown_heartbeat_back(
    mock_clock: trio.testing.MockClock,
) -> None:
    wall = Wall()
    async with serving(configuration(worker_policy=POLICY), wall=wall) as store:
        worker = await store.register("d1")
        wall.us += DAY_US
        await store.beat(worker.worker_id)
        wall.us -= DAY_US
        await store.register("d1")
        [listed] = await store.active()
        assert listed.last_heartbeat_ts.ToMicroseconds() == NOW_US + DAY_US


async def test_who_is_heard_right_after_a_stall_gets_no_more_time_than_others(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        registered = await store.register("d1")
        mock_clock.jump(300)
        worker = store.components.workers.find(registered.worker_id)
        assert worker is not None
        # Before anybody else had a turn, as a heartbeat that waited in the socket does.
        store.components.workers.heartbeat(worker, Heartbeat(0, True, None), NOW_US)
        await pass_time(mock_clock, 11.5)
        await eventually(lambda: store.components.workers.find(registered.worker_id) is None)
