"""Daemons publish a replica in two steps: that it is there, then how it is read.

A receiver that asks in between must wait, since its daemon takes NOT_FOUND for final.
"""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from claims import Pending, parked, start
from field_daemon import (
    DRAINING,
    NOT_FOUND,
    OK,
    PRESENCE,
    TIMED_OUT,
    FieldDaemon,
    exportable,
    registered,
)
from servers import Serving, claim_request, configuration, pass_time, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

REQUEST = "/tensorcast.global_store.v1.ClusterRuntimeService/RequestReplicaTransport"


def sample(store: Serving, name: str, **labels: str) -> float:
    return store.components.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_a_receiver_waits_from_the_presence_to_the_keys(
    mock_clock: trio.testing.MockClock,
) -> None:
    """The keys come with the next SNAPSHOT, some 100 ms after the registration."""
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        receiver = start(nursery, store, wait_s=30)
        await parked(store, 1)
        await pass_time(mock_clock, 0.1)
        daemon.held["model"] = exportable("key")
        await daemon.reconcile()
        answer = await receiver.result()
        assert answer.status == OK
        assert list(answer.remote_memory_info.transport.remote_memory_keys) == ["key"]


async def test_without_a_wait_there_is_nothing_yet() -> None:
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        assert (await store.claim()).status == NOT_FOUND
        assert sample(store, "tc_transport_no_exportable_total", artifact_id="model") == 1
        await daemon.load("model")
        assert (await store.claim()).status == OK


