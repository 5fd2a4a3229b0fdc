"""Reconciliation after restarts, returns and new processes: who has to confirm what, and when."""

from pathlib import Path

import trio
import trio.testing
from inventories import (
    ADD,
    APPLIED,
    DELTA,
    NOOP,
    REBASE_REQUIRED,
    UPDATE,
    Reconciler,
    entry,
    metric,
    reconciler,
    shown,
)
from servers import Serving, configuration, memory_info, pass_time, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.checksums import EMPTY, Entry, of_replicas

OK = wire.STATUS_OK


async def needs_sync(daemon: Reconciler, version: int, **fields: object) -> bool:
    answer = await daemon.store.beat(daemon.worker_id, state_version=version, **fields)
    assert answer.status == OK
    return bool(answer.state_sync_required)


def moved(daemon: Reconciler, store: Serving) -> Reconciler:
    """The same daemon, talking to the server after its restart."""
    daemon.store = store
    return daemon


async def test_after_a_restart_replicas_are_hidden_until_a_snapshot_confirms_them(
    tmp_path: Path,
) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        daemon = await reconciler(store)
        before = await daemon.send(entry("a"), entry("b", available=False))
    async with serving(config) as store:
        moved(daemon, store)
        assert await store.counts("a", "b") == [(1, 0), (1, 0)]
        assert metric(store, "tc_recovery_rows", table="workers") == 1
        assert await needs_sync(daemon, 2, state_checksum=before.new_state_checksum)
        assert (await store.claim("a")).status == wire.STATUS_TIMED_OUT
        replay = await daemon.send(entry("other"), request_seq=1)
        assert replay.result_kind == NOOP
        answer = await daemon.send(entry("a"), entry("b", available=False))
        assert shown(answer) == [(UPDATE, "a")]
        assert answer.state_changes[0].reason == "is_available"
        assert answer.new_state_version == 3
        assert answer.new_state_checksum == before.new_state_checksum
        assert (await store.claim("a")).status == OK
        assert not await needs_sync(daemon, 3, state_checksum=before.new_state_checksum)
        assert await store.counts("a", "b") == [(1, 1), (1, 0)]


async def test_confirming_everything_as_it_was_writes_no_replica_row(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    held = [entry(f"a{number}") for number in range(50)]
    async with serving(config) as store:
        daemon = await reconciler(store)
        await daemon.send(*held)
        before = await store.read("SELECT * FROM replicas ORDER BY seq")
    async with serving(config) as store:
        moved(daemon, store)
        await needs_sync(daemon, 2)
        answer = await daemon.send(*held)
        assert len(answer.state_changes) == 50
        assert await store.read("SELECT * FROM replicas ORDER BY seq") == before
        assert await store.counts("a0", "a49") == [(1, 1), (1, 1)]


async def test_what_was_registered_since_the_restart_stays_available(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"), entry("b"), entry("c"))
    async with serving(config) as store:
        moved(daemon, store)
        await needs_sync(daemon, 2)
        await store.replica(daemon.worker_id, "new")
        await store.replica(daemon.worker_id, "c")
        assert await store.counts("a", "c", "new") == [(1, 0), (1, 1), (1, 1)]
        answer = await daemon.send(
            entry("a"), entry("b", available=False), entry("c"), entry("new")
        )
        assert shown(answer) == [(UPDATE, "a")]
        assert await store.counts("a", "b", "c", "new") == [(1, 1), (1, 0), (1, 1), (1, 1)]
        # Hiding is not undone by a number that was in use before.
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=daemon.worker_id)
        )
        assert await store.counts("a", "b", "c", "new") == [(1, 0)] * 4


async def test_an_unlisted_replica_that_is_kept_is_not_brought_back_by_the_others(
    tmp_path: Path,
) -> None:
    now = [1_000_000_000_000_000]
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config, lambda: now[0]) as store:
        daemon = await reconciler(store)
        listed = entry("a")
        listed.stats.registered_ts.FromMicroseconds(now[0])
        now[0] += 5_000_000
        await daemon.send(listed)
        await store.replica(daemon.worker_id, "late")
    async with serving(config, lambda: now[0]) as store:
        moved(daemon, store)
        await needs_sync(daemon, 2)
        answer = await daemon.send(listed)
        assert shown(answer) == [(UPDATE, "a")]
        assert await store.counts("a", "late") == [(1, 1), (1, 0)]


