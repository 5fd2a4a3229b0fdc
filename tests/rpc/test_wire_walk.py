"""Serialized messages cut into pieces: the same message comes of them, whatever is in it."""

import random

import pytest
from google.protobuf.message import DecodeError

from globalstore.gen.tensorcast.global_store.v1 import global_store_pb2 as wire
from globalstore.rpc.wire_walk import PIECE_BYTES, Repeated, Shape, TooMany, Unparsable, merge

INVENTORY = "tensorcast.global_store.v1.ReconcileWorkerStateRequest.inventory"
INDICES = "tensorcast.global_store.v1.QueryChunkLocationsRequest.chunk_indices"


def put_together(kind: type, data: bytes, **entries_max: int) -> object:
    message = kind()
    _fill(message, Shape(kind.DESCRIPTOR, entries_max), memoryview(data))
    return message


def _fill(message: object, shape: Shape, data: memoryview) -> None:
    for piece in shape.pieces(data):
        if piece.field is None:
            assert piece.end - piece.start <= 2 * PIECE_BYTES or piece.end - piece.start == len(
                data
            )
            message.MergeFromString(bytes(data[piece.start : piece.end]))
        else:
            inner = merge(message, piece.field)
            _fill(inner, shape.inner(piece.field), data[piece.start : piece.end])


def inventory(count: int) -> wire.ReconcileWorkerStateRequest:
    message = wire.ReconcileWorkerStateRequest(worker_id="w1")
    for number in range(count):
        entry = message.inventory.add()
        entry.ref.artifact_id = f"artifact-{number}"
        entry.memory_info.remote_memory_keys.append("key")
    return message


@pytest.mark.parametrize("count", [0, 1, 100, 3000])
def test_the_pieces_make_the_same_message(count):
    message = inventory(count)
    assert put_together(type(message), message.SerializeToString()) == message


def test_a_large_message_within_is_cut_too():
    message = wire.BeginOrJoinGroupRealizationRequest()
    names = message.version.explicit_selection.tensor_names
    names.extend(f"model.layers.{number}.weight" for number in range(5000))
    data = message.SerializeToString()
    shape = Shape(message.DESCRIPTOR, {})
    assert [piece.field.name for piece in shape.pieces(memoryview(data)) if piece.field] == [
        "version"
    ]
    assert put_together(type(message), data) == message


def test_the_entries_before_a_piece_are_known():
    data = inventory(3000).SerializeToString()
    pieces = list(Shape(wire.ReconcileWorkerStateRequest.DESCRIPTOR, {}).pieces(memoryview(data)))
    assert len(pieces) > 3
    before = 0
    for piece in pieces:
        assert piece.before.get("inventory", 0) == before
        part = wire.ReconcileWorkerStateRequest.FromString(data[piece.start : piece.end])
        before += len(part.inventory)
    assert before == 3000


def test_more_entries_than_may_be_are_refused_before_they_are_parsed():
    kind = wire.ReconcileWorkerStateRequest
    number = kind.DESCRIPTOR.fields_by_name["inventory"].number
    empty = bytes((number << 3 | 2, 0)) * 200_000
    pieces = Shape(kind.DESCRIPTOR, {INVENTORY: 1000}).pieces(memoryview(empty))
    with pytest.raises(TooMany, match="inventory has 1001 entries, expected at most 1000"):
        list(pieces)
    whole = Shape(kind.DESCRIPTOR, {INVENTORY: 200_000}).pieces(memoryview(empty))
    assert max(piece.end - piece.start for piece in whole) <= PIECE_BYTES


@pytest.mark.parametrize("packed", [True, False])
def test_packed_numbers_are_counted_one_by_one(packed):
    kind = wire.QueryChunkLocationsRequest
    message = kind(chunk_indices=range(1000))
    data = message.SerializeToString()
    if not packed:
        number = kind.DESCRIPTOR.fields_by_name["chunk_indices"].number
        data = b"".join(bytes((number << 3, index & 127)) for index in range(1000))
    list(Shape(kind.DESCRIPTOR, {INDICES: 1000}).pieces(memoryview(data)))
    with pytest.raises(TooMany, match="chunk_indices has 1000 entries"):
        list(Shape(kind.DESCRIPTOR, {INDICES: 999}).pieces(memoryview(data)))


def test_a_message_within_that_is_there_twice_is_refused():
    one = wire.RegisterReplicaRequest()
    one.mem_info.remote_memory_keys.append("key")
    data = one.SerializeToString()
    with pytest.raises(Repeated, match="mem_info is there several times, expected once"):
        list(Shape(one.DESCRIPTOR, {}).pieces(memoryview(data * 2)))


def test_whatever_comes_the_pieces_make_what_the_whole_makes_or_both_refuse():
    seed = 5
    print("seed", seed)
    dice = random.Random(seed)
    kind = wire.ReconcileWorkerStateRequest
    sound, agreed = inventory(700).SerializeToString(), 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(dice.choice([0, 1, 1, 3])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.2:
            del data[dice.randrange(len(data)) :]
        try:
            whole = kind.FromString(bytes(data))
        except DecodeError:
            whole = None
        try:
            parts = put_together(kind, bytes(data))
        except (Unparsable, DecodeError):
            parts = None
        except Repeated:  # a message twice, which the whole merges
            continue
        if parts is not None:
            assert parts == whole
            agreed += 1
        else:
            assert whole is None or any(tag & 7 in (3, 4) for tag in data)
    assert agreed > 50
