"""InstanceHeartbeat: who is kept alive, what is replaced, and what reaches the file."""

import logging

import pytest
import trio
import trio.testing
from instance_calls import NODE_AGENT, SIGNALS, beat, listed, only, register, unregister
from purerpc import StatusCode
from servers import configuration, pass_time, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

NOW_US = 1_700_000_000_000_000
POLICY = {"heartbeat_timeout": "10s"}  # grace 1 s: 4 flush intervals of a 40th of it
ROW = "SELECT last_heartbeat, capability_flags, named_worker_id FROM instances"


@pytest.mark.parametrize("instance_id", ["", "  "])
async def test_a_blank_id_is_refused(instance_id: str) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "instance_id"):
        await beat(store, instance_id)


async def test_an_unknown_instance_has_to_register() -> None:
    async with serving() as store:
        assert await beat(store) == wire.STATUS_NOT_FOUND
        assert await listed(store, include_unavailable=True) == []


async def test_a_heartbeat_resurrects_nobody() -> None:
    async with serving() as store:
        await register(store)
        await unregister(store)
        assert await beat(store) == wire.STATUS_NOT_FOUND
        assert await listed(store) == []


async def test_ids_are_trimmed() -> None:
    async with serving() as store:
        await register(store, "i1")
        assert await beat(store, " i1 ", worker_id=" w1 ") == wire.STATUS_OK
        assert (await only(store)).worker_id == "w1"


async def test_flags_that_are_present_replace_and_absent_ones_are_kept() -> None:
    async with serving() as store:
        await register(store, capability_flags=SIGNALS)
        await beat(store)
        assert (await only(store)).capability_flags == SIGNALS
        await beat(store, capability_flags=2**64 - 1 - NODE_AGENT)
        assert (await only(store)).capability_flags == 2**64 - 1 - NODE_AGENT
        await beat(store, capability_flags=0)
        assert (await only(store)).capability_flags == 0


async def test_a_named_worker_replaces_and_naming_none_asks_the_daemon_again() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        await register(store)
        await beat(store, worker_id="w9")
        assert (await only(store)).worker_id == "w9"
        await beat(store, worker_id=" ")
        assert (await only(store)).worker_id == worker.worker_id
        await beat(store, worker_id="w9")
        await beat(store)
        assert (await only(store)).worker_id == worker.worker_id


async def test_a_node_agent_without_an_endpoint_is_refused_and_not_kept_alive(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store, capability_flags=SIGNALS)
        await pass_time(mock_clock, 9)
        async with refused(StatusCode.INVALID_ARGUMENT, "NODE_AGENT", "execution_endpoint"):
            await beat(store, capability_flags=NODE_AGENT, worker_id="w9")
        shown = await only(store)
        assert (shown.capability_flags, shown.worker_id) == (SIGNALS, "")
        await pass_time(mock_clock, 1.5)
        assert (await only(store)).status == wire.CONNECTION_STATUS_RECONNECTING


async def test_a_heartbeat_may_make_a_node_agent_of_whom_has_an_endpoint() -> None:
    async with serving() as store:
        await register(store, execution_endpoint="e")
        assert (await only(store)).execution_host_kind == ""
        assert await beat(store, capability_flags=NODE_AGENT) == wire.STATUS_OK
        assert (await only(store)).execution_host_kind == "node_agent_grpc"


async def test_a_worker_id_that_is_no_id_is_refused() -> None:
    async with serving() as store:
        await register(store)
        async with refused(StatusCode.INVALID_ARGUMENT, "worker_id"):
            await beat(store, worker_id="x" * 1025)


async def test_heartbeats_do_not_write(mock_clock: trio.testing.MockClock) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store, "i1")
        await register(store, "i2", capability_flags=SIGNALS, worker_id="w1")
        # The tasks of the server have looked by now for what an earlier one left to do.
        await trio.testing.wait_all_tasks_blocked()
        operations = store.components.store.statistics().operations
        for _ in range(3):
            await pass_time(mock_clock, 1)
            await beat(store, "i1")
            await beat(store, "i2", capability_flags=SIGNALS, worker_id="w1")
        assert store.components.store.statistics().operations == operations


async def test_liveness_is_written_now_and_then_and_at_a_change(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = NOW_US
    async with serving(configuration(worker_policy=POLICY), wall=lambda: now_us) as store:
        await register(store)
        now_us += 1_000_000
        await beat(store, capability_flags=2**63, worker_id="w1")
        await pass_time(mock_clock, 0.5)
        while await store.read(ROW) != [(now_us, -(2**63), "w1")]:
            await trio.lowlevel.checkpoint()
        await pass_time(mock_clock, 4)
        now_us += 4_000_000
        await beat(store, worker_id="w1")
        await pass_time(mock_clock, 0.5)
        while await store.read(ROW) != [(now_us, -(2**63), "w1")]:
            await trio.lowlevel.checkpoint()


async def test_a_shown_heartbeat_never_moves_back() -> None:
    now_us = NOW_US
    async with serving(wall=lambda: now_us) as store:
        await register(store)
        now_us += 5_000_000
        await beat(store)
        now_us -= 3_600_000_000
        await beat(store)
        assert (await only(store)).last_heartbeat_ts.ToMicroseconds() == NOW_US + 5_000_000
        await register(store)
        assert (await only(store)).last_heartbeat_ts.ToMicroseconds() == NOW_US + 5_000_000
        await unregister(store)
        shown = await only(store, include_unavailable=True)
        assert shown.last_heartbeat_ts.ToMicroseconds() == NOW_US + 5_000_000


async def test_what_was_gathered_of_an_earlier_registration_is_not_written_over_the_next(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store)
        await beat(store, capability_flags=SIGNALS, worker_id="w1")
        unwritten = store.components.instances.take_unwritten(10)
        assert len(unwritten) == 1
        await register(store)
        record = store.components.instance_heartbeats._record
        assert await store.components.store.write(record, unwritten) == 0
        assert [row[1:] for row in await store.read(ROW)] == [(0, "")]


async def test_a_flood_of_heartbeats_of_the_unknown_is_one_line_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as store:
        with caplog.at_level(logging.WARNING, logger="globalstore.instances"):
            for _ in range(5):
                await beat(store, "flooding-instance")
    warnings = [r for r in caplog.records if r.getMessage() == "heartbeat of an unknown instance"]
    assert len(warnings) == 1
