"""The health service: Check and Watch follow what the server says of itself."""

import purerpc
import pytest
import trio

from globalstore.api.standard.health import WATCHES_MAX, HealthService, ServingStatus
from globalstore.gen.grpc.health.v1.health_grpc import HealthStub
from globalstore.gen.grpc.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from .echo import dial, listening
from .wire import head, message

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


async def test_check_answers_for_names_it_knows_and_not_found_for_others():
    health = HealthService()
    health.set("", ServingStatus.SERVING)
    health.set("a.B", ServingStatus.NOT_SERVING)
    async with (
        listening(health.service) as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
    ):
        stub = HealthStub(channel)
        assert (await stub.Check(HealthCheckRequest())).status == SERVING
        assert (await stub.Check(HealthCheckRequest(service="a.B"))).status == NOT_SERVING
        with pytest.raises(purerpc.NotFoundError):
            await stub.Check(HealthCheckRequest(service="a.C"))


async def test_watch_sends_every_change_and_unknown_for_names_nobody_gave():
    health = HealthService()
    health.set("", ServingStatus.SERVING)
    async with (
        listening(health.service) as listener,
        purerpc.insecure_channel("127.0.0.1", listener.port) as channel,
    ):
        stub = HealthStub(channel)
        whole = stub.Watch(HealthCheckRequest())
        later = stub.Watch(HealthCheckRequest(service="later"))
        assert (await anext(whole)).status == SERVING
        assert (await anext(later)).status == UNKNOWN
        health.set("later", ServingStatus.SERVING)
        assert (await anext(later)).status == SERVING
        health.set_all(ServingStatus.NOT_SERVING)
        assert (await anext(whole)).status == NOT_SERVING
        assert (await anext(later)).status == NOT_SERVING


async def test_a_watch_does_not_hold_up_a_drain():
    health = HealthService()
    health.set("", ServingStatus.SERVING)
    async with listening(health.service) as listener, trio.open_nursery() as nursery:
        peer = await dial(listener)
        watch = peer.client.call(b"", head("/grpc.health.v1.Health/Watch"))
        await peer.flush()
        answer = peer.client.answers[watch]
        while not answer.data:
            await peer.read()
        assert answer.data == message(HealthCheckResponse(status=SERVING).SerializeToString())
        nursery.start_soon(listener.drain, 600)
        assert (await peer.answer(watch)).status == "14"
        await peer.stream.aclose()


async def test_a_connection_has_few_watches_and_another_one_has_its_own():
    health = HealthService()
    health.set("", ServingStatus.SERVING)
    async with listening(health.service) as listener:
        peer, other = await dial(listener), await dial(listener)

        async def watch(client) -> int:
            path = head("/grpc.health.v1.Health/Watch")
            stream = client.client.call(HealthCheckRequest().SerializeToString(), path)
            await client.flush()
            while (
                not client.client.answers[stream].data and not client.client.answers[stream].ended
            ):
                await client.read()
            return stream

        streams = [await watch(peer) for _ in range(WATCHES_MAX)]
        refused = peer.client.answers[await watch(peer)]
        assert refused.status == "8"
        assert refused.status_message == "this connection has 16 watches open already"
        assert not other.client.answers[await watch(other)].ended
        await peer.cancel(streams[0])
        while health._watches[peer_of(health)] == WATCHES_MAX:
            await trio.lowlevel.checkpoint()
        assert not peer.client.answers[await watch(peer)].ended


def peer_of(health: HealthService) -> str:
    """The client with most watches."""
    return health._watches.most_common(1)[0][0]
