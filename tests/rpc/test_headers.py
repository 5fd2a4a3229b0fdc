"""Request heads: what is taken from them, what is refused, and when they are remembered."""

import random

import hpack
import pytest

from globalstore.rpc.blocks import (
    MEMO_BYTES_MAX,
    MEMO_ENTRIES_MAX,
    BlockDecoder,
    literal,
    metadata_block,
)
from globalstore.rpc.frames import ConnectionFault
from globalstore.rpc.headers import RequestHead, parse_head
from globalstore.rpc.status import percent_encode

BASE = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"store:50051"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def parse(*extra: tuple[bytes, bytes]) -> RequestHead:
    return parse_head([*BASE, *extra], 16384)


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        (b"5S", 5.0),
        (b"100m", 0.1),
        (b"7u", 7e-6),
        (b"9n", 9e-9),
        (b"2M", 120.0),
        (b"1H", 3600.0),
        (b"99999999H", 99999999 * 3600.0),
        (b"0S", 0.0),
    ],
)
def test_a_timeout_is_read_in_every_unit(raw, seconds):
    assert parse((b"grpc-timeout", raw)).timeout_seconds == pytest.approx(seconds)


@pytest.mark.parametrize("raw", [b"", b"5", b"S", b"-1S", b"123456789S", b"5s", b"5.5S", b" 5S"])
def test_a_timeout_of_another_form_is_refused_naming_it(raw):
    refusal = parse((b"grpc-timeout", raw)).refusal
    assert refusal.code.name == "INVALID_ARGUMENT"
    assert refusal.message.startswith("grpc-timeout: expected")


def test_metadata_is_what_the_client_added():
    head = parse(
        (b"user-agent", b"me"),
        (b"x-id", b"7"),
        (b"x-id", b"8"),
        (b"grpc-accept-encoding", b"gzip"),
        (b"raw-bin", b"AAE,/w=="),
    )
    assert head.user_agent == "me"
    assert head.authority == "store:50051"
    assert head.metadata == (
        ("user-agent", "me"),
        ("x-id", "7"),
        ("x-id", "8"),
        ("raw-bin", b"\x00\x01"),
        ("raw-bin", b"\xff"),
    )


def test_binary_metadata_that_is_not_base64_is_refused_naming_it():
    refusal = parse((b"x-bin", b"!!")).refusal
    assert refusal.code.name == "INVALID_ARGUMENT"
    assert refusal.message == "x-bin: expected base64"


def test_more_metadata_than_allowed_is_refused_on_its_call():
    refusal = parse((b"x", b"y" * 20_000)).refusal
    assert refusal.code.name == "RESOURCE_EXHAUSTED"
    assert "at most 16384 bytes" in refusal.message


def test_a_header_list_over_the_fatal_size_ends_the_connection():
    decoder = BlockDecoder(64 << 10)
    with pytest.raises(ConnectionFault, match="fatal size"):
        decoder.decode(literal(b"x", b"y" * (65 << 10)))


def test_a_remembered_block_is_forgotten_when_the_table_changes():
    decoder = BlockDecoder(1 << 16)
    block = b"\xbe"  # the newest entry of the dynamic table
    assert decoder.decode(b"\x40\x01a\x01b") == ([(b"a", b"b")], False)
    fields, steady = decoder.decode(block)
    assert (fields, steady) == ([(b"a", b"b")], True)
    decoder.remember(block, RequestHead(path="old"), 50)
    assert decoder.recall(block) is not None
    decoder.decode(b"\x40\x01c\x01d")
    assert decoder.recall(block) is None
    assert decoder.decode(block)[0] == [(b"c", b"d")]


def test_a_size_update_also_forgets():
    decoder = BlockDecoder(1 << 16)
    decoder.decode(b"\x40\x01a\x01b")
    decoder.remember(b"\xbe", RequestHead(path="old"), 50)
    decoder.decode(b"\x20")
    assert decoder.recall(b"\xbe") is None


def test_the_memo_is_bounded():
    decoder = BlockDecoder(1 << 16)
    for number in range(10 * MEMO_ENTRIES_MAX):
        decoder.remember(b"%d" % number, RequestHead(path="x"), 50)
    assert len(decoder._memo) <= MEMO_ENTRIES_MAX
    decoder.remember(b"x" * 5000, RequestHead(path="x"), 50)
    assert decoder.recall(b"x" * 5000) is None
    for number in range(10):
        assert decoder.remember(b"%d" % number, RequestHead(path="x"), 10_000)
    assert len(decoder._memo) <= MEMO_BYTES_MAX // 10_000
    assert not decoder.remember(b"large", RequestHead(path="x"), 30_000)  # one byte may name it


def test_decoding_with_a_memo_equals_decoding_without():
    seed = 20240611
    print("seed", seed)
    dice = random.Random(seed)
    encoder, plain = hpack.Encoder(), hpack.Decoder()
    decoder = BlockDecoder(1 << 16)
    memo: dict[bytes, list[tuple[bytes, bytes]]] = {}
    lists = [
        [(b"k%d" % dice.randrange(4), b"v%d" % dice.randrange(3)) for _ in range(3)]
        for _ in range(10)
    ]
    hits = 0
    for _ in range(3000):
        if dice.random() < 0.003:
            encoder.header_table_size = dice.choice([0, 120, 4096, 4096])
        block = encoder.encode(dice.choice(lists), huffman=dice.random() < 0.5)
        expected = [(bytes(n), bytes(v)) for n, v in plain.decode(block, raw=True)]
        known = decoder.recall(block)
        if known is not None:
            hits += 1
            assert memo[block] == expected
            continue
        got, steady = decoder.decode(block)
        assert got == expected
        if steady:
            decoder.remember(block, RequestHead(path="x"), 50)
            memo[block] = got
    assert hits > 100


@pytest.mark.parametrize(
    "metadata",
    [
        (("Upper", "x"),),
        (("spaced name", "x"),),
        (("", "x"),),
        ((":status", "x"),),
        (("grpc-status", "0"),),
        (("x", "a\nb"),),
        (("x", "ü"),),
        (("ü", "x"),),
        (("x", b"\x00"),),
    ],
)
def test_metadata_that_no_header_may_hold_is_never_encoded(metadata):
    with pytest.raises(ValueError, match=r"metadata|ascii|latin"):
        metadata_block(metadata)


def test_a_status_text_is_percent_encoded():
    assert percent_encode("plain text, 100%") == b"plain text, 100%25"
    assert percent_encode("ok") == b"ok"
    assert percent_encode("a\nb") == b"a%0Ab"
    assert percent_encode("é") == b"%C3%A9"
    assert percent_encode("\ud800") == b"?"
