"""ReconcileWorkerState: what becomes of rows and entries."""

import uuid

import pytest
import trio.testing
from google.protobuf.timestamp_pb2 import Timestamp
from inventories import (
    ADD,
    APPLIED,
    NOOP,
    REMOVE,
    RETRY_LATER,
    UPDATE,
    entry,
    metric,
    reconciler,
    shown,
    transport,
)
from purerpc import StatusCode
from servers import KEY, memory_info, pass_time, refused, serving

from globalstore.gen.tensorcast.common.v1 import common_pb2 as common
from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire

OK = wire.STATUS_OK


def at(us: int) -> Timestamp:
    return Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)


async def only_change(daemon: object, *entries: object) -> object:
    answer = await daemon.send(*entries)
    (change,) = answer.state_changes
    return change


# Additions.


async def test_an_added_replica_is_a_source_at_once() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(max_concurrency=3, current_requests=2))
        info = change.replica_info
        assert change.type == ADD
        assert info.stats.max_concurrency == 3
        assert info.stats.current_requests == 0
        granted = await store.claim()
        assert granted.status == OK
        assert granted.remote_memory_info.remote_memory_keys == [KEY]
        (listed,) = await store.replicas()
        assert listed == info.memory_info


async def test_an_addition_without_a_limit_serves_one_at_a_time() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(max_concurrency=0))
        assert change.replica_info.stats.max_concurrency == 1


async def test_an_addition_keeps_a_free_id_and_gets_another_for_a_taken_one() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        free = str(uuid.uuid4())
        change = await only_change(daemon, entry("a", replica_id=f" {free.upper()} "))
        assert change.replica_info.ref.replica_id == free
        answer = await daemon.send(entry("a"), entry("b", replica_id=free), entry("c"))
        added = {c.replica_info.ref.artifact_id: c.replica_info.ref for c in answer.state_changes}
        assert sorted(added) == ["b", "c"]
        assert len({free, added["b"].replica_id, added["c"].replica_id}) == 3
        rows = await store.read("SELECT count(DISTINCT replica_id) FROM replicas")
        assert rows == [(3,)]


@pytest.mark.parametrize(("available", "counted"), [(True, 1), (False, 0), (None, 1)])
async def test_an_addition_is_available_unless_it_says_otherwise(
    available: bool | None, counted: int
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry(available=available))
        assert await store.counts("model") == [(1, counted)]


async def test_an_unknown_artifact_gets_the_row_that_a_registration_would_make() -> None:
    index, data = "122" + "0" * 65, "122" + "1" * 65
    name = f"mi2:{index}:{data}"
    columns = "id_kind, index_multihash, data_multihash, schema_version, encoding, total_size"
    rows = []
    for by_inventory in (True, False):
        async with serving() as store:
            daemon = await reconciler(store)
            if by_inventory:
                await daemon.send(entry(name), entry("cgid:chosen"), entry("plain"))
            else:
                for artifact_id in (name, "cgid:chosen", "plain"):
                    await store.replica(daemon.worker_id, artifact_id)
            rows.append(
                await store.read(f"SELECT artifact_id, {columns} FROM artifacts ORDER BY 1")
            )
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3


async def test_every_field_of_an_addition_is_kept() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(
            entry(
                memory_type=common.MEMORY_TYPE_GPU,
                device_id=3,
                is_memory_replica=True,
                tensor_index_key="ab" * 32,
                source_process_id="pid 7",
                verification_json="{}",
                byte_space=common.ByteSpaceRef(kind=common.BYTE_SPACE_KIND_VIEW, id=" v1 "),
                expires_at=at(4_000_000_000_000_000),
            )
        )
        (listed,) = await store.replicas()
        assert (listed.device_id, listed.byte_space.id) == (3, "v1")
        assert listed.tensor_index_key == "ab" * 32
        assert listed.source_process_id == "pid 7"
        assert listed.is_memory_replica
        assert listed.verification_json == "{}"
        assert listed.expires_at.seconds == 4_000_000_000


async def test_a_blank_node_is_the_workers() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(node_id=" "))
        assert change.replica_info.memory_info.node_id == "node-d1"


