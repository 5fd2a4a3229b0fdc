"""ListKeys, ShowKey, ListArtifacts, ShowArtifact: what operators ask of the catalog."""

from typing import Any

import pytest
import trio.testing
from artifact_calls import INDEX, MI2, OF_DATA, OF_INDEX, bind, describe, lay
from key_calls import ready, revoke, swap, upsert
from purerpc import StatusCode
from servers import Serving, refused, serving

from globalstore.gen.globalstore.admin.v1 import admin_pb2 as admin
from globalstore.registry import catalog_lists

NOW_US = 1_700_000_000_000_000


async def names(store: Serving, **fields: Any) -> list[str]:
    """All keys, page by page."""
    found: list[str] = []
    while True:
        answer = await store.operators.ListKeys(admin.ListKeysRequest(**fields))
        found += [key.key for key in answer.keys]
        if not answer.next_after:
            return found
        fields["after"] = answer.next_after


@pytest.mark.parametrize("page_size", [0, 1, 2, 3, 5000])
async def test_keys_are_listed_in_the_order_of_their_bytes(page_size: int) -> None:
    keys = ["a", "a/b", "a.b", "b", "é", "😀", "Z"]
    async with serving() as store:
        await ready(store, "a")
        for key in keys:
            await upsert(store, key)
        assert await names(store, page_size=page_size) == sorted(keys, key=str.encode)
        assert await names(store, prefix="a", page_size=page_size) == ["a", "a.b", "a/b"]
        assert await names(store, prefix=" a/ ", page_size=page_size) == ["a/b"]
        assert await names(store, prefix="no", page_size=page_size) == []


async def test_keys_that_point_at_nothing_are_left_out_unless_asked_for(
    mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_lists, "_LOOKED_AT_MAX", 2)
    async with serving() as store:
        await ready(store, "a")
        for number in range(6):
            await upsert(store, f"k{number}")
            if number in {0, 1, 2, 4}:
                await revoke(store, f"k{number}")
        await upsert(store, "k9", ttl_s=5)
        assert await names(store) == ["k3", "k5", "k9"]
        mock_clock.jump(5)
        assert await names(store) == ["k3", "k5"]
        assert await names(store, include_absent=True) == [
            "k0", "k1", "k2", "k3", "k4", "k5", "k9",
        ]  # fmt: skip


async def test_all_of_a_key_is_shown(mock_clock: trio.testing.MockClock) -> None:
    async with serving(wall=lambda: NOW_US) as store:
        await ready(store, "a", "b")
        await upsert(store)
        await swap(store)
        await upsert(store, artifact_id="b", ttl_s=10, replica_uuid="r", daemon_address="h")
        mock_clock.jump(2.5)
        shown = await store.operators.ShowKey(admin.ShowKeyRequest(key=" k "))
        expected = admin.KeyRecord(
            key="k",
            artifact_id="b",
            kind="ALIAS",
            generation=1,
            replica_uuid="r",
            daemon_address="h",
            ttl_seconds=10,
            expires_in_seconds=7.5,
        )
        expected.updated_at.FromMicroseconds(NOW_US)
        assert shown.key == expected
        assert [(each.generation, each.artifact_id) for each in shown.generations] == [
            (1, "b"),
            (0, "a"),
        ]
        assert [each.HasField("ended_at") for each in shown.generations] == [False, True]
        assert not shown.is_truncated
        mock_clock.jump(7.5)
        shown = await store.operators.ShowKey(admin.ShowKeyRequest(key="k"))
        assert (shown.key.artifact_id, shown.key.generation) == ("", 1)


async def test_only_the_latest_of_many_targets_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from globalstore.api.admin import catalog_lists as api

    for module in (catalog_lists, api):
        monkeypatch.setattr(module, "ENTRIES_MAX", 2)
    async with serving() as store:
        await ready(store, "a", "b")
        for number in range(4):
            await swap(store, artifact_id="ab"[number % 2])
        shown = await store.operators.ShowKey(admin.ShowKeyRequest(key="k"))
        assert [each.generation for each in shown.generations] == [3, 2]
        assert shown.is_truncated
        for number in range(3):
            await swap(store, key=f"other/{number}", artifact_id="a")
        request = admin.ShowArtifactRequest(artifact_id="a")
        artifact = await store.operators.ShowArtifact(request)
        assert (len(artifact.keys), artifact.is_truncated) == (2, True)