async def test_the_need_survives_what_confirms_nothing() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        applied = await daemon.send(entry())
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        assert metric(store, "tc_workers_unconfirmed") in {0, 1}  # once a second
        assert await needs_sync(daemon, 2, state_checksum=applied.new_state_checksum)
        assert (await daemon.send(kind=DELTA)).result_kind == NOOP
        assert (await daemon.send(generation=9)).result_kind == REBASE_REQUIRED
        assert await needs_sync(daemon, 2, state_checksum=applied.new_state_checksum)
        assert (await daemon.send(entry(), kind=DELTA)).result_kind == NOOP
        assert not await needs_sync(daemon, 2, state_checksum=applied.new_state_checksum)


async def test_a_new_process_that_confirms_nothing_loses_its_replicas_in_time(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        for _ in range(5):
            await pass_time(mock_clock, 5)
            assert await store.counts("model") == [(1, 1)]
            await needs_sync(daemon, 2)
        await pass_time(mock_clock, 6)
        with trio.fail_after(60):
            while await store.counts("model") != [(1, 0)]:
                await trio.lowlevel.checkpoint()
        answer = await daemon.send(entry())
        assert shown(answer) == [(UPDATE, "model")]
        assert await store.counts("model") == [(1, 1)]


async def test_a_new_process_that_confirms_keeps_its_replicas(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        assert (await daemon.send(entry())).result_kind == NOOP
        for _ in range(10):
            await pass_time(mock_clock, 5)
            await needs_sync(daemon, 2)
        assert await store.counts("model") == [(1, 1)]


async def test_what_a_process_confirmed_survives_its_recovery_registration(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await store.replica(daemon.worker_id, "model")
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        assert (await daemon.send(entry())).result_kind == NOOP
        await store.register("d1", is_recovery_registration=True)
        for _ in range(8):
            await pass_time(mock_clock, 5)
            await needs_sync(daemon, 1)
        # A write that comes after whatever was due makes sure that it is done.
        await store.replica(daemon.worker_id, "other")
        assert await store.counts("model") == [(1, 1)]


async def test_a_worker_that_returns_confirms_what_it_had() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"), entry("b"))
        await store.runtime.UnregisterWorker(
            wire.UnregisterWorkerRequest(worker_id=daemon.worker_id)
        )
        back = await store.register("d1", is_recovery_registration=True)
        assert back.worker_id == daemon.worker_id
        assert back.expected_state_version == 3
        assert await store.counts("a") == [(1, 0)]
        daemon.generation, daemon.seq = back.reconcile_generation, 0
        answer = await daemon.send(entry("a"))
        assert shown(answer) == [(wire.StateChange.CHANGE_TYPE_REMOVE_REPLICA, "b"), (UPDATE, "a")]
        assert await store.counts("a", "b") == [(1, 1), (0, 0)]


async def test_replicas_of_a_lost_worker_id_are_confirmed_under_the_new_one() -> None:
    async with serving() as store:
        lost = "worker_lost_00000000"
        await store.replica(lost, "a")
        back = await store.register("d1", is_recovery_registration=True, previous_worker_id=lost)
        assert await store.counts("a") == [(1, 0)]
        daemon = Reconciler(store, back)
        assert shown(await daemon.send(entry("a"), entry("b"))) == [(ADD, "b"), (UPDATE, "a")]
        assert await store.counts("a", "b") == [(1, 1), (1, 1)]


async def test_an_unchanged_snapshot_is_recognised_until_anything_changes() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"))
        live = store.components.workers.find(daemon.worker_id)
        known = live.confirmed
        assert known is not None
        assert (await daemon.send(entry("a", current_requests=7))).result_kind == NOOP
        assert live.confirmed == known
        await store.replica(daemon.worker_id, "b")
        answer = await daemon.send(entry("a"))
        assert answer.result_kind == APPLIED
        assert await store.counts("b") == [(0, 0)]


async def test_a_refresh_that_says_nothing_new_is_no_change() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await store.replica(daemon.worker_id, "a")
        await daemon.send(entry("a"))
        live = store.components.workers.find(daemon.worker_id)
        known = live.confirmed
        assert known is not None
        await store.replica(daemon.worker_id, "a")
        assert live.replicas_revision == known[1]
        for changed in (
            {"max_concurrency": 9},
            {"mem_info": memory_info(source_process_id="p")},
            {"mem_info": memory_info(remote_memory_keys=["other"])},
            {"mem_info": memory_info(remote_memory_keys=["other"], device_id=1)},
        ):
            before = live.replicas_revision
            await store.replica(daemon.worker_id, "a", **changed)
            assert live.replicas_revision > before


async def test_a_wrong_daemon_or_generation_is_never_answered_from_what_is_recognised() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"))
        assert (await daemon.send(entry("a"))).result_kind == NOOP
        answer = await daemon.send(entry("a"), daemon_id="d2")
        assert answer.result_kind == REBASE_REQUIRED
        answer = await daemon.send(entry("a"), generation=9)
        assert answer.result_kind == REBASE_REQUIRED


# The checksum.


async def test_the_first_published_example() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send()).new_state_checksum == EMPTY
        answer = await daemon.send(
            entry("mi2:idxA:datA", node_id="node-7", node_address="10.20.0.7", node_port=50052)
        )
        assert answer.new_state_checksum == "6a632e6b6f7b9497"


async def test_the_second_published_example() -> None:
    def on(artifact_id: str, memory_type: int, device: int = 0, **fields: object) -> object:
        return entry(
            artifact_id,
            node_id="node-7",
            node_address="10.20.0.7",
            node_port=50052,
            memory_type=memory_type,
            device_id=device,
            **fields,
        )

    ram, gpu = 1, 2
    view = {"byte_space": {"kind": 2, "id": "view-2"}}
    async with serving() as store:
        daemon = await reconciler(store)
        answer = await daemon.send(
            on("cgid:model-b", gpu, 1),
            on("cgid:model-a", ram, **view, available=False),
            on("cgid:model-a", ram),
            on("cgid:model-a", gpu, 10),
            on("cgid:model-a", gpu, 2, available=False),
        )
        assert answer.new_state_checksum == "71db85343054e026"


async def test_the_checksum_is_that_of_the_rules_for_odd_texts_too() -> None:
    texts = ["ä", "z", "Z", "😀", "\ufffd", "a", "a:b", "a b"]
    held = [
        entry(text, memory_type=kind, device_id=device, node_port=port)
        for text in texts
        for kind, device, port in ((2, 2, 1), (2, 10, 2), (1, 7, 0), (3, 5, 9))
    ]
    label = {2: "GPU", 1: "RAM", 3: "DISK"}
    async with serving() as store:
        daemon = await reconciler(store)
        answer = await daemon.send(*held)
        assert answer.new_state_checksum == of_replicas(
            Entry(
                one.ref.artifact_id,
                "",
                one.memory_info.node_id,
                one.memory_info.node_address,
                one.memory_info.node_port,
                label[one.memory_info.memory_type],
                one.memory_info.device_id if one.memory_info.memory_type == 2 else 0,
                True,
            )
            for one in held
        )


async def test_a_registered_replica_is_in_the_checksum_and_leaves_the_version() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        by_inventory = await daemon.send(entry("a"), entry("b"))
        other = await reconciler(store, "d2")
        await store.replica(daemon.worker_id, "c")
        answer = await store.beat(
            daemon.worker_id, state_version=2, state_checksum=by_inventory.new_state_checksum
        )
        assert answer.state_sync_required
        assert answer.expected_state_version == 2
        (looked,) = [await daemon.send(generation=9)]
        assert not await needs_sync(daemon, 2, state_checksum=looked.new_state_checksum)
        assert other.worker_id != daemon.worker_id


async def test_who_waits_is_served_when_a_snapshot_confirms_the_source(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"))
    async with serving(config) as store:
        moved(daemon, store)
        await needs_sync(daemon, 2)
        answers = []

        async def claim() -> None:
            answers.append(await store.claim("a", wait_s=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim)
            while not len(store.components.queues):
                await trio.lowlevel.checkpoint()
            await daemon.send(entry("a"))
        assert answers[0].status == OK


async def test_updates_and_removals_come_by_key_whatever_the_order_of_their_rows() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        for name in ("d", "b", "c", "a"):
            await store.replica(daemon.worker_id, name)
        answer = await daemon.send(entry("c", available=False), entry("b", available=False))
        assert [artifact for _, artifact in shown(answer)] == ["a", "d", "b", "c"]