@pytest.mark.parametrize(
    "fields",
    [
        {"node_address": ""},
        {"node_port": 0},
        {"node_address": "127.0.0.1"},
        {"node_address": "[::1]"},
    ],
)
async def test_a_replica_that_nobody_can_dial_is_no_source(fields: dict) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send(entry(**fields))).result_kind == APPLIED
        assert await store.counts("model") == [(1, 1)]
        assert (await store.claim()).status == wire.STATUS_NOT_FOUND
        assert (await daemon.send(entry(**fields))).result_kind == NOOP


async def test_a_size_that_was_not_told_is_the_sum_of_the_buffers() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(memory_size=0))
        assert change.replica_info.memory_info.memory_size == 100
        assert (await store.claim()).status == OK


async def test_of_two_entries_for_one_replica_the_later_counts(caplog: object) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(
            daemon, entry(memory_size=50, buffer_sizes=[50]), entry(node_port=7)
        )
        assert change.replica_info.memory_info.node_port == 7
        assert change.replica_info.memory_info.memory_size == 100


# Removals.


async def test_a_removal_shows_all_that_was_recorded() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        added = await only_change(daemon, entry("a", max_concurrency=4))
        answer = await daemon.send(entry("b"))
        removed = answer.state_changes[1]
        assert removed.type == REMOVE
        assert removed.replica_info.memory_info == added.replica_info.memory_info
        assert removed.replica_info.ref == added.replica_info.ref
        assert await store.counts("a") == [(0, 0)]


async def test_a_replica_in_use_is_hidden_until_its_last_transport_ends() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a", max_concurrency=2))
        first, second = await store.claim("a"), await store.claim("a")
        answer = await daemon.send(entry("b"))
        assert (REMOVE, "a") in shown(answer)
        assert await store.counts("a") == [(0, 0)]
        assert len(await store.replicas()) == 1
        assert (await store.claim("a")).status == wire.STATUS_NOT_FOUND
        beat = await store.beat(
            daemon.worker_id,
            state_version=3,
            state_checksum=answer.new_state_checksum,
            registered_artifact_ids=["a", "b"],
        )
        assert list(beat.obsolete_replicas) == ["a"]
        assert metric(store, "tc_replicas_total") == 1
        await store.complete(first.transport_id)
        assert await store.read("SELECT count(*) FROM replicas") == [(2,)]
        await store.complete(second.transport_id)
        assert await store.read("SELECT count(*) FROM replicas") == [(1,)]
        assert metric(store, "tc_active_transports") == 0


async def test_what_is_reported_in_the_place_of_a_hidden_replica_is_another_one() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        added = await only_change(daemon, entry("a"))
        granted = await store.claim("a")
        await daemon.send(entry("b"))
        answer = await daemon.send(entry("a"), entry("b"))
        (change,) = answer.state_changes
        assert change.type == ADD
        assert change.replica_info.ref.replica_id != added.replica_info.ref.replica_id
        assert (await store.claim("a")).status == OK
        await store.complete(granted.transport_id)
        assert (await store.claim("a")).status == wire.STATUS_TIMED_OUT


async def test_a_hidden_replica_can_be_registered_again() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("a"))
        granted = await store.claim("a")
        await daemon.send(entry("b"))
        await store.replica(daemon.worker_id, "a")
        assert await store.counts("a") == [(1, 1)]
        assert metric(store, "tc_replicas_total") == 2
        await store.complete(granted.transport_id)
        assert await store.counts("a") == [(1, 1)]


async def test_a_replica_registered_while_the_snapshot_was_taken_is_kept_once() -> None:
    now = [1_000_000_000_000_000]
    async with serving(wall=lambda: now[0]) as store:
        daemon = await reconciler(store)
        await store.replica(daemon.worker_id, "old")
        now[0] += 10_000_000
        await store.replica(daemon.worker_id, "new")
        taken = now[0] - 5_000_000
        answer = await daemon.send(
            entry("listed", registered_ts=at(taken)), entry("too", registered_ts=at(taken + 9))
        )
        assert shown(answer) == [(ADD, "listed"), (ADD, "too"), (REMOVE, "old")]
        again = await daemon.send(
            entry("listed", registered_ts=at(now[0])), entry("too", registered_ts=at(now[0]))
        )
        assert shown(again) == [(REMOVE, "new")]


