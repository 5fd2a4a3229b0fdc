"""gRPC messages in DATA frames: the five-byte prefix, and gzip with a bound."""

import zlib
from collections.abc import Iterator
from typing import Final

from purerpc import StatusCode

from globalstore.rpc.status import Abort

PREFIX_BYTES: Final = 5
# Inflating this much takes about half a millisecond, the longest the event loop may be held.
INFLATE_SLICE_BYTES: Final = 256 << 10
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class MessageFault(Exception):
    """The request's bytes are not messages we take; its call ends with this status."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class MessageReader:
    """Puts the messages of one request together from the payloads of its DATA frames."""

    __slots__ = ("_buffer", "_bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._buffer = bytearray()

    @property
    def incomplete_bytes(self) -> int:
        """Bytes kept of a message that has begun and not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take the next payload; return the messages it completes with their compressed flags.

        Raises MessageFault; the reader is of no use afterwards.
        """
        buffer = self._buffer
        if not buffer and len(data) >= PREFIX_BYTES and data[0] == 0:
            size = int.from_bytes(data[1:5], "big")
            if len(data) == size + PREFIX_BYTES and size <= self._bytes_max:
                return [(data[5:], False)]
        buffer += data
        messages: list[tuple[bytes, bool]] = []
        while len(buffer) >= PREFIX_BYTES:
            size = int.from_bytes(buffer[1:5], "big")
            if buffer[0] > 1:
                raise MessageFault(
                    StatusCode.INVALID_ARGUMENT,
                    f"message prefix: expected a compressed flag of 0 or 1, got {buffer[0]}",
                )
            if size > self._bytes_max:
                raise MessageFault(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"message: expected at most {self._bytes_max} bytes, got {size}",
                )
            end = PREFIX_BYTES + size
            if len(buffer) < end:
                break
            messages.append((bytes(memoryview(buffer)[PREFIX_BYTES:end]), buffer[0] == 1))
            del buffer[:end]
        return messages

    def finish(self) -> None:
        """Check that the request did not end within a message; raises MessageFault if it did."""
        if self._buffer:
            raise MessageFault(StatusCode.INVALID_ARGUMENT, "request ends within a message")


def inflate(payload: bytes, bytes_max: int) -> Iterator[bytes]:
    """Decompress a gzip message in slices, each short enough for the event loop.

    ``bytes_max`` bounds the result. Raises Abort: RESOURCE_EXHAUSTED beyond the bound,
    INVALID_ARGUMENT if the bytes are no gzip stream.
    """
    total = 0
    stream = zlib.decompressobj(_GZIP_WINDOW)
    pending = payload
    try:
        while True:
            piece = stream.decompress(pending, INFLATE_SLICE_BYTES)
            total += len(piece)
            if total > bytes_max:
                raise Abort(
                    StatusCode.RESOURCE_EXHAUSTED,
                    f"message: expected at most {bytes_max} bytes after decompression",
                )
            yield piece
            pending = stream.unconsumed_tail
            if stream.eof and not stream.unused_data:
                return
            if stream.eof:  # gzip allows several members one after another
                pending = stream.unused_data
                stream = zlib.decompressobj(_GZIP_WINDOW)
            elif not pending and not piece:
                raise Abort(StatusCode.INVALID_ARGUMENT, "message: gzip data is cut short")
    except zlib.error:
        raise Abort(StatusCode.INVALID_ARGUMENT, "message: expected gzip data") from None
