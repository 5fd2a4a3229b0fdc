"""Operations that share a transaction, and what each of them may expect of it."""

import contextlib
import gc
import logging
import threading
from typing import Any

import ledger
import pytest
import trio
from log_lines import told

from globalstore.db import (
    Closed,
    Constraint,
    Lane,
    Migration,
    OutcomeUnknown,
    Runner,
    Site,
    Snapshot,
    Store,
    StoreOptions,
    Transaction,
)
from globalstore.db.ticket import Ticket


async def _all_at_once(*calls) -> list[Any]:
    """Start every call in the same instant; returns results or exceptions in order."""
    outcomes: list[Any] = [None] * len(calls)

    async def one(index, function, arguments):
        try:
            outcomes[index] = await function(*arguments)
        except Exception as error:  # noqa: BLE001 - the exception is the outcome
            outcomes[index] = error

    async with trio.open_nursery() as nursery:
        for index, (function, *arguments) in enumerate(calls):
            nursery.start_soon(one, index, function, arguments)
    return outcomes


async def test_every_caller_gets_its_own_answer_from_few_transactions(new_store):
    async with new_store() as store:
        wanted = [f"entry {i}" for i in range(1000)]
        got = await _all_at_once(*((store.write, ledger.add, name) for name in wanted))
        assert got == wanted
        assert await store.read(ledger.count) == 1000
        figures = store.statistics()
        assert figures.operations == 1000
        assert figures.groups < 500
        assert 1 < figures.operations_most <= 256


async def test_an_operation_that_raises_leaves_its_neighbours_alone(new_store):
    refusal = ledger.Refusal("no")
    async with new_store() as store:
        await store.write(ledger.add, "a")
        got = await _all_at_once(
            (store.write, ledger.add_and_refuse, "b", refusal),
            (store.write, ledger.add, "c"),
            (store.write, ledger.add, "a"),
            (store.write, ledger.add, "d"),
        )
        assert got[0] is refusal
        assert got[1] == "c"
        assert isinstance(got[2], Constraint)
        assert await store.read(ledger.names) == ["a", "c", "d"]


async def test_a_lone_operation_that_raises_is_undone(new_store):
    async with new_store() as store:
        with pytest.raises(ledger.Refusal):
            await store.write(ledger.add_and_refuse, "a", ledger.Refusal())
        assert await store.read(ledger.names) == []
        assert await store.write(ledger.add, "a") == "a"


async def test_only_events_of_committed_operations_arrive(new_store):
    events = []
    async with new_store(on_commit=events.extend) as store:
        await _all_at_once(
            *((store.write, ledger.add, f"{i:03}") for i in range(100)),
            (store.write, ledger.add_and_refuse, "refused", ledger.Refusal()),
            (store.write, ledger.add, "050"),
        )
        assert sorted(events) == await store.read(ledger.names)
        assert "refused" not in events
        assert len(events) == 100


async def test_events_arrive_in_the_order_of_the_commits(new_store):
    events = []
    async with new_store(on_commit=events.extend) as store:
        got = await _all_at_once(*((store.write, ledger.add_blob, 10) for _ in range(600)))
    assert events == sorted(got) == list(range(1, 601))


async def test_events_arrive_before_any_caller_of_the_group_resumes(new_store):
    seen = []
    async with new_store(on_commit=lambda events: seen.extend(("event", e) for e in events)) as s:

        async def caller(name):
            seen.append(("caller", await s.write(ledger.add, name)))

        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(caller, f"{i}")
    for i in range(20):
        assert seen.index(("event", f"{i}")) < seen.index(("caller", f"{i}"))


async def test_an_answered_write_is_visible_to_a_later_read(new_store):
    async with new_store(options=StoreOptions(readers=2)) as store:

        async def writer_then_reader(name):
            await store.write(ledger.add, name)
            assert name in await store.read(ledger.names)

        async with trio.open_nursery() as nursery:
            for i in range(100):
                nursery.start_soon(writer_then_reader, f"{i}")


async def test_a_query_cannot_write(new_store):
    async with new_store() as store:
        with pytest.raises(Exception, match="readonly database"):
            await store.read(lambda tx: tx.all("INSERT INTO entry VALUES ('a', 1)"))
        assert await store.read(ledger.names) == []


async def test_a_query_that_raises_leaves_its_neighbours_alone(new_store):
    async with new_store() as store:
        await store.write(ledger.add, "a")
        got = await _all_at_once(
            (store.read, ledger.names),
            (store.read, lambda tx: tx.all("SELECT * FROM nowhere")),
            (store.read, ledger.names),
        )
        assert got[0] == got[2] == ["a"]
        assert "nowhere" in str(got[1])


