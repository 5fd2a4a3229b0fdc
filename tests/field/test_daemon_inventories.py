"""Inventories as daemons send them, and what an inventory that cannot be true does."""

import pytest
import trio
import trio.testing
from claims import parked, start
from field_daemon import (
    APPLIED,
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
from servers import Serving, pass_time, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY
from globalstore.telemetry.logging import LIMITED_SECONDS


def sample(store: Serving, name: str, **labels: str) -> float:
    return store.components.metrics.registry.get_sample_value(name, labels) or 0.0


# Entries whose objects daemons keep to themselves.


async def test_a_mount_among_the_entries_does_not_keep_the_others_out(
    lines: Lines, mock_clock: trio.testing.MockClock
) -> None:
    """Daemons filter inventories by publication state only, and repeat one that is refused."""
    left_out = "inventory entries left out: their ids mean something to a daemon alone"
    async with serving() as store:
        daemon = await registered(store)
        for artifact_id in ("model", "msa1:mount", "cgid:byte_artifact~ns~vllm", "other"):
            daemon.held[artifact_id] = exportable()
        answer = await daemon.reconcile()
        assert answer.result_kind == APPLIED
        assert [c.replica_info.ref.artifact_id for c in answer.state_changes] == ["model", "other"]
        assert await store.counts("model", "other") == [(1, 1), (1, 1)]
        has(lines.only(left_out, "WARNING"), worker_id=daemon.worker_id, entries=2)
        assert (await daemon.reconcile()).result_kind == NOOP
        conflicts = "tc_control_plane_conflicts_total"
        assert sample(store, conflicts, scope="reconcile_session_local") == 2
        daemon.held["third"] = exportable()
        assert (await daemon.reconcile()).result_kind == APPLIED
        assert len(lines.named(left_out)) == 1
        assert sample(store, conflicts, scope="reconcile_session_local") == 4
        for _ in range(8):
            await pass_time(mock_clock, LIMITED_SECONDS / 8)
            await daemon.beat()
        del daemon.held["third"]
        await daemon.reconcile()
        assert len(lines.named(left_out)) == 2


# An empty snapshot that the heartbeat contradicts.


async def denying(store: Serving) -> FieldDaemon:
    """Return a daemon whose empty snapshot contradicts what it has just affirmed."""
    daemon = await registered(store)
    await daemon.load("model")
    await daemon.reconcile()
    assert (await daemon.beat()).status == OK
    held, daemon.held = daemon.held, {}
    answer = await daemon.reconcile()
    assert (answer.result_kind, answer.retry_after_ms) == (RETRY_LATER, 5000)
    daemon.held = held
    return daemon


async def test_nobody_is_sent_to_what_a_daemon_both_affirms_and_denies() -> None:
    async with serving() as store:
        await denying(store)
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim()).status == TIMED_OUT
        listed = await store.active()
        assert [worker.accepting_new_requests for worker in listed] == [True]


async def test_a_heartbeat_that_affirms_anew_lets_receivers_go_there_again() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await denying(store)
        receiver = start(nursery, store)
        await parked(store, 1)
        assert not (await daemon.beat()).state_sync_required
        assert await receiver.status() == OK


@pytest.mark.parametrize(
    "fields",
    [{"state_checksum": ""}, {"state_checksum": "0" * 16}, {"state_checksum": EMPTY}],
)
async def test_any_other_heartbeat_does_not(fields: dict[str, str]) -> None:
    async with serving() as store:
        daemon = await denying(store)
        assert (await daemon.beat(**fields)).status == OK
        assert (await store.claim()).status == TIMED_OUT


async def test_an_accepted_inventory_settles_it_either_way() -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        daemon = await denying(store)
        receiver = start(nursery, store)
        await parked(store, 1)
        assert (await daemon.reconcile()).result_kind == NOOP
        answer = await receiver.result()
        assert answer.status == OK
        await store.complete(answer.transport_id)
        daemon.held.clear()
        await daemon.beat()
        receiver = start(nursery, store, wait_s=3600)
        assert (await receiver.result()).status == OK
        assert (await daemon.reconcile()).result_kind == RETRY_LATER
        await daemon.beat(state_checksum=EMPTY)
        assert (await daemon.reconcile()).result_kind == APPLIED
        assert (await store.claim(wait_s=3600)).status == NOT_FOUND


async def test_a_new_registration_does_not_settle_it() -> None:
    async with serving() as store:
        daemon = await denying(store)
        await daemon.register(is_recovery_registration=True)
        assert (await store.claim()).status == TIMED_OUT
        await daemon.reconcile()
        assert (await store.claim()).status == OK


async def test_a_worker_that_left_and_came_back_is_not_doubted_for_its_past() -> None:
    async with serving() as store:
        daemon = await denying(store)
        await daemon.unregister()
        await daemon.register()
        await daemon.load("model")
        assert (await store.claim()).status == OK


async def test_what_is_doubted_is_explained_as_unavailable() -> None:
    async with serving() as store:
        await denying(store)
        await store.claim()
        await store.components.refusals.explain()
        filtered = "tc_transport_filter_total"
        assert sample(store, filtered, artifact_id="model", reason="unavailable") == 1


async def test_a_drain_in_the_documented_order_is_never_contradicted() -> None:
    """Not accepting, nothing held, unregistered: the heartbeat affirms nothing by then."""
    async with serving() as store:
        daemon = await registered(store)
        replica = await daemon.load("model")
        await daemon.reconcile()
        await daemon.beat(accepting_new_requests=False)
        await store.runtime.MarkReplicaUnavailable(
            wire.MarkReplicaUnavailableRequest(replica_id=replica.replica_id)
        )
        daemon.held.clear()
        assert (await daemon.reconcile()).result_kind == APPLIED
        assert (await daemon.unregister()).status == OK
