"""Many calls of every kind, ended in every way at random: nothing may be left behind."""

import random

import trio

from globalstore.rpc import Limits, StatusCode

from .echo import Echo, Peer, Recorder, dial, listening, text
from .wire import message

SEED = 314159
CONNECTIONS = 6
STEPS = 150


async def client(listener, seed: int) -> None:
    """Open calls, send parts of them, reset some; leave politely or just hang up."""
    dice = random.Random(seed)
    peer = await dial(listener)
    # Late frames for streams the server has ended are ordinary; h2 need not forbid them here.
    open_streams: list[int] = []
    methods = ["Unary", "Count", "Collect", "Chat", "LateChat", "Hang", "Held", "Fail", "NoSuch"]
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            try:
                while await peer.read():
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(read)
        for _ in range(STEPS):
            open_streams = [s for s in open_streams if _is_open(peer, s)]
            action = dice.random()
            if action < 0.5 or not open_streams:
                timeout = ("grpc-timeout", f"{dice.randrange(1, 50)}m")
                extra = [timeout] if dice.random() < 0.5 else []
                open_streams.append(await peer.begin(dice.choice(methods), *extra))
            elif action < 0.85:
                stream_id = dice.choice(open_streams)
                data = message(text(str(dice.randrange(30))))
                end = dice.random() < 0.7
                peer.client.h2.send_data(stream_id, data[: dice.choice([3, 99])], end_stream=end)
                if end:
                    open_streams.remove(stream_id)
                await peer.flush()
            else:
                stream_id = dice.choice(open_streams)
                peer.client.h2.reset_stream(stream_id, 8)
                open_streams.remove(stream_id)
                await peer.flush()
            if dice.random() < 0.2:
                await trio.lowlevel.checkpoint()
        await peer.stream.aclose()
        nursery.cancel_scope.cancel()


def _is_open(peer: Peer, stream_id: int) -> bool:
    answer = peer.client.answers[stream_id]
    return not answer.ended and answer.reset is None


async def test_nothing_is_left_behind_by_a_storm_of_calls():
    print("seed", SEED)
    echo, seen = Echo(), Recorder()
    limits = Limits(goaway_seconds=0.05, flush_seconds=0.05)
    async with listening(echo.service, observers=[seen], limits=limits) as listener:
        async with trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                nursery.start_soon(client, listener, SEED + number)
        echo.release.set()
        while listener.statistics().connections or listener.statistics().calls_in_flight:
            await trio.lowlevel.checkpoint()
        statistics = listener.statistics()
        assert statistics.buffered_bytes == 0
        assert statistics.incomplete_message_bytes == 0
        assert len(seen.started_paths) == len(seen.ended) > CONNECTIONS * STEPS / 3
        codes = {code for _, code in seen.ended}
        assert {"OK", "CANCELLED", "INTERNAL", "UNIMPLEMENTED"} <= codes
        assert StatusCode.UNKNOWN.name not in codes
        peer = await dial(listener)
        assert (await peer.answer(await peer.call("Unary"))).status == "0"
