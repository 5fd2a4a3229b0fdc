"""Mutation fuzzing of the protocol engine of the gRPC listener.

    python fuzz/rpc_engine.py --seed 1 --iterations 100000

Valid conversations are mutated (bits flipped, frames cut, doubled, swapped, lengths and flags
forged) and given to an engine in random pieces, while it is also made to answer. It must
never raise, keep its memory within bounds, and write nothing that does not parse as frames.
A failure prints the seed of its round; ``--iterations 1`` with that seed repeats it.
"""

import argparse
import random
import time
from collections import Counter

import h2.config
import h2.connection
import h2.exceptions
from h2.settings import SettingCodes

import globalstore.rpc  # noqa: F401 - makes purerpc importable
from globalstore.rpc import Limits, frames
from globalstore.rpc.engine import Engine
from globalstore.rpc.events import (
    ConnectionFailed,
    MessageReceived,
    RequestEnded,
    RequestFaulted,
    RequestReceived,
)
from globalstore.rpc.ledger import Ledger

LIMITS = Limits(
    message_bytes_max=20_000,
    inbound_bytes_max=50_000,
    streams_max=20,
    control_frames_max=200,
    resets_max=50,
)
# More than the engine can hold for one connection under these limits: a read, a header block,
# the unfinished messages, and answers of at most 40 kB for each stream.
HELD_BYTES_MAX = 16_384 + 65_536 + 50_000 + 20 * 45_000


def conversation(dice: random.Random) -> list[bytes]:
    """Return the frames of a valid client, its preface first."""
    client = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, header_encoding=None)
    )
    if dice.random() < 0.3:
        client.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = dice.choice([0, 100, 1 << 20])
        client.local_settings.acknowledge()
    client.initiate_connection()
    open_streams = []
    for _ in range(dice.randrange(1, 12)):
        action = dice.random()
        if action < 0.5 or not open_streams:
            headers = [
                (b":method", b"GET" if dice.random() < 0.05 else b"POST"),
                (b":scheme", b"http"),
                (b":path", dice.choice([b"/a.B/C", b"/a.B/D", b"/x"])),
                (b":authority", b"h"),
                (b"te", b"trailers"),
                (b"content-type", b"text/html" if dice.random() < 0.05 else b"application/grpc"),
                (b"grpc-timeout", b"%dm" % dice.randrange(3)),
                (b"k%d-bin" % dice.randrange(3), b"AAE"),
            ]
            stream_id = client.get_next_available_stream_id()
            client.send_headers(stream_id, headers, end_stream=dice.random() < 0.1)
            open_streams.append(stream_id)
        elif action < 0.8:
            payload = dice.randbytes(dice.choice([0, 5, 50, 3000]))
            data = b"\0" + len(payload).to_bytes(4, "big") + payload
            _send(client, dice, open_streams, data)
        elif action < 0.85:
            client.ping(dice.randbytes(8))
        elif action < 0.9:
            client.increment_flow_control_window(dice.randrange(1, 1 << 20))
        else:
            client.update_settings(
                {SettingCodes.INITIAL_WINDOW_SIZE: dice.choice([0, 1, 65_535, 1 << 30])}
            )
    data = client.data_to_send()
    pieces = [data[: len(frames.PREFACE)]]
    data = data[len(frames.PREFACE) :]
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        pieces.append(data[:end])
        data = data[end:]
    return pieces


def _send(client: h2.connection.H2Connection, dice: random.Random, streams: list[int], data: bytes):
    stream_id = dice.choice(streams)
    try:
        client.send_data(stream_id, data, end_stream=dice.random() < 0.6)
    except h2.exceptions.ProtocolError:
        streams.remove(stream_id)


