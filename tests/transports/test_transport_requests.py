"""RequestReplicaTransport: the order of its checks, and what it answers."""

from typing import Any

import pytest
import trio
from claims import LOADS, NOT_FOUND, OK, TIMED_OUT, source, start
from purerpc import StatusCode
from servers import KEY, claim_request, memory_info, refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

VIEW = common.BYTE_SPACE_KIND_VIEW
Group = wire.TransportSchedulingGroup


def view(view_id: str, kind: int = VIEW) -> Any:
    return common.ByteSpaceRef(kind=kind, id=view_id)


def group(**fields: Any) -> Any:
    return Group(
        **({"group_id": "g", "group_kind": "k", "part_id": "p", "total_parts": 2} | fields)
    )


# Each row is wrong in one way; a request that is wrong in several is refused for the first.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"requested_byte_space": view(" ")}, "VIEW requires id"),
    ({"requested_byte_space": view("v", 9)}, "unsupported requested_byte_space kind"),
    ({"scheduling_group": group(group_id=" ")}, "group_id/group_kind/part_id"),
    ({"scheduling_group": group(group_kind="")}, "group_id/group_kind/part_id"),
    ({"scheduling_group": group(part_id="\t")}, "group_id/group_kind/part_id"),
    ({"scheduling_group": Group()}, "group_id/group_kind/part_id"),
    ({"scheduling_group": group(total_parts=0)}, "total_parts"),
    ({"scheduling_group": group(epoch=2**63)}, "epoch"),
    ({"request_id": " "}, "request_id is required"),
    ({"artifact_id": " "}, "artifact_id is required"),
    ({"source_node_id": "n\0"}, "source_node_id"),
    ({"source_address": "a" * 1025}, "source_address"),
    ({"source_port": 65536}, "source_port is 65536"),
    ({"requester_worker_id": "w\0"}, "requester_worker_id"),
    ({"request_id": "r" * 1025}, "request_id"),
]


@pytest.mark.parametrize(("fields", "fragment"), WRONG)
async def test_a_bad_field_is_named(fields: dict[str, Any], fragment: str) -> None:
    async with serving() as store:
        await source(store)
        async with refused(StatusCode.INVALID_ARGUMENT, fragment):
            await store.runtime.RequestReplicaTransport(
                claim_request(**({"artifact_id": "model"} | fields))
            )
        assert await store.read(LOADS) == [(0,)]


async def test_the_checks_come_in_their_order() -> None:
    order = [
        WRONG[0],
        WRONG[2],
        WRONG[6],
        WRONG[8],
        WRONG[9],
        WRONG[10],
        WRONG[11],
        WRONG[12],
    ]
    async with serving() as store:
        for first in range(len(order)):
            fields: dict[str, Any] = {}
            for wrong, _ in order[first:]:
                fields = wrong | fields
            async with refused(StatusCode.INVALID_ARGUMENT, order[first][1]):
                await store.runtime.RequestReplicaTransport(
                    claim_request(**({"artifact_id": "model"} | fields))
                )


async def test_a_session_local_id_is_refused_and_a_byte_artifact_is_a_plain_miss() -> None:
    async with serving() as store:
        async with refused(StatusCode.FAILED_PRECONDITION, "daemon-session-local"):
            await store.claim("msa1:x")
        assert (await store.claim("cgid:byte_artifact~x")).status == NOT_FOUND


async def test_a_grant_names_the_source_with_keys_and_sizes_in_both_forms() -> None:
    async with serving() as store:
        await source(store)
        answer = await store.claim(" model ", source_port=0, source_address="127.0.0.1")
        assert answer.status == OK
        (shown,) = await store.replicas()
        assert answer.remote_memory_info == shown
        assert list(shown.transport.remote_memory_keys) == [KEY]
        assert await store.read(LOADS) == [(1,)]


async def test_the_row_of_a_grant_says_who_asked_for_what() -> None:
    now_us = 1_700_000_000_000_000
    async with serving(wall=lambda: now_us) as store:
        worker = await source(store)
        answer = await store.claim(
            source_port=7,
            request_id=" r ",
            requester_worker_id=" x ",
            scheduling_group=group(epoch=5, priority=3),
        )
        rows = await store.read(
            "SELECT hex(transport_id), i.worker_id, requester_node_id, requester_address,"
            " requester_port, requester_worker_id, request_id, group_kind, group_id, group_epoch,"
            " group_part_id, group_total_parts, group_priority, replica_memory_size, outcome,"
            " t.created_at, completed_at FROM transports t"
            " JOIN worker_ids i ON i.worker_key = t.source_worker_key"
        )
        expected = ("requester", "requester.example", 7, "x", "r", "k", "g", 5, "p", 2, 3, 100, 0)
        transport_id = answer.transport_id.replace("-", "").upper()
        assert rows == [(transport_id, worker.worker_id, *expected, now_us, None)]


