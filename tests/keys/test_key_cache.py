"""Keys in memory: answered without the database, never behind an answered change, within bounds."""

from typing import Any

import attrs
import trio
import trio.testing
from key_calls import NOT_FOUND, OK, ready, resolve, revoke, swap, target, upsert
from servers import Serving, serving

from globalstore.caches.keys import KeyCache
from globalstore.db import DatabaseError, IoFailed
from globalstore.registry.catalog.keys import KeyMapping, Kind
from globalstore.registry.signals import KeyChanged


def queries(store: Serving) -> int:
    return store.components.store.statistics().queries


async def test_a_known_key_is_resolved_without_the_database() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store)
        first = await resolve(store)
        before = queries(store)
        for _ in range(10):
            assert await resolve(store) == first
        assert queries(store) == before


async def test_many_calls_for_a_known_key_ask_no_database_either() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store)
        first = await resolve(store)
        before, answers = queries(store), []

        async def one() -> None:
            answers.append(await resolve(store))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        assert answers == [first] * 200
        assert queries(store) == before


async def test_a_key_that_points_at_nothing_is_known_too() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        assert (await resolve(store)).status == NOT_FOUND
        before = queries(store)
        assert (await resolve(store)).status == NOT_FOUND
        assert queries(store) == before
        await upsert(store)
        assert await target(store) == ("a", 0)


async def test_every_kind_of_change_is_seen_by_the_next_resolve() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        assert await target(store) is None
        await swap(store, artifact_id="a")
        assert await target(store) == ("a", 0)
        await swap(store)
        assert await target(store) == ("b", 1)
        await upsert(store, artifact_id="b", replica_uuid="r")
        assert (await resolve(store)).replica_uuid == "r"
        await revoke(store)
        assert await target(store) is None
        await upsert(store)
        assert (await resolve(store)).cache_ttl_seconds == 30
        await swap(store, artifact_id="a")
        assert (await resolve(store)).cache_ttl_seconds == 1


async def test_a_refused_change_forgets_nothing() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store)
        await resolve(store)
        before = queries(store)
        await upsert(store, artifact_id="b")
        await swap(store, expected_generation=9)
        await revoke(store, "other")
        assert (await resolve(store)).status == OK
        assert queries(store) == before


# The cache alone, against a database that a test answers for.


def mapping(artifact_id: str, generation: int = 0) -> KeyMapping:
    return KeyMapping(artifact_id, "", "", "", Kind.ALIAS, generation, None, None)


@attrs.define
class Database:
    """Answers a query when the test says so, with what was true when it was asked."""

    now: KeyMapping | None = None
    looks: list[tuple[KeyMapping | None, trio.Event]] = attrs.Factory(list)
    failure: DatabaseError | None = None

    async def read(self, query: Any, key: str) -> KeyMapping | None:
        seen, answered = self.now, trio.Event()
        self.looks.append((seen, answered))
        await answered.wait()
        if self.failure is not None:
            raise self.failure
        return seen

    def answer(self) -> None:
        self.looks.pop(0)[1].set()


def cache(database: Database, **bounds: int) -> KeyCache:
    return KeyCache(database, **bounds)  # type: ignore[arg-type]


async def test_a_look_that_a_commit_overtakes_is_told_and_not_kept(nursery: trio.Nursery) -> None:
    database = Database(mapping("old"))
    keys, mappings = cache(database), []

    async def ask() -> None:
        mappings.append((await keys.look_up("k")).mapping)

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    database.now = mapping("new", 1)
    keys.changed(KeyChanged("k"))
    # Whoever asks from now on has to see the change, although the old look is still under way.
    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert len(database.looks) == 2
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert mappings == [mapping("old")]
    assert keys.known("k") is None
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert mappings[1:] == [mapping("new", 1)]
    known = keys.known("k")
    assert known is not None
    assert known.mapping == mapping("new", 1)


async def test_a_late_old_answer_does_not_replace_a_newer_one(nursery: trio.Nursery) -> None:
    database = Database(mapping("old"))
    keys = cache(database)
    nursery.start_soon(keys.look_up, "k")
    await trio.testing.wait_all_tasks_blocked()
    database.now = mapping("new", 1)
    keys.changed(KeyChanged("k"))
    nursery.start_soon(keys.look_up, "k")
    await trio.testing.wait_all_tasks_blocked()
    old = database.looks.pop(0)
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    old[1].set()
    await trio.testing.wait_all_tasks_blocked()
    known = keys.known("k")
    assert known is not None
    assert known.mapping == mapping("new", 1)


async def test_a_change_of_another_key_disturbs_no_look(nursery: trio.Nursery) -> None:
    database = Database(mapping("a"))
    keys = cache(database)
    nursery.start_soon(keys.look_up, "k")
    await trio.testing.wait_all_tasks_blocked()
    keys.changed(KeyChanged("other"))
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert keys.known("k") is not None


async def test_many_who_ask_together_ask_once(nursery: trio.Nursery) -> None:
    database = Database(mapping("a"))
    keys, mappings = cache(database), []

    async def ask() -> None:
        mappings.append((await keys.look_up("k")).mapping)

    for _ in range(1000):
        nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert len(database.looks) == 1
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert mappings == [mapping("a")] * 1000


async def test_when_the_one_who_asks_goes_away_another_takes_over(nursery: trio.Nursery) -> None:
    database = Database(mapping("a"))
    keys, mappings = cache(database), []
    first = trio.CancelScope()

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            mappings.append((await keys.look_up("k")).mapping)

    nursery.start_soon(ask, first)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(ask, trio.CancelScope())
    await trio.testing.wait_all_tasks_blocked()
    first.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert mappings == []
    assert len(database.looks) == 2
    database.looks[1][1].set()
    await trio.testing.wait_all_tasks_blocked()
    assert mappings == [mapping("a")]


async def test_a_failure_is_told_and_not_remembered(nursery: trio.Nursery) -> None:
    database = Database(mapping("a"), failure=IoFailed("broken"))
    keys, failed = cache(database), []

    async def ask() -> None:
        try:
            await keys.look_up("k")
        except IoFailed as error:
            failed.append(error)

    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert len(failed) == 1
    assert keys.known("k") is None
    database.failure = None
    nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    database.answer()
    await trio.testing.wait_all_tasks_blocked()
    assert keys.known("k") is not None


async def test_who_guesses_keys_pushes_out_none_that_is_in_use() -> None:
    class Empty(Database):
        async def read(self, query: Any, key: str) -> KeyMapping | None:
            await trio.lowlevel.checkpoint()
            return mapping("a") if key == "k" else None

    keys = cache(Empty(), absent_bytes_max=10_000)
    await keys.look_up("k")
    for number in range(1000):
        await keys.look_up(f"guess-{number}")
    assert keys.known("k") is not None
    assert keys.known("guess-999") is not None
    assert keys.known("guess-0") is None
    assert repr(keys) == "<KeyCache [keys: 1, absent: 14]>"


async def test_memory_for_keys_is_bounded_by_their_size() -> None:
    class Full(Database):
        async def read(self, query: Any, key: str) -> KeyMapping | None:
            await trio.lowlevel.checkpoint()
            return mapping("x" * 1000)

    keys = cache(Full(), bytes_max=100_000)
    for number in range(1000):
        await keys.look_up(f"k{number}")
    assert repr(keys) == "<KeyCache [keys: 36, absent: 0]>"
    assert keys.known("k999") is not None
    assert keys.known("k0") is None