async def test_what_is_unknown_is_not_found() -> None:
    async with serving() as store:
        async with refused(StatusCode.NOT_FOUND, "'k'"):
            await store.operators.ShowKey(admin.ShowKeyRequest(key="k"))
        async with refused(StatusCode.NOT_FOUND, "'a'"):
            await store.operators.ShowArtifact(admin.ShowArtifactRequest(artifact_id="a"))
        async with refused(StatusCode.INVALID_ARGUMENT, "key is required"):
            await store.operators.ShowKey(admin.ShowKeyRequest())
        async with refused(StatusCode.INVALID_ARGUMENT, "artifact_id is required"):
            await store.operators.ShowArtifact(admin.ShowArtifactRequest())
        async with refused(StatusCode.FAILED_PRECONDITION, "daemon-session-local"):
            await store.operators.ShowArtifact(admin.ShowArtifactRequest(artifact_id="msa1:x"))
        for fields in ({"prefix": "a\0"}, {"after": "x" * 1025}):
            async with refused(StatusCode.INVALID_ARGUMENT, next(iter(fields))):
                await store.operators.ListKeys(admin.ListKeysRequest(**fields))
            async with refused(StatusCode.INVALID_ARGUMENT, next(iter(fields))):
                await store.operators.ListArtifacts(admin.ListArtifactsRequest(**fields))


async def test_all_about_an_artifact_is_shown() -> None:
    async with serving(wall=lambda: NOW_US) as store:
        await describe(store, MI2, total_size=8388624)
        worker = await store.register("d1")
        await store.replica(worker.worker_id, MI2)
        await store.replica("nobody", MI2, node="d2")
        for assembly in ("cgid:two", "cgid:one"):
            await bind(store, assembly, MI2)
        await upsert(store, "live", MI2)
        await upsert(store, "gone", MI2)
        await revoke(store, "gone")
        await lay(store, "p/q", artifact_id=MI2, kind=2)
        await lay(store, "p/old", artifact_id=MI2, is_deleted=True)
        shown = await store.operators.ShowArtifact(
            admin.ShowArtifactRequest(artifact_id=f" {MI2} ")
        )
        artifact = admin.ArtifactRecord(
            artifact_id=MI2,
            id_kind="MI2",
            index_multihash=OF_INDEX,
            data_multihash=OF_DATA,
            total_size=8388624,
            index_size=len(INDEX),
            replica_count=2,
            available_count=2,
        )
        artifact.created_at.FromMicroseconds(NOW_US)
        artifact.updated_at.FromMicroseconds(NOW_US)
        assert shown == admin.ShowArtifactResponse(
            artifact=artifact,
            sealed_from=["cgid:one", "cgid:two"],
            keys=["live"],
            places=[
                admin.ArtifactPlace(relative_path="p/old", kind="MANAGED", is_deleted=True),
                admin.ArtifactPlace(relative_path="p/q", kind="IMPORTED"),
            ],
        )
        shown = await store.operators.ShowArtifact(
            admin.ShowArtifactRequest(artifact_id="cgid:one")
        )
        assert shown.artifact == admin.ArtifactRecord(artifact_id="cgid:one")
        assert shown.sealed_to == MI2


@pytest.mark.parametrize("page_size", [0, 1, 2, 3, 5000])
async def test_artifacts_are_listed_in_the_order_of_their_bytes(page_size: int) -> None:
    ids = ["plain", "cgid:abc", "cgid:abd", MI2, "é"]
    async with serving() as store:
        for artifact_id in ids:
            await store.replica("w", artifact_id)
        found: list[Any] = []
        after = ""
        while True:
            answer = await store.operators.ListArtifacts(
                admin.ListArtifactsRequest(after=after, page_size=page_size)
            )
            found += answer.artifacts
            after = answer.next_after
            if not after:
                break
        assert [each.artifact_id for each in found] == sorted(ids, key=str.encode)
        assert {each.replica_count for each in found} == {1}
        assert not any(each.HasField("index_size") for each in found)
        answer = await store.operators.ListArtifacts(admin.ListArtifactsRequest(prefix="cgid:ab"))
        assert [each.artifact_id for each in answer.artifacts] == ["cgid:abc", "cgid:abd"]
