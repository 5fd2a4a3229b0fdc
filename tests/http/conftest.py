"""A served HTTP app and a client that speaks bytes."""

import contextlib
import json

import attrs
import pytest
import trio

from globalstore.http import HealthState, HttpApp, serve_http
from globalstore.rpc.sockets import listening_sockets
from globalstore.telemetry.metrics import Metrics


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    reason: str

    @property
    def json(self):
        return json.loads(self.body)


@attrs.define
class Site:
    """The server's side of a test, and the means to ask it."""

    metrics: Metrics = attrs.Factory(Metrics)
    state: HealthState = attrs.Factory(HealthState)
    port: int = 0

    async def start(self, nursery):
        [sock] = await listening_sockets("127.0.0.1", 0, reuse_port=False)
        self.port = sock.getsockname()[1]
        app = HttpApp(self.metrics.registry, self.state)
        await nursery.start(serve_http, app, [sock])
        return self

    async def connect(self):
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, path, method="GET", **headers):
        """Ask as a client does; underscores in the names of headers are hyphens."""
        more = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
        async with await self.connect() as stream:
            await stream.send_all(
                f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n".encode()
            )
            return parse(await read_to_end(stream))


async def read_to_end(stream):
    """All bytes until the other side closes, however it does that."""
    received = bytearray()
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(1 << 16):
            received += data
    return bytes(received)


def parse(raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    _, code, reason = status.split(" ", 2)
    return Answer(int(code), headers, body, reason)


@pytest.fixture
def site():
    return Site()