async def test_without_a_time_in_the_inventory_nothing_is_kept() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await store.replica(daemon.worker_id, "new")
        assert shown(await daemon.send(entry("listed"))) == [(ADD, "listed"), (REMOVE, "new")]


# Updates.


@pytest.mark.parametrize(
    ("fields", "named", "shown_value"),
    [
        ({"available": False}, "is_available", None),
        ({"node_address": "other.example"}, "node_address", "other.example"),
        ({"node_port": 9}, "node_port", 9),
        ({"memory_size": 7, "buffer_sizes": [7]}, "memory_size", 7),
    ],
)
async def test_what_is_reported_otherwise_is_updated_and_named(
    fields: dict, named: str, shown_value: object
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        change = await only_change(daemon, entry(**fields))
        assert change.type == UPDATE
        assert named in change.reason.split(", ")
        if shown_value is not None:
            (listed,) = await store.replicas()
            assert getattr(listed, named) == shown_value
            assert listed == change.replica_info.memory_info
        assert change.replica_info.stats.is_available == fields.get("available", True)
        assert (await daemon.send(entry(**fields))).result_kind == NOOP


async def test_what_is_not_reported_stays() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry(tensor_index_key="ab" * 32, source_process_id="p"))
        before = await store.replicas()
        bare = entry(node_address="", node_port=0, memory_size=0, available=None)
        del bare.memory_info.remote_memory_keys[:]
        del bare.memory_info.buffer_sizes[:]
        assert (await daemon.send(bare)).result_kind == NOOP
        assert await store.replicas() == before
        assert await store.counts("model") == [(1, 1)]


async def test_an_entry_that_says_nothing_of_availability_keeps_a_hidden_replica_hidden() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry(available=False))
        assert (await daemon.send(entry(available=None))).result_kind == NOOP
        assert await store.counts("model") == [(1, 0)]


@pytest.mark.parametrize(
    ("fields", "state", "keys"),
    [
        ({"transport": transport()}, "EXPORTABLE", [KEY]),
        ({"transport": transport("DRAINING")}, "DRAINING", [KEY]),
        ({"transport": transport("DRAINING", buffer_sizes=[9])}, "DRAINING", []),
        ({"transport": transport("PRESENCE_ONLY")}, "PRESENCE_ONLY", []),
        ({"transport": transport("UNSPECIFIED")}, "PRESENCE_ONLY", []),
        ({"transport": transport(remote_memory_keys=[])}, "PRESENCE_ONLY", []),
        ({"transport": transport(buffer_sizes=[50, 50])}, "PRESENCE_ONLY", []),
        ({"transport": transport(buffer_sizes=[0])}, "PRESENCE_ONLY", []),
        ({"transport": transport(buffer_sizes=[99])}, "PRESENCE_ONLY", []),
        ({"transport": common.ReplicaTransportMetadata()}, "PRESENCE_ONLY", []),
        ({"buffer_sizes": [99]}, "PRESENCE_ONLY", []),
        ({"buffer_sizes": []}, "PRESENCE_ONLY", []),
        ({"buffer_sizes": [60, 40], "remote_memory_keys": ["a", "b"]}, "EXPORTABLE", ["a", "b"]),
    ],
)
async def test_transfer_metadata_is_normalised_and_never_refused(
    fields: dict, state: str, keys: list[str]
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send(entry("new", **fields))).result_kind == APPLIED
        await daemon.send(entry("new", **fields), entry("known"))
        await daemon.send(entry("new", **fields), entry("known", **fields))
        for listed in await store.replicas():
            assert (
                common.ReplicaTransportMetadata.ExportState.Name(listed.transport.export_state)
                == f"EXPORT_STATE_{state}"
            )
            assert list(listed.remote_memory_keys) == list(listed.transport.remote_memory_keys)
            assert list(listed.remote_memory_keys) == keys
        again = await daemon.send(entry("new", **fields), entry("known", **fields))
        assert again.result_kind == NOOP


