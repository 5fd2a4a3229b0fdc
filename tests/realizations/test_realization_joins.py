"""BeginOrJoinGroupRealization: what a slot freezes, and in what a later call may not differ."""

from pathlib import Path
from typing import Any

import pytest
import trio.testing
from key_calls import ready, revoke, swap, upsert
from purerpc import StatusCode
from realization_calls import (
    ABORTED,
    EXPIRED,
    MANIFEST_HASH,
    OK,
    PER_PART,
    PREPARING,
    PUBLISHED,
    SAME,
    SELECTION_HASH,
    TRANSACTION,
    abort,
    by_key,
    by_selection,
    by_set,
    join,
    on,
    part,
    published,
    register,
    report,
    selection,
    show,
    wait,
)
from servers import configuration, refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

INVALID, FAILED = StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION
EXISTS, NOT_FOUND = StatusCode.ALREADY_EXISTS, StatusCode.NOT_FOUND
NOW_US = 1_700_000_000_000_000

SET_ID = f"gvs_{MANIFEST_HASH.hex()}"
UNKNOWN_SET = f"gvs_{'0' * 64}"


BAD: dict[str, tuple[dict[str, Any], StatusCode, str]] = {
    "kind": ({"group_kind": " "}, INVALID, "context.group_kind is required"),
    "id": ({"group_id": ""}, INVALID, "context.group_id is required"),
    "part": ({"part_id": "\t"}, INVALID, "context.part_id is required"),
    "no parts": ({"parts": "", "part_id": "0"}, INVALID, "context.required_part_ids is required"),
    "blank part": ({"parts": ["0", " "]}, INVALID, "context.required_part_ids is required"),
    "count": ({"total_parts": 3}, INVALID, "context.total_parts is 3"),
    "no count": ({"total_parts": 0}, INVALID, "context.total_parts is 0"),
    "too many": ({"parts": "012345678"}, INVALID, "9 entries, expected at most 8"),
    "not among them": ({"part_id": "2"}, INVALID, "context.part_id '2'"),
    "no version": ({"version": wire.VersionReference()}, INVALID, "version is required"),
    "epoch": ({"epoch": 2**63}, INVALID, "context.epoch"),
    "deadline": ({"deadline_unix_nanos": 2**63}, INVALID, "deadline_unix_nanos"),
    "fingerprint": ({"transaction_fingerprint": b"x" * 1025}, INVALID, "transaction_fingerprint"),
    "daemon": ({"daemon_id": "a\0"}, INVALID, "daemon_id"),
    "session": ({"daemon_session_id": "x" * 1025}, INVALID, "daemon_session_id"),
    "worker": ({"worker_id": "a\n b"}, INVALID, "worker_id"),
    "no artifact": (
        {"version": by_selection(common.ArtifactSelection())}, INVALID,
        "version.explicit_selection.artifact_id",
    ),
    "mount": ({"version": by_selection(selection("msa1:x"))}, FAILED, "daemon-session-local"),
    "byte artifact": (
        {"version": by_selection(selection("cgid:byte_artifact~a"))}, FAILED, "byte artifact",
    ),
    "no set": ({"version": by_set(" ")}, INVALID, "version.explicit_version_set.version_set_id"),
    "unknown set": ({"version": by_set(UNKNOWN_SET)}, NOT_FOUND, UNKNOWN_SET),
    "no set's id": ({"version": by_set("gvs_1")}, NOT_FOUND, "gvs_1"),
    "blank key": ({"version": by_key(" ")}, INVALID, "version.key_reference.key"),
    "alias": ({"version": by_key(alias="stable")}, INVALID, "version.key_reference.alias"),
    "unknown key": ({"version": by_key("unknown")}, NOT_FOUND, "unknown"),
    "other namespace": ({"version": by_key("k", namespace="n")}, NOT_FOUND, "namespace 'n'"),
    "generation": (
        {"version": by_key("k", expected_generation=1)}, FAILED, "key generation mismatch",
    ),
    "other fingerprint": ({"transaction_fingerprint": b"x" * 32}, EXISTS, TRANSACTION.hex()),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "fragment"), BAD.values(), ids=BAD)
