"""UnregisterInstance and expiry: one end, on the record, that nothing but a registration undoes."""

import logging
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from instance_calls import SIGNALS, beat, capable, ids, listed, only, register, unregister
from purerpc import StatusCode
from servers import Serving, configuration, eventually, pass_time, refused, serving
from stuck_disk import StuckDisk

from globalstore.db import Full, Lane, Runner
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.liveness.instances import Instances
from globalstore.registry.retention import DAY_S
from globalstore.registry.runtime import instances as registry

NOW_US = 1_700_000_000_000_000
POLICY = {"heartbeat_timeout": "10s"}  # grace 1 s: 4 flush intervals of a 40th of it


@pytest.mark.parametrize("instance_id", ["", "  "])
async def test_unregistering_nobody_is_refused(instance_id: str) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, "instance_id"):
        await unregister(store, instance_id)


@pytest.mark.parametrize("graceful", [True, False])
async def test_an_active_instance_ends_once(graceful: bool) -> None:
    async with serving() as store:
        await register(store)
        end = {"is_graceful_shutdown": graceful}
        assert await unregister(store, " i1 ", **end) == wire.STATUS_OK
        assert await listed(store) == []
        assert await unregister(store, "i1", **end) == wire.STATUS_NOT_FOUND
        assert await unregister(store, "unknown", **end) == wire.STATUS_NOT_FOUND


async def test_an_end_keeps_what_the_last_heartbeat_said() -> None:
    now_us = NOW_US
    async with serving(wall=lambda: now_us) as store:
        await register(store)
        now_us += 2_000_000
        await beat(store, capability_flags=2**63 + SIGNALS, worker_id="w1")
        await unregister(store)
        shown = await only(store, include_unavailable=True)
        assert (shown.capability_flags, shown.worker_id) == (2**63 + SIGNALS, "w1")
        assert shown.last_heartbeat_ts.ToMicroseconds() == now_us


async def test_an_expiry_keeps_a_heartbeat_that_was_never_written(
    mock_clock: trio.testing.MockClock,
) -> None:
    now_us = NOW_US
    async with serving(configuration(worker_policy=POLICY), wall=lambda: now_us) as store:
        await register(store)
        await pass_time(mock_clock, 1)
        now_us += 1_000_000
        await beat(store)
        await pass_time(mock_clock, 11.25)
        await eventually(lambda: len(store.components.instances) == 0)
        shown = await only(store, include_unavailable=True)
        assert shown.last_heartbeat_ts.ToMicroseconds() == now_us


async def test_a_silent_instance_fades_and_expires_at_its_own_deadline(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store, "silent", capability_flags=SIGNALS)
        await register(store, "speaking", capability_flags=SIGNALS)
        await pass_time(mock_clock, 9.75)
        assert {each.status for each in await listed(store)} == {wire.CONNECTION_STATUS_CONNECTED}
        await beat(store, "speaking")
        await pass_time(mock_clock, 0.75)
        shown = {each.instance_id: each.status for each in await listed(store)}
        assert shown == {
            "speaking": wire.CONNECTION_STATUS_CONNECTED,
            "silent": wire.CONNECTION_STATUS_RECONNECTING,
        }
        await pass_time(mock_clock, 1)
        await eventually(lambda: len(store.components.instances) == 1)
        assert await beat(store, "silent") == wire.STATUS_NOT_FOUND
        assert await ids(store) == ["speaking"]
        assert capable(store, "execution_signals_enabled") == 1
        shown = {each.instance_id: each.status for each in await listed(store, **ALL)}
        assert shown["silent"] == wire.CONNECTION_STATUS_DISCONNECTED


ALL = {"include_unavailable": True}


async def test_a_heartbeat_in_the_grace_saves(mock_clock: trio.testing.MockClock) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store)
        await pass_time(mock_clock, 10.5)
        assert await beat(store) == wire.STATUS_OK
        await pass_time(mock_clock, 9)
        assert (await only(store)).status == wire.CONNECTION_STATUS_CONNECTED


