"""Leases on the memory of nodes: wishes, acknowledgements, revocations, and what is listed."""

import re

import pytest
import trio
import trio.testing
from purerpc import RpcFailedError, StatusCode
from servers import configuration, pass_time, refused, serving
from simulated_host import EPOCH_US
from tier_calls import (
    ACQUIRED,
    ACTIVE,
    EXPIRED,
    LAST,
    PENDING,
    RELEASED,
    REVOKING,
    acknowledge,
    in_state,
    outstanding,
    publish,
    request,
    revoke,
    wish,
)

from globalstore.gen.tensorcast.memory_tier.v1 import memory_tier_pb2 as wire


async def test_a_wish_is_recorded_as_it_was_said() -> None:
    async with serving() as store:
        lease = await request(
            store,
            node_id=" n1 ",
            kind=wire.LEASE_KIND_PREEMPTIBLE,
            artifact_id=" any: text/é ",
            chunk_range=wire.ChunkRange(start=7, count=2**32 - 1),
            chunk_ids=[9, 0, 2**32 - 1, 9],
            ledger_version=LAST,
            bytes=LAST,
            workload_id=" w ",
            request_id=" r ",
            issued_at_ns=LAST,
        )
        assert re.fullmatch("[0-9a-f]{32}", lease.lease_id)
        assert lease == wire.MemoryTierLease(
            lease_id=lease.lease_id,
            node_id="n1",
            kind=wire.LEASE_KIND_PREEMPTIBLE,
            artifact_id="any: text/é",
            chunk_range=wire.ChunkRange(start=7, count=2**32 - 1),
            chunk_ids=[9, 0, 2**32 - 1, 9],
            ledger_version=LAST,
            bytes=LAST,
            workload_id="w",
            state=wire.LEASE_STATE_PENDING,
            request_id="r",
            ack_epoch_ns=0,
            issued_at_ns=LAST,
            expires_at_ns=0,
        )
        assert await outstanding(store, node_id=" n1 ") == [lease]


async def test_what_is_not_said_has_a_default() -> None:
    async with serving(wall=lambda: EPOCH_US) as store:
        lease = await request(store, chunk_ids=[], chunk_range=wire.ChunkRange(count=1))
        other = await request(store, workload_id="  ")
        assert lease.kind == wire.LEASE_KIND_STABLE
        assert (lease.workload_id, other.workload_id) == ("default", "default")
        assert lease.issued_at_ns == EPOCH_US * 1000
        assert lease.request_id.startswith(f"mt_req_{EPOCH_US * 1000}")
        assert lease.request_id != other.request_id
        assert lease.lease_id != other.lease_id


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"node_id": " "}, "node_id"),
        ({"artifact_id": ""}, "artifact_id"),
        ({"chunk_ids": []}, "chunk_ids"),
        ({"chunk_ids": [], "chunk_range": wire.ChunkRange(start=4)}, "chunk_range"),
        ({"kind": 3}, "kind"),
        ({"kind": -1}, "kind"),
        ({"chunk_ids": [1] * 100_001}, "chunk_ids"),
        ({"workload_id": "\0"}, "workload_id"),
        ({"request_id": "a\nb"}, "request_id"),
    ],
)
async def test_a_wish_names_the_field_that_is_wrong(fields: dict[str, object], says: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, says):
            await request(store, **fields)
        assert await store.read("SELECT count(*) FROM memory_tier_leases") == [(0,)]


async def test_a_repeat_gets_the_first_lease_as_it_stands_now() -> None:
    async with serving() as store:
        first = await request(store, request_id="r")
        assert await request(store, request_id="r", artifact_id="other", bytes=9) == first
        await acknowledge(store, first, request_id="r2", bytes=77)
        again = await request(store, request_id=" r ")
        assert (again.lease_id, again.state, again.bytes) == (first.lease_id, ACTIVE, 77)
        # The key is the node's own, and the acknowledgement has another.
        assert (await request(store, request_id="r", node_id="n2")).lease_id != first.lease_id
        assert (await request(store, request_id="r2")).lease_id != first.lease_id