async def test_a_bad_beginning_is_refused_and_creates_nothing(
    fields: dict[str, Any], code: StatusCode, fragment: str
) -> None:
    async with serving(on(max_total_parts=8)) as store:
        await ready(store, "a")
        await upsert(store)
        async with refused(code, fragment):
            await join(store, **fields)
        for table in ("group_transactions", "group_members", "version_sets", "selections"):
            assert await store.read(f"SELECT count(*) FROM {table}") == [(0,)]
        assert await store.read("SELECT selection_hash FROM key_generations") == [(b"",)]


async def test_the_first_call_freezes_the_version_and_joins() -> None:
    async with serving(on(), wall=lambda: NOW_US) as store:
        answer = await join(store, group_kind=" tp_serving ", group_id=" g1 ", part_id=" 0 ")
        expected = wire.BeginOrJoinGroupRealizationResponse(
            status=OK,
            transaction_id=f"grt_{TRANSACTION.hex()}",
            version_set=wire.GroupVersionSetRef(
                version_set_id=SET_ID, manifest_hash=MANIFEST_HASH, manifest_generation=1
            ),
            realization_kind=SAME,
            part=part("0", selection_hash=SELECTION_HASH),
            state=PREPARING,
            transaction_fingerprint=TRANSACTION,
        )
        expected.part.requested_byte_space.kind = common.BYTE_SPACE_KIND_CANONICAL
        assert answer == expected
        second = await join(store, "1", parts=[" 1", "0", "1 "], total_parts=2)
        expected.part.part_id = "1"
        assert second == expected
        shown = await show(store, answer.transaction_id)
        assert [member.part_id for member in shown.members] == ["0", "1"]


@pytest.mark.parametrize("version", [by_selection(), by_set(SET_ID)])
async def test_a_right_fingerprint_is_welcome_from_the_first_and_later(version: Any) -> None:
    async with serving(on()) as store:
        await register(store, "0", "1")
        for part_id in "01":
            answer = await join(store, part_id, version, transaction_fingerprint=TRANSACTION)
            assert answer.transaction_fingerprint == TRANSACTION


async def test_a_set_by_its_id_may_have_more_parts_but_none_too_few() -> None:
    async with serving(on()) as store:
        own = [part(each, selection(f"artifact-{each}", view_id="v")) for each in "012"]
        made = await register(store, *own, kind=PER_PART)
        version = by_set(made.version_set.version_set_id)
        answer = await join(store, "1", version)
        assert answer.realization_kind == PER_PART
        assert answer.part.selection == selection("artifact-1", view_id="v")
        assert answer.part == made.parts[1]
        async with refused(EXISTS, "no part '3'"):
            await join(store, "3", version, parts="123", epoch=8)


@pytest.mark.parametrize("occupied", [False, True])
async def test_a_manifest_hash_that_is_given_must_be_that_of_the_set(occupied: bool) -> None:
    async with serving(on()) as store:
        await register(store, "0", "1")
        if occupied:
            await join(store)
        async with refused(EXISTS, "manifest_hash"):
            await join(store, version=by_set(SET_ID, manifest_hash=b"x" * 32))
        answer = await join(store, version=by_set(SET_ID, manifest_hash=MANIFEST_HASH))
        assert answer.version_set.version_set_id == SET_ID


# By key.


@pytest.mark.parametrize("alias", ["", " ", "current", "latest", "CURRENT", " Latest "])
async def test_a_key_gives_the_version_it_points_at_and_its_generation(alias: str) -> None:
    async with serving(on()) as store:
        await ready(store, "aid-shared", "old")
        await swap(store, artifact_id="old")
        await swap(store, artifact_id="aid-shared")
        answer = await join(store, version=by_key(" k ", alias=alias))
        assert answer.version_set.version_set_id == SET_ID
        assert answer.key_generation == 1
        assert answer.transaction_fingerprint != TRANSACTION, "the generation is part of it"
        assert await store.read("SELECT namespace, key, key_generation FROM version_sets") == [
            ("", "k", 1)
        ]
        rows = await store.read("SELECT generation, selection_hash FROM key_generations")
        assert rows == [(0, b""), (1, SELECTION_HASH)]


