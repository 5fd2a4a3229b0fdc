"""What a daemon says it holds."""

import time

import attrs

from globalstore.daemon import Held, Identity, Inventory
from globalstore.gen.tensorcast.common.v1 import common_pb2 as common

IDENTITY = Identity("d7", "node-7", "10.20.0.7", 50051, 50052)
GPU, RAM = common.MEMORY_TYPE_GPU, common.MEMORY_TYPE_RAM


def test_the_checksum_is_the_published_one() -> None:
    inventory = Inventory(IDENTITY)
    assert inventory.checksum() == "cbf29ce484222325"
    inventory.put(Held("mi2:idxA:datA", 1, "k"))
    assert inventory.checksum() == "6a632e6b6f7b9497"
    inventory.clear()
    for held in (
        Held("cgid:model-b", 1, "k", tier=GPU, device=1),
        Held("cgid:model-a", 1, "k", tier=GPU, device=10),
        Held("cgid:model-a", 1, "k", tier=GPU, device=2, available=False),
        Held("cgid:model-a", 1, "k", view_id="view-2", available=False),
        Held("cgid:model-a", 1, "k"),
    ):
        inventory.put(held)
    assert inventory.checksum() == "71db85343054e026"


def test_every_change_of_a_replica_changes_the_checksum() -> None:
    inventory = Inventory(IDENTITY)
    held = inventory.put(Held("a", 1, "k"))
    seen = {inventory.checksum()}
    for other in (
        attrs.evolve(held, available=False),
        Held("b", 1, "k"),
        Held("a", 1, "k", tier=GPU),
    ):
        inventory.put(other)
        seen.add(inventory.checksum())
    assert len(seen) == 4


def test_a_replica_exported_anew_replaces_the_old_one_under_a_higher_generation() -> None:
    inventory = Inventory(IDENTITY)
    old = inventory.put(Held("a", 1, "old"))
    new = inventory.put(Held("a", 1, "new"))
    assert new.export_generation > old.export_generation
    inventory.remove(old)
    assert list(inventory) == [new]
    assert old not in inventory
    inventory.remove(new)
    assert len(inventory) == 0


def test_a_replica_that_comes_back_has_a_higher_generation_than_before() -> None:
    inventory = Inventory(IDENTITY)
    first = inventory.put(Held("a", 1, "k"))
    inventory.remove(first)
    assert inventory.put(Held("a", 1, "k")).export_generation > first.export_generation


def test_a_snapshot_tells_all_there_is_to_a_replica_and_when_it_was_taken() -> None:
    inventory = Inventory(IDENTITY)
    held = inventory.put(Held("a", 10, "key", 3, tier=GPU, device=2, view_id="v", available=False))
    inventory.put(Held("b", 1, "k"))
    before = time.time_ns()
    entries = inventory.snapshot()
    after = time.time_ns()
    assert len({entry.stats.registered_ts.ToNanoseconds() for entry in entries}) == 1
    assert before <= entries[0].stats.registered_ts.ToNanoseconds() <= after
    (entry,) = (entry for entry in entries if entry.ref.artifact_id == "a")
    info = entry.memory_info
    assert (info.node_id, info.node_address, info.node_port) == ("node-7", "10.20.0.7", 50052)
    assert (info.memory_type, info.device_id, info.memory_size) == (GPU, 2, 10)
    assert (info.byte_space.kind, info.byte_space.id) == (common.BYTE_SPACE_KIND_VIEW, "v")
    assert info.transport.export_generation == held.export_generation
    assert list(info.transport.remote_memory_keys) == ["key"]
    assert list(info.transport.buffer_sizes) == [10]
    assert (entry.stats.max_concurrency, entry.stats.is_available) == (3, False)