async def test_repeats_at_the_same_time_give_one_lease() -> None:
    async with serving() as store:
        ids = set()

        async def ask() -> None:
            ids.add((await request(store, request_id="r")).lease_id)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(ask)
        assert len(ids) == 1
        assert len(await outstanding(store)) == 1


# What each action does in each state: the state after it, and whether the data is taken over.
TRANSITIONS = [
    (PENDING, ACQUIRED, ACTIVE, True),
    (PENDING, RELEASED, EXPIRED, True),
    (ACTIVE, ACQUIRED, ACTIVE, True),
    (ACTIVE, RELEASED, EXPIRED, True),
    (REVOKING, ACQUIRED, REVOKING, True),
    (REVOKING, RELEASED, EXPIRED, True),
    (EXPIRED, RELEASED, EXPIRED, False),
]


@pytest.mark.parametrize(("state", "action", "after", "recorded"), TRANSITIONS)
async def test_an_acknowledgement_moves_a_lease(
    state: int, action: int, after: int, recorded: bool
) -> None:
    async with serving() as store:
        lease = await in_state(store, state, ledger_version=1, request_id="first")
        fields = {
            "chunk_ids": [8, 4],
            "chunk_range": wire.ChunkRange(start=4, count=5),
            "ledger_version": 6,
            "bytes": LAST,
            "ack_epoch_ns": LAST,
        }
        answer = await acknowledge(store, lease, action, node_id="n1", request_id="ack", **fields)
        expected = wire.MemoryTierLease()
        expected.CopyFrom(lease)
        if recorded:
            del expected.chunk_ids[:]
            expected.MergeFrom(wire.MemoryTierLease(**fields))
        expected.state = after  # type: ignore[assignment]
        assert answer == expected
        assert answer.request_id == "first"
        assert await outstanding(store, PENDING, ACTIVE, REVOKING, EXPIRED) == [expected]


async def test_an_ended_lease_is_not_acquired_again() -> None:
    async with serving() as store:
        lease = await in_state(store, EXPIRED)
        async with refused(StatusCode.FAILED_PRECONDITION, lease.lease_id):
            await acknowledge(store, lease, ledger_version=99)
        assert await outstanding(store, EXPIRED) == [lease]


@pytest.mark.parametrize(
    ("state", "after"),
    [(PENDING, REVOKING), (ACTIVE, REVOKING), (REVOKING, REVOKING), (EXPIRED, EXPIRED)],
)
async def test_a_revocation_moves_a_lease_once(state: int, after: int) -> None:
    async with serving() as store:
        lease = await in_state(store, state)
        revoked = await revoke(store, f" {lease.lease_id} ", "memory is short")
        assert revoked.state == after
        lease.state = after
        assert revoked == lease
        assert await revoke(store, lease.lease_id) == lease


async def test_a_late_duplicate_changes_nothing() -> None:
    async with serving() as store:
        for state in (ACTIVE, REVOKING):
            lease = await in_state(store, state)
            late = await acknowledge(store, lease, ledger_version=4, bytes=1, chunk_ids=[1])
            assert late == lease
            same = await acknowledge(store, lease, ledger_version=5, bytes=60)
            assert same.bytes == 60
        # Versions are compared as what they are, unsigned.
        newer = await acknowledge(store, lease, ledger_version=2**63 + 1, bytes=70)
        assert newer.bytes == 70
        older = await acknowledge(store, lease, ledger_version=2**63 - 1, bytes=80)
        assert older == newer
        # A release is final, whatever its version.
        assert (await acknowledge(store, lease, RELEASED, ledger_version=1)).state == EXPIRED


async def test_the_first_acknowledgement_counts_whatever_the_requester_had_seen() -> None:
    async with serving() as store:
        lease = await request(store, ledger_version=9)
        acquired = await acknowledge(store, lease, ledger_version=2)
        assert (acquired.state, acquired.ledger_version) == (ACTIVE, 2)


