"""Messages in DATA frames, compression, and the memory that unfinished ones share."""

import gzip
import random
import zlib

import pytest
from purerpc import StatusCode

from globalstore.rpc.events import MessageReceived, RequestFaulted
from globalstore.rpc.ledger import Ledger
from globalstore.rpc.limits import Limits
from globalstore.rpc.messages import MessageFault, MessageReader, inflate
from globalstore.rpc.status import Abort

from .wire import Pair, head, message


def test_messages_come_whole_however_their_bytes_are_cut():
    seed = 7
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(200):
        sent = [(dice.randbytes(dice.randrange(40)), dice.random() < 0.3) for _ in range(8)]
        data = b"".join(message(payload, compressed=c) for payload, c in sent)
        reader, got = MessageReader(100), []
        while data:
            size = dice.randrange(1, 60)
            got += reader.feed(data[:size])
            data = data[size:]
        reader.finish()
        assert got == sent


def test_a_prefix_with_an_unknown_flag_is_refused():
    with pytest.raises(MessageFault, match="compressed flag of 0 or 1, got 2"):
        MessageReader(100).feed(b"\x02\x00\x00\x00\x00")


def test_nothing_is_set_aside_for_a_length_that_is_only_claimed():
    reader = MessageReader(1 << 30)
    reader.feed(b"\x00\x3f\xff\xff\xff" + b"x" * 10)
    assert reader.incomplete_bytes == 15


def test_gzip_is_undone_in_slices():
    data = bytes(range(256)) * 8000
    pieces = list(inflate(gzip.compress(data), len(data)))
    assert b"".join(pieces) == data
    assert len(pieces) > 4


@pytest.mark.parametrize(
    "rest",
    [gzip.compress(b"b"), gzip.compress(b""), b"\0", b"x" * 10_000],
    ids=["a member", "an empty one", "a byte", "many"],
)
def test_a_message_is_one_gzip_member_and_nothing_else(rest):
    with pytest.raises(Abort) as refused:
        list(inflate(gzip.compress(b"a") + rest, 10))
    assert refused.value.status.message == "message: bytes after its gzip member"


def test_a_small_body_that_becomes_a_large_one_is_refused_by_its_ratio():
    bomb = gzip.compress(b"\0" * 50_000_000)
    pieces: list[bytes] = []
    with pytest.raises(Abort, match="at most 200 times") as refused:
        pieces.extend(inflate(bomb, 64 << 20))
    assert sum(map(len, pieces)) <= 5 << 20
    assert refused.value.status.code is StatusCode.RESOURCE_EXHAUSTED


def test_a_compressed_bomb_is_refused_without_being_inflated():
    bomb = gzip.compress(b"\0" * 50_000_000)
    pieces = []
    with pytest.raises(Abort) as refused:
        pieces.extend(inflate(bomb, 1_000_000))
    assert refused.value.status.code.name == "RESOURCE_EXHAUSTED"
    assert sum(map(len, pieces)) <= 1_000_000


@pytest.mark.parametrize(
    "data",
    [b"", b"x", gzip.compress(b"abc")[:-4], zlib.compress(b"abc")],
    ids=["empty", "junk", "cut", "zlib"],
)
def test_what_is_no_gzip_is_refused(data):
    with pytest.raises(Abort) as refused:
        list(inflate(data, 1000))
    assert refused.value.status.code.name == "INVALID_ARGUMENT"


def test_a_compressed_message_without_a_named_encoding_is_refused():
    pair = Pair()
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, message(b"x", compressed=True))
    assert "names no grpc-encoding" in pair.pump()[-1].message


def test_a_compressed_message_with_gzip_named_is_delivered():
    pair = Pair()
    stream_id = pair.client.start(head("/a/b", ("grpc-encoding", "gzip")))
    pair.client.h2.send_data(stream_id, message(b"x", compressed=True))
    assert pair.pump()[-1] == MessageReceived(stream_id, b"x", True)


def begin(pair: Pair, size: int) -> int:
    stream_id = pair.client.start()
    pair.client.h2.send_data(stream_id, message(b"x" * 100_000)[:size])
    pair.pump()
    return stream_id


def test_beyond_the_shared_memory_the_largest_unfinished_message_is_refused():
    limits = Limits(inbound_bytes_max=30_000)
    ledger = Ledger(limits)
    small, large, last = (Pair(limits, ledger=ledger) for _ in range(3))
    interrupted = []
    large.engine.interrupt = lambda: interrupted.append(True)
    begin(small, 5_000)
    large_id = begin(large, 15_000)
    begin(last, 9_000)
    assert ledger.arriving_bytes == 29_000
    begin(last, 4_000)
    assert interrupted
    (event,) = large.engine.events()
    assert event.stream_id == large_id
    assert isinstance(event, RequestFaulted)
    assert ledger.arriving_bytes == 18_000


def test_memory_is_given_back_when_streams_end_in_any_way():
    pair = Pair()
    finished = begin(pair, 5_000)
    pair.client.h2.send_data(finished, message(b"x" * 100_000)[5_000:15_000])
    reset = begin(pair, 5_000)
    pair.client.h2.reset_stream(reset)
    answered = begin(pair, 5_000)
    pair.pump()
    assert pair.ledger.arriving_bytes == 20_000
    pair.engine.reset(answered, 8)
    pair.engine.fail(0, "")
    assert pair.ledger.arriving_bytes == 0
