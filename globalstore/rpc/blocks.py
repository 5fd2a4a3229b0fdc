"""Header blocks: decoding with a memo, encoding without a table (RFC 7541)."""

import base64
import re
from collections.abc import Callable, Iterable

from h2.errors import ErrorCodes
from hpack import Decoder, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from globalstore.rpc.frames import ConnectionFault
from globalstore.rpc.headers import Fields, RequestHead, valid_name
from globalstore.rpc.status import Metadata, percent_encode

_printable = re.compile(rb"[\x20-\x7e]*").fullmatch

# A client uses a handful of blocks again and again; blocks beyond these sizes are rare and
# would only keep memory.
MEMO_ENTRIES_MAX = 64
MEMO_BLOCK_BYTES_MAX = 1024
# What the remembered heads of one connection may take: a few bytes can stand for a long one.
MEMO_BYTES_MAX = 32 << 10


class _WatchedTable(HeaderTable):
    """A dynamic table that tells when what a block means may have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed

    def add(self, name: bytes, value: bytes) -> None:
        self._changed()
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return int(self._maxsize)

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self._changed()
        HeaderTable.maxsize.__set__(self, newmax)  # type: ignore[attr-defined]


class BlockDecoder:
    """Decodes header blocks; a block met before costs one dictionary lookup.

    The same bytes mean the same list only while the dynamic table stands still: the memo is
    emptied on every change of it, and a block that changed it is never remembered.
    """

    def __init__(self, list_bytes_fatal: int) -> None:
        self._decoder = Decoder(max_header_list_size=list_bytes_fatal)
        self._decoder.header_table = _WatchedTable(self._table_changed)
        self._memo: dict[bytes, RequestHead] = {}
        self._memo_bytes = 0
        self._changes = 0

    def _table_changed(self) -> None:
        self._changes += 1
        self._forget()

    def _forget(self) -> None:
        self._memo.clear()
        self._memo_bytes = 0

    def recall(self, block: bytes) -> RequestHead | None:
        """Return the head that these very bytes stand for now, if they are remembered."""
        return self._memo.get(block)

    def decode(self, block: bytes) -> tuple[Fields, bool]:
        """Decode ``block``; also tell whether its meaning may be remembered.

        Raises ConnectionFault: after a block that cannot be decoded both sides disagree on
        the table, and nothing later on the connection would be sound.
        """
        before = self._changes
        try:
            fields = [(bytes(name), bytes(value)) for name, value in self._decode(block)]
        except OversizedHeaderListError:
            raise ConnectionFault(
                ErrorCodes.ENHANCE_YOUR_CALM, "header list over the fatal size"
            ) from None
        except (HPACKError, IndexError, UnicodeDecodeError) as error:
            raise ConnectionFault(ErrorCodes.COMPRESSION_ERROR, f"header block: {error}") from None
        return fields, before == self._changes

    def _decode(self, block: bytes) -> Iterable[tuple[bytes, bytes]]:
        return self._decoder.decode(block, raw=True)

    def remember(self, block: bytes, head: RequestHead, head_bytes: int) -> bool:
        """Keep ``head`` for the next time these bytes come; only after a steady decode.

        ``head_bytes`` is the size of its header list. Returns whether it is short enough to be
        kept.
        """
        size = len(block) + head_bytes
        if len(block) > MEMO_BLOCK_BYTES_MAX or size > MEMO_BYTES_MAX // 2:
            return False
        if len(self._memo) >= MEMO_ENTRIES_MAX or self._memo_bytes + size > MEMO_BYTES_MAX:
            self._forget()
        self._memo[block] = head
        self._memo_bytes += size
        return True


def _length(size: int) -> bytes:
    """Return a string length in HPACK's 7-bit prefix form, not Huffman-coded."""
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(0x80 | size & 0x7F)
        size >>= 7
    out.append(size)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """Return a field as a literal without indexing, which means the same in every table state."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def metadata_block(metadata: Metadata) -> bytes:
    """Return custom metadata as literals; values of ``-bin`` names in base64.

    Raises ValueError for a name or value that a header may not hold.
    """
    out = bytearray()
    for name, value in metadata:
        key = name.encode("latin-1")
        if not valid_name(key) or (key[:5] == b"grpc-" and name != "grpc-accept-encoding"):
            raise ValueError(f"metadata name {name[:80]!r}: expected a lower-case token of yours")
        if name.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            out += literal(key, base64.b64encode(raw).rstrip(b"="))
        else:
            raw = value if isinstance(value, bytes) else value.encode("ascii")
            if not _printable(raw):
                raise ValueError(f"metadata {name[:80]!r}: expected printable ASCII or a -bin name")
            out += literal(key, raw)
    return bytes(out)


# Shrinks our encoder's table to nothing, once, in the first block of a connection. After it
# no block depends on any other, and no table size the client may set matters.
TABLE_SIZE_ZERO = b"\x20"
# ":status: 200" is entry 8 of the static table, "content-type" entry 31.
RESPONSE = b"\x88\x0f\x10" + _length(16) + b"application/grpc"
TRAILERS_OK = literal(b"grpc-status", b"0")


def trailers_block(code: int, message: str, metadata: Metadata) -> bytes:
    """Return the trailers that end a call."""
    block = literal(b"grpc-status", b"%d" % code)
    if message:
        block += literal(b"grpc-message", percent_encode(message))
    return block + metadata_block(metadata) if metadata else block


def http_status_block(status: int) -> bytes:
    """Return the answer to a request that is not gRPC; ``:status`` is name 8 of HPACK's table."""
    block = b"\x08" + _length(3) + b"%d" % status
    return block + literal(b"allow", b"POST") if status == 405 else block