def mutate(dice: random.Random, pieces: list[bytes]) -> bytes:
    """Damage a conversation in a few places, sparing the preface most of the time."""
    first = 0 if dice.random() < 0.02 else 1
    for _ in range(dice.randrange(0, 6)):
        at = dice.randrange(first, len(pieces))
        piece = bytearray(pieces[at])
        kind = dice.randrange(9)
        if kind == 0 and piece:
            piece[dice.randrange(len(piece))] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del piece[dice.randrange(len(piece) + 1) :]
        elif kind == 2:
            pieces.insert(at, bytes(piece))
        elif kind == 3:
            other = dice.randrange(first, len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
            continue
        elif kind == 4 and len(piece) >= 9:
            piece[:3] = dice.randrange(1 << dice.choice([4, 14, 24])).to_bytes(3, "big")
        elif kind == 5 and len(piece) >= 9:
            piece[3] = dice.randrange(12)
        elif kind == 6 and len(piece) >= 9:
            piece[4] = dice.randrange(256)
        elif kind == 7 and len(piece) >= 9:
            piece[5:9] = dice.choice([0, 1, 2, 3, 5, 99, (1 << 31) + 1]).to_bytes(4, "big")
        else:
            pieces.insert(
                at,
                frames.frame(
                    dice.randrange(11),
                    dice.randrange(256),
                    dice.randrange(8),
                    dice.randbytes(dice.randrange(20)),
                ),
            )
        pieces[min(at, len(pieces) - 1)] = bytes(piece)
    return b"".join(pieces)


def check_output(data: bytes) -> None:
    """Check that the engine wrote whole frames of types a server sends."""
    while data:
        size = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + size, "half a frame was written"
        assert size <= frames.FRAME_BYTES_MAX, "a frame too large was written"
        assert data[3] in (0, 1, 3, 4, 6, 7, 8, 9), "a frame no server sends was written"
        data = data[9 + size :]


def play(seed: int) -> Counter[str]:
    """Play one round and return what events came, by name; raises AssertionError for a finding."""
    dice = random.Random(seed)
    ledger = Ledger(LIMITS)
    account = ledger.account("10.0.0.1")
    engine = Engine(LIMITS, account, 0.0)
    engine.start()
    seen: Counter[str] = Counter()
    data = mutate(dice, conversation(dice))
    now = 0.0
    while data:
        size = dice.choice([1, 10, 100, 4096, len(data)])
        events = engine.receive(data[:size], now)
        data = data[size:]
        now += dice.random()
        for event in events:
            seen[type(event).__name__] += 1
            _respond(dice, engine, event)
        held = (
            engine.ready_bytes + engine.queued_bytes + engine.buffered_bytes + ledger.arriving_bytes
        )
        assert held <= HELD_BYTES_MAX, f"{held} bytes are held"
        assert len(engine.streams) <= LIMITS.streams_max, "more streams than agreed"
        if dice.random() < 0.5:
            check_output(engine.take())
        if engine.failed:
            assert not events or isinstance(events[-1], ConnectionFailed)
            assert engine.receive(b"anything", now) == []
    check_output(engine.take())
    engine.fail(0, "")
    assert ledger.arriving_bytes == 0, "memory of unfinished messages was not given back"
    assert account.held_bytes == ledger.held_bytes == 0, "memory was not given back"
    assert engine.queued_bytes == 0, "queued bytes were not given back"
    return seen


def _respond(dice: random.Random, engine: Engine, event: object) -> None:
    """Do as a connection might, at once or never."""
    if isinstance(event, MessageReceived):
        if dice.random() < 0.7:
            engine.credit(event.stream_id, len(event.payload))
        if dice.random() < 0.3:
            engine.send_message(event.stream_id, dice.randbytes(dice.choice([0, 10, 20_000])))
    elif isinstance(event, RequestEnded):
        if dice.random() < 0.8:
            engine.send_unary(event.stream_id, dice.randbytes(dice.choice([0, 10, 20_000])))
    elif isinstance(event, RequestFaulted):
        engine.send_trailers(event.stream_id, event.code, event.message)
    elif isinstance(event, RequestReceived):
        if event.head.refusal is not None or dice.random() < 0.05:
            engine.send_trailers(event.stream_id, 3, "no")
        elif dice.random() < 0.05:
            engine.reset(event.stream_id, 8)


def main() -> None:
    """Run rounds from ``--seed`` on and print what they saw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of round one")
    parser.add_argument("--iterations", type=int, default=100_000, help="rounds to run")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.iterations} rounds")
    total: Counter[str] = Counter()
    for seed in range(arguments.seed, arguments.seed + arguments.iterations):
        try:
            total += play(seed)
        except BaseException:
            print(f"failed: --seed {seed} --iterations 1")
            raise
    for name, count in total.most_common():
        print(f"{count:10} {name}")


if __name__ == "__main__":
    main()