async def test_an_instance_outlives_its_worker(mock_clock: trio.testing.MockClock) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await store.register("d1")
        await register(store)
        await pass_time(mock_clock, 6)
        await beat(store)
        await pass_time(mock_clock, 6)
        await eventually(lambda: len(store.components.workers) == 0)
        assert await beat(store) == wire.STATUS_OK
        assert (await only(store)).worker_id == ""


async def test_a_stall_of_the_server_costs_no_instance_its_life(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store)
        await pass_time(mock_clock, 5)
        mock_clock.jump(300)
        assert (await only(store)).status == wire.CONNECTION_STATUS_CONNECTED
        await pass_time(mock_clock, 5.5)
        assert (await only(store)).status == wire.CONNECTION_STATUS_RECONNECTING
        await pass_time(mock_clock, 1)
        await eventually(lambda: len(store.components.instances) == 0)


async def test_whoever_lists_first_after_a_stall_sees_everybody_as_before_it(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store)
        mock_clock.jump(60)
        # Nothing else had its turn yet: not even the one who measures stalls.
        call = store.components.instances.list_now({}, 0)
        assert [call.silent_s(instance) for instance in call.active.values()] == [
            pytest.approx(0, abs=1)
        ]


async def test_who_registers_while_its_expiry_is_on_the_way_has_its_whole_time(
    mock_clock: trio.testing.MockClock,
) -> None:
    instances = Instances(10, 1)
    state = registry.InstanceState(1, "i1", "d1", "", "e", "", "{}", "", "", 0, NOW_US, 1)
    instances.registered(registry.InstanceRegistered(state))
    mock_clock.jump(11)
    silent = instances.take_silent(10)
    assert [instance.key for instance in silent] == [1]
    instances.registered(registry.InstanceRegistered(attrs.evolve(state, generation=2)))
    instances.heartbeats.end_expiry([1])
    mock_clock.jump(10.5)
    assert instances.take_silent(10) == []
    mock_clock.jump(0.5)
    assert len(instances.take_silent(10)) == 1


@pytest.mark.parametrize("step_us", [-(10**13), 10**13])
async def test_steps_of_the_wall_clock_change_nobodys_age(
    mock_clock: trio.testing.MockClock, step_us: int
) -> None:
    now_us = NOW_US
    async with serving(configuration(worker_policy=POLICY), wall=lambda: now_us) as store:
        await register(store, "alive")
        await register(store, "dead")
        now_us += step_us
        await pass_time(mock_clock, 6)
        await beat(store, "alive")
        assert [each.status for each in await listed(store)] == [
            wire.CONNECTION_STATUS_CONNECTED
        ] * 2
        await pass_time(mock_clock, 6)
        await eventually(lambda: len(store.components.instances) == 1)
        assert await ids(store) == ["alive"]


