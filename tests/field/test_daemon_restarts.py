"""Daemons and their containers start anew, repeat themselves and lose requests."""

from pathlib import Path

import pytest
import trio
import trio.testing
from claims import LOADS, OUTCOMES, parked, start
from field_daemon import (
    NOOP,
    NOT_FOUND,
    OK,
    RETRY_LATER,
    TIMED_OUT,
    FieldDaemon,
    exportable,
    registered,
)
from log_lines import Lines, has
from servers import Serving, configuration, pass_time, serving


def sample(store: Serving, name: str, **labels: str) -> float:
    return store.components.metrics.registry.get_sample_value(name, labels) or 0.0


# A newcomer at an address.


@pytest.mark.parametrize("recovery", [False, True])
async def test_a_container_with_a_new_host_name_and_daemon_id_takes_over_its_address(
    recovery: bool, lines: Lines
) -> None:
    """A container without a kept id starts anew at once, long before the old row expires."""
    async with serving() as store, trio.open_nursery() as nursery:
        old = await registered(store, "old")
        await old.load("model")
        granted = await store.claim()
        waits = start(nursery, store, requester_worker_id=old.worker_id)
        await parked(store, 1)
        new = FieldDaemon(store, "new")
        answer = await new.register(node_address="old.example", is_recovery_registration=recovery)
        assert answer.status == OK
        assert answer.worker_id != old.worker_id
        assert (await old.beat()).status == NOT_FOUND
        assert (await new.beat()).status == OK
        assert await waits.status() == TIMED_OUT
        assert await store.read(OUTCOMES) == [(3, f"source_worker_lost {old.worker_id}")]
        assert await store.counts("model") == [(1, 0)]
        assert (await store.complete(granted.transport_id)).status == OK
    has(
        lines.only("worker evicted", "WARNING"),
        daemon_id="old",
        node_id="node-old",
        by_daemon_id="new",
        by_node_id="node-new",
        by_worker_id=new.worker_id,
    )
    assert sample(store, "tc_worker_evicted_total") == 1
    assert sample(store, "tc_control_plane_conflicts_total", scope="endpoint_takeover") == 1


async def test_two_daemons_with_one_address_are_told_apart_once_a_minute(
    lines: Lines, mock_clock: trio.testing.MockClock
) -> None:
    """Both are told NOT_FOUND in turn and register again, with every heartbeat."""
    async with serving() as store:
        for _ in range(6):
            for name in ("a", "b"):
                await FieldDaemon(store, name).register(node_address="shared.example")
                await pass_time(mock_clock, 2.5)
    assert len(lines.named("worker evicted")) == 2
    assert sample(store, "tc_worker_evicted_total") == 11


async def test_an_evicted_daemon_that_moved_gets_its_replicas_back(tmp_path: Path) -> None:
    async with serving() as store:
        old = await registered(store, "old")
        await old.load("model")
        await old.reconcile()
        await FieldDaemon(store, "new").register(node_address="old.example")
        back = await old.register(node_address="elsewhere.example")
        assert back.state_sync_required
        await old.reconcile()
        assert await store.counts("model") == [(1, 1)]


# Ids of requests that are made from the payload.


async def test_the_next_load_of_an_artifact_comes_under_the_id_of_the_last_one() -> None:
    async with serving() as store:
        daemon = await registered(store)
        first = await daemon.load("model")
        await daemon.unload("model", first.replica_id)
        assert await store.counts("model") == [(0, 0)]
        second = await daemon.load("model")
        assert second.replica_id != first.replica_id
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim()).status == OK
        assert await store.read("SELECT count(*) FROM recorded_replies") == [(1,)]


async def test_a_repeat_for_a_lost_answer_is_answered_from_the_record() -> None:
    async with serving() as store:
        daemon = await registered(store)
        first = await daemon.load("model")
        assert await daemon.load("model") == first
        replays = "tc_control_plane_idempotency_replay_total"
        labels = {"operation_kind": "RegisterReplica", "result": "hit"}
        assert sample(store, replays, **labels) == 1


async def test_a_new_process_that_loads_the_same_is_not_answered_from_the_record() -> None:
    """Otherwise its replica would stay that of the process which is gone, and be hidden with it."""
    async with serving() as store:
        daemon = await registered(store)
        first = await daemon.load("model")
        await daemon.register()
        await daemon.load("model")
        assert await store.read("SELECT worker_generation FROM replicas") == [(2,)]
        assert await store.read("SELECT worker_generation FROM recorded_replies") == [(2,)]
        assert (await daemon.load("model")).replica_id == first.replica_id


async def test_a_replica_that_another_worker_took_over_is_registered_anew() -> None:
    async with serving() as store:
        daemon, other = await registered(store, "d1"), await registered(store, "d2")
        await daemon.load("model")
        await store.replica(other.worker_id, mem_info=daemon.info(exportable()))
        await daemon.load("model")
        owner = "SELECT worker_id FROM replicas JOIN worker_ids USING (worker_key)"
        assert await store.read(owner) == [(daemon.worker_id,)]


async def test_every_shutdown_within_a_day_comes_under_one_id() -> None:
    async with serving() as store:
        for _ in range(3):
            daemon = await registered(store)
            assert (await daemon.unregister()).status == OK
            assert (await daemon.unregister()).status == OK
            assert await store.active() == []
        replays = "tc_control_plane_idempotency_replay_total"
        labels = {"operation_kind": "UnregisterWorker", "result": "hit"}
        assert sample(store, replays, **labels) == 3
        assert sample(store, "tc_worker_unregister_total", graceful="true", result="ok") == 3


async def test_records_and_what_they_rest_on_outlive_the_server(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        daemon = await registered(store)
        first = await daemon.load("model")
    async with serving(config) as store:
        daemon.store = store
        assert await daemon.load("model") == first
        await daemon.unload("model", first.replica_id)
        assert (await daemon.load("model")).replica_id != first.replica_id


# Reconciles that got lost.


async def test_a_number_that_never_comes_ends_in_a_new_registration(
    mock_clock: trio.testing.MockClock, lines: Lines
) -> None:
    """A daemon counts a request that got lost as sent, and goes on with the next number."""
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model")
        for _ in range(7):
            assert (await daemon.reconcile(skip=1)).result_kind == RETRY_LATER
            assert (await daemon.beat()).status == OK
            await pass_time(mock_clock, 5)
        answer = await daemon.reconcile(skip=1)
        assert answer.result_kind == RETRY_LATER
        assert not answer.expected_replicas
        assert (await daemon.beat()).status == NOT_FOUND
        lines.only("worker has to register: a reconcile is missing for too long", "WARNING")
        again = await daemon.register()
        assert again.reconcile_generation == 2
        assert (await daemon.reconcile()).result_kind == NOOP
        assert (await daemon.beat()).status == OK
        assert await store.read(LOADS) == [(0,)]
