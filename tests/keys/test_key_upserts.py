"""UpsertKeyMapping: what is refused, what a new key gets, and what an upsert leaves alone."""

import pytest
import trio.testing
from key_calls import (
    ERROR,
    NOT_FOUND,
    OK,
    history,
    ready,
    resolve,
    revoke,
    swap,
    target,
    upsert,
)
from purerpc import StatusCode
from servers import refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules import multihash

MI2 = f"mi2:{multihash.of(b'{}')}:{multihash.of(b'data')}"


@pytest.mark.parametrize("field", ["key", "artifact_id"])
@pytest.mark.parametrize("value", ["", " \t ", "a\0b", "é" * 513], ids=["", "blank", "nul", "long"])
async def test_a_bad_name_is_refused_by_its_field(field: str, value: str) -> None:
    async with serving() as store:
        await ready(store, "a")
        async with refused(StatusCode.INVALID_ARGUMENT, field):
            await upsert(store, **{field: value})
        assert await store.read("SELECT count(*) FROM key_mappings") == [(0,)]


@pytest.mark.parametrize("field", ["replica_uuid", "daemon_address"])
async def test_no_hint_is_endless(field: str) -> None:
    async with serving() as store:
        await ready(store, "a")
        async with refused(StatusCode.INVALID_ARGUMENT, field):
            await upsert(store, **{field: "x" * 1025})


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (0, -1), (-5, -5), (0, 1_000_000_000), (315_576_000_001, 0), (2**63 - 1, 0)],
)
async def test_a_ttl_outside_the_range_of_durations_is_refused(seconds: int, nanos: int) -> None:
    async with serving() as store:
        await ready(store, "a")
        request = wire.UpsertKeyMappingRequest(key="k", artifact_id="a")
        request.ttl.seconds, request.ttl.nanos = seconds, nanos
        async with refused(StatusCode.INVALID_ARGUMENT, "ttl"):
            await store.catalog.UpsertKeyMapping(request)
        assert await target(store) is None


async def test_the_longest_ttl_is_told_as_long_as_the_wire_can_say() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=315_576_000_000)
        assert (await resolve(store)).cache_ttl_seconds == 2**32 - 1


@pytest.mark.parametrize(
    ("artifact_id", "fragment"),
    [("msa1:x", "daemon-session-local"), ("cgid:byte_artifact~n~e~m~l~k", "byte artifact")],
)
async def test_ids_that_must_not_be_stored_are_no_targets(artifact_id: str, fragment: str) -> None:
    async with serving() as store:
        async with refused(StatusCode.FAILED_PRECONDITION, "artifact_id", fragment):
            await upsert(store, artifact_id=artifact_id)
        async with refused(StatusCode.FAILED_PRECONDITION, "new_artifact_id", fragment):
            await swap(store, artifact_id=artifact_id)


async def test_an_unknown_target_is_not_ready() -> None:
    async with serving() as store:
        async with refused(StatusCode.FAILED_PRECONDITION, "artifact nobody", "unknown"):
            await upsert(store, artifact_id="nobody")
        assert await resolve(store) == wire.ResolveKeyMappingResponse(status=NOT_FOUND)


async def test_a_target_without_an_index_is_not_ready_unless_it_is_a_cgid() -> None:
    async with serving() as store:
        await store.replica("w", "plain")
        async with refused(StatusCode.FAILED_PRECONDITION, "artifact plain", "no index"):
            await upsert(store, artifact_id="plain")
        await store.replica("w", "cgid:assembly")
        assert (await upsert(store, artifact_id="cgid:assembly")).status == OK


