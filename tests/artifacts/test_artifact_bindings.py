"""UpsertArtifactBinding and GetArtifactBinding: sealed once and for all."""

import random
from pathlib import Path
from typing import Any

import pytest
import trio
from artifact_calls import (
    BYTE_ARTIFACT,
    MI2,
    NOT_FOUND,
    OF_DATA,
    OF_INDEX,
    OK,
    OTHER,
    bind,
    bound,
    describe,
)
from purerpc import RpcFailedError, StatusCode
from servers import configuration, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
OTHER_MI2 = f"mi2:{OF_INDEX}:{OTHER}"
NOW_US = 1_700_000_000_000_000


@pytest.mark.parametrize(
    ("fields", "code", "fragment"),
    [
        ({"from_": " "}, INVALID, "binding.from_artifact_id is required"),
        ({"to": ""}, INVALID, "binding.to_artifact_id is required"),
        ({"from_": MI2, "to": "opaque"}, INVALID, "binding.from_artifact_id"),
        ({"to": "cgid:other"}, INVALID, "binding.to_artifact_id"),
        ({"from_": BYTE_ARTIFACT}, FAILED, "byte artifact"),
        ({"to": BYTE_ARTIFACT}, FAILED, "byte artifact"),
        ({"from_": "msa1:x"}, FAILED, "daemon-session-local"),
        ({"to": "msa1:x"}, FAILED, "daemon-session-local"),
        ({"from_": "same", "to": " same "}, INVALID, "the same"),
        ({"kind": 2}, INVALID, "binding.kind"),
        ({"from_": "a\0"}, INVALID, "control character"),
        ({"to": "x" * 1025}, INVALID, "1024"),
    ],
)
async def test_what_cannot_be_sealed_is_refused(
    fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving() as store:
        async with refused(code, fragment):
            await bind(store, **fields)
        assert await store.read("SELECT count(*) FROM artifact_bindings") == [(0,)]


async def test_a_binding_is_required() -> None:
    async with serving() as store:
        async with refused(INVALID, "binding is required"):
            await store.catalog.UpsertArtifactBinding(wire.UpsertArtifactBindingRequest())
        for blank in ("", "  "):
            async with refused(INVALID, "artifact_id is required"):
                await bound(store, blank)


@pytest.mark.parametrize(
    ("from_", "to"), [("cgid:assembly", MI2), ("opaque", MI2), ("cgid:assembly", "opaque")]
)
@pytest.mark.parametrize("kind", [0, 1])
async def test_the_first_binding_is_kept_as_it_was(from_: str, to: str, kind: int) -> None:
    now_us = NOW_US
    async with serving(wall=lambda: now_us) as store:
        assert (await bound(store, from_)).status == NOT_FOUND
        first = await bind(store, f" {from_} ", f" {to} ", kind=kind)
        assert (first.status, first.created) == (OK, True)
        binding = wire.ArtifactBinding(
            from_artifact_id=from_, to_artifact_id=to, kind=wire.ARTIFACT_BINDING_KIND_SEAL
        )
        binding.created_at.FromMicroseconds(NOW_US)
        assert first.binding == binding
        now_us += 1_000_000
        again = await bind(store, from_, to)
        assert (again.status, again.created, again.binding) == (OK, False, binding)
        assert await bound(store, f" {from_} ") == wire.GetArtifactBindingResponse(
            status=OK, binding=binding
        )


async def test_a_time_that_a_client_sends_is_ignored() -> None:
    async with serving(wall=lambda: NOW_US) as store:
        request = wire.UpsertArtifactBindingRequest()
        request.binding.from_artifact_id = "cgid:assembly"
        request.binding.to_artifact_id = MI2
        request.binding.created_at.FromSeconds(1)
        answer = await store.catalog.UpsertArtifactBinding(request)
        assert answer.binding.created_at.ToMicroseconds() == NOW_US


async def test_another_target_is_refused_and_changes_nothing() -> None:
    async with serving() as store:
        await bind(store)
        async with refused(FAILED, "artifact binding conflict", MI2):
            await bind(store, to=OTHER_MI2)
        assert (await bound(store)).binding.to_artifact_id == MI2


async def test_several_assemblies_may_be_sealed_to_the_same_content() -> None:
    async with serving() as store:
        for assembly in ("cgid:one", "cgid:two"):
            assert (await bind(store, assembly)).created
        assert (await bound(store, "cgid:two")).binding.to_artifact_id == MI2


async def test_a_seal_makes_no_artifact_and_redirects_no_look_up() -> None:
    async with serving() as store:
        await describe(store, MI2)
        await bind(store)
        answer = await store.catalog.GetArtifactIndexById(
            wire.GetArtifactIndexByIdRequest(artifact_id="cgid:assembly")
        )
        assert answer.status == NOT_FOUND
        assert await store.read("SELECT artifact_id FROM artifacts") == [(MI2,)]


async def test_of_many_first_seals_one_wins_and_every_other_is_told() -> None:
    async with serving() as store:
        targets = [MI2, OTHER_MI2, *(f"sealed-{number}" for number in range(6))] * 6
        random.shuffle(targets)
        answers: list[tuple[str, Any]] = []
        codes = set()

        async def one(to: str) -> None:
            try:
                answers.append((to, await bind(store, to=to)))
            except RpcFailedError as error:
                codes.add(error.status.status_code)
                answers.append((to, None))

        async with trio.open_nursery() as nursery:
            for to in targets:
                nursery.start_soon(one, to)
        now = (await bound(store)).binding
        assert codes == {FAILED}
        assert sum(answer.created for _, answer in answers if answer is not None) == 1
        for to, answer in answers:
            if to == now.to_artifact_id:
                assert answer.binding == now
            else:
                assert answer is None


async def test_a_binding_survives_a_restart(tmp_path: Path) -> None:
    config = configuration(database={"db_file": str(tmp_path / "store.db")})
    async with serving(config) as store:
        first = await bind(store)
    async with serving(config) as store:
        assert (await bound(store)).binding == first.binding
        assert not (await bind(store)).created
        assert OF_DATA in first.binding.to_artifact_id
