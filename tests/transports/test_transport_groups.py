"""The contract of a group: its requests agree on what they load; a part has one request."""

from typing import Any

import pytest
import trio
from claims import NOT_FOUND, OK, TIMED_OUT, parked, source, start
from purerpc import StatusCode
from servers import Serving, configuration, memory_info, refused, serving

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

VIEW = {"kind": 2, "id": "v"}
MISMATCH = "artifact/view/total_parts mismatch"
DUPLICATE = "duplicate part_id"


def part(part_id: str, **fields: Any) -> Any:
    usual = {"group_id": "g", "group_kind": "k", "total_parts": 4, "part_id": part_id}
    return wire.TransportSchedulingGroup(**(usual | fields))


async def sources(store: Serving, slots: int = 9) -> None:
    """Offer an artifact with a view, and another one."""
    worker = await source(store, slots=slots)
    view = memory_info(byte_space=VIEW)
    await store.replica(worker.worker_id, max_concurrency=slots, mem_info=view)
    await store.replica(worker.worker_id, "other", max_concurrency=slots)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"artifact_id": "other"}, MISMATCH),
        ({"artifact_id": "unknown"}, MISMATCH),
        ({"requested_byte_space": VIEW}, MISMATCH),
        ({"scheduling_group": part("p2", total_parts=5)}, MISMATCH),
        ({"scheduling_group": part("p1")}, DUPLICATE),
    ],
)
async def test_a_request_that_contradicts_its_group_is_refused(
    fields: dict[str, Any], fragment: str, waits: bool
) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await sources(store, slots=1)
        if waits:
            await store.claim()
        start(nursery, store, scheduling_group=part("p1"))
        if waits:
            await parked(store, 1)
        else:
            while not await store.read("SELECT * FROM transports"):
                await trio.lowlevel.checkpoint()
        async with refused(StatusCode.INVALID_ARGUMENT, fragment):
            await store.claim(**({"scheduling_group": part("p2")} | fields))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("other", [{"group_id": "g2"}, {"group_kind": "K"}, {"epoch": 1}], ids=str)
async def test_another_group_kind_or_epoch_is_another_group(other: dict[str, Any]) -> None:
    async with serving() as store:
        await sources(store)
        await store.claim(scheduling_group=part("p1"))
        group = part("p1", total_parts=7, **other)
        assert (await store.claim("other", scheduling_group=group)).status == OK


async def test_parts_that_agree_are_served_even_when_they_are_more_than_the_total() -> None:
    async with serving() as store:
        await sources(store)
        for number in range(6):
            group = part(f"p{number}", priority=number)
            assert (await store.claim(scheduling_group=group)).status == OK


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", ["tp_version", "TP_Version"])
async def test_a_relaxed_kind_may_mix_artifacts_and_views(kind: str, waits: bool) -> None:
    async with serving() as store, trio.open_nursery() as nursery:
        await sources(store, slots=1)
        if waits:
            await store.claim()
            start(nursery, store, scheduling_group=part("p1", group_kind=kind))
            await parked(store, 1)
        else:
            await store.claim(scheduling_group=part("p1", group_kind=kind))
        group = part("p2", group_kind=kind)
        assert (await store.claim("other", scheduling_group=group)).status == OK
        view = {"requested_byte_space": VIEW, "scheduling_group": part("p3", group_kind=kind)}
        assert (await store.claim(**view)).status == OK
        async with refused(StatusCode.INVALID_ARGUMENT, DUPLICATE):
            await store.claim("other", scheduling_group=part("p1", group_kind=kind))
        async with refused(StatusCode.INVALID_ARGUMENT, MISMATCH):
            await store.claim(scheduling_group=part("p4", group_kind=kind, total_parts=5))
        nursery.cancel_scope.cancel()


async def test_the_fingerprint_of_a_relaxed_request_still_includes_the_view() -> None:
    async with serving() as store:
        await sources(store)
        group = part("p1", group_kind="tp_version")
        await store.claim(request_id="r", scheduling_group=group)
        async with refused(StatusCode.INVALID_ARGUMENT, "already used with different payload"):
            await store.claim(request_id="r", requested_byte_space=VIEW, scheduling_group=group)


async def test_which_kinds_are_relaxed_is_configured() -> None:
    dispatch = {"group_dispatch": {"relaxed_group_kinds": ["Loose"]}}
    config = configuration(worker_policy={"transport_scheduler": dispatch})
    async with serving(config) as store:
        await sources(store)
        for kind, status in (("loose", OK), ("tp_version", None)):
            await store.claim(scheduling_group=part("p1", group_kind=kind))
            group = part("p2", group_kind=kind)
            if status is None:
                async with refused(StatusCode.INVALID_ARGUMENT, MISMATCH):
                    await store.claim("other", scheduling_group=group)
            else:
                assert (await store.claim("other", scheduling_group=group)).status == status


@pytest.mark.parametrize("outcome", [2, 3, 4])
@pytest.mark.parametrize("request_id", ["r1", "r2"])
async def test_a_part_that_failed_is_tried_again_in_the_same_epoch(
    outcome: int, request_id: str
) -> None:
    async with serving() as store:
        await sources(store)
        first = await store.claim(request_id="r1", scheduling_group=part("p1"))
        await store.complete(first.transport_id, outcome)
        again = await store.claim(request_id=request_id, scheduling_group=part("p1"))
        assert again.status == OK
        assert again.transport_id != first.transport_id


async def test_groups_whose_transports_all_failed_may_be_described_anew() -> None:
    async with serving() as store:
        await sources(store)
        first = await store.claim(scheduling_group=part("p1"))
        await store.complete(first.transport_id, 2)
        group = part("p1", total_parts=9)
        assert (await store.claim("other", scheduling_group=group)).status == OK


async def test_a_part_that_succeeded_belongs_to_its_request() -> None:
    async with serving() as store:
        await sources(store)
        first = await store.claim(request_id="r1", scheduling_group=part("p1"))
        await store.complete(first.transport_id)
        again = await store.claim(request_id="r1", scheduling_group=part("p1"))
        assert again.transport_id == first.transport_id
        async with refused(StatusCode.INVALID_ARGUMENT, DUPLICATE):
            await store.claim(request_id="r2", scheduling_group=part("p1"))


async def test_a_part_whose_wait_ran_out_may_be_asked_for_again() -> None:
    async with serving() as store:
        await sources(store, slots=1)
        held = await store.claim()
        group = part("p1")
        assert (await store.claim(wait_s=0.001, scheduling_group=group)).status == TIMED_OUT
        await store.complete(held.transport_id)
        assert (await store.claim(scheduling_group=group)).status == OK


async def test_a_request_that_found_nothing_leaves_nothing_of_its_group_behind() -> None:
    async with serving() as store:
        await sources(store)
        group = part("p1", total_parts=2)
        assert (await store.claim("unknown", scheduling_group=group)).status == NOT_FOUND
        assert (await store.claim(scheduling_group=part("p1"))).status == OK
        assert store.components.queues.waiters._by_group == {}


async def test_a_refused_request_does_not_take_its_part() -> None:
    async with serving() as store:
        await sources(store)
        await store.claim(scheduling_group=part("p1"))
        async with refused(StatusCode.INVALID_ARGUMENT, MISMATCH):
            await store.claim("other", scheduling_group=part("p2"))
        assert (await store.claim(scheduling_group=part("p2"))).status == OK
