"""Moves an artifact's bytes between daemons over TCP.

A requester sends the memory key and a line feed; the holder answers with the stream's length as 8
big-endian bytes, then the stream. An unknown key is answered by closing the connection.
"""

import hashlib
import struct
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import trio

from globalstore.rules import multihash

_KEY_BYTES_MAX = 256
_CHUNK_BYTES = 1 << 20

# A peer that sends nothing for this long is gone.
_IDLE_S = 30.0


class TransferFailed(Exception):
    """The bytes did not arrive, or are not those that were asked for."""


class BytesServer:
    """Serves what a daemon holds. ``streams`` maps a memory key to (size, chunks of the bytes)."""

    def __init__(self) -> None:
        self.streams: dict[str, tuple[int, Callable[[], Iterator[bytes]]]] = {}

    async def serve(
        self, host: str, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen on a free port of ``host``, which is the started value, until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host=host)
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._answer, listeners)

    async def _answer(self, peer: trio.SocketStream) -> None:
        async with peer:
            try:
                with trio.fail_after(_IDLE_S):
                    key = await _line(peer)
                held = self.streams.get(key)
                if held is None:
                    return
                size, chunks = held
                await peer.send_all(struct.pack(">Q", size))
                async with aclosing(_in_thread(chunks())) as stream:
                    async for chunk in stream:
                        with trio.fail_after(_IDLE_S):
                            await peer.send_all(chunk)
            except (trio.BrokenResourceError, trio.TooSlowError, OSError):
                # The requester notices by the missing bytes, and says so to the store.
                return


async def _line(peer: trio.SocketStream) -> str:
    received = b""
    while not received.endswith(b"\n"):
        data = await peer.receive_some(_KEY_BYTES_MAX)
        received += data
        if not data or len(received) > _KEY_BYTES_MAX:
            return ""
    return received[:-1].decode(errors="replace")


async def _in_thread(chunks: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    while chunk := await trio.to_thread.run_sync(next, chunks, b""):
        yield chunk


async def fetch(
    host: str,
    port: int,
    key: str,
    data_multihash: str,
    target: Path,
    on_bytes: Callable[[int], None],
) -> int:
    """Pull a stream into a file and return its size in bytes.

    ``on_bytes`` gets the size of each piece that arrived. Raises TransferFailed when the bytes end
    early or do not hash to ``data_multihash``; what was written of the file is then worthless.
    """
    digest = hashlib.sha256()
    try:
        with trio.fail_after(_IDLE_S):
            peer = await trio.open_tcp_stream(host, port)
        async with peer, await trio.open_file(target, "wb") as file:
            await peer.send_all(key.encode() + b"\n")
            head = b""
            while len(head) < 8:
                head += await _some(peer, 8 - len(head))
            (size,) = struct.unpack(">Q", head)
            left = size
            while left:
                chunk = await _some(peer, min(left, _CHUNK_BYTES))
                left -= len(chunk)
                digest.update(chunk)
                await file.write(chunk)
                on_bytes(len(chunk))
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
        raise TransferFailed(f"{host}:{port}: {error or type(error).__name__}") from error
    if multihash.encode(digest.digest()) != data_multihash:
        raise TransferFailed(f"{host}:{port}: the bytes do not match their digest")
    return int(size)


async def _some(peer: trio.SocketStream, size: int) -> bytes:
    with trio.fail_after(_IDLE_S):
        data = bytes(await peer.receive_some(size))
    if not data:
        raise TransferFailed("the holder closed the connection early")
    return data