async def test_what_is_never_published_ends_as_timed_out(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        receiver = start(nursery, store, wait_s=5)
        await parked(store, 1)
        await pass_time(mock_clock, 5)
        assert await receiver.status() == TIMED_OUT
        requests = "tc_transport_requests_total"
        assert sample(store, requests, artifact_id="model", status="timeout") == 1
        await store.components.refusals.explain()
        filtered = "tc_transport_filter_total"
        assert sample(store, filtered, artifact_id="model", reason="presence_only") == 1


async def test_a_deadline_of_as_many_whole_seconds_leaves_time_for_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Daemons give the wait and the deadline of the call the same whole seconds."""
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        request = claim_request(wait_s=3)
        in_process = store.server.transport.in_process  # type: ignore[union-attr]
        body = await in_process.call(REQUEST, request.SerializeToString(), timeout_s=3)
        answer = wire.RequestReplicaTransportResponse.FromString(body)
        assert answer.status == TIMED_OUT


async def test_a_deadline_that_leaves_no_wait_is_not_told_that_there_is_nothing() -> None:
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        request = claim_request(wait_s=3)
        in_process = store.server.transport.in_process  # type: ignore[union-attr]
        body = await in_process.call(REQUEST, request.SerializeToString(), timeout_s=0.04)
        answer = wire.RequestReplicaTransportResponse.FromString(body)
        assert answer.status == TIMED_OUT


async def test_a_receiver_that_does_not_say_who_it_is_is_served() -> None:
    """Older daemons leave their node and address blank and send port 0."""
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model")
        answer = await store.claim(source_node_id="", source_address="", source_port=0)
        assert answer.status == OK


# Replicas of which nobody will ever say how they are read.

Step = Callable[[Serving, FieldDaemon, str, trio.testing.MockClock], Awaitable[None]]


async def worker_leaves(_: Serving, daemon: FieldDaemon, __: str, ___: object) -> None:
    await daemon.unregister()


async def worker_is_silent(
    _: Serving, __: FieldDaemon, ___: str, clock: trio.testing.MockClock
) -> None:
    await pass_time(clock, 30)


async def worker_expires(
    _: Serving, __: FieldDaemon, ___: str, clock: trio.testing.MockClock
) -> None:
    await pass_time(clock, 32)


async def worker_takes_no_requests(_: Serving, daemon: FieldDaemon, __: str, ___: object) -> None:
    await daemon.beat(accepting_new_requests=False)


async def worker_is_evicted(store: Serving, daemon: FieldDaemon, _: str, __: object) -> None:
    await store.register("newcomer", node_address=f"{daemon.name}.example")


async def replica_is_marked(store: Serving, _: FieldDaemon, replica_id: str, __: object) -> None:
    await store.runtime.MarkReplicaUnavailable(
        wire.MarkReplicaUnavailableRequest(replica_id=replica_id)
    )


async def replica_goes(store: Serving, daemon: FieldDaemon, replica_id: str, _: object) -> None:
    await daemon.unload("model", replica_id)


async def replica_is_drained(_: Serving, daemon: FieldDaemon, __: str, ___: object) -> None:
    daemon.held["model"] = DRAINING
    await daemon.reconcile()


async def replica_is_reported_unavailable(
    store: Serving, daemon: FieldDaemon, _: str, __: object
) -> None:
    inventory = daemon.inventory()
    inventory[0].stats.is_available = False
    await store.runtime.ReconcileWorkerState(
        wire.ReconcileWorkerStateRequest(
            worker_id=daemon.worker_id, generation=1, request_seq=1, inventory=inventory
        )
    )


async def inventory_is_empty(_: Serving, daemon: FieldDaemon, __: str, ___: object) -> None:
    daemon.held.clear()
    await daemon.reconcile()


async def new_process_says_nothing(
    _: Serving, daemon: FieldDaemon, __: str, clock: trio.testing.MockClock
) -> None:
    """What a process that is gone had announced is given up a timeout after the next began."""
    await daemon.register()
    for _beat in range(7):
        await daemon.beat(state_checksum="")
        await pass_time(clock, 5)


HOPELESS: list[Step] = [
    worker_leaves,
    worker_is_silent,
    worker_expires,
    worker_takes_no_requests,
    worker_is_evicted,
    replica_is_marked,
    replica_goes,
    replica_is_drained,
    replica_is_reported_unavailable,
    inventory_is_empty,
    new_process_says_nothing,
]
each = pytest.mark.parametrize("step", HOPELESS, ids=lambda step: step.__name__)


@each
async def test_a_receiver_learns_at_once_that_nothing_will_come(
    step: Step, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store:
        daemon = await registered(store)
        replica = await daemon.load("model", PRESENCE)
        await step(store, daemon, replica.replica_id, mock_clock)
        assert (await store.claim(wait_s=3600)).status == NOT_FOUND


@each
async def test_a_receiver_that_waits_learns_it_as_soon_as_it_becomes_so(
    step: Step, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await registered(store)
        replica = await daemon.load("model", PRESENCE)
        receivers = [start(nursery, store) for _ in range(200)]
        await parked(store, 200)
        await step(store, daemon, replica.replica_id, mock_clock)
        began = trio.current_time()
        for receiver in receivers:
            assert await receiver.status() == NOT_FOUND
        assert trio.current_time() == began


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize(
    "step",
    [worker_leaves, worker_takes_no_requests, worker_is_evicted, replica_is_marked],
    ids=lambda step: step.__name__,
)
async def test_no_receiver_misses_it_however_the_two_fall_together(
    step: Step, turns: int, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await registered(store)
        replica = await daemon.load("model", PRESENCE)
        receiver = start(nursery, store)
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        await step(store, daemon, replica.replica_id, mock_clock)
        assert await receiver.status() == NOT_FOUND


@pytest.mark.parametrize("transport", [PRESENCE, exportable()], ids=["announced", "saturated"])
async def test_a_receiver_learns_when_the_time_of_all_replicas_has_passed(
    transport: common.ReplicaTransportMetadata, mock_clock: trio.testing.MockClock
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        worker = await store.register("d1")
        now_us = store.components.clock.wall_us()
        for device, seconds in enumerate((4, 9)):
            info = FieldDaemon(store).info(transport)
            info.device_id = device
            info.expires_at.FromMicroseconds(now_us + seconds * 1_000_000)
            await store.replica(worker.worker_id, mem_info=info)
        if transport is not PRESENCE:
            for _ in range(2):
                assert (await store.claim()).status == OK
        receiver = start(nursery, store)
        await parked(store, 1)
        await pass_time(mock_clock, 8.75)
        assert not receiver.ended.is_set()
        await pass_time(mock_clock, 0.5)
        assert await receiver.status() == NOT_FOUND
        assert len(store.components.queues.waiters.expiries) == 0


async def test_one_worker_that_can_still_publish_is_reason_enough_to_wait() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        gone, lives = await registered(store, "d1"), await registered(store, "d2")
        for daemon in (gone, lives):
            await daemon.load("model", PRESENCE)
        receiver = start(nursery, store)
        await parked(store, 1)
        await gone.unregister()
        await parked(store, 1)
        await lives.load("model")
        assert await receiver.status() == OK


async def test_a_call_that_joins_and_waits_makes_the_impatient_one_wait_too(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        calls: list[Pending] = [
            start(nursery, store, wait_s=wait_s, request_id="r") for wait_s in (5, 0)
        ]
        await trio.testing.wait_all_tasks_blocked()
        await pass_time(mock_clock, 5)
        assert [await call.status() for call in calls] == [TIMED_OUT] * 2


# Export generations.


@pytest.mark.parametrize("generation", [0, 1])
async def test_keys_of_an_artifact_that_was_loaded_again_replace_the_old_ones(
    generation: int,
) -> None:
    """A counter of exports begins anew, and memory registrations send 0 always."""
    async with serving() as store:
        daemon = await registered(store)
        await daemon.load("model", exportable("old", 7))
        await daemon.reconcile()
        await daemon.load("model", exportable("new", generation))
        granted = await store.claim()
        assert list(granted.remote_memory_info.remote_memory_keys) == ["new"]
        await store.complete(granted.transport_id)
        daemon.held["model"] = exportable("newer", generation)
        await daemon.reconcile()
        granted = await store.claim()
        assert list(granted.remote_memory_info.remote_memory_keys) == ["newer"]


async def test_an_announcement_outlives_a_restart_of_the_server_with_its_daemon(
    tmp_path: object,
) -> None:
    """Unconfirmed replicas are unavailable: until the daemon reconciles there is nothing."""
    config = configuration(database={"db_file": f"{tmp_path}/store.db"})
    async with serving(config) as store:
        daemon = await registered(store)
        await daemon.load("model", PRESENCE)
        await daemon.reconcile()
    async with serving(config) as store:
        daemon.store = store
        assert (await store.claim(wait_s=3600)).status == NOT_FOUND
        assert (await daemon.beat()).state_sync_required
        await daemon.reconcile()
        async with trio.open_nursery() as nursery:
            receiver = start(nursery, store)
            await parked(store, 1)
            daemon.held["model"] = exportable()
            await daemon.reconcile()
            assert await receiver.status() == OK