async def test_an_acknowledgement_without_epoch_or_range_takes_the_time_and_keeps_the_range() -> (
    None
):
    async with serving(wall=lambda: EPOCH_US) as store:
        lease = await request(store, chunk_range=wire.ChunkRange(start=1, count=3))
        acquired = await acknowledge(store, lease)
        assert acquired.ack_epoch_ns == EPOCH_US * 1000
        assert acquired.chunk_range == wire.ChunkRange(start=1, count=3)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"action": 0}, "action"),
        ({"action": 3}, "action"),
        ({"action": 0, "artifact_id": "", "lease_id": ""}, "action"),
        ({"artifact_id": " "}, "artifact_id"),
        ({"chunk_ids": []}, "chunk_ids"),
        ({"chunk_ids": [], "action": RELEASED}, "chunk_ids"),
        ({"lease_id": " "}, "lease_id"),
        ({"lease_id": "", "artifact_id": ""}, "artifact_id"),
    ],
)
async def test_an_acknowledgement_names_the_field_that_is_wrong(
    fields: dict[str, object], says: str
) -> None:
    async with serving() as store:
        lease = await request(store)
        async with refused(StatusCode.INVALID_ARGUMENT, says):
            await acknowledge(store, lease, **fields)  # type: ignore[arg-type]
        assert await outstanding(store) == [lease]


@pytest.mark.parametrize(
    "fields",
    [{"lease_id": "0" * 32}, {"artifact_id": "other"}, {"node_id": "n2"}, {"lease_id": "Ä"}],
)
async def test_an_acknowledgement_of_another_lease_changes_nothing(
    fields: dict[str, object],
) -> None:
    async with serving() as store:
        lease = await request(store)
        async with refused(StatusCode.NOT_FOUND):
            await acknowledge(store, lease, **fields)  # type: ignore[arg-type]
        assert await outstanding(store) == [lease]


async def test_a_revocation_needs_a_lease() -> None:
    async with serving() as store:
        async with refused(StatusCode.INVALID_ARGUMENT, "lease_id"):
            await revoke(store, " ")
        async with refused(StatusCode.NOT_FOUND):
            await revoke(store, "f" * 32)


async def test_concurrent_acknowledgements_never_both_win() -> None:
    async with serving() as store:
        for _ in range(20):
            lease = await request(store)
            codes: list[StatusCode | int] = []

            async def say(action: int) -> None:
                try:
                    codes.append((await acknowledge(store, lease, action)).state)  # noqa: B023
                except RpcFailedError as error:
                    codes.append(error.status.status_code)  # noqa: B023

            async with trio.open_nursery() as nursery:
                nursery.start_soon(say, ACQUIRED)
                nursery.start_soon(say, RELEASED)
            assert sorted(map(str, codes)) in (
                sorted(map(str, [ACTIVE, EXPIRED])),
                sorted(map(str, [StatusCode.FAILED_PRECONDITION, EXPIRED])),
            )
            assert [each.state for each in await outstanding(store, EXPIRED)][:1] == [EXPIRED]


async def test_leases_of_a_node_are_listed_latest_first() -> None:
    async with serving() as store:
        leases = [
            await request(store, issued_at_ns=issued)
            for issued in (5, 2**63, 7, 2**63 - 1, LAST, 7)
        ]
        await request(store, node_id="n2")
        listed = await outstanding(store)
        order = sorted(leases, key=lambda each: (-each.issued_at_ns, each.lease_id))
        assert listed == order


async def test_only_the_states_that_are_asked_for_are_listed() -> None:
    async with serving() as store:
        leases = {
            state: await in_state(store, state) for state in (PENDING, ACTIVE, REVOKING, EXPIRED)
        }
        assert {each.state for each in await outstanding(store)} == {PENDING, ACTIVE, REVOKING}
        for state, lease in leases.items():
            assert await outstanding(store, state, state) == [lease]
        assert len(await outstanding(store, EXPIRED, ACTIVE)) == 2
        assert await outstanding(store, node_id="n2") == []
        for states in ([0], [5], [ACTIVE, -1]):
            async with refused(StatusCode.INVALID_ARGUMENT, "states"):
                await outstanding(store, *states)
        async with refused(StatusCode.INVALID_ARGUMENT, "node_id"):
            await outstanding(store, node_id=" ")


