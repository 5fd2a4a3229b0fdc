"""Keys that expire, what is forgotten of them and what never is, and what a restart keeps."""

from pathlib import Path

from keying import (
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
from serving import Serving, configuration, serving

DAY_S = 86400


async def maintain(store: Serving) -> None:
    await store.server.maintenance.run_pass()


async def test_what_is_left_of_a_lifetime_is_told_rounded_up() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await upsert(store, ttl_s=10)
        assert (await resolve(store)).cache_ttl_seconds == 10
        wall.pass_s(2.5)
        assert (await resolve(store)).cache_ttl_seconds == 8
        wall.pass_s(7.4)
        assert (await resolve(store)).cache_ttl_seconds == 1
        wall.pass_s(0.1)
        assert (await resolve(store)).status == NOT_FOUND


async def test_an_upsert_begins_the_lifetime_anew() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await upsert(store, ttl_s=10)
        wall.pass_s(9)
        await upsert(store, ttl_s=10)
        wall.pass_s(9)
        assert await target(store) == ("a", 0)
        await upsert(store)
        wall.pass_s(1e6)
        assert await target(store) == ("a", 0)


async def test_an_alias_with_a_ttl_expires_too() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await swap(store, artifact_id="a")
        await upsert(store, ttl_s=5)
        assert (await resolve(store)).cache_ttl_seconds == 1
        wall.pass_s(5)
        assert await target(store) is None


async def test_an_expired_key_is_absent_for_guards_and_free_for_another_target() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a", "b")
        await upsert(store, ttl_s=5, replica_uuid="r")
        wall.pass_s(5)
        assert await swapped(store, expected_artifact_id="a") == (ERROR, "", 0)
        assert await swapped(store, expected_generation=0) == (ERROR, "", 0)
        assert await revoke(store) == NOT_FOUND
        assert (await upsert(store, artifact_id="b")).status == OK
        answer = await resolve(store)
        assert (answer.artifact_id, answer.generation, answer.replica_uuid) == ("b", 1, "")
        assert await history(store) == [(0, "a"), (1, "b")]


async def test_a_swap_makes_an_expired_key_anew() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await upsert(store, ttl_s=5)
        wall.pass_s(5)
        assert await swapped(store, artifact_id="a") == (OK, "a", 1)


async def test_a_sweep_ends_expired_keys_for_good_and_keeps_their_number() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await ready(store, "a")
        await upsert(store, ttl_s=5)
        await upsert(store, "other", ttl_s=50)
        wall.pass_s(6)
        await maintain(store)
        assert await store.read("SELECT key, artifact_key FROM key_mappings ORDER BY 2") == [
            ("k", None),
            ("other", 1),
        ]
        wall.pass_s(-6)
        assert await target(store) is None, "a clock that is set back brings nothing back"
        await upsert(store)
        assert await target(store) == ("a", 1)


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