async def test_a_target_whose_index_is_not_stored_is_not_ready() -> None:
    async with serving() as store:
        await store.replica("w", MI2)
        async with refused(StatusCode.FAILED_PRECONDITION, f"artifact {MI2}", "not stored"):
            await upsert(store, artifact_id=MI2)
        await store.catalog.UpsertArtifactMetadata(
            wire.UpsertArtifactMetadataRequest(
                descriptor=common.ArtifactDescriptor(
                    artifact_id=MI2, index_multihash=multihash.of(b"{}")
                ),
                canonical_index_data=b"{}",
            )
        )
        assert (await upsert(store, artifact_id=MI2)).status == OK


async def test_a_new_key_is_immutable_and_of_generation_0() -> None:
    async with serving() as store:
        await ready(store, "a")
        answer = await upsert(store, " k ", " a ", replica_uuid=" r ", daemon_address=" h:1 ")
        assert answer == wire.UpsertKeyMappingResponse(status=OK)
        assert await resolve(store, "\tk ") == wire.ResolveKeyMappingResponse(
            status=OK,
            artifact_id="a",
            replica_uuid="r",
            daemon_address="h:1",
            generation=0,
            cache_ttl_seconds=30,
        )
        assert await history(store) == [(0, "a")]


async def test_the_same_target_again_replaces_hints_and_ttl_and_nothing_else() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=7, replica_uuid="r", daemon_address="h")
        assert (await upsert(store, ttl_s=9, replica_uuid="s")).status == OK
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK, artifact_id="a", replica_uuid="s", cache_ttl_seconds=9
        )
        await upsert(store)
        assert await resolve(store) == wire.ResolveKeyMappingResponse(
            status=OK, artifact_id="a", cache_ttl_seconds=30
        )
        assert await history(store) == [(0, "a")]


async def test_the_same_target_again_leaves_an_alias_an_alias() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await swap(store, artifact_id="a")
        await swap(store)
        await upsert(store, artifact_id="b", replica_uuid="r")
        answer = await resolve(store)
        assert (answer.generation, answer.replica_uuid, answer.cache_ttl_seconds) == (1, "r", 1)


async def test_a_known_target_is_not_asked_again_whether_it_is_ready() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store)
        await store.components.store.write(lambda tx: tx.run("DELETE FROM tensor_indexes"))
        assert (await upsert(store)).status == OK


async def test_another_target_is_a_conflict_that_names_the_present_one() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store, replica_uuid="r")
        answer = await upsert(store, artifact_id="b")
        assert answer.status == ERROR
        assert " a;" in answer.conflict_reason
        assert (await resolve(store)).replica_uuid == "r"
        assert await history(store) == [(0, "a")]


async def test_a_key_that_points_at_a_version_set_keeps_it() -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store)
        await store.components.store.write(
            lambda tx: tx.run(
                "UPDATE key_mappings SET artifact_key = NULL, version_set_id = 'gvs_1'"
            )
        )
        answer = await upsert(store)
        assert answer.status == ERROR
        assert "gvs_1" in answer.conflict_reason
        answer = await swap(store, artifact_id="a")
        assert (answer.status, answer.artifact_id) == (ERROR, "")
        assert await target(store) is None, "there is no artifact to tell"
        assert await revoke(store) == OK


async def test_keys_are_compared_byte_for_byte() -> None:
    async with serving() as store:
        await ready(store, "a", "b")
        await upsert(store, "key")
        await upsert(store, "Key", "b")
        assert await target(store, "key") == ("a", 0)
        assert await target(store, "Key") == ("b", 0)


async def test_part_of_a_second_counts_as_one(mock_clock: trio.testing.MockClock) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=0.5)
        assert (await resolve(store)).cache_ttl_seconds == 1
        mock_clock.jump(0.999_999)
        assert await target(store) == ("a", 0)
        mock_clock.jump(0.000_001)
        assert await target(store) is None


async def test_a_ttl_of_0_is_neither_cached_nor_does_it_expire(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        await ready(store, "a")
        await upsert(store, ttl_s=0)
        assert (await resolve(store)).cache_ttl_seconds == 0
        mock_clock.jump(1e8)
        assert await target(store) == ("a", 0)
