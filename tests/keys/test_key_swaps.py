"""SwapKeyMapping: guards, generations and repeats. RevokeKeyMapping, and what comes after it."""

from typing import Any

import pytest
from key_calls import (
    ERROR,
    NOT_FOUND,
    OK,
    history,
    ready,
    resolve,
    revoke,
    swap,
    swapped,
    target,
    upsert,
)
from purerpc import StatusCode
from servers import configuration, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire


@pytest.mark.parametrize(
    ("field", "argument"), [("key", "key"), ("new_artifact_id", "artifact_id")]
)
@pytest.mark.parametrize("value", ["", "  ", "a\nb"], ids=["", "blank", "newline"])
async def test_a_bad_name_is_refused_by_its_field(field: str, argument: str, value: str) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, field):
        await swap(store, **{argument: value})


@pytest.mark.parametrize("field", ["expected_artifact_id", "operation_id"])
async def test_no_text_is_endless(field: str) -> None:
    async with serving() as store, refused(StatusCode.INVALID_ARGUMENT, field):
        await swap(store, **{field: "x" * 1025})


async def test_readiness_is_asked_before_the_guards() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store)
        async with refused(StatusCode.FAILED_PRECONDITION, "artifact b"):
            await swap(store, expected_artifact_id="x")


async def test_without_a_guard_a_key_is_made_as_an_alias() -> None:
    async with serving() as store:
        await ready(store, "a")
        assert await swapped(store, artifact_id=" a ") == (OK, "a", 0)
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK, artifact_id="a", cache_ttl_seconds=1
        )


@pytest.mark.parametrize("guard", [{"expected_artifact_id": "a"}, {"expected_generation": 0}])
async def test_a_key_that_does_not_exist_fails_every_guard(guard: dict[str, Any]) -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        assert await swapped(store, **guard) == (ERROR, "", 0)
        assert await target(store) is None
        await upsert(store)
        await revoke(store)
        assert await swapped(store, **guard) == (ERROR, "", 0)


@pytest.mark.parametrize(
    ("guard", "won"),
    [
        ({}, True),
        ({"expected_artifact_id": "a"}, True),
        ({"expected_artifact_id": " a "}, True),
        ({"expected_artifact_id": "x"}, False),
        ({"expected_generation": 0}, True),
        ({"expected_generation": 1}, False),
        ({"expected_generation": 2**64 - 1}, False),
        ({"expected_artifact_id": "a", "expected_generation": 0}, True),
        ({"expected_artifact_id": "a", "expected_generation": 1}, False),
        ({"expected_artifact_id": "x", "expected_generation": 0}, False),
    ],
)
async def test_every_guard_that_is_given_must_hold(guard: dict[str, Any], won: bool) -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store)
        expected = (OK, "b", 1) if won else (ERROR, "a", 0)
        assert await swapped(store, **guard) == expected
        assert await target(store) == expected[1:]


async def test_a_new_target_clears_hints_and_ttl() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store, ttl_s=50, replica_uuid="r", daemon_address="h")
        assert await swapped(store) == (OK, "b", 1)
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK, artifact_id="b", generation=1, cache_ttl_seconds=1
        )
        assert await history(store) == [(0, "a"), (1, "b")]


async def test_the_present_target_makes_an_alias_and_no_generation() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, replica_uuid="r")
        assert await swapped(store, artifact_id="a") == (OK, "a", 0)
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK, artifact_id="a", replica_uuid="r", cache_ttl_seconds=1
        )
        assert await history(store) == [(0, "a")]


async def test_a_target_that_comes_back_gets_a_new_generation() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store)
        await swap(store)
        assert await swapped(store, artifact_id="a") == (OK, "a", 2)
        assert await swapped(store, expected_generation=0) == (ERROR, "a", 2)
        assert await history(store) == [(0, "a"), (1, "b"), (2, "a")]


@pytest.mark.parametrize(
    ("configured", "shown"), [("0s", 0), ("0.001s", 1), ("1s", 1), ("1.5s", 2), ("90s", 90)]
)
async def test_an_alias_is_cached_as_long_as_configured(configured: str, shown: int) -> None:
    config = configuration(worker_policy={"key_mapping": {"alias_cache_ttl": configured}})
    async with serving(config) as store:
        await ready(store, "a")
        await swap(store, artifact_id="a")
        assert (await resolve(store)).cache_ttl_seconds == shown


# Repeats that name themselves.


async def test_a_repeat_gets_the_generation_that_the_first_one_made() -> None:
    async with serving() as store:
        await ready(store, "a", "b", "c")
        await upsert(store)
        first = await swapped(store, expected_generation=0, operation_id=" op ")
        await swap(store, artifact_id="c")
        assert first == (OK, "b", 1)
        assert await swapped(store, expected_generation=0, operation_id="op") == first
        assert await target(store) == ("c", 2)


async def test_a_repeat_is_answered_after_the_key_is_gone() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await swap(store, operation_id="op")
        await revoke(store)
        assert await swapped(store, operation_id="op") == (OK, "b", 0)
        assert await target(store) is None


async def test_a_swap_that_changed_nothing_is_remembered_too() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store)
        await swap(store, artifact_id="a", operation_id="op")
        await swap(store)
        assert await swapped(store, artifact_id="a", operation_id="op") == (OK, "a", 0)
        assert await target(store) == ("b", 1)


async def test_a_token_belongs_to_one_target() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await swap(store, artifact_id="a", operation_id="op")
        async with refused(StatusCode.FAILED_PRECONDITION, "operation_id", "'op'", " a;"):
            await swap(store, operation_id="op")
        assert await target(store) == ("a", 0)


async def test_a_token_belongs_to_one_key() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await swap(store, "k", "a", operation_id="op")
        assert await swapped(store, "l", "b", operation_id="op") == (OK, "b", 0)


async def test_a_lost_swap_leaves_its_token_free() -> None:
    async with serving() as store:
        await ready(store, "a", "b", "c")
        await upsert(store)
        assert await swapped(store, expected_generation=5, operation_id="op") == (ERROR, "a", 0)
        assert await swapped(store, artifact_id="c", operation_id="op") == (OK, "c", 1)


# Revoking.


async def test_only_a_known_key_can_be_revoked() -> None:
    async with serving() as store:
        await ready(store, "a")
        for blank in ("", "  "):
            async with refused(StatusCode.INVALID_ARGUMENT, "key"):
                await revoke(store, blank)
            async with refused(StatusCode.INVALID_ARGUMENT, "key"):
                await resolve(store, blank)
        assert await revoke(store) == NOT_FOUND
        await upsert(store)
        assert await revoke(store, " k ") == OK
        assert await revoke(store) == NOT_FOUND
        assert await resolve(store) == wire.ResolveKeyMappingResponse(status=NOT_FOUND)


@pytest.mark.parametrize("again", ["upsert", "swap"])
async def test_a_key_that_is_made_anew_goes_on_with_its_generations(again: str) -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store, replica_uuid="r", ttl_s=9)
        await swap(store)
        await revoke(store)
        if again == "upsert":
            await upsert(store)
        else:
            await swap(store, artifact_id="a")
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK,
            artifact_id="a",
            generation=2,
            cache_ttl_seconds=30 if again == "upsert" else 1,
        )
        assert await history(store) == [(0, "a"), (1, "b"), (2, "a")]