async def test_the_requesters_own_memory_is_ignored() -> None:
    async with serving() as store:
        await source(store)
        ignored = memory_info(node_address="localhost", memory_size=0)
        assert (await store.claim(local_memory_info=ignored)).status == OK


async def test_a_replica_on_the_requesters_own_worker_is_not_excluded() -> None:
    async with serving() as store:
        worker = await source(store)
        assert (await store.claim(requester_worker_id=worker.worker_id)).status == OK


@pytest.mark.parametrize("wait_s", [0, 3600])
async def test_without_a_replica_the_answer_is_not_found_at_once(wait_s: float) -> None:
    async with serving() as store:
        await source(store, artifact_id="other")
        assert (await store.claim(wait_s=wait_s)).status == NOT_FOUND


@pytest.mark.parametrize(
    "unreadable",
    [
        {
            "transport": common.ReplicaTransportMetadata(
                export_state=3, remote_memory_keys=[KEY], buffer_sizes=[100]
            )
        },
        {"expires_at": {"seconds": 1}},
    ],
)
async def test_replicas_that_nobody_will_be_able_to_read_are_not_found_at_once(
    unreadable: dict[str, Any],
) -> None:
    async with serving() as store:
        await source(store, mem_info=memory_info(**unreadable))
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim(wait_s=3600)).status == NOT_FOUND


@pytest.mark.parametrize("millis", [None, 0, -5])
async def test_a_saturated_source_is_one_immediate_attempt_without_a_wait(
    millis: int | None,
) -> None:
    async with serving() as store:
        await source(store)
        await store.claim()
        request = claim_request()
        if millis is not None:
            request.wait_timeout_dur.FromMilliseconds(millis)
        answer = await store.runtime.RequestReplicaTransport(request)
        assert answer.status == TIMED_OUT
        assert answer.transport_id == ""
        assert not answer.HasField("remote_memory_info")


async def test_a_view_is_served_by_that_view_and_the_canonical_bytes_by_themselves() -> None:
    async with serving() as store:
        worker = await source(store)
        assert (await store.claim(requested_byte_space=view("v"))).status == NOT_FOUND
        await store.replica(worker.worker_id, mem_info=memory_info(byte_space=view("v")))
        answer = await store.claim(requested_byte_space=view(" v "))
        assert answer.remote_memory_info.byte_space == view("v")
        assert (await store.claim(requested_byte_space=view("v"))).status == TIMED_OUT
        ignored = view("ignored", common.BYTE_SPACE_KIND_CANONICAL)
        assert (await store.claim(requested_byte_space=ignored)).status == OK
        ignored.kind = common.BYTE_SPACE_KIND_UNSPECIFIED
        assert (await store.claim(requested_byte_space=ignored)).status == TIMED_OUT


async def test_a_burst_larger_than_a_pass_is_granted_at_once_while_sources_last() -> None:
    async with serving() as store:
        await source(store, slots=200)
        async with trio.open_nursery() as nursery:
            claims = [start(nursery, store, wait_s=0) for _ in range(210)]
        statuses = [claim.answer.status for claim in claims]
        assert statuses.count(OK) == 200
        assert statuses.count(TIMED_OUT) == 10
        assert await store.read(LOADS) == [(200,)]


@pytest.mark.parametrize(
    "hindrance", ["not accepting", "unregistered", "unknown worker", "no slot"]
)
async def test_a_source_that_cannot_be_used_right_now_is_waited_for(hindrance: str) -> None:
    async with serving() as store:
        if hindrance == "unknown worker":
            await store.replica("worker_unknown_00000000")
        else:
            worker = await source(store)
            if hindrance == "not accepting":
                await store.beat(worker.worker_id, accepting_new_requests=False)
            elif hindrance == "unregistered":
                await store.runtime.UnregisterWorker(
                    wire.UnregisterWorkerRequest(worker_id=worker.worker_id)
                )
            else:
                await store.claim()
        assert (await store.claim(wait_s=0.001)).status == TIMED_OUT
