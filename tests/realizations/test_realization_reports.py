"""ReportGroupRealizationPrepared and PublishGroupRealization: repeats, owners and stale sources."""

import json
import uuid
from typing import Any

import pytest
import trio.testing
from purerpc import StatusCode
from realization_calls import (
    ABORTED,
    EXPIRED,
    EXPLICIT,
    MEMBER,
    OK,
    PREPARING,
    PUBLISHED,
    READY,
    abort,
    begun,
    join,
    on,
    publish,
    published,
    report,
    reporting,
    show,
    wait,
)
from servers import Serving, configuration, memory_info, refused, serving

from globalstore.config import GlobalStoreConfig
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
EXISTS, NOT_FOUND = StatusCode.ALREADY_EXISTS, StatusCode.NOT_FOUND

JOINED = wire.GROUP_REALIZATION_MEMBER_STATE_JOINED
PREPARED = wire.GROUP_REALIZATION_MEMBER_STATE_PREPARED
MEMBER_PUBLISHED = wire.GROUP_REALIZATION_MEMBER_STATE_PUBLISHED
MEMBER_FAILED = wire.GROUP_REALIZATION_MEMBER_STATE_FAILED

WHO = {"daemon_id": "d1", "daemon_session_id": "s1", "worker_id": "w1"}
UNKNOWN = f"grt_{'0' * 64}"


BAD: dict[str, tuple[dict[str, Any], StatusCode, str]] = {
    "transaction": ({"transaction_id": " "}, INVALID, "transaction_id is required"),
    "part": ({"part_id": ""}, INVALID, "part_id is required"),
    "binding": ({"staged": {"binding_id": " "}}, INVALID, "staged_value.binding_id is required"),
    "value": ({"staged": {"binding_value_id": ""}}, INVALID, "staged_value.binding_value_id"),
    "token": ({"staged": {"staging_token": "\t"}}, INVALID, "staged_value.staging_token"),
    "epoch": ({"staged": {"staging_epoch": 2**63}}, INVALID, "staged_value.staging_epoch"),
    "source": ({"source_export_generation": 2**63}, INVALID, "source_export_generation"),
    "seal": ({"expected_previous_seal_generation": 2**64 - 1}, INVALID, "expected_previous"),
    "hash": ({"prepared_value_hash": b"x" * 1025}, INVALID, "prepared_value_hash"),
    "attempt": ({"materialization_attempt_id": "a\0"}, INVALID, "materialization_attempt_id"),
    "request": ({"child_transport_request_id": "x" * 1025}, INVALID, "child_transport_request_id"),
    "daemons": ({"daemon_id": "d1", "staged": {"daemon_id": "d2"}}, INVALID, "daemon_id"),
    "sessions": (
        {"daemon_session_id": "s1", "staged": {"daemon_session_id": "s2"}}, INVALID,
        "daemon_session_id",
    ),
    "unknown": ({"transaction_id": UNKNOWN}, NOT_FOUND, UNKNOWN),
    "no id": ({"transaction_id": "grt_1"}, NOT_FOUND, "grt_1"),
    "never joined": ({"part_id": "1"}, NOT_FOUND, "part '1'"),
    "other daemon": ({"daemon_id": "d2"}, EXISTS, "daemon_id"),
    "other daemon, staged": ({"staged": {"daemon_id": "d2"}}, EXISTS, "daemon_id"),
    "other session": ({"daemon_session_id": "s2"}, EXISTS, "daemon_session_id"),
    "other session, staged": (
        {"staged": {"daemon_session_id": "s2"}}, EXISTS, "daemon_session_id",
    ),
    "other worker": ({"worker_id": "w2"}, EXISTS, "worker_id"),
    "fingerprint": ({"member_fingerprint": b"x"}, EXISTS, "member_fingerprint"),
    "long fingerprint": ({"member_fingerprint": b"x" * 1025}, INVALID, "member_fingerprint"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "fragment"), BAD.values(), ids=BAD)