async def test_statements_return_rows_and_counts(new_store):
    def work(tx: Transaction) -> None:
        rows = [{"name": f"{i}", "size": i} for i in range(5)]
        assert tx.many("INSERT INTO entry VALUES (:name, :size)", rows) == 5
        assert tx.run("UPDATE entry SET size = size + 1 WHERE size >= :least", {"least": 3}) == 2
        assert tx.run("DELETE FROM entry WHERE name = 'absent'") == 0
        assert tx.one("SELECT max(size) FROM entry") == (5,)
        assert tx.one("SELECT size FROM entry WHERE name = ?", ("absent",)) is None
        assert tx.all("SELECT name, size FROM entry WHERE size < 2 ORDER BY size") == [
            ("0", 0),
            ("1", 1),
        ]
        upsert = (
            "INSERT INTO entry VALUES (:name, 7) ON CONFLICT (name) DO UPDATE SET size = 7"
            " RETURNING name, size"
        )
        assert tx.one(upsert, {"name": "0"}) == ("0", 7)
        assert tx.one("UPDATE entry SET size = 9 RETURNING size") == (9,)
        assert tx.all("SELECT DISTINCT size FROM entry") == [(9,)]

    async with new_store() as store:
        await store.write(work)


async def test_a_transaction_that_was_kept_is_of_no_use(new_store):
    kept = []
    async with new_store() as store:
        await store.write(kept.append)
        await store.read(kept.append)
        await store.write(ledger.nothing)
        await store.read(ledger.nothing)
        transaction, snapshot = kept
        with pytest.raises(Closed):
            transaction.run("INSERT INTO entry VALUES ('outside', 1)")
        with pytest.raises(Closed):
            transaction.many("INSERT INTO entry VALUES (?, 1)", [("outside",)])
        with pytest.raises(Closed):
            snapshot.all("SELECT * FROM entry")
        assert await store.read(ledger.names) == []


async def test_a_broken_constraint_names_its_kind_and_may_be_caught(new_store):
    def add_twice(tx: Transaction) -> str | None:
        ledger.add(tx, "a")
        try:
            tx.run("INSERT INTO entry VALUES ('a', 1)")
        except Constraint as error:
            tx.run("INSERT INTO entry VALUES ('b', 1)")
            return error.code
        return "accepted twice"

    async with new_store() as store:
        assert await store.write(add_twice) == "SQLITE_CONSTRAINT_PRIMARYKEY"
        assert await store.read(ledger.names) == ["a", "b"]


async def test_a_constraint_checked_at_commit_fails_only_whoever_broke_it(new_store):
    events = []
    async with new_store(on_commit=events.extend) as store:
        for name in "abcdef":
            await store.write(ledger.add, name)
        events.clear()
        got = await _all_at_once(
            *((store.write, ledger.add_note, name) for name in ("a", "b", "c", "nobody")),
            *((store.write, ledger.add_note, name) for name in ("d", "nothing", "e", "f")),
        )
        assert isinstance(got[3], Constraint)
        assert isinstance(got[5], Constraint)
        assert [*got[:3], got[4], *got[6:]] == [1] * 6
        assert sorted(events) == [f"note on {name}" for name in "abcdef"]
        stored = await store.read(lambda tx: tx.all("SELECT entry FROM note ORDER BY id"))
        assert [f"note on {name}" for (name,) in stored] == events


async def test_a_mistake_in_the_calling_code_comes_back_as_it_is(new_store):
    async with new_store() as store:
        with pytest.raises(OverflowError):
            await store.write(ledger.add, "huge", 1 << 80)
        with pytest.raises(Exception, match="no such column"):
            await store.write(lambda tx: tx.run("UPDATE entry SET colour = 1"))
        assert await store.write(ledger.add, "a") == "a"


async def test_a_follow_up_that_raises_stops_the_store_and_claims_nothing(new_store, caplog):
    def follow_up(events):
        raise ValueError("cannot follow")

    async with new_store(on_commit=follow_up) as store:
        with pytest.raises(OutcomeUnknown):
            await store.write(ledger.add, "a")
        await store.failed.wait()
        assert isinstance(store.failure, OutcomeUnknown)
        assert "FAILED" in repr(store)
        with pytest.raises(Closed, match="cannot follow"):
            await store.write(ledger.add, "b")
        with pytest.raises(Closed):
            await store.read(ledger.names)
    assert any("has to be restarted" in line for line in told(caplog, logging.ERROR))