async def test_by_default_no_lease_ends_by_time(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        lease = await request(store)
        mock_clock.jump(10**6)
        assert await outstanding(store) == [lease]


async def test_a_wish_that_nobody_acknowledges_ends_if_so_configured(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"pending_lease_ttl": "10s"})
    async with serving(config, wall=lambda: EPOCH_US) as store:
        kept = await request(store)
        assert kept.expires_at_ns == (EPOCH_US + 10_000_000) * 1000
        acquired = await acknowledge(store, kept)
        assert acquired.expires_at_ns == 0
        revoked = await request(store)
        await revoke(store, revoked.lease_id)
        await pass_time(mock_clock, 5)
        lease = await request(store, request_id="r")
        await pass_time(mock_clock, 9.5)
        assert len(await outstanding(store, PENDING)) == 1
        await pass_time(mock_clock, 1)
        while await outstanding(store, PENDING):
            pass
        (ended,) = await outstanding(store, EXPIRED)
        assert (ended.lease_id, ended.expires_at_ns) == (lease.lease_id, 0)
        assert {each.state for each in await outstanding(store)} == {ACTIVE, REVOKING}
        async with refused(StatusCode.FAILED_PRECONDITION):
            await acknowledge(store, lease)
        assert (await acknowledge(store, lease, RELEASED)).state == EXPIRED


async def test_a_stall_of_the_server_gives_pending_leases_more_time(
    mock_clock: trio.testing.MockClock,
) -> None:
    config = configuration(worker_policy={"pending_lease_ttl": "10s"})
    async with serving(config) as store:
        lease = await request(store)
        await pass_time(mock_clock, 1)
        mock_clock.jump(60)
        await trio.testing.wait_all_tasks_blocked()
        await pass_time(mock_clock, 5)
        assert (await acknowledge(store, lease)).state == ACTIVE


async def test_ended_leases_are_kept_for_a_day_and_then_their_request_is_free() -> None:
    now = [EPOCH_US]
    async with serving(wall=lambda: now[0]) as store:
        lease = await in_state(store, EXPIRED, request_id="r")
        open_lease = await request(store)
        await store.components.maintenance.run_pass()
        now[0] += 86_399_000_000
        await store.components.maintenance.run_pass()
        assert (await request(store, request_id="r")).lease_id == lease.lease_id
        now[0] += 2_000_000
        await store.components.maintenance.run_pass()
        again = await request(store, request_id="r")
        assert again.lease_id != lease.lease_id
        assert {each.lease_id for each in await outstanding(store)} == {
            again.lease_id,
            open_lease.lease_id,
        }


async def test_nothing_that_happens_to_workers_touches_the_ledger() -> None:
    async with serving() as store:
        worker = await store.register("d1")
        lease = await request(store, node_id="node-d1")
        await publish(store, "node-d1")
        from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as runtime

        await store.runtime.UnregisterWorker(
            runtime.UnregisterWorkerRequest(worker_id=worker.worker_id, is_graceful_shutdown=True)
        )
        await store.register("d1")
        assert await outstanding(store, node_id="node-d1") == [lease]
        assert wish().node_id == "n1"


async def test_a_list_that_no_message_would_hold_is_refused() -> None:
    config = configuration(server={"limits": {"max_answer_bytes": 620}})
    async with serving(config=config) as store:
        for _ in range(4):
            await request(store)
        assert len(await outstanding(store)) == 4
        lease = await request(store, chunk_ids=range(100))
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "states"):
            await outstanding(store)
        await acknowledge(store, lease)
        assert len(await outstanding(store, PENDING)) == 4
