"""UpsertArtifactDiskLocation and ListArtifactDiskLocations: canonical paths, sticky tombstones."""

from pathlib import Path
from typing import Any

import pytest
import trio
from artifact_calls import BYTE_ARTIFACT, MI2, OK, lay, lies
from hypothesis import given
from hypothesis import strategies as st
from purerpc import StatusCode
from servers import configuration, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rules.paths import relative_path
from globalstore.rules.refusals import InvalidArgument
from globalstore.text.characters import first_hidden

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
MANAGED, IMPORTED = wire.DISK_LOCATION_KIND_MANAGED, wire.DISK_LOCATION_KIND_IMPORTED
START_US = 1_700_000_000_000_000


class Wall:
    us = START_US

    def __call__(self) -> int:
        return self.us


@pytest.mark.parametrize(
    ("fields", "code", "fragment"),
    [
        ({"artifact_id": " "}, INVALID, "artifact_id is required"),
        ({"cluster_id": "\t"}, INVALID, "cluster_id is required"),
        ({"path": ""}, INVALID, "relative_path is required"),
        ({"artifact_id": BYTE_ARTIFACT}, FAILED, "byte artifact"),
        ({"artifact_id": "msa1:x"}, FAILED, "daemon-session-local"),
        ({"cluster_id": "x"}, INVALID, "cluster_id does not match server cluster_id"),
        ({"kind": 3}, INVALID, "kind is 3"),
        ({"path": "a\0b"}, INVALID, "control character"),
        ({"path": "x" * 1025}, INVALID, "1024"),
        *(
            ({"path": path}, INVALID, "safe, relative path")
            for path in [
                "/a",
                "a/",
                "a//b",
                "./a",
                "a/.",
                "a/./b",
                "../a",
                "a/../b",
                "a/..",
                "..",
                ".",
                "/",
                "a\\b",
            ]
        ),
    ],
)
async def test_a_bad_location_is_refused_by_its_field(
    fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving() as store:
        async with refused(code, fragment):
            await lay(store, **fields)
        assert await store.read("SELECT count(*) FROM disk_locations") == [(0,)]


async def test_a_list_needs_an_artifact() -> None:
    async with serving() as store:
        for blank in ("", " "):
            async with refused(INVALID, "artifact_id is required"):
                await lies(store, blank)
        for refused_id in (BYTE_ARTIFACT, "msa1:x"):
            async with refused(FAILED, "artifact_id"):
                await lies(store, refused_id)
        assert await lies(store, "unknown", include_deleted=True) == []


@pytest.mark.parametrize(
    ("kind", "shown"), [(0, MANAGED), (MANAGED, MANAGED), (IMPORTED, IMPORTED)]
)
@pytest.mark.parametrize("artifact_id", ["model", MI2, "cgid:assembly"])
async def test_a_location_is_shown_as_it_was_said(kind: int, shown: int, artifact_id: str) -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        fields = {"artifact_id": f" {artifact_id} ", "cluster_id": f" {store.info.cluster_id} "}
        answer = await lay(store, " a/..b/c d ", kind=kind, **fields)
        assert answer == wire.UpsertArtifactDiskLocationResponse(status=OK)
        expected = wire.ArtifactDiskLocation(
            artifact_id=artifact_id,
            cluster_id=store.info.cluster_id,
            relative_path="a/..b/c d",
            kind=shown,
        )
        expected.created_at.FromMicroseconds(START_US)
        expected.updated_at.FromMicroseconds(START_US)
        assert await lies(store, artifact_id) == [expected]
        assert await store.read("SELECT count(*) FROM artifacts") == [(0,)]


async def test_paths_come_in_the_order_of_their_bytes() -> None:
    paths = ["b", "a/b", "a", "a.b", "é", "Z", "a0", "😀", "\ufffd"]
    async with serving() as store:
        for path in paths:
            await lay(store, path)
        shown = [location.relative_path for location in await lies(store)]
        assert shown == sorted(paths, key=str.encode)


async def test_the_kind_of_a_live_location_may_change_and_only_changes_are_dated() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await lay(store)
        wall.us += 1
        await lay(store)
        [shown] = await lies(store)
        assert shown.updated_at.ToMicroseconds() == START_US
        await lay(store, kind=IMPORTED)
        [shown] = await lies(store)
        assert shown.kind == IMPORTED
        assert shown.created_at.ToMicroseconds() == START_US
        assert shown.updated_at.ToMicroseconds() == START_US + 1


async def test_a_deletion_is_for_good_and_dated_once() -> None:
    wall = Wall()
    async with serving(wall=wall) as store:
        await lay(store, kind=IMPORTED)
        wall.us += 1
        await lay(store, kind=IMPORTED, is_deleted=True)
        assert await lies(store) == []
        [gone] = await lies(store, include_deleted=True)
        assert (gone.is_deleted, gone.kind) == (True, IMPORTED)
        assert gone.deleted_at.ToMicroseconds() == START_US + 1
        assert gone.updated_at.ToMicroseconds() == START_US + 1
        assert gone.created_at.ToMicroseconds() == START_US
        wall.us += 1
        for is_deleted in (False, True):
            answer = await lay(store, kind=MANAGED, is_deleted=is_deleted)
            assert answer.status == OK
            assert await lies(store, include_deleted=True) == [gone]
            assert await lies(store) == []


async def test_the_deletion_of_an_unknown_location_is_kept() -> None:
    async with serving() as store:
        await lay(store, is_deleted=True)
        await lay(store)
        [gone] = await lies(store, include_deleted=True)
        assert gone.is_deleted
        await lay(store, artifact_id="other")
        assert [each.relative_path for each in await lies(store, "other")] == ["a/b"]


async def test_a_tombstone_wins_over_many_who_write_at_the_same_moment() -> None:
    async with serving() as store:
        async with trio.open_nursery() as nursery:
            for number in range(64):

                async def one(number: int = number) -> None:
                    await lay(store, kind=number % 3, is_deleted=number == 17)

                nursery.start_soon(one)
        assert await lies(store) == []
        [gone] = await lies(store, include_deleted=True)
        assert gone.is_deleted


async def test_locations_and_cluster_survive_a_restart(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        await lay(store)
        await lay(store, "gone", is_deleted=True)
        before = await lies(store, include_deleted=True)
        cluster_id = store.info.cluster_id
    async with serving(config) as store:
        assert store.info.cluster_id == cluster_id
        assert await lies(store, include_deleted=True) == before
        await lay(store, "gone")
        assert await lies(store, include_deleted=True) == before


async def test_more_locations_than_one_turn_shows_are_all_shown() -> None:
    async with serving() as store:
        await store.components.store.write(
            lambda tx: tx.many(
                "INSERT INTO disk_locations VALUES ('model', ?, 1, 1, 1, NULL)",
                [(f"{number:04}",) for number in range(250)],
            )
        )
        shown = [location.relative_path for location in await lies(store)]
        assert shown == [f"{number:04}" for number in range(250)]


PARTS = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=8
)


KEPT = PARTS.filter(lambda part: part not in {".", ".."} and first_hidden(part) is None)


@given(st.lists(KEPT, min_size=1, max_size=5))
def test_a_canonical_path_is_kept_as_it_is(parts: list[str]) -> None:
    path = "/".join(parts)
    assert relative_path("path", path) == path
    assert relative_path("path", f"  {path}\n") == path


@given(st.lists(PARTS, min_size=1, max_size=5), st.sampled_from(["", ".", "..", "a\\b"]), st.data())
def test_another_spelling_of_a_path_is_refused(
    parts: list[str], bad: str, data: st.DataObject
) -> None:
    parts.insert(data.draw(st.integers(0, len(parts))), bad)
    with pytest.raises(InvalidArgument, match="path"):
        relative_path("path", "/".join(parts))
