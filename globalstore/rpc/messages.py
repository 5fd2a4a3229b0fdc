"""gRPC messages in DATA frames: the five-byte prefix, and gzip with a bound."""

import zlib
from collections.abc import Iterator
from typing import Final

from purerpc import StatusCode

from globalstore.rpc.status import Abort

PREFIX_BYTES: Final = 5
# Larger messages are handed on as they were put together, for copying them takes long.
_COPIED_BYTES_MAX: Final = 32 << 10
# Inflating this much takes about half a millisecond, the longest the event loop may be held.
INFLATE_SLICE_BYTES: Final = 256 << 10
# The densest code takes this much as long again, since each block may bring tables of its own.
_DEFLATED_SLICE_BYTES: Final = 4 << 10
# gzip makes text of ids and paths ten to forty times smaller, zeros a thousand times.
RATIO_MAX: Final = 200
# Below this no ratio is worth a refusal.
RATIO_BYTES_MIN: Final = 4 << 20
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

    def feed(self, data: bytes) -> list[tuple[bytes | bytearray, bool]]:
        """Take the next payload; return the messages it completes with their compressed flags.

        Raises MessageFault; the reader is of no use afterwards.
        """
        buffer = self._buffer
        if not buffer and len(data) >= PREFIX_BYTES and data[0] == 0:
            size = int.from_bytes(data[1:5], "big")
            if len(data) == size + PREFIX_BYTES and size <= self._bytes_max:
                return [(data[5:], False)]
        buffer += data
        messages: list[tuple[bytes | bytearray, bool]] = []
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
            compressed = buffer[0] == 1
            if size > _COPIED_BYTES_MAX and len(buffer) == end:
                del buffer[:PREFIX_BYTES]
                messages.append((buffer, compressed))
                self._buffer = bytearray()
                break
            messages.append((bytes(memoryview(buffer)[PREFIX_BYTES:end]), compressed))
            del buffer[:end]
        return messages

    def finish(self) -> None:
        """Check that the request did not end within a message; raises MessageFault if it did."""
        if self._buffer:
            raise MessageFault(StatusCode.INVALID_ARGUMENT, "request ends within a message")


def inflate(payload: bytes | bytearray, bytes_max: int) -> Iterator[bytes]:
    """Decompress a gzip message in slices, each short enough for the event loop.

    ``bytes_max`` bounds the result. Raises Abort: RESOURCE_EXHAUSTED beyond that bound or that of
    the ratio, INVALID_ARGUMENT for what is not one gzip member.
    """
    stream = zlib.decompressobj(_GZIP_WINDOW)
    total = 0
    try:
        for at in range(0, len(payload), _DEFLATED_SLICE_BYTES):
            if stream.eof:
                raise Abort(StatusCode.INVALID_ARGUMENT, "message: bytes after its gzip member")
            pending = bytes(payload[at : at + _DEFLATED_SLICE_BYTES])
            while pending:
                piece = stream.decompress(pending, INFLATE_SLICE_BYTES)
                pending = stream.unconsumed_tail
                total += len(piece)
                if total > bytes_max:
                    raise Abort(
                        StatusCode.RESOURCE_EXHAUSTED,
                        f"message: expected at most {bytes_max} bytes after decompression",
                    )
                if total > max(RATIO_MAX * (at + _DEFLATED_SLICE_BYTES), RATIO_BYTES_MIN):
                    raise Abort(
                        StatusCode.RESOURCE_EXHAUSTED,
                        f"message: expected at most {RATIO_MAX} times its size after decompression",
                    )
                yield piece
    except zlib.error:
        raise Abort(StatusCode.INVALID_ARGUMENT, "message: expected gzip data") from None
    if not stream.eof:
        raise Abort(StatusCode.INVALID_ARGUMENT, "message: gzip data is cut short")
    if stream.unused_data:
        raise Abort(StatusCode.INVALID_ARGUMENT, "message: bytes after its gzip member")