async def test_after_a_failed_follow_up_no_other_is_tried_and_nobody_hears_ok(new_store):
    followed_up = []

    def follow_up(events):
        followed_up.append(events)
        raise ValueError("cannot follow")

    # A quick writer would have carried out all groups by the time the first is followed up.
    begun, all_answered = [], threading.Event()

    def hold_the_third(site: Site) -> None:
        if site is Site.BEFORE_BEGIN:
            begun.append(site)
            if len(begun) == 3:
                assert all_answered.wait(30)

    async with new_store(on_commit=follow_up, at_site=hold_the_third) as store:
        begun.clear()
        calls = ((store.write, ledger.add, f"{i}") for i in range(1500))
        got = await _all_at_once(*calls)
        all_answered.set()
        assert {type(outcome) for outcome in got} == {OutcomeUnknown, Closed}
    assert len(followed_up) == 1


async def test_a_refusal_leaves_no_garbage_behind(new_store):
    def refuse(tx: Transaction) -> None:
        raise ledger.Refusal

    async with new_store() as store:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                with contextlib.suppress(ledger.Refusal):
                    await store.write(refuse)
            await store.write(ledger.nothing)
            kept = [thing for thing in gc.get_objects() if isinstance(thing, Ticket)]
            assert len(kept) <= 1
        finally:
            gc.enable()


async def test_a_slow_operation_is_logged_by_name(new_store, caplog):
    async with new_store(options=StoreOptions(slow_operation_ms=0)) as store:
        await store.write(ledger.add, "a", lane=Lane.CONTROL)
        await store.read(ledger.names)
    lines = told(caplog)
    assert any("slow operation name=add lane=CONTROL ms=" in line for line in lines)
    assert any("slow query name=names ms=" in line for line in lines)


async def test_a_closed_store_refuses_and_what_was_queued_is_done(new_store):
    done = []

    async def caller(store, name):
        done.append(await store.write(ledger.add, name))

    async with trio.open_nursery() as nursery:
        async with new_store() as store:
            for i in range(300):
                nursery.start_soon(caller, store, f"{i}")
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Closed):
            await store.write(ledger.nothing)
        with pytest.raises(Closed):
            await store.read(ledger.nothing)
        with pytest.raises(Closed):
            store.statistics()
    assert len(done) == 300


async def test_a_store_that_was_never_opened_refuses(new_store):
    store = new_store()
    assert "NEW" in repr(store)
    with pytest.raises(Closed):
        await store.write(ledger.nothing)


async def test_the_owners_exception_comes_through_unwrapped_and_the_store_closes(new_store):
    store = new_store()

    async def own() -> None:
        async with store:
            await store.write(ledger.add, "a")
            raise ledger.Refusal

    with pytest.raises(ledger.Refusal):
        await own()
    assert "CLOSED" in repr(store)


async def test_a_cancelled_owner_can_still_write_while_it_cleans_up(new_store):
    with trio.CancelScope() as scope:
        async with new_store() as store:
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                    assert await store.write(ledger.add, "last words") == "last words"
    assert scope.cancelled_caught
    assert store.failure is None


async def test_the_inline_runner_takes_no_time_of_a_mock_clock(autojump_clock):
    async with Store(None, migrations=ledger.MIGRATIONS, runner=Runner.INLINE) as store:
        begun = trio.current_time()
        for i in range(100):
            await store.write(ledger.add, f"{i}")
        assert await store.read(ledger.count) == 100
        assert trio.current_time() == begun
        await trio.sleep(3600)
        assert await store.read(ledger.count) == 100


async def test_maintenance_gives_free_pages_back(new_store):
    def free_pages(tx: Snapshot) -> int:
        return tx.one("PRAGMA freelist_count")[0]

    async with new_store() as store:
        for _ in range(20):
            await store.write(ledger.add_blob, 100_000)
        await store.write(lambda tx: tx.run("DELETE FROM blob"))
        assert await store.read(free_pages) > 100
        await store.maintain()
        assert await store.read(free_pages) == 0


def test_migrations_have_numbers_without_gaps():
    with pytest.raises(ValueError, match="is number 1, not 2"):
        Store(None, migrations=[Migration(2, "second", [])])
    with pytest.raises(ValueError, match="semicolon"):
        Migration(1, "first", "CREATE TABLE a (b INTEGER)")