async def test_a_bad_report_is_refused_and_changes_nothing(
    fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving(on()) as store:
        transaction_id = (await join(store, **WHO)).transaction_id
        before = await show(store, transaction_id)
        async with refused(code, fragment):
            await report(store, **({"transaction_id": transaction_id} | fields))
        assert await show(store, transaction_id) == before


async def test_a_report_makes_a_part_prepared_and_keeps_all_it_says() -> None:
    async with serving(on()) as store:
        transaction_id = (await join(store, **WHO)).transaction_id
        answer = await report(
            store,
            f" {transaction_id} ",
            " 0 ",
            staged={"daemon_id": "d1", "daemon_session_id": " s1 ", "staging_epoch": 2**63 - 1},
            materialization_attempt_id="m1",
            source_replica_id=" not a UUID ",
            source_export_generation=5,
            child_transport_request_id="c1",
        )
        assert (answer.status, answer.state, answer.member_state) == (OK, PREPARING, PREPARED)
        shown = await show(store, transaction_id)
        assert (shown.prepared_count, shown.missing_part_ids) == (1, ["1"])
        [member] = shown.members
        assert member == wire.GroupRealizationMemberDiagnostic(
            part_id="0",
            state=PREPARED,
            **WHO,
            materialization_attempt_id="m1",
            staged_value=wire.StagedBindingValueRef(
                daemon_id="d1",
                daemon_session_id="s1",
                binding_id="b1",
                binding_value_id="v1",
                staging_token="t1",
                staging_epoch=2**63 - 1,
            ),
            source_replica_id="not a UUID",
            source_export_generation=5,
            child_transport_request_id="c1",
            member_fingerprint=answer.member_fingerprint,
        )


@pytest.mark.parametrize("staged", [{}, {"daemon_id": "d1", "daemon_session_id": "s1"}])
async def test_the_report_of_the_contract_has_the_fingerprint_of_the_contract(
    staged: dict[str, str],
) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        fields = {"worker_id": "w1"} if staged else WHO
        answer = await report(
            store, transaction_id, staged=staged, member_fingerprint=MEMBER, **fields
        )
        assert answer.member_fingerprint == MEMBER


async def test_a_reporter_fills_in_who_plays_the_part() -> None:
    async with serving(on()) as store:
        transaction_id = (await join(store, daemon_id="d1")).transaction_id
        await report(store, transaction_id, worker_id="w1", staged={"daemon_session_id": "s1"})
        [member] = (await show(store, transaction_id)).members
        assert (member.daemon_id, member.daemon_session_id, member.worker_id) == ("d1", "s1", "w1")
        async with refused(EXISTS, "worker_id"):
            await join(store, worker_id="w2")


# Everything that the fingerprint covers, and what it does not.
CHANGES: list[dict[str, Any]] = [
    {"staged": {"binding_id": "b2"}},
    {"staged": {"binding_value_id": "v2"}},
    {"staged": {"staging_token": "t2"}},
    {"staged": {"staging_epoch": 2}},
    {"worker_id": "w1"},
    {"materialization_attempt_id": "m2"},
    {"source_replica_id": "0d7f1c1e-5b9c-4e57-9c1d-2f6f0a3b8c11"},
    {"source_export_generation": 9},
    {"child_transport_request_id": "c2"},
    {"expected_previous_seal_generation": 9},
    {"prepared_value_hash": b"other"},
]


@pytest.mark.parametrize("stage", ["preparing", "ready", "published"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(next(iter(change.items()))))
async def test_the_same_report_again_is_fine_and_another_one_is_not(
    change: dict[str, Any], stage: str
) -> None:
    mode = {"publish_authority_mode": EXPLICIT} if stage == "ready" else {}
    fields = {"expected_previous_seal_generation": 4, "prepared_value_hash": b"hash"}
    async with serving(on(**mode)) as store:
        transaction_id = await begun(store)
        first = await report(store, transaction_id, **fields)
        if stage != "preparing":
            await report(store, transaction_id, "1")
        before = await show(store, transaction_id)
        again = await report(store, transaction_id, **fields)
        assert again.member_fingerprint == first.member_fingerprint
        assert again.state == {"preparing": PREPARING, "ready": READY}.get(stage, PUBLISHED)
        published_now = stage == "published"
        assert again.member_state == (MEMBER_PUBLISHED if published_now else PREPARED)
        async with refused(EXISTS, "part '0' has reported"):
            await report(store, transaction_id, **(fields | change))
        assert await show(store, transaction_id) == before


async def test_the_last_report_publishes_and_says_so() -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store, "012")
        for part_id in "02":
            assert (await report(store, transaction_id, part_id)).state == PREPARING
        answer = await report(store, transaction_id, "1")
        assert (answer.state, answer.member_state) == (PUBLISHED, MEMBER_PUBLISHED)
        shown = await show(store, transaction_id)
        assert (shown.prepared_count, shown.failed_count, shown.published_count) == (3, 0, 3)
        assert shown.missing_part_ids == []
        assert {member.state for member in shown.members} == {MEMBER_PUBLISHED}
        assert (shown.failure_code, shown.failure_detail) == ("", "")


@pytest.mark.parametrize("end", ["abort", "expire"])
async def test_nothing_is_reported_to_a_realization_that_failed(
    end: str, mock_clock: trio.testing.MockClock
) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        await report(store, transaction_id)
        if end == "abort":
            await abort(store, transaction_id)
        else:
            mock_clock.jump(30)
        for part_id in "01":
            async with refused(FAILED, "use a new epoch"):
                await report(store, transaction_id, part_id)
        state = ABORTED if end == "abort" else EXPIRED
        assert (await show(store, transaction_id)).state == state


# Publishing.


async def test_publishing_again_is_fine() -> None:
    async with serving(on()) as store:
        transaction_id = await published(store)
        before = await show(store, transaction_id)
        for _ in range(2):
            answer = await publish(store, f" {transaction_id} ")
            assert answer == wire.PublishGroupRealizationResponse(status=OK, state=PUBLISHED)
        assert await show(store, transaction_id) == before


@pytest.mark.parametrize("insists", [False, True])
async def test_what_is_not_ready_is_never_published(insists: bool) -> None:
    async with serving(on()) as store:
        async with refused(INVALID, "transaction_id is required"):
            await publish(store, " ")
        for unknown in (UNKNOWN, "grt_1", "x"):
            async with refused(NOT_FOUND, unknown):
                await publish(store, unknown)
        transaction_id = await begun(store)
        await report(store, transaction_id)
        before = await show(store, transaction_id)
        async with refused(FAILED, "1 of 2 parts are prepared"):
            await publish(store, transaction_id, require_ready_to_publish=insists)
        assert await show(store, transaction_id) == before


@pytest.mark.parametrize("end", ["abort", "expire"])
async def test_what_failed_is_not_published(end: str, mock_clock: trio.testing.MockClock) -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        if end == "abort":
            await abort(store, transaction_id)
        else:
            mock_clock.jump(30)
        async with refused(FAILED, "ABORTED" if end == "abort" else "EXPIRED"):
            await publish(store, transaction_id)


AUTHORITIES = [
    None,
    wire.GroupPublishAuthority(),
    wire.GroupPublishAuthority(operation_lease_id="token"),
    wire.GroupPublishAuthority(capability_token=b"token"),
]


@pytest.mark.parametrize("authority", AUTHORITIES, ids=["none", "empty", "lease", "capability"])
async def test_without_authority_nothing_is_published_and_nothing_else_is_looked_at(
    authority: Any,
) -> None:
    async with serving(on(publish_authority_mode=EXPLICIT)) as store:
        transaction_id = await begun(store)
        for part_id in "01":
            answer = await report(store, transaction_id, part_id)
        assert (answer.state, answer.member_state) == (READY, PREPARED)
        before = await show(store, transaction_id)
        assert before.publish_authority_mode == "COORDINATOR_EXPLICIT"
        assert (before.prepared_count, before.published_count) == (2, 0)
        for each in (transaction_id, UNKNOWN):
            async with refused(StatusCode.PERMISSION_DENIED, "group_realization_publish"):
                await publish(store, each, authority=authority)
        assert await show(store, transaction_id) == before


def filed(path: Any, **policy: Any) -> GlobalStoreConfig:
    return configuration(
        database={"db_file": str(path / "store.db")},
        worker_policy={"group_realization": {"enabled": True} | policy},
    )


async def test_what_is_ready_is_published_when_the_server_asks_for_no_authority(
    tmp_path: Any,
) -> None:
    async with serving(filed(tmp_path, publish_authority_mode=EXPLICIT)) as store:
        transaction_id = await published(store)
        assert (await show(store, transaction_id)).state == READY
    async with serving(filed(tmp_path)) as store:
        assert (await show(store, transaction_id)).state == READY
        assert (await publish(store, transaction_id)).state == PUBLISHED
        assert await wait(store, transaction_id) == (OK, PUBLISHED)


# Sources that are not as they were reported.


async def source(store: Serving, generation: int = 3) -> str:
    """Register a replica that may be exported; return its id."""
    info = memory_info(
        transport=common.ReplicaTransportMetadata(
            export_state=common.ReplicaTransportMetadata.EXPORT_STATE_EXPORTABLE,
            export_generation=generation,
            remote_memory_keys=["k" * 40],
            buffer_sizes=[100],
        )
    )
    worker = await store.register("d1")
    answer = await store.replica(worker.worker_id, mem_info=info)
    return str(answer.replica_id)


async def gone(store: Serving, replica_id: str) -> None:
    await store.runtime.UnregisterReplica(
        wire.UnregisterReplicaRequest(artifact_id="model", replica_id=replica_id)
    )


async def gone_while_serving(store: Serving, replica_id: str) -> None:
    """Removed by the worker's inventory while a transport runs: the row stays, of nobody."""
    await store.components.store.write(
        lambda tx: tx.run("UPDATE replicas SET worker_key = 0, current_requests = 1")
    )


async def worker_gone(store: Serving, replica_id: str) -> None:
    [worker] = await store.active()
    await store.runtime.UnregisterWorker(wire.UnregisterWorkerRequest(worker_id=worker.worker_id))


async def expired(store: Serving, replica_id: str) -> None:
    await store.components.store.write(lambda tx: tx.run("UPDATE replicas SET expires_at = 1"))


async def draining(store: Serving, replica_id: str) -> None:
    await store.components.store.write(lambda tx: tx.run("UPDATE replicas SET export_state = 3"))


async def unavailable(store: Serving, replica_id: str) -> None:
    await store.components.store.write(lambda tx: tx.run("UPDATE replicas SET is_available = 0"))


async def exported_anew(store: Serving, replica_id: str) -> None:
    await source(store, generation=4)


async def nothing(store: Serving, replica_id: str) -> None:
    """The source is as it was; another one was reported."""


STALE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "gone": (gone, {}, "source_replica_not_found"),
    "gone while serving": (gone_while_serving, {}, "source_replica_not_found"),
    "another id": (nothing, {"source_replica_id": str(uuid.uuid4())}, "source_replica_not_found"),
    "no id": (nothing, {"source_replica_id": "replica"}, "source_replica_not_found"),
    "worker gone": (worker_gone, {}, "source_replica_unavailable"),
    "unavailable": (unavailable, {}, "source_replica_unavailable"),
    "expired": (expired, {}, "source_replica_unavailable"),
    "draining": (draining, {}, "source_replica_not_exportable"),
    "exported anew": (exported_anew, {}, "source_export_generation_mismatch"),
    "another generation": (
        nothing, {"source_export_generation": 2}, "source_export_generation_mismatch",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("happens", "fields", "reason"), STALE.values(), ids=STALE)
async def test_a_stale_source_aborts_the_realization_for_good(
    happens: Any, fields: dict[str, Any], reason: str
) -> None:
    async with serving(on()) as store:
        replica_id = await source(store)
        transaction_id = await begun(store)
        reported = {"source_replica_id": replica_id, "source_export_generation": 3} | fields
        await report(store, transaction_id, **reported)
        await happens(store, replica_id)
        async with refused(EXISTS, "source_visibility_stale", reason):
            await report(store, transaction_id, "1")
        shown = await show(store, transaction_id)
        assert (shown.state, shown.failure_code) == (ABORTED, "source_visibility_stale")
        assert json.loads(shown.failure_detail) == [{"part_id": "0", "reason": reason}]
        assert {member.state for member in shown.members} == {MEMBER_FAILED}
        assert [member.failure_detail for member in shown.members] == [reason, ""]
        assert (shown.prepared_count, shown.failed_count, shown.published_count) == (0, 2, 0)
        assert shown.missing_part_ids == ["0", "1"]
        assert (await abort(store, transaction_id, failure_code="x")).state == ABORTED
        assert (await show(store, transaction_id)).failure_code == "source_visibility_stale"
        for part_id in "01":
            async with refused(FAILED, "source_visibility_stale"):
                await report(store, transaction_id, part_id)


@pytest.mark.parametrize("spelling", [str, str.upper, lambda text: text.replace("-", "")])
async def test_sources_that_are_as_reported_let_the_realization_through(spelling: Any) -> None:
    async with serving(on()) as store:
        replica_id = await source(store)
        transaction_id = await begun(store)
        for part_id in "01":
            answer = await report(
                store,
                transaction_id,
                part_id,
                source_replica_id=spelling(replica_id),
                source_export_generation=3,
            )
        assert answer.state == PUBLISHED


async def test_every_stale_part_is_named_when_it_is_published_by_a_call(tmp_path: Any) -> None:
    async with serving(filed(tmp_path, publish_authority_mode=EXPLICIT)) as store:
        transaction_id = await begun(store, "012")
        for part_id, replica_id in (("2", "x"), ("0", ""), ("1", str(uuid.uuid4()))):
            await report(store, transaction_id, part_id, source_replica_id=replica_id)
    async with serving(filed(tmp_path)) as store, refused(EXISTS, "source_visibility_stale"):
        await publish(store, transaction_id)
    async with serving(filed(tmp_path)) as store:
        shown = await show(store, transaction_id)
        assert shown.state == ABORTED, "the abortion lasts although the call failed"
        reasons = [(each["part_id"], each["reason"]) for each in json.loads(shown.failure_detail)]
        assert reasons == [(each, "source_replica_not_found") for each in "12"]
        async with refused(FAILED, "ABORTED"):
            await publish(store, transaction_id)


async def test_a_report_is_not_looked_at_for_its_source_before_the_last_one() -> None:
    async with serving(on()) as store:
        transaction_id = await begun(store)
        answer = await report(store, transaction_id, source_replica_id=str(uuid.uuid4()))
        assert (answer.state, answer.member_state) == (PREPARING, PREPARED)
        assert reporting(transaction_id).part_id == "0"
