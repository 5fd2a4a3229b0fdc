"""ReconcileWorkerState: which rule answers a request, and that only two of them change anything."""

import pytest
import trio.testing
from inventories import (
    ADD,
    APPLIED,
    DELTA,
    IGNORED_STALE,
    NOOP,
    REBASE_REQUIRED,
    REMOVE,
    RETRY_LATER,
    SNAPSHOT,
    UNSPECIFIED,
    entry,
    metric,
    reconciler,
    shown,
)
from purerpc import StatusCode
from servers import Serving, pass_time, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY

OK, NOT_FOUND = wire.STATUS_OK, wire.STATUS_NOT_FOUND


async def cursor(store: Serving) -> list[tuple[int, int, int, int]]:
    return await store.read(
        "SELECT generation, request_seq, state_version, needs_reconcile FROM worker_cursors"
    )


@pytest.mark.parametrize("worker_id", ["", "  ", "worker_unknown", "x" * 2000])
async def test_an_unknown_worker_is_not_found(worker_id: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.NOT_FOUND, "worker_id"):
            await store.runtime.ReconcileWorkerState(
                wire.ReconcileWorkerStateRequest(worker_id=worker_id)
            )
        fatal = {"result_kind": "RECONCILE_RESULT_KIND_FATAL"}
        assert metric(store, "tc_reconcile_result_total", **fatal) == 1
        assert metric(store, "tc_state_sync_total", result="success") == 1


async def test_an_inactive_worker_is_not_found() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=daemon.worker_id)
        )
        async with refused(StatusCode.NOT_FOUND, "register again"):
            await daemon.send(entry())
        assert await store.counts("model") == [(0, 0)]


async def test_another_daemon_is_told_to_rebase_and_sees_what_is_recorded() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        first = await daemon.send(entry("a"), entry("b", available=False))
        answer = await daemon.send(daemon_id="impostor", request_seq=daemon.seq)
        assert answer.result_kind == REBASE_REQUIRED
        assert [i.ref.artifact_id for i in answer.expected_replicas] == ["a", "b"]
        assert [i.stats.is_available for i in answer.expected_replicas] == [True, False]
        assert answer.new_state_checksum == first.new_state_checksum
        assert answer.new_state_version == first.new_state_version == 2
        assert not answer.state_changes
        assert metric(store, "tc_control_plane_conflicts_total", scope="reconcile_daemon_mismatch")


@pytest.mark.parametrize("daemon_id", ["", "  ", " d1 "])
async def test_a_blank_or_the_own_daemon_id_passes(daemon_id: str) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        answer = await daemon.send(entry(), daemon_id=daemon_id, worker_id=f" {daemon.worker_id} ")
        assert answer.result_kind == APPLIED


async def test_an_older_generation_is_stale_even_as_a_replay() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await store.register("d1")
        answer = await daemon.send(entry("late"), request_seq=1)
        assert answer.result_kind == IGNORED_STALE
        assert await store.counts("late") == [(0, 0)]
        assert metric(store, "tc_control_plane_conflicts_total", scope="reconcile_generation_stale")


async def test_a_future_generation_looks_without_touching() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        before = await cursor(store)
        answer = await daemon.send(generation=2**64 - 1)
        assert answer.result_kind == REBASE_REQUIRED
        assert len(answer.expected_replicas) == 1
        assert await cursor(store) == before
        assert metric(
            store, "tc_control_plane_conflicts_total", scope="reconcile_generation_future"
        )


async def test_the_last_request_again_changes_nothing_whatever_it_says() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        first = await daemon.send(entry())
        before = await cursor(store)
        answer = await daemon.send(entry("other"), request_seq=1)
        assert answer.result_kind == NOOP
        assert not answer.state_changes
        assert answer.new_state_checksum == first.new_state_checksum
        assert answer.new_state_version == first.new_state_version
        assert await cursor(store) == before
        assert await store.counts("other") == [(0, 0)]