@pytest.mark.parametrize("generation", [0, 4])
async def test_a_lower_export_generation_counts_like_any_other(generation: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry(transport=transport(generation=5)))
        anew = entry(transport=transport(generation=generation, remote_memory_keys=["new"]))
        change = await only_change(daemon, anew)
        assert change.reason == "transport"
        assert change.replica_info.memory_info.transport == anew.memory_info.transport


async def test_keys_of_a_process_that_is_gone_are_dropped_when_nothing_is_said_of_them() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        bare = entry(remote_memory_keys=[], buffer_sizes=[])
        assert (await daemon.send(bare)).result_kind == NOOP
        await store.register("d1", is_recovery_registration=True)
        daemon.generation, daemon.seq = 2, 0
        assert (await daemon.send(bare)).result_kind == NOOP
        await store.register("d1")
        daemon.generation, daemon.seq = 3, 0
        change = await only_change(daemon, bare)
        assert change.reason == "transport"
        assert (await store.claim()).status == wire.STATUS_NOT_FOUND


async def test_a_registration_after_the_reconcile_keeps_the_keys_that_it_confirmed() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry())
        await store.register("d1")
        daemon.generation, daemon.seq = 2, 0
        await daemon.send(entry())
        bare = memory_info(remote_memory_keys=[], buffer_sizes=[])
        await store.replica(daemon.worker_id, mem_info=bare)
        assert (await store.claim()).status == OK


async def test_changes_come_by_kind_and_within_it_by_key() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await daemon.send(entry("u2"), entry("r2"), entry("r1"), entry("u1"))
        answer = await daemon.send(
            entry("u2", node_port=9), entry("a2"), entry("u1", node_port=9), entry("a1")
        )
        assert shown(answer) == [
            *((ADD, "a1"), (ADD, "a2")),
            *((REMOVE, "r1"), (REMOVE, "r2")),
            *((UPDATE, "u1"), (UPDATE, "u2")),
        ]


# Other workers.


async def test_a_replica_of_a_worker_that_is_heard_is_not_taken_over() -> None:
    async with serving() as store:
        owner, other = await reconciler(store, "d1"), await reconciler(store, "d2")
        await owner.send(entry())
        answer = await other.send(entry(), entry("own", "d2"))
        assert shown(answer) == [(ADD, "own")]
        assert (
            metric(store, "tc_control_plane_conflicts_total", scope="reconcile_owner_conflict") == 1
        )
        assert (await owner.send(entry())).result_kind == NOOP
        # The next one of the other is compared again: the owner may be gone by then.
        assert (await other.send(entry(), entry("own", "d2"))).result_kind == NOOP
        assert (
            metric(store, "tc_control_plane_conflicts_total", scope="reconcile_owner_conflict") == 2
        )


async def test_a_replica_of_a_worker_that_is_silent_moves_with_its_transports(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with serving() as store:
        owner, other = await reconciler(store, "d1"), await reconciler(store, "d2")
        added = await only_change(owner, entry())
        granted = await store.claim()
        for _ in range(4):
            await pass_time(mock_clock, 7.6)
            await store.beat(other.worker_id)
        change = await only_change(other, entry())
        assert change.type == ADD
        assert change.replica_info.ref == added.replica_info.ref
        assert metric(store, "tc_replicas_total") == 1
        assert await store.read(
            "SELECT worker_id, current_requests FROM replicas JOIN worker_ids USING (worker_key)"
        ) == [(other.worker_id, 1)]
        await store.complete(granted.transport_id)
        assert (await store.claim()).status == OK


async def test_an_update_does_not_move_onto_a_replica_of_a_worker_that_is_heard() -> None:
    async with serving() as store:
        owner, other = await reconciler(store, "d1"), await reconciler(store, "d2")
        await owner.send(entry())
        await other.send(entry(node_port=7))
        answer = await other.send(entry(available=False))
        assert answer.result_kind == NOOP
        assert sorted(r.node_port for r in await store.replicas()) == [7, 50053]
        assert await store.counts("model") == [(2, 2)]


# Malformed inventories.


@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        (entry(" "), StatusCode.INVALID_ARGUMENT, "ref.artifact_id"),
        (entry("x" * 2000), StatusCode.INVALID_ARGUMENT, "ref.artifact_id"),
        (entry(replica_id="7"), StatusCode.INVALID_ARGUMENT, "ref.replica_id"),
        (entry(node_port=65536), StatusCode.INVALID_ARGUMENT, "node_port"),
        (entry(memory_size=2**63), StatusCode.INVALID_ARGUMENT, "memory_size"),
        (entry(buffer_sizes=[2**63]), StatusCode.INVALID_ARGUMENT, "buffer_sizes"),
        (
            entry(transport=transport(generation=2**63)),
            StatusCode.INVALID_ARGUMENT,
            "export_generation",
        ),
        (
            entry(transport=transport(buffer_sizes=[2**64 - 1])),
            StatusCode.INVALID_ARGUMENT,
            "buffer_sizes",
        ),
    ],
)
async def test_a_malformed_entry_refuses_the_whole_inventory(
    wrong: object, code: StatusCode, named: str
) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        async with refused(code, "inventory[1]", named):
            await daemon.send(entry("good"), wrong)
        assert await store.counts("good") == [(0, 0)]
        assert (await daemon.send(entry("good"))).result_kind == APPLIED
        assert (
            metric(store, "tc_reconcile_result_total", result_kind="RECONCILE_RESULT_KIND_FATAL")
            == 1
        )


