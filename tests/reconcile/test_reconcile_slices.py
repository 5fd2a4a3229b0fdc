"""ReconcileWorkerState of inventories that are too large for one transaction."""

from random import Random

import purerpc
import pytest
import trio
from inventories import ADD, APPLIED, NOOP, REMOVE, RETRY_LATER, UPDATE, entry, metric, reconciler
from servers import configuration, serving, serving_over_tcp

from globalstore.db import Busy, slices
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.runtime import workers
from globalstore.registry.runtime.reconcile import WHOLE_MAX

MANY = WHOLE_MAX + 250


def kinds(answer: object) -> dict[int, int]:
    found: dict[int, int] = {}
    for change in answer.state_changes:
        found[change.type] = found.get(change.type, 0) + 1
    return found


async def test_a_large_inventory_is_applied_and_recognised() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        held = [entry(f"a{number:05}") for number in range(MANY)]
        Random(7).shuffle(held)
        answer = await daemon.send(*held)
        assert answer.result_kind == APPLIED
        assert kinds(answer) == {ADD: MANY}
        names = [change.replica_info.ref.artifact_id for change in answer.state_changes]
        assert names == sorted(names)
        assert answer.new_state_version == 2
        assert metric(store, "tc_replicas_total") == MANY
        for _ in range(2):
            again = await daemon.send(*held)
            assert again.result_kind == NOOP
            assert again.new_state_checksum == answer.new_state_checksum
        assert (await store.claim("a00007")).status == wire.STATUS_OK


async def test_every_kind_of_change_in_slices() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(*(entry(f"a{number:05}") for number in range(MANY)))
        granted = await store.claim("a00000")
        answer = await daemon.send(
            *(entry(f"a{number:05}", available=number % 2 == 0) for number in range(10, MANY + 10))
        )
        assert kinds(answer) == {ADD: 10, REMOVE: 10, UPDATE: (MANY - 10) // 2}
        assert await store.counts("a00000", "a00011", "a00012") == [(0, 0), (1, 0), (1, 1)]
        await store.complete(granted.transport_id)
        assert await store.read("SELECT count(*) FROM replicas") == [(MANY,)]
        emptied = await daemon.send()
        assert kinds(emptied) == {REMOVE: MANY}
        assert metric(store, "tc_replicas_total") == 0


async def test_a_large_worker_comes_back_after_a_restart(tmp_path: object) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    held = [entry(f"a{number:05}") for number in range(MANY)]
    async with serving(config) as store:
        daemon = await reconciler(store)
        await daemon.send(*held)
        rows = await store.read("SELECT * FROM replicas ORDER BY seq")
    async with serving(config) as store:
        daemon.store = store
        await store.beat(daemon.worker_id)
        await store.replica(daemon.worker_id, "meanwhile")
        answer = await daemon.send(*held, entry("meanwhile"))
        assert kinds(answer) == {UPDATE: MANY}
        after = await store.read("SELECT * FROM replicas ORDER BY seq")
        assert after[:MANY] == rows
        assert await store.counts("a00000", "meanwhile") == [(1, 1), (1, 1)]


async def test_a_replica_registered_between_the_slices_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between = trio.Event()
    go_on = trio.Event()

    async with serving() as store:
        daemon = await reconciler(store)
        held = [entry(f"a{number:05}") for number in range(MANY)]
        plain = store.components.store.bulk
        first = True

        async def held_up(*args: object) -> object:
            nonlocal first
            done = await plain(*args)
            if first and args[0] is slices.guarded:
                first = False
                between.set()
                await go_on.wait()
            return done

        monkeypatch.setattr(store.components.store, "bulk", held_up)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.send, *held)
            await between.wait()
            await store.replica(daemon.worker_id, "meanwhile")
            await store.replica(daemon.worker_id, f"a{MANY - 1:05}")
            go_on.set()
        assert await store.counts("meanwhile", f"a{MANY - 1:05}") == [(1, 1), (1, 1)]
        answer = await daemon.send(*held)
        assert kinds(answer) == {REMOVE: 1}


async def test_a_registration_between_the_slices_makes_the_rest_stale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        held = [entry(f"a{number:05}") for number in range(MANY)]
        plain = store.components.store.bulk

        async def end_then(*args: object) -> object:
            if args[0] is slices.guarded:
                await store.components.store.write(
                    workers.unregister_worker, daemon.worker_id, True, 0
                )
            return await plain(*args)

        monkeypatch.setattr(store.components.store, "bulk", end_then)
        with pytest.raises(purerpc.RpcFailedError):
            await daemon.send(*held)
        assert await store.read("SELECT count(*) FROM replicas") == [(0,)]


async def test_a_caller_that_goes_away_leaves_nothing_half_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving_over_tcp() as store:
        daemon = await reconciler(store)
        held = [entry(f"a{number:05}") for number in range(MANY)]
        plain = store.components.store.bulk
        with trio.CancelScope() as caller:

            async def written_and_gone(*args: object) -> object:
                done = await plain(*args)
                caller.cancel()
                return done

            monkeypatch.setattr(store.components.store, "bulk", written_and_gone)
            await daemon.send(*held)
        assert caller.cancelled_caught
        daemon.seq = 0
        answer = await daemon.send(*held)
        if answer.result_kind == APPLIED:
            assert await store.read("SELECT request_seq FROM worker_cursors") == [(1,)]
        else:
            assert answer.result_kind == NOOP
        assert await store.read("SELECT count(*) FROM replicas") == [(MANY,)]
        assert answer.result_kind != RETRY_LATER


async def test_requests_of_one_worker_wait_for_each_other_and_are_no_gap() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        answers: dict[int, int] = {}

        async def send(seq: int) -> None:
            held = [entry(f"a{number:05}") for number in range(MANY + seq)]
            answer = await daemon.send(*held, request_seq=seq)
            answers[seq] = answer.result_kind

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 1)
            locks = store.components.daemon_locks
            while "reconcile" not in repr(locks) and not locks._locks:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(send, 2)
        assert answers == {1: APPLIED, 2: APPLIED}


async def test_a_database_that_is_too_busy_between_the_slices_asks_for_a_repeat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        held = [entry(f"a{number:05}") for number in range(MANY)]
        plain = store.components.store.bulk
        written = 0

        async def busy_after_two(*args: object) -> object:
            nonlocal written
            if args[0] is slices.guarded:
                written += 1
                if written == 2:
                    raise Busy("locked by another process")
            return await plain(*args)

        monkeypatch.setattr(store.components.store, "bulk", busy_after_two)
        answer = await daemon.send(*held)
        assert answer.result_kind == RETRY_LATER
        assert answer.retry_after_ms > 0
        assert kinds(await daemon.send(*held, request_seq=1))[ADD] > 0
        assert await store.counts(f"a{MANY - 1:05}") == [(1, 1)]