@pytest.mark.parametrize("seq", [0, 1])
async def test_a_request_from_before_is_stale(seq: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await daemon.send(entry())
        answer = await daemon.send(entry("other"), request_seq=seq)
        assert answer.result_kind == IGNORED_STALE
        assert await store.counts("other") == [(0, 0)]
        assert metric(store, "tc_control_plane_conflicts_total", scope="reconcile_request_stale")


@pytest.mark.parametrize("kind", [SNAPSHOT, DELTA, UNSPECIFIED])
@pytest.mark.parametrize("seq", [2, 3, 2**64 - 1])
async def test_a_gap_is_to_be_filled_first(kind: int, seq: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        answer = await daemon.send(entry(), request_seq=seq, kind=kind)
        assert answer.result_kind == RETRY_LATER
        assert answer.retry_after_ms == 100
        assert (await cursor(store))[0][1] == 0
        assert metric(store, "tc_reconcile_retry_later_total", reason="request_seq_gap") == 1
        assert (await daemon.send(entry())).result_kind == APPLIED


async def test_a_gap_that_nobody_fills_is_told_by_one_heartbeat(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        for _ in range(2):
            assert (await daemon.send(request_seq=5)).result_kind == RETRY_LATER
            for _ in range(4):
                await pass_time(mock_clock, 8)
                assert (await store.beat(daemon.worker_id)).status == OK
            assert (await daemon.send(request_seq=5)).result_kind == RETRY_LATER
            assert (await store.beat(daemon.worker_id)).status == NOT_FOUND
            assert (await store.beat(daemon.worker_id)).status == OK


async def test_what_is_missing_may_still_come_before_the_heartbeat(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        for _ in range(2):
            assert (await daemon.send(request_seq=2)).result_kind == RETRY_LATER
            for _ in range(4):
                await pass_time(mock_clock, 8)
                await store.beat(daemon.worker_id)
        assert (await daemon.send(request_seq=2)).result_kind == RETRY_LATER
        assert (await daemon.send(entry())).result_kind == APPLIED
        assert (await store.beat(daemon.worker_id)).status == OK


async def test_an_acceptance_between_forgets_the_gap(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send(request_seq=5)).result_kind == RETRY_LATER
        await daemon.send(entry())
        for _ in range(4):
            await pass_time(mock_clock, 8)
            await store.beat(daemon.worker_id)
        assert (await daemon.send(request_seq=5)).result_kind == RETRY_LATER


async def test_seq_zero_of_a_new_generation_is_a_replay_of_nothing() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send(entry(), request_seq=0)).result_kind == NOOP
        assert await store.counts("model") == [(0, 0)]


async def test_no_difference_moves_the_cursor_alone() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        for seq in (2, 3, 4):
            answer = await daemon.send(entry())
            assert answer.result_kind == NOOP
            assert answer.new_state_version == 2
            assert not answer.state_changes
            assert await cursor(store) == [(1, seq, 2, 0)]


async def test_a_difference_moves_the_version_too() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        answer = await daemon.send(entry("a"))
        assert answer.result_kind == APPLIED
        assert answer.new_state_version == 2
        assert shown(answer) == [(ADD, "a")]
        answer = await daemon.send(entry("b"))
        assert shown(answer) == [(ADD, "b"), (REMOVE, "a")]
        assert answer.new_state_version == 3
        assert not answer.expected_replicas
        assert (
            metric(store, "tc_reconcile_result_total", result_kind="RECONCILE_RESULT_KIND_APPLIED")
            == 2
        )


async def test_a_registration_starts_a_new_sequence_and_keeps_the_version() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        again = await store.register("d1")
        assert again.reconcile_generation == 2
        assert again.expected_state_version == 2
        assert again.state_sync_required
        daemon.generation, daemon.seq = 2, 0
        answer = await daemon.send(entry())
        assert answer.result_kind == NOOP
        assert await cursor(store) == [(2, 1, 2, 0)]


# Kinds of inventories.


@pytest.mark.parametrize("kind", [SNAPSHOT, DELTA, UNSPECIFIED])
async def test_a_list_that_is_not_empty_is_complete_under_every_kind(kind: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"), entry("b"))
        answer = await daemon.send(entry("b"), entry("c"), kind=kind)
        assert shown(answer) == [(ADD, "c"), (REMOVE, "a")]


@pytest.mark.parametrize("kind", [DELTA, UNSPECIFIED])
async def test_an_empty_list_that_is_no_snapshot_removes_nothing(kind: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        answer = await daemon.send(kind=kind)
        assert answer.result_kind == NOOP
        assert await store.counts("model") == [(1, 1)]
        assert (await cursor(store))[0][1] == 2


async def test_an_empty_snapshot_removes_all() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"), entry("b"))
        answer = await daemon.send()
        assert shown(answer) == [(REMOVE, "a"), (REMOVE, "b")]
        assert answer.new_state_checksum == EMPTY


@pytest.mark.parametrize(("accepting", "level"), [(True, "WARNING"), (False, "INFO")])
async def test_an_empty_snapshot_is_worth_a_warning_unless_the_worker_is_leaving(
    caplog: pytest.LogCaptureFixture, accepting: bool, level: str
) -> None:
    caplog.set_level("INFO", "globalstore")
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await store.beat(daemon.worker_id, accepting_new_requests=accepting)
        assert shown(await daemon.send()) == [(REMOVE, "model")]
    levels = {record.levelname for record in caplog.records if "empty" in record.message}
    assert levels == {level}


async def test_an_empty_snapshot_that_the_heartbeat_contradicts_removes_nothing() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        applied = await daemon.send(entry())
        await store.beat(
            daemon.worker_id, state_version=2, state_checksum=applied.new_state_checksum
        )
        answer = await daemon.send()
        assert answer.result_kind == RETRY_LATER
        assert answer.retry_after_ms == 5000
        assert await store.counts("model") == [(1, 1)]
        assert metric(store, "tc_reconcile_retry_later_total", reason="contradicted_snapshot") == 1
        await store.beat(daemon.worker_id, state_version=2, state_checksum=EMPTY)
        assert shown(await daemon.send()) == [(REMOVE, "model")]


@pytest.mark.parametrize(
    "fields",
    [
        {"state_checksum": ""},
        {"state_checksum": "0" * 16},
        {"accepting_new_requests": False, "state_checksum": "same"},
    ],
)
async def test_a_heartbeat_that_does_not_affirm_contradicts_nothing(fields: dict) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        applied = await daemon.send(entry())
        if fields["state_checksum"] == "same":
            fields = fields | {"state_checksum": applied.new_state_checksum}
        await store.beat(daemon.worker_id, state_version=2, **fields)
        assert (await daemon.send()).result_kind == APPLIED


async def test_a_heartbeat_of_an_earlier_generation_contradicts_nothing() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        applied = await daemon.send(entry())
        await store.beat(
            daemon.worker_id, state_version=2, state_checksum=applied.new_state_checksum
        )
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        assert (await daemon.send()).result_kind == APPLIED


async def test_an_old_heartbeat_contradicts_nothing(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        applied = await daemon.send(entry())
        await store.beat(
            daemon.worker_id, state_version=2, state_checksum=applied.new_state_checksum
        )
        await pass_time(mock_clock, 30.25)  # over the timeout, within the grace
        assert (await daemon.send()).result_kind == APPLIED
