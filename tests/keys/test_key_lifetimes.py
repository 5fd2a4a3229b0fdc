"""Keys that expire, what is forgotten of them and what never is, and what a restart keeps."""

from pathlib import Path

import trio
import trio.testing
from key_calls import (
    ERROR,
    NOT_FOUND,
    OK,
    Wall,
    history,
    ready,
    resolve,
    revoke,
    swap,
    swapped,
    target,
    upsert,
)
from servers import Serving, configuration, serving

from globalstore.db import Store
from globalstore.registry.catalog import keys
from globalstore.registry.schema import MIGRATIONS

DAY_S = 86400


async def maintain(store: Serving) -> None:
    await store.components.maintenance.run_pass()


async def test_what_is_left_of_a_lifetime_is_told_rounded_up(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=10)
        assert (await resolve(store)).cache_ttl_seconds == 10
        mock_clock.jump(2.5)
        assert (await resolve(store)).cache_ttl_seconds == 8
        mock_clock.jump(7.4)
        assert (await resolve(store)).cache_ttl_seconds == 1
        mock_clock.jump(0.1)
        assert (await resolve(store)).status == NOT_FOUND


async def test_an_upsert_begins_the_lifetime_anew(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=10)
        mock_clock.jump(9)
        await upsert(store, ttl_s=10)
        mock_clock.jump(9)
        assert await target(store) == ("a", 0)
        await upsert(store)
        mock_clock.jump(1e6)
        assert await target(store) == ("a", 0)