async def test_a_thousand_that_die_together_end_within_a_second(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await fill(store, 1000)
        await pass_time(mock_clock, 5)
        await register(store, "survivor")
        await pass_time(mock_clock, 6.5)
        await eventually(lambda: len(store.components.instances) == 1)
        assert await store.read("SELECT count(*) FROM instances WHERE inactive_at IS NULL") == [
            (1,)
        ]


async def fill(store: Serving, count: int) -> None:
    """Register instances without a call for each."""

    def register_all(tx: Any) -> None:
        for number in range(count):
            registration = registry.InstanceRegistration(
                f"n{number:05}", "d1", "", "e", "", "{}", "", "", 0
            )
            registry.register_instance(tx, registration, NOW_US)

    await store.components.store.bulk(register_all)


async def test_nobody_hears_that_it_lives_while_its_end_is_being_written(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(configuration(worker_policy=POLICY), runner=Runner.THREADS) as store:
        await register(store, "dead")
        await pass_time(mock_clock, 6)
        await register(store, "alive")
        answers: list[int] = []

        async def speak() -> None:
            answers.append(await beat(store, "dead"))

        async with StuckDisk(store, nursery):
            await pass_time(mock_clock, 5.5)
            nursery.start_soon(speak)
            await pass_time(mock_clock, 1)
            assert answers == []
            assert await beat(store, "alive") == wire.STATUS_OK
        await eventually(lambda: answers)
        assert answers == [wire.STATUS_NOT_FOUND]
        assert await ids(store) == ["alive"]


async def test_a_registration_that_overtakes_the_expiry_lives_and_one_after_it_revives(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(configuration(worker_policy=POLICY), runner=Runner.THREADS) as store:
        await register(store)
        [before] = store.components.instances.list_now({}, 0).active.values()
        answers: list[Any] = []

        async def come_back() -> None:
            answers.append(await register(store, engine="second"))

        async with StuckDisk(store, nursery):
            await pass_time(mock_clock, 11.5)
            nursery.start_soon(come_back)
            await pass_time(mock_clock, 0.25)
        await eventually(lambda: answers)
        assert (await only(store)).engine == "second"
        assert await beat(store) == wire.STATUS_OK
        # The same order once more, and as late as it can come, touches no later generation.
        row = "SELECT * FROM instances"
        stored = await store.read(row)
        row_heard = registry.LivenessRow(
            instance_key=before.key,
            generation=before.state.generation,
            last_heartbeat=NOW_US,
            named_worker_id="w",
            capability_flags=1,
        )
        late = await store.components.store.write(
            registry.expire_instances, [row_heard], NOW_US + 1, lane=Lane.CONTROL
        )
        assert late == set()
        assert await store.read(row) == stored
        await pass_time(mock_clock, 9)
        assert (await only(store)).status == wire.CONNECTION_STATUS_CONNECTED


async def test_an_expiry_that_cannot_be_written_is_tried_again(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(configuration(worker_policy=POLICY)) as store:
        await register(store)
        tries = 0
        expire = registry.expire_instances

        def full_at_first(*args: Any) -> set[int]:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise Full("the disk is full")
            return expire(*args)

        monkeypatch.setattr(registry, "expire_instances", full_at_first)
        await pass_time(mock_clock, 11.25)
        await eventually(lambda: tries == 1 and not store.components.instances.heartbeats._expiring)
        assert await ids(store) == ["i1"]
        await pass_time(mock_clock, 1.25)
        await eventually(lambda: len(store.components.instances) == 0)
        assert tries == 2


async def test_ended_instances_are_purged_after_a_day_and_no_sooner() -> None:
    now_us = NOW_US
    async with serving(wall=lambda: now_us) as store:
        await register(store, "active")
        await register(store, "ended")
        await unregister(store, "ended")
        now_us += int(DAY_S * 1_000_000)
        await store.components.maintenance.run_pass()
        assert await ids(store, **ALL) == ["active", "ended"]
        now_us += 1
        await store.components.maintenance.run_pass()
        assert await ids(store, **ALL) == ["active"]
        purged = store.components.metrics.registry.get_sample_value(
            "tc_gc_rows_deleted_total", {"table": "instances"}
        )
        assert purged == 1
        # Whoever comes back after that is a new one, whatever was still to be written of the old.
        await register(store, "ended")
        keys = await store.read("SELECT instance_key FROM instances ORDER BY instance_key")
        assert keys == [(1,), (3,)]


async def test_the_log_tells_who_came_and_how_each_left(
    mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="globalstore.instances"):
        async with serving(configuration(worker_policy=POLICY)) as store:
            await register(store, "i1", worker_id="w1")
            await register(store, "i2")
            await unregister(store, "i1", is_graceful_shutdown=True)
            await pass_time(mock_clock, 11.25)
            await eventually(lambda: len(store.components.instances) == 0)
            await eventually(
                lambda: any(r.getMessage() == "instance expired" for r in caplog.records)
            )
    row_heard = [
        (record.levelname, record.getMessage(), record.fields)
        for record in caplog.records
        if record.name == "globalstore.instances"
    ]
    one = {"instance_id": "i1", "daemon_id": "d1", "worker_id": "w1", "engine": "vllm"}
    two = {"instance_id": "i2", "daemon_id": "d1", "worker_id": "", "engine": "vllm"}
    assert [(level, message) for level, message, _ in row_heard] == [
        ("INFO", "instance registered"),
        ("INFO", "instance registered"),
        ("INFO", "instance unregistered"),
        ("INFO", "instance expired"),
    ]
    for (_, _, fields), expected in zip(
        row_heard, [one, two, one | {"graceful": True}, two], strict=True
    ):
        assert {name: fields.get(name) for name in expected} == expected
