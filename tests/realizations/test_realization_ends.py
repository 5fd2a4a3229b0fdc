"""WaitGroupRealizationPublished, AbortGroupRealization, GetGroupRealization, and deadlines."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import trio
import trio.testing
from purerpc import RpcFailedError, StatusCode
from realization_calls import (
    ABORTED,
    ERROR,
    EXPIRED,
    EXPLICIT,
    NOT_FOUND,
    OK,
    PREPARING,
    PUBLISHED,
    READY,
    TIMED_OUT,
    abort,
    begun,
    join,
    joining,
    on,
    publish,
    published,
    report,
    show,
    wait,
)
from servers import Serving, configuration, eventually, refused, serving, serving_over_tcp
from simulated_host import CallFailed, Host, folder_in_memory

from globalstore.client.connection import connection
from globalstore.gen.tensorcast.global_store.v1 import global_store_grpc as services
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.registry.catalog import realizations
from globalstore.registry.signals import LeaseEnded, LeaseKind

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
UNKNOWN = f"grt_{'0' * 64}"
NOW_US = 1_700_000_000_000_000
DAY_S = 86400

MEMBER_EXPIRED = wire.GROUP_REALIZATION_MEMBER_STATE_EXPIRED
CANCELLED = wire.GROUP_REALIZATION_MEMBER_STATE_CANCELLED


def sample(store: Serving, name: str, **labels: str) -> float:
    value = store.components.metrics.registry.get_sample_value(
        f"tc_group_realization_{name}", labels
    )
    assert value is not None, name
    return value


class Waiting:
    """Calls that wait for the end of a realization, and what each was told."""

    def __init__(self, store: Serving, nursery: trio.Nursery) -> None:
        self._store = store
        self._nursery = nursery
        self.outcomes: list[tuple[int, int]] = []

    async def start(self, transaction_id: str, wait_s: float, count: int = 1) -> None:
        """Begin to wait, and return when all of the calls are parked."""
        waiters = self._store.components.realization_waiters
        before = len(waiters)
        for _ in range(count):
            self._nursery.start_soon(self._wait, transaction_id, wait_s)
        await eventually(lambda: len(waiters) == before + count)
        # Each looks once whether the end was before; that look is over when a later one is.
        await wait(self._store, transaction_id)

    async def _wait(self, transaction_id: str, wait_s: float) -> None:
        try:
            self.outcomes.append(await wait(self._store, transaction_id, wait_s))
        except anyio.EndOfStream:
            """The test is over, and its connection with it."""


# Waiting.


async def test_a_wait_needs_a_realization() -> None:
    async with serving(on()) as store:
        for wait_s in (None, 10):
            async with refused(INVALID, "transaction_id is required"):
                await wait(store, " ", wait_s)
            for unknown in (UNKNOWN, "grt_1", "x"):
                async with refused(StatusCode.NOT_FOUND, unknown):
                    await wait(store, unknown, wait_s)
        assert len(store.components.realization_waiters) == 0


@pytest.mark.parametrize("wait_s", [None, -1, 0])
async def test_without_patience_the_state_is_told_at_once(wait_s: float | None) -> None:
    async with serving(on(publish_authority_mode=EXPLICIT)) as store:
        transaction_id = await begun(store)
        assert await wait(store, transaction_id, wait_s) == (TIMED_OUT, PREPARING)
        for part_id in "01":
            await report(store, transaction_id, part_id)
        assert await wait(store, transaction_id, wait_s) == (TIMED_OUT, READY)
        await abort(store, transaction_id)
        assert await wait(store, transaction_id, wait_s) == (ERROR, ABORTED)


@pytest.mark.parametrize("wait_s", [None, 1000])
async def test_an_end_that_was_before_is_told_at_once(
    wait_s: float | None, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(on()) as store:
        done = await published(store)
        assert await wait(store, done, wait_s) == (OK, PUBLISHED)
        aborted = await begun(store, epoch=8)
        await abort(store, aborted)
        assert await wait(store, aborted, wait_s) == (ERROR, ABORTED)
        late = await begun(store, epoch=9)
        mock_clock.jump(30)
        assert await wait(store, late, wait_s) == (ERROR, EXPIRED)


async def test_publication_wakes_whoever_waits(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 10, count=3)
        assert sample(store, "active_waiters") == 3
        await report(store, transaction_id)
        assert waiting.outcomes == []
        await report(store, transaction_id, "1")
        await eventually(lambda: len(waiting.outcomes) == 3)
        assert waiting.outcomes == [(OK, PUBLISHED)] * 3
        assert len(store.components.realization_waiters) == 0
        assert sample(store, "active_waiters") == 0
        assert sample(store, "waiter_polls_total", result="published") == 3


async def test_an_abortion_wakes_whoever_waits(nursery: trio.Nursery) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 10)
        await abort(store, transaction_id)
        await eventually(lambda: waiting.outcomes)
        assert waiting.outcomes == [(ERROR, ABORTED)]


async def test_a_stale_source_wakes_whoever_waits(nursery: trio.Nursery) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store, "0")
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 10)
        async with refused(StatusCode.ALREADY_EXISTS):
            await report(store, transaction_id, source_replica_id="gone")
        await eventually(lambda: waiting.outcomes)
        assert waiting.outcomes == [(ERROR, ABORTED)]


async def test_a_waiter_is_told_the_state_at_its_own_deadline(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with serving(on(publish_authority_mode=EXPLICIT)) as store:
        transaction_id = await begun(store)
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 5)
        for part_id in "01":
            await report(store, transaction_id, part_id)
        mock_clock.jump(5)
        await eventually(lambda: waiting.outcomes)
        assert waiting.outcomes == [(TIMED_OUT, READY)]
        assert sample(store, "waiter_polls_total", result="timed_out") == 2, "it, and a poll before"


async def test_a_waiter_wakes_at_the_deadline_of_the_realization_if_its_own_is_later(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 1000)
        mock_clock.jump(29.9)
        await trio.testing.wait_all_tasks_blocked()
        assert waiting.outcomes == []
        mock_clock.jump(0.11)
        await eventually(lambda: waiting.outcomes)
        assert waiting.outcomes == [(ERROR, EXPIRED)]
        assert sample(store, "cleanup_total", operation="expire", result="ok") == 1


async def test_the_waiters_of_one_realization_are_bounded_and_others_are_free(
    nursery: trio.Nursery,
) -> None:
    async with serving(on(max_waiters_per_transaction=2)) as store:
        first, second = await begun(store), await begun(store, epoch=8)
        waiting = Waiting(store, nursery)
        await waiting.start(first, 100, count=2)
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "2 calls are waiting"):
            await wait(store, first, 100)
        assert sample(store, "waiter_polls_total", result="rejected") == 1
        assert await wait(store, first) == (TIMED_OUT, PREPARING), "who polls does not wait"
        await waiting.start(second, 100)
        for part_id in "01":
            await report(store, first, part_id)
        await eventually(lambda: len(waiting.outcomes) == 2)
        await wait(store, first, 100)
        nursery.cancel_scope.cancel()


async def test_who_goes_away_leaves_room_at_once(nursery: trio.Nursery) -> None:
    async with serving_over_tcp(on(max_waiters_per_transaction=1)) as store:
        transaction_id = await begun(store)
        began = trio.current_time()
        async with (
            trio.open_nursery() as inner,
            connection("127.0.0.1", store.info.listen_port) as channel,
        ):
            other = attrs.evolve(store, catalog=services.ArtifactCatalogServiceStub(channel))
            await Waiting(other, inner).start(transaction_id, 100)
        await eventually(lambda: len(store.components.realization_waiters) == 0)
        assert trio.current_time() - began < 20, "not by the end of the realization, after 30 s"
        await Waiting(store, nursery).start(transaction_id, 100)


async def test_many_waiters_take_no_slot_from_the_reports(nursery: trio.Nursery) -> None:
    config = configuration(
        server={"max_workers": 2}, worker_policy={"group_realization": {"enabled": True}}
    )
    async with serving(config) as store:
        transaction_id = await begun(store)
        waiting = Waiting(store, nursery)
        await waiting.start(transaction_id, 1000, count=200)
        for part_id in "01":
            await report(store, transaction_id, part_id)
        await eventually(lambda: len(waiting.outcomes) == 200)
        assert set(waiting.outcomes) == {(OK, PUBLISHED)}


async def test_a_drain_ends_waiting_at_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    with folder_in_memory() as folder:
        policy = {"group_realization": {"enabled": True}}
        host = Host(folder, nursery, worker_policy=policy)
        await host.start()
        answer = await host.call(joining())
        server, codes = host.running, []

        async def one() -> None:
            with pytest.raises(CallFailed) as caught:
                await host.call(
                    wire.WaitGroupRealizationPublishedRequest(
                        transaction_id=answer.transaction_id, deadline_unix_nanos=2**63
                    )
                )
            codes.append((caught.value.code, trio.current_time()))

        nursery.start_soon(one)
        await eventually(lambda: len(server.components.realization_waiters) == 1)
        began = trio.current_time()
        await host.stop()
        await eventually(lambda: codes)
        assert codes == [(StatusCode.UNAVAILABLE, began)]
        assert len(server.components.realization_waiters) == 0


# Aborting.


async def test_an_abortion_cancels_all_parts_and_keeps_its_reason() -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store, "012")
        await report(store, transaction_id)
        answer = await abort(
            store, f" {transaction_id} ", failure_code=" oom ", failure_detail=" as sent\n"
        )
        assert answer == wire.AbortGroupRealizationResponse(status=OK, state=ABORTED)
        shown = await show(store, transaction_id)
        assert (shown.failure_code, shown.failure_detail) == ("oom", " as sent\n")
        assert {member.state for member in shown.members} == {CANCELLED}
        assert {member.failure_code for member in shown.members} == {"oom"}
        assert (shown.prepared_count, shown.failed_count, shown.published_count) == (0, 0, 0)
        assert shown.missing_part_ids == ["0", "1", "2"]


async def test_an_abortion_without_a_reason_has_one_and_details_are_bounded() -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        await abort(store, transaction_id, failure_detail="x" * 10_000)
        shown = await show(store, transaction_id)
        assert (shown.failure_code, len(shown.failure_detail)) == ("aborted", 4096)
        async with refused(INVALID, "failure_code"):
            await abort(store, transaction_id, failure_code="x" * 1025)


async def test_what_ended_is_not_aborted_again(mock_clock: trio.testing.MockClock) -> None:
    async with serving(on()) as store:
        async with refused(INVALID, "transaction_id is required"):
            await abort(store, "")
        for unknown in (UNKNOWN, "grt_1"):
            async with refused(StatusCode.NOT_FOUND, unknown):
                await abort(store, unknown)
        done = await published(store)
        async with refused(FAILED, "published"):
            await abort(store, done)
        assert await wait(store, done) == (OK, PUBLISHED)
        failed = await begun(store, epoch=8)
        await abort(store, failed, failure_code="first")
        assert (await abort(store, failed, failure_code="second")).state == ABORTED
        assert (await show(store, failed)).failure_code == "first"
        late = await begun(store, epoch=9)
        mock_clock.jump(30)
        assert (await abort(store, late, failure_code="late")).state == EXPIRED
        assert (await show(store, late)).failure_code == "deadline_exceeded"


# Looking.


async def test_a_look_needs_a_name() -> None:
    async with serving(on()) as store:
        for blank in ("", " "):
            async with refused(INVALID, "transaction_id is required"):
                await show(store, blank)
        for unknown in (UNKNOWN, "grt_1", "x", UNKNOWN.upper()):
            assert await show(store, unknown) == wire.GetGroupRealizationResponse(status=NOT_FOUND)


async def test_all_of_a_realization_is_shown() -> None:
    async with serving(on(), wall=lambda: NOW_US) as store:
        answer = await join(store, "b", parts="abc")
        await join(store, "a", parts="abc")
        await report(store, answer.transaction_id, "b")
        shown = await show(store, f" {answer.transaction_id} ")
        assert [member.part_id for member in shown.members] == ["a", "b"]
        del shown.members[:]
        assert shown == wire.GetGroupRealizationResponse(
            status=OK,
            transaction_id=answer.transaction_id,
            version_set=answer.version_set,
            realization_kind=answer.realization_kind,
            state=PREPARING,
            required_part_ids=["a", "b", "c"],
            missing_part_ids=["a", "c"],
            group_kind="tp_serving",
            group_id="g1",
            epoch=7,
            total_parts=3,
            prepared_count=1,
            deadline_unix_nanos=NOW_US * 1000 + 30 * 10**9,
            publish_authority_mode="AUTO_WHEN_READY",
        )


async def test_more_members_than_one_turn_shows_are_all_shown() -> None:
    parts = [f"{number:03}" for number in range(130)]
    async with serving(on()) as store:
        for part_id in parts:
            answer = await join(store, part_id, parts=parts)
        shown = await show(store, answer.transaction_id)
        assert [member.part_id for member in shown.members] == parts


# Deadlines.


async def test_every_call_applies_the_deadline_of_its_own_realization_first(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(on()) as store:
        calls: list[Any] = [
            lambda it: show(store, it),
            lambda it: wait(store, it),
            lambda it: abort(store, it),
            lambda it: report(store, it),
            lambda it: publish(store, it),
            lambda it: join(store, epoch=int(epochs[it])),
        ]
        epochs = {}
        for number in range(len(calls)):
            epochs[await begun(store, epoch=number)] = number
        for [key] in await store.read("SELECT transaction_key FROM group_transactions"):
            # The scheduler forgets it: nobody but the calls looks at the deadline.
            store.components.leases.ended(LeaseEnded(LeaseKind.REALIZATION, key))
        mock_clock.jump(30)
        for call, transaction_id in zip(calls, epochs, strict=True):
            with suppress(RpcFailedError):
                await call(transaction_id)
            [row] = await store.read(
                "SELECT state, failure_code FROM group_transactions WHERE epoch = ?",
                epochs[transaction_id],
            )
            assert row == (EXPIRED, "deadline_exceeded")


async def test_a_realization_expires_without_a_call(mock_clock: trio.testing.MockClock) -> None:
    async with serving(on()) as store:
        first = await begun(store)
        done = await published(store, epoch=8)
        mock_clock.jump(31)
        while await store.read("SELECT 1 FROM group_transactions WHERE ended_at IS NULL"):
            await trio.lowlevel.checkpoint()
        shown = await show(store, first)
        assert (shown.state, shown.failure_code) == (EXPIRED, "deadline_exceeded")
        assert {member.state for member in shown.members} == {MEMBER_EXPIRED}
        assert shown.missing_part_ids == ["0", "1"]
        assert (await show(store, done)).state == PUBLISHED


async def test_more_than_a_batch_of_due_realizations_expire_at_once(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(on()) as store:
        for number in range(600):
            await join(store, "0", parts="0", epoch=number)
        mock_clock.jump(31)
        while await store.read("SELECT 1 FROM group_transactions WHERE ended_at IS NULL"):
            await trio.lowlevel.checkpoint()
        assert await store.read("SELECT DISTINCT state FROM group_transactions") == [(EXPIRED,)]


async def test_a_deadline_goes_on_over_a_restart(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    config = configuration(
        database={"db_file": str(tmp_path / "store.db")},
        worker_policy={"group_realization": {"enabled": True}},
    )
    now_us = NOW_US
    async with serving(config, wall=lambda: now_us) as store:
        over = await begun(store)
        longer = await begun(store, epoch=8, deadline_unix_nanos=(NOW_US + 50_000_000) * 1000)
    now_us += 40_000_000
    async with serving(config, wall=lambda: now_us) as store:
        assert (await show(store, over)).state == EXPIRED
        assert (await show(store, longer)).state == PREPARING
        mock_clock.jump(10)
        assert (await show(store, longer)).state == EXPIRED


# What is forgotten, and what never is.


async def test_members_are_forgotten_a_day_after_the_end_and_the_slot_never() -> None:
    now_us = NOW_US

    async with serving(on(), wall=lambda: now_us) as store:
        live = await begun(store, deadline_unix_nanos=(NOW_US + 10**12) * 1000)
        done = await published(store, epoch=8)
        failed = await begun(store, epoch=9)
        await abort(store, failed, failure_code="x")
        now_us += (DAY_S - 1) * 1_000_000
        await store.components.maintenance.run_pass()
        assert len((await show(store, done)).members) == 2
        now_us += 2_000_000
        await store.components.maintenance.run_pass()
        assert await store.read("SELECT DISTINCT transaction_key FROM group_members") == [(1,)]
        assert len((await show(store, live)).members) == 2
        shown = await show(store, done)
        assert (shown.state, shown.published_count, len(shown.members)) == (PUBLISHED, 2, 0)
        assert (shown.required_part_ids, shown.missing_part_ids) == (["0", "1"], [])
        assert await wait(store, done) == (OK, PUBLISHED)
        assert (await join(store, epoch=8, daemon_id="d9")).state == PUBLISHED
        assert (await show(store, done)).members == []
        async with refused(StatusCode.NOT_FOUND, "has not joined"):
            await report(store, done)
        assert (await publish(store, done)).state == PUBLISHED
        async with refused(FAILED, "use a new epoch"):
            await join(store, epoch=9)
        assert sample(store, "cleanup_total", operation="forget", result="ok") > 0


async def test_many_members_are_forgotten_in_pieces() -> None:
    now_us = NOW_US
    parts = [f"{number:03}" for number in range(7)]
    async with serving(on(), wall=lambda: now_us) as store:
        for epoch in range(3):
            for part_id in parts:
                answer = await join(store, part_id, parts=parts, epoch=epoch)
            await abort(store, answer.transaction_id)
        gone, left = [], 21
        while left:
            gone.append(
                await store.components.store.write(realizations.purge_members, NOW_US + 1, 5)
            )
            [(left,)] = await store.read("SELECT count(*) FROM group_members")
            assert len(gone) < 10
        assert all(each >= 5 for each in gone[:-1])
        assert await store.components.store.write(realizations.purge_members, NOW_US + 1, 5) <= 1
        assert await store.read("SELECT DISTINCT has_members FROM group_transactions") == [(0,)]


async def test_calls_about_groups_are_counted_by_what_came_of_them() -> None:
    async with serving(on()) as store:
        await published(store)
        async with refused(FAILED):
            await abort(store, (await join(store)).transaction_id)
        assert sample(store, "events_total", operation="begin", result="ok") == 3
        assert sample(store, "events_total", operation="abort", result="failed_precondition") == 1
        assert sample(store, "operation_seconds_count", operation="report") == 2
        for operation, table, rows in (
            ("register", "version_sets", 1),
            ("register", "version_set_parts", 2),
            ("begin", "group_transactions", 1),
            ("join", "group_members", 2),
            ("report", "group_members", 2),
        ):
            written = sample(store, "control_writes_total", operation=operation, table=table)
            assert written == rows, (operation, table)