async def test_an_alias_with_a_ttl_expires_too(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        await ready(store, "a")
        await swap(store, artifact_id="a")
        await upsert(store, ttl_s=5)
        assert (await resolve(store)).cache_ttl_seconds == 1
        mock_clock.jump(5)
        assert await target(store) is None


async def test_an_expired_key_is_absent_for_guards_and_free_for_another_target(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store, ttl_s=5, replica_uuid="r")
        mock_clock.jump(5)
        assert await swapped(store, expected_artifact_id="a") == (ERROR, "", 0)
        assert await swapped(store, expected_generation=0) == (ERROR, "", 0)
        assert await revoke(store) == NOT_FOUND
        assert (await upsert(store, artifact_id="b")).status == OK
        answer = await resolve(store)
        assert (answer.artifact_id, answer.generation, answer.replica_uuid) == ("b", 1, "")
        assert await history(store) == [(0, "a"), (1, "b")]


async def test_a_swap_makes_an_expired_key_anew(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=5)
        mock_clock.jump(5)
        assert await swapped(store, artifact_id="a") == (OK, "a", 1)


async def pointed(store: Serving) -> dict[str, bool]:
    """Every key that ever was, and whether its row points at something."""
    rows = await store.read("SELECT key, artifact_key IS NOT NULL FROM key_mappings")
    return {key: bool(points) for key, points in rows}


async def test_the_row_of_an_expired_key_is_cleared_without_a_call(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=5)
        await upsert(store, "later", ttl_s=50)
        await upsert(store, "for ever")
        mock_clock.jump(6)
        while (await pointed(store))["k"]:
            await trio.lowlevel.checkpoint()
        assert await pointed(store) == {"k": False, "later": True, "for ever": True}
        await upsert(store)
        assert await target(store) == ("a", 1)


async def test_nothing_ends_a_key_whose_lifetime_was_lifted(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        for key in ("longer", "for ever", "elsewhere"):
            await upsert(store, key, ttl_s=5)
        await upsert(store, "last", ttl_s=6)
        await upsert(store, "longer", ttl_s=60)
        await upsert(store, "for ever")
        await swap(store, "elsewhere")
        mock_clock.jump(6)
        while (await pointed(store))["last"]:
            await trio.lowlevel.checkpoint()
        assert await target(store, "longer") == ("a", 0)
        assert await target(store, "for ever") == ("a", 0)
        assert await target(store, "elsewhere") == ("b", 1)
        mock_clock.jump(54)
        assert await target(store, "longer") is None


async def test_a_lifetime_goes_on_over_a_restart(
    mock_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    wall = Wall()
    async with serving(config, wall) as store:
        await ready(store, "a")
        await upsert(store, "short", ttl_s=10)
        await upsert(store, "long", ttl_s=100)
    wall.pass_s(30)
    async with serving(config, wall) as store:
        assert await target(store, "short") is None
        assert (await resolve(store, "long")).cache_ttl_seconds == 70
        mock_clock.jump(70)
        assert await target(store, "long") is None
    # A wall clock that was wrong while nobody looked stretches no lifetime beyond its length.
    async with serving(config, wall) as store:
        await upsert(store, "new", ttl_s=10)
    wall.pass_s(-1000)
    async with serving(config, wall) as store:
        assert (await resolve(store, "new")).cache_ttl_seconds == 10


async def test_setting_the_wall_clock_neither_ends_nor_revives_a_key(
    mock_clock: trio.testing.MockClock,
) -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await upsert(store, ttl_s=10)
        wall.pass_s(1000)
        assert (await resolve(store)).cache_ttl_seconds == 10
        wall.pass_s(-5000)
        mock_clock.jump(10)
        assert await target(store) is None


async def test_generations_are_forgotten_a_day_after_they_ended_and_the_number_never() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a", "b")
        await upsert(store)
        await swap(store)
        wall.pass_s(DAY_S - 1)
        await revoke(store)
        await maintain(store)
        assert await history(store) == [(0, "a"), (1, "b")]
        wall.pass_s(2)
        await maintain(store)
        assert await history(store) == [(1, "b")]
        wall.pass_s(DAY_S)
        await maintain(store)
        assert await history(store) == []
        await upsert(store)
        assert await target(store) == ("a", 2)
        wall.pass_s(10 * DAY_S)
        await maintain(store)
        assert await history(store) == [(2, "a")], "what is current stays"


async def test_tokens_are_kept_for_a_day() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a", "b", "c")
        await swap(store, operation_id="op")
        await swap(store, artifact_id="c")
        wall.pass_s(DAY_S - 1)
        await maintain(store)
        assert await swapped(store, operation_id="op") == (OK, "b", 0)
        wall.pass_s(2)
        await maintain(store)
        assert await swapped(store, operation_id="op") == (OK, "b", 2)


async def test_a_restart_keeps_targets_hints_generations_and_tokens(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    wall = Wall()
    async with serving(config, wall) as store:
        await ready(store, "a", "b")
        await upsert(store, "kept", ttl_s=60, replica_uuid="r")
        await swap(store, "gone", operation_id="op")
        await swap(store, "gone", "a")
        await revoke(store, "gone")
        before = await resolve(store, "kept")
    async with serving(config, wall) as store:
        assert await resolve(store, "kept") == before
        assert await target(store, "gone") is None
        assert await swapped(store, "gone", operation_id="op") == (OK, "b", 0)
        await upsert(store, "gone")
        assert await target(store, "gone") == ("a", 2)


async def test_a_restored_copy_goes_on_beyond_what_was_handed_out_since_it_was_made(
    tmp_path: Path,
) -> None:
    file, copy = tmp_path / "store.db", tmp_path / "copy.db"
    config = configuration(database={"db_file": str(file)})
    async with serving(config) as store:
        await ready(store, "a", "b")
        await upsert(store, "live")
        await upsert(store, "gone")
        await revoke(store, "gone")
    copy.write_bytes(file.read_bytes())
    async with serving(config) as store:
        assert await swapped(store, "live") == (OK, "b", 1)
        assert await swapped(store, "gone") == (OK, "b", 1)
    async with Store(copy, migrations=MIGRATIONS) as restored:
        await restored.write(keys.raise_generations, 1_000_000, 1)
    config = configuration(database={"db_file": str(copy)})
    async with serving(config) as store:
        assert await target(store, "live") == ("a", 1_000_000)
        assert await target(store, "gone") is None
        # What was right before the copy was made is no guard any more, and neither is what came.
        for seen in (0, 1):
            assert (await swap(store, "live", expected_generation=seen)).status == ERROR
        assert await swapped(store, "live") == (OK, "b", 1_000_001)
        assert await swapped(store, "gone") == (OK, "b", 1_000_001)
        assert await history(store, "live") == [(0, "a"), (1_000_000, "a"), (1_000_001, "b")]