async def test_the_hash_of_a_generation_is_filled_in_once() -> None:
    async with serving(on()) as store:
        await ready(store, "aid-shared")
        await upsert(store, artifact_id="aid-shared")
        await store.components.store.write(
            lambda tx: tx.run("UPDATE key_generations SET selection_hash = x'01'")
        )
        await join(store, version=by_key())
        assert await store.read("SELECT selection_hash FROM key_generations") == [(b"\1",)]


async def test_generation_0_that_is_expected_counts() -> None:
    async with serving(on()) as store:
        await ready(store, "a", "b")
        await upsert(store)
        answer = await join(store, version=by_key(expected_generation=0))
        assert answer.key_generation == 0
        await swap(store)
        async with refused(FAILED, "key generation mismatch"):
            await join(store, version=by_key(expected_generation=0), epoch=8)


async def test_a_key_that_expired_or_was_revoked_gives_no_version(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(on()) as store:
        await ready(store, "a")
        await upsert(store, "short", ttl_s=5)
        await upsert(store, "gone")
        await revoke(store, "gone")
        mock_clock.jump(5)
        for key in ("short", "gone"):
            async with refused(NOT_FOUND, key):
                await join(store, version=by_key(key))


async def test_a_key_that_points_at_a_version_set_gives_that() -> None:
    async with serving(on()) as store:
        await ready(store, "a")
        await upsert(store)
        await register(store, "0", "1", "2")
        [(found,)] = await store.read("SELECT lower(hex(manifest_hash)) FROM version_sets")
        for version_set_id, code in ((f"gvs_{found}", None), ("gvs_1", NOT_FOUND)):
            await store.components.store.write(
                lambda tx, it: tx.run(
                    "UPDATE key_mappings SET artifact_key = NULL, version_set_id = ?", (it,)
                ),
                version_set_id,
            )
            if code is None:
                answer = await join(store, version=by_key())
                assert answer.version_set.version_set_id == version_set_id
            else:
                async with refused(code, "gvs_1"):
                    await join(store, version=by_key(), epoch=8)


async def test_a_key_is_resolved_once_for_a_slot() -> None:
    async with serving(on()) as store:
        await ready(store, "a", "b")
        await upsert(store)
        first = await join(store, version=by_key())
        await swap(store)
        second = await join(store, "1", version=by_key(expected_generation=0))
        assert second.version_set == first.version_set
        assert second.part.selection.artifact_id == "a"
        await revoke(store)
        await join(store, "1", version=by_key())
        async with refused(FAILED, "key generation mismatch"):
            await join(store, "1", version=by_key(expected_generation=1))


async def test_a_set_that_was_registered_without_a_key_does_not_hide_the_key_of_a_slot() -> None:
    async with serving(on()) as store:
        await ready(store, "aid-shared")
        await upsert(store, artifact_id="aid-shared")
        await register(store, "0", "1")
        await join(store, version=by_key())
        answer = await join(store, "1", version=by_key())
        assert answer.status == OK


# A slot that is occupied.

OTHERS: dict[str, tuple[dict[str, Any], StatusCode, str]] = {
    "other parts": ({"parts": "02"}, EXISTS, "required_part_ids"),
    "more parts": ({"parts": "012"}, EXISTS, "required_part_ids"),
    "fingerprint": ({"transaction_fingerprint": b"x"}, EXISTS, "transaction_fingerprint"),
    "selection": ({"version": by_selection(selection("other"))}, EXISTS, SET_ID),
    "set": ({"version": by_set(UNKNOWN_SET)}, EXISTS, SET_ID),
    "no set's id": ({"version": by_set("gvs_1")}, EXISTS, SET_ID),
    "key": ({"version": by_key("other")}, EXISTS, "key 'k'"),
    "namespace": ({"version": by_key("k", namespace="n")}, EXISTS, "key 'k'"),
    "generation": (
        {"version": by_key("k", expected_generation=3)}, FAILED, "key generation mismatch",
    ),
    "daemon": ({"daemon_id": "d2"}, EXISTS, "daemon_id"),
    "worker": ({"worker_id": "w2"}, EXISTS, "worker_id"),
    "session of an unnamed daemon": ({"daemon_session_id": "s2"}, EXISTS, "daemon_session_id"),
}  # fmt: skip


@pytest.mark.parametrize("is_published", [False, True])
@pytest.mark.parametrize(("fields", "code", "fragment"), OTHERS.values(), ids=OTHERS)
async def test_who_means_something_else_is_told_so(
    fields: dict[str, Any], code: StatusCode, fragment: str, is_published: bool
) -> None:
    async with serving(on()) as store:
        await ready(store, "aid-shared")
        await upsert(store, artifact_id="aid-shared")
        who = {"daemon_id": "d1", "daemon_session_id": "s1", "worker_id": "w1"}
        first = await join(store, version=by_key(), **who)
        if is_published:
            await join(store, "1")
            for part_id in "01":
                await report(store, first.transaction_id, part_id)
        before = await show(store, first.transaction_id)
        async with refused(code, fragment):
            await join(store, **({"version": by_key()} | fields))
        assert await show(store, first.transaction_id) == before
        again = await join(store, version=by_key(), **who)
        assert again.state == (PUBLISHED if is_published else PREPARING)
        assert again.part == first.part


async def test_a_key_means_nothing_to_a_slot_that_no_key_began() -> None:
    async with serving(on()) as store:
        await ready(store, "aid-shared")
        await upsert(store, artifact_id="aid-shared")
        await join(store)
        async with refused(EXISTS, "no key"):
            await join(store, "1", version=by_key())


async def test_an_equal_hash_of_another_selection_does_not_get_in() -> None:
    async with serving(on()) as store:
        first = selection(selection_hash=b"h", tensor_names=["a"])
        await join(store, version=by_selection(first))
        other = selection(selection_hash=b"h", tensor_names=["b"])
        async with refused(EXISTS, "gvs_"):
            await join(store, "1", version=by_selection(other))
        async with refused(EXISTS, "gvs_"):
            await join(store, version=by_selection(other), epoch=8)


@pytest.mark.parametrize("end", ["abort", "expire"])
async def test_a_slot_that_failed_is_used_up(end: str, mock_clock: trio.testing.MockClock) -> None:
    async with serving(on()) as store:
        transaction_id = (await join(store)).transaction_id
        if end == "abort":
            await abort(store, transaction_id)
        else:
            mock_clock.jump(30)
        state = ABORTED if end == "abort" else EXPIRED
        for part_id in "01":
            async with refused(FAILED, "use a new epoch"):
                await join(store, part_id)
        assert (await show(store, transaction_id)).state == state
        assert (await join(store, epoch=8)).state == PREPARING


async def test_slots_differ_by_kind_id_and_epoch() -> None:
    async with serving(on()) as store:
        slots = [{}, {"group_kind": "dp"}, {"group_id": "g2"}, {"epoch": 0}, {"epoch": 2**63 - 1}]
        answers = [await join(store, **slot) for slot in slots]
        assert len({answer.transaction_id for answer in answers}) == len(slots)


# Who plays a part.


async def test_identities_left_out_are_filled_in_later_and_not_erased() -> None:
    async with serving(on()) as store:
        await join(store)
        await join(store, worker_id="w1")
        await join(store, daemon_id=" d1 ")
        transaction_id = (await join(store, daemon_session_id="s1")).transaction_id
        await join(store)
        [member] = (await show(store, transaction_id)).members
        assert (member.daemon_id, member.daemon_session_id, member.worker_id) == ("d1", "s1", "w1")


async def test_a_restarted_daemon_takes_its_part_over_until_it_is_prepared() -> None:
    async with serving(on()) as store:
        await join(store, daemon_id="d1", daemon_session_id="s1", worker_id="w1")
        answer = await join(store, daemon_id="d1", daemon_session_id="s2", worker_id="w2")
        transaction_id = answer.transaction_id
        [member] = (await show(store, transaction_id)).members
        assert (member.daemon_session_id, member.worker_id) == ("s2", "w2")
        async with refused(EXISTS, "daemon_id"):
            await join(store, daemon_id="d2", daemon_session_id="s3")
        await report(store, transaction_id, daemon_id="d1", daemon_session_id="s2")
        async with refused(EXISTS, "daemon_session_id"):
            await join(store, daemon_id="d1", daemon_session_id="s3")
        assert (await join(store, daemon_id="d1", daemon_session_id="s2")).status == OK


# Deadlines.


@pytest.mark.parametrize(
    ("policy", "asked_s", "expected_s"),
    [
        ({}, None, 30),
        ({}, 10, 10),
        ({}, 299.999, 299.999),
        ({}, 1000, 300),
        ({"default_deadline_ms": 5000}, None, 5),
        ({"default_deadline_ms": 0}, None, 300),
        ({"transaction_ttl_ms": 7000}, None, 7),
        ({"transaction_ttl_ms": 7000}, 8, 7),
        ({"transaction_ttl_ms": 0}, 100_000, 100_000),
        ({"transaction_ttl_ms": 0, "default_deadline_ms": 0}, None, None),
        ({"transaction_ttl_ms": 2**64 - 1}, None, 30),
    ],
)
async def test_the_deadline_is_the_one_asked_for_within_the_configured_lifetime(
    policy: dict[str, int],
    asked_s: float | None,
    expected_s: float | None,
    mock_clock: trio.testing.MockClock,
) -> None:
    nanos = 0 if asked_s is None else NOW_US * 1000 + round(asked_s * 1e9)
    async with serving(on(**policy), wall=lambda: NOW_US) as store:
        transaction_id = (await join(store, deadline_unix_nanos=nanos)).transaction_id
        shown = await show(store, transaction_id)
        if expected_s is None:
            assert shown.deadline_unix_nanos == 0
            mock_clock.jump(1e9)
            assert (await show(store, transaction_id)).state == PREPARING
            return
        assert shown.deadline_unix_nanos == NOW_US * 1000 + round(expected_s * 1e9)
        mock_clock.jump(expected_s - 0.001)
        assert (await show(store, transaction_id)).state == PREPARING
        mock_clock.jump(0.001)
        assert (await show(store, transaction_id)).state == EXPIRED


@pytest.mark.parametrize("nanos", [1, NOW_US * 1000])
async def test_a_deadline_that_has_passed_is_accepted_and_seen_at_the_next_look(nanos: int) -> None:
    async with serving(on(), wall=lambda: NOW_US) as store:
        answer = await join(store, deadline_unix_nanos=nanos)
        assert answer.state == PREPARING
        assert (await show(store, answer.transaction_id)).state == EXPIRED


async def test_later_calls_do_not_move_the_deadline() -> None:
    async with serving(on(), wall=lambda: NOW_US) as store:
        first = await join(store, deadline_unix_nanos=NOW_US * 1000 + 10**9)
        await join(store, "1", deadline_unix_nanos=NOW_US * 1000 + 10**10)
        shown = await show(store, first.transaction_id)
        assert shown.deadline_unix_nanos == NOW_US * 1000 + 10**9


async def test_live_realizations_are_bounded_and_those_that_ended_do_not_count(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving(on(max_active_transactions=2)) as store:
        first = await join(store, epoch=1)
        await join(store, epoch=2)
        async with refused(StatusCode.RESOURCE_EXHAUSTED, "2 group realizations"):
            await join(store, epoch=3)
        assert (await join(store, "1", epoch=1)).status == OK
        await abort(store, first.transaction_id)
        await join(store, epoch=3)
        async with refused(StatusCode.RESOURCE_EXHAUSTED):
            await join(store, epoch=4)
        mock_clock.jump(30)
        assert (await join(store, epoch=4)).status == OK


async def test_a_group_of_the_largest_size_begins() -> None:
    parts = [f"rank-{number:04}" for number in range(1024)]
    async with serving(on()) as store:
        first = await join(store, parts[0], parts=parts)
        last = await join(store, parts[-1], parts=list(reversed(parts)))
        assert last.transaction_id == first.transaction_id
        assert last.part.part_id == parts[-1]


async def test_a_restart_keeps_what_a_slot_has_frozen(tmp_path: Path) -> None:
    config = configuration(
        database={"db_file": str(tmp_path / "store.db")},
        worker_policy={"group_realization": {"enabled": True}},
    )
    async with serving(config) as store:
        first = await join(store, daemon_id="d1")
        done = await published(store, group_id="g2")
        before = await show(store, first.transaction_id)
    async with serving(config) as store:
        assert await show(store, first.transaction_id) == before
        assert await join(store, daemon_id="d1") == first
        assert await wait(store, done) == (OK, PUBLISHED)
        async with refused(EXISTS, "required_part_ids"):
            await join(store, parts="02")