async def test_the_place_of_a_malformed_entry_counts_those_that_are_left_out() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        async with refused(StatusCode.INVALID_ARGUMENT, "inventory[2]"):
            await daemon.send(entry("msa1:x"), entry("good"), entry(" "))


async def test_an_inventory_of_nothing_but_entries_that_are_left_out_denies_all() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        held = await daemon.send(entry("held"))
        await store.beat(daemon.worker_id, state_checksum=held.new_state_checksum, state_version=2)
        answer = await daemon.send(entry("msa1:x"))
        assert answer.result_kind == RETRY_LATER
        await store.beat(daemon.worker_id, accepting_new_requests=False)
        answer = await daemon.send(entry("msa1:x"))
        assert shown(answer) == [(REMOVE, "held")]


async def test_one_that_is_recognised_denies_all_as_well() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        assert (await daemon.send(entry("msa1:x"))).result_kind == NOOP
        await store.replica(daemon.worker_id, "held")
        (affirmed,) = [await daemon.send(generation=9)]
        await store.beat(daemon.worker_id, state_checksum=affirmed.new_state_checksum)
        assert (await daemon.send(entry("msa1:x"))).result_kind == RETRY_LATER
        assert await store.counts("held") == [(1, 1)]


async def test_a_time_on_an_entry_that_is_left_out_counts() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        await store.replica(daemon.worker_id, "younger")
        began = {"seconds": 1_000_000}
        answer = await daemon.send(entry("msa1:x", registered_ts=began))
        assert answer.result_kind == NOOP
        assert await store.counts("younger") == [(1, 1)]


async def test_a_malformed_inventory_is_refused_before_its_number_is_looked_at() -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        for fields in ({"generation": 0}, {"generation": 9}, {"request_seq": 9}):
            async with refused(StatusCode.INVALID_ARGUMENT):
                await daemon.send(entry(" "), **fields)


@pytest.mark.parametrize(
    "odd",
    [
        {"byte_space": common.ByteSpaceRef(kind=common.BYTE_SPACE_KIND_VIEW, id=" ")},
        {"byte_space": common.ByteSpaceRef(kind=common.BYTE_SPACE_KIND_CANONICAL, id="x")},
        {"byte_space": common.ByteSpaceRef(kind=99, id="x")},
    ],
)
async def test_an_odd_byte_space_counts_as_canonical(odd: dict) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(**odd))
        assert change.replica_info.memory_info.byte_space.id == ""
        assert (await daemon.send(entry())).result_kind == NOOP


@pytest.mark.parametrize("number", [0, 3, 99])
async def test_an_unknown_memory_type_is_disk(number: int) -> None:
    async with serving() as store:
        daemon = await reconciler(store)
        change = await only_change(daemon, entry(memory_type=number))
        assert change.replica_info.memory_info.memory_type == common.MEMORY_TYPE_DISK
